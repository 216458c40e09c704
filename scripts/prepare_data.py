"""Make a stack's text and tokens before `pulumi up`, so that its first step does not wait for them.

Without this command, the master does the same when the run starts. `make train` calls it. For a stack on Google Cloud
it writes the default text and fetches what the machines cannot, as they have no internet: GPT-2's vocabulary, and
Docker where machines.imageFamily needs it.
"""

import argparse
import hashlib
from collections.abc import Callable
from pathlib import Path

from examples import data as examples
from infra.inputs import docker
from infra.inputs.data_lock import lock_path
from infra.inputs.google import VOCABULARY
from infra.job import job_spec
from infra.stack import config
from scripts import default_corpus
from scripts.support.common import UserError, load_stack, progress_bar, run_main
from trainer.contract.errors import InputError
from trainer.contract.spec import JobSpec
from trainer.data.pairs import PARTS
from trainer.data.prepare import check_enough, prepare
from trainer.data.prepared import Prepared, find_prepared
from trainer.data.tokenizer import GPT2_FILES, GPT2_HUB, gpt2
from trainer.storage.base import ByteProgress, explain, new_file
from trainer.storage.factory import open_storage


def _steps(advance: ByteProgress) -> Callable[[int, int], None]:
    """Return a progress function that takes totals, for one that takes differences."""
    before = 0

    def update(done: int, _total: int) -> None:
        nonlocal before
        advance(done - before)
        before = done

    return update


def declared(stack: config.StackConfig) -> JobSpec:
    """Return the run that a stack declares. Raise UserError with all problems, one per line."""
    try:
        return job_spec(stack)
    except config.ConfigError as error:
        raise UserError(str(error)) from None


def prepare_here(stack: config.StackConfig) -> None:
    """Put text and tokens into the bucket of a stack on this machine."""
    job = declared(stack)
    storage = open_storage(stack.bucket)
    prepared = find_prepared(storage, job.data, job.fingerprint)
    if prepared is None:
        storage.upload(stack.text, job.data.path)
        with progress_bar(f"tokenizing {stack.text.name}", stack.text.stat().st_size) as advance:
            prepared = prepare(storage, job.data, job.fingerprint, _steps(advance))
    check_enough(prepared, job.hyperparameters.sequence_length, job.hyperparameters.batch_size)
    train, held_out = prepared.manifest.train, prepared.manifest.validation
    if prepared.manifest.test is not None:
        print(f"data: {stack.text.name}, {pairs_in_words(prepared, job.hyperparameters.sequence_length)}")
        return
    print(
        f"data: {stack.text.name}, {train.tokens:,} tokens to train on and {held_out.tokens:,} held out, vocabulary"
        f" {prepared.manifest.vocabulary_size:,}, unigram entropy {held_out.unigram_entropy:.2f} nats a token"
    )


def pairs_in_words(prepared: Prepared, sequence_length: int) -> str:
    """Return as text how many pairs there are, and what was cut off or left out."""
    manifest, counts = prepared.manifest, {part: len(prepared.examples(part)) for part in PARTS}
    held_out = manifest.validation
    truncated = sum(prepared.truncated(part, sequence_length) for part in PARTS)
    phrases = [
        f"{counts['train']:,} pairs to train on, {counts['validation']:,} held out, {counts['test']:,} to test on",
        f"vocabulary {manifest.vocabulary_size:,}",
        f"unigram entropy of the completions {held_out.unigram_entropy:.2f} nats a token",
        f"{truncated:,} prompts cut at their beginning to fit sequenceLength {sequence_length}" if truncated else "",
        f"{manifest.skipped:,} bad lines left out" if manifest.skipped else "",
    ]
    return ", ".join(phrase for phrase in phrases if phrase)


def prepare_for_google(stack: config.StackConfig) -> None:
    """Fetch GPT-2's vocabulary if the run needs it and the stack file names no folder with it, and Docker if need be.

    `pulumi up` puts both into the bucket.
    """
    if docker.needs_archive(stack):
        fetch_docker(docker.archive_file(stack))
    data = stack.file.data
    if data.tokenizer == "gpt2" and data.vocabulary_path is None:
        fetch_vocabulary(stack.root / VOCABULARY)
    declared(stack)
    print("data: the rest is done by `pulumi up`, which uploads the text, and by the run's master, which makes tokens")


def fetch_docker(target: Path) -> None:
    """Fetch Docker's static build and check it. Raise UserError or InputError if it is not available, or another."""
    if target.is_file() and docker.is_intact(target):
        print(f"{target} is there: kept")
        return
    import requests  # 0.1 s of imports that only Docker's archive needs

    fix = f"check the network, or get the file elsewhere and put it at {target}"
    digest = hashlib.sha256()
    try:
        with requests.get(docker.ADDRESS, stream=True, timeout=60) as answer:
            answer.raise_for_status()
            size = int(answer.headers.get("Content-Length", 0))
            with new_file(target) as file, progress_bar(f"fetching {target.name}", size) as progress:
                for chunk in answer.iter_content(2**20):
                    file.write(chunk)
                    digest.update(chunk)
                    progress(len(chunk))
                if digest.hexdigest() != docker.SHA256:
                    raise UserError(
                        f"{docker.ADDRESS} has the sha256 {digest.hexdigest()}, and {docker.SHA256} is expected; do not"
                        " use it: the project pins another file"
                    )
    except requests.RequestException as error:
        why = (str(error).splitlines() or [type(error).__name__])[0][:100]
        raise UserError(f"{docker.ADDRESS} cannot be fetched ({why}): {fix}") from None
    except OSError as error:
        raise explain(error, f"write {target}") from None
    print(f"{target} written: Docker for the machines, whose image may have none")


def fetch_vocabulary(folder: Path) -> None:
    """Fetch GPT-2's two vocabulary files from the hub and check them. Raise InputError if they are not available."""
    if all((folder / name).is_file() for name in GPT2_FILES[0]):
        gpt2(str(folder))
        print(f"{folder} has GPT-2's vocabulary: kept")
        return
    from huggingface_hub import hf_hub_download  # 0.04 s of imports that only GPT-2's vocabulary needs

    if not _in_cache():
        ask_hub()
    gpt2(None)  # fetches them into the hub's cache
    for name in GPT2_FILES[0]:
        try:
            content = Path(hf_hub_download(GPT2_HUB, name, local_files_only=True)).read_bytes()
            with new_file(folder / name) as file:
                file.write(content)
        except OSError as error:
            raise explain(error, f"write {folder / name}") from None
    print(f"{folder} written: GPT-2's vocabulary from {GPT2_HUB}")


def _in_cache() -> bool:
    """Return whether the hub's cache on this machine has GPT-2's vocabulary."""
    from huggingface_hub import hf_hub_download  # as in fetch_vocabulary()

    try:
        return all(hf_hub_download(GPT2_HUB, name, local_files_only=True) for name in GPT2_FILES[0])
    except Exception:  # of many types
        return False


def ask_hub() -> None:
    """Ask the hub once for anything, because its library retries for half a minute.

    Raise InputError if it does not answer.
    """
    from huggingface_hub import constants, get_session  # as in fetch_vocabulary()

    try:
        get_session().head(constants.ENDPOINT, timeout=constants.HF_HUB_ETAG_TIMEOUT)
    except Exception as error:  # the type depends on the version of the hub's library
        why = (str(error).splitlines() or [type(error).__name__])[0][:100]
        raise InputError(
            f"data.tokenizer gpt2: the hub cannot give its vocabulary ({why}): check the network, or set"
            " data.vocabularyPath to a folder with vocab.json and merges.txt"
        ) from None


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m scripts.prepare_data", description=__doc__)
    parser.add_argument("--stack", default="local", help="the stack whose data to prepare (default: %(default)s)")
    stack = load_stack(parser.parse_args(arguments).stack)
    if not stack.text.exists() and not lock_path(stack.text).exists():
        # With a lock file, the text is in the bucket. A text of this machine's Python might differ from it.
        if stack.text == stack.root / default_corpus.DEFAULT:
            default_corpus.ensure(stack.text)
        for name in examples.EXAMPLES:
            if stack.text == stack.root / examples.default_path(name):
                examples.ensure(name, stack.text)
    if stack.google:
        prepare_for_google(stack)
    else:
        prepare_here(stack)
    return 0


if __name__ == "__main__":
    run_main(main)
