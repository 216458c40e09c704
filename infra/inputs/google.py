"""Check the inputs of a run on Google Cloud, whose machines have no internet unless the stack gives them a way out.

Nothing here needs the network or a login: a preview reads files of this machine alone.
"""

from pathlib import Path

from infra.inputs import text
from infra.inputs.data_lock import DataLock, lock_path
from infra.stack.config import StackConfig

LARGEST_OBJECT = 64 * 2**20  # bytes: a preview hashes and copies every file that is declared as an object
VOCABULARY = Path("data/gpt2-vocabulary")  # the folder into which scripts.prepare_data writes GPT-2's vocabulary
VOCABULARY_FILES = ("vocab.json", "merges.txt")


def text_problems(config: StackConfig, lock: DataLock | None) -> list[str]:
    """Return what is wrong with the text or its lock file, one line each, without the project's name."""
    named, problems = config.file.data.path, []
    if "://" in named:
        problems.append(
            f"data.path: {named} is an address; run `python -m scripts.upload_data {named}`, which notes its size and"
            " hash in a lock file, and give the path that it prints"
        )
    elif lock is not None:
        # Compare sizes alone: to hash a large text at each preview would take longer than everything else.
        if config.text.is_file() and config.text.stat().st_size != lock.size:
            problems.append(
                f"data.path: {named} has {config.text.stat().st_size:,} bytes and {lock_path(config.text).name} says"
                f" {lock.size:,}; run `python -m scripts.upload_data {named} --stack {config.stack}` again"
            )
    else:
        problems += text.text_problems(config)
        if not problems and config.text.stat().st_size > LARGEST_OBJECT:
            problems.append(
                f"data.path: {named} has {config.text.stat().st_size / 2**20:,.0f} MiB, above"
                f" {LARGEST_OBJECT // 2**20} MiB it is not part of the stack; run `python -m scripts.upload_data"
                f" {named} --stack {config.stack}` and commit {lock_path(config.text).name}"
            )
    return problems


def vocabulary_problem(config: StackConfig, folder: Path | None) -> str | None:
    """Return what is wrong with GPT-2's vocabulary, if the run needs it; `folder` is vocabulary_folder()'s answer."""
    data = config.file.data
    if data.tokenizer != "gpt2" or folder is not None or config.file.network.nat:
        return None
    if data.vocabulary_path is not None:
        return f"data.vocabularyPath: there is no folder {data.vocabulary_path} with {' and '.join(VOCABULARY_FILES)}"
    return (
        f"data.tokenizer: gpt2 needs its vocabulary, which machines without internet cannot fetch; run"
        f" `python -m scripts.prepare_data --stack {config.stack}`, or set network.nat: true"
    )


def vocabulary_folder(config: StackConfig) -> Path | None:
    """Return the folder of this machine that has GPT-2's vocabulary, if the run needs it and it is there."""
    if config.file.data.tokenizer != "gpt2":
        return None
    folder = config.root / Path(config.file.data.vocabulary_path or VOCABULARY).expanduser()
    return folder if all((folder / name).is_file() for name in VOCABULARY_FILES) else None
