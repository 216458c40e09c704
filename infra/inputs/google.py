"""What a run on Google Cloud starts from: the text, the vocabulary, a checkpoint. Machines have no internet by default.

Pure but for reading files of this machine, so that a preview needs no credentials.
"""

from pathlib import Path
from typing import Any

from infra.fleet.fleet import Fleet
from infra.inputs import checkpoint
from infra.inputs.data_lock import lock_path, read_lock
from infra.inputs.placed import Placed
from infra.inputs.text import text_problems
from infra.stack.config import StackConfig
from infra.stack.keys import data_format
from trainer.contract import identity, paths

LARGEST_OBJECT = 64 * 2**20  # bytes: a preview hashes and copies what is declared as an object
VOCABULARY = Path("data/gpt2-vocabulary")  # where scripts.prepare_data puts GPT-2's
VOCABULARY_FILES = ("vocab.json", "merges.txt")


def input_problems(config: StackConfig) -> list[str]:
    """What is missing or cannot be reached by the machines, one line each, without the project's name."""
    problems = []
    named, nat = config.file.data.path, config.file.network.nat
    if "://" in named:
        problems.append(
            f"data.path: {named} is an address; run `python -m scripts.upload_data {named}`, which notes its size and"
            " hash in a lock file, and give the path that it prints"
        )
    elif (lock := read_lock(config.text, named, config.stack)) is not None:
        # Its size alone: to hash a large text at each preview would take longer than the rest.
        if config.text.is_file() and config.text.stat().st_size != lock.size:
            problems.append(
                f"data.path: {named} has {config.text.stat().st_size:,} bytes and {lock_path(config.text).name} says"
                f" {lock.size:,}; run `python -m scripts.upload_data {named} --stack {config.stack}` again"
            )
    else:
        problems += text_problems(config)
        if not problems and config.text.stat().st_size > LARGEST_OBJECT:
            problems.append(
                f"data.path: {named} has {config.text.stat().st_size / 2**20:,.0f} MiB, above"
                f" {LARGEST_OBJECT // 2**20} MiB it is not part of the stack; run `python -m scripts.upload_data"
                f" {named} --stack {config.stack}` and commit {lock_path(config.text).name}"
            )
    data = config.file.data
    if data.tokenizer == "gpt2" and vocabulary_folder(config) is None and not nat:
        if data.vocabulary_path is None:
            problems.append(
                f"data.tokenizer: gpt2 needs its vocabulary, which machines without internet cannot fetch; run"
                f" `python -m scripts.prepare_data --stack {config.stack}`, or set network.nat: true"
            )
        else:
            problems.append(
                f"data.vocabularyPath: there is no folder {data.vocabulary_path} with {' and '.join(VOCABULARY_FILES)}"
            )
    problems += checkpoint.problems(config)
    return problems


def vocabulary_folder(config: StackConfig) -> Path | None:
    """The folder on this machine with GPT-2's vocabulary, if the run needs it and it is there."""
    if config.file.data.tokenizer != "gpt2":
        return None
    folder = config.root / Path(config.file.data.vocabulary_path or VOCABULARY).expanduser()
    return folder if all((folder / name).is_file() for name in VOCABULARY_FILES) else None


def place(config: StackConfig, fleet: Fleet) -> Placed:
    """Where the machines find what a run starts from, after input_problems() found nothing."""
    lock = read_lock(config.text)
    fingerprint = lock.fingerprint if lock else identity.fingerprint(config.text)
    path = lock.url if lock else f"{config.data_bucket}/{text_object(config, fingerprint)}"
    data: dict[str, Any] = {"path": path, "format": data_format(config.file.data)}
    if vocabulary_folder(config) is not None:
        data["vocabulary_path"] = f"{config.data_bucket}/{paths.VOCABULARY}"
    where = content = None
    if (found := checkpoint.locate(config)) is not None:
        where, content = found.where, found.content
        if config.file.data.tokenizer == "checkpoint":
            data["vocabulary_path"] = where
    trainers, processes = [machines.machine for machines in fleet.trainer_roles], fleet.processes_per_trainer
    # Hyperthreads do not help matrix products: one thread for each core. All trainers of a run compute alike.
    cluster: dict[str, Any] = {"threads": max(1, min(machine.vcpus for machine in trainers) // 2 // processes)}
    if processes > 1:
        cluster["processes"] = processes
    if fleet.servers is not None:  # the cost model alone asks how fast the network is
        known = [machine.gbps for machine in trainers if machine.gbps is not None]
        if len(known) == len(trainers):
            cluster["trainer_gbps"] = min(known)
        if (gbps := fleet.servers.machine.gbps) is not None:
            cluster["server_gbps"] = gbps
    return Placed(fingerprint, data, where, content, cluster)


def text_object(config: StackConfig, fingerprint: str) -> str:
    """The text's path in the data bucket."""
    return paths.text(fingerprint, config.text.name)
