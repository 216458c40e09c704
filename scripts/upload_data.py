"""Put a text file into a bucket under data/, where a run finds it. Checked, and safe to stop and to run again."""

import argparse
from pathlib import Path

from scripts.common import CHECKOUT, UserError, add_bucket_arguments, bucket_url, megabytes, progress_bar, run_main
from trainer.spec import fingerprint
from trainer.storage import Storage, open_storage
from trainer.text import check_text, size_of


def upload(storage: Storage, path: Path) -> tuple[str, bool]:
    """Checks and uploads a file; gives its path there and whether it was there. Raises UserError, InputError."""
    try:
        size_of(path, str(path))
        before = path.stat()
        with progress_bar("checking", before.st_size) as progress:
            check_text(path, str(path), progress)
        target = f"data/{fingerprint(path)}/{path.name}"
        if storage.matches(path, target):
            return target, True
        with progress_bar("uploading", before.st_size) as progress:
            storage.upload(path, target, progress, restartable=True)
        after = path.stat()
    except PermissionError:
        raise UserError(f"{path}: no permission to read it; check its owner and mode") from None
    if (before.st_size, before.st_mtime_ns) != (after.st_size, after.st_mtime_ns):
        storage.delete(target)  # else it would lie under a fingerprint that is not its own
        raise UserError(f"{path}: it changed while it was uploaded; wait until nothing writes it and run again")
    return target, False


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m scripts.upload_data", description=__doc__)
    parser.add_argument("file", metavar="FILE", type=Path, help="the text, UTF-8, of any size")
    add_bucket_arguments(parser)
    options = parser.parse_args(arguments)
    path: Path = options.file
    storage = open_storage(bucket_url(options))
    target, there = upload(storage, path)
    full = path.resolve()
    shown = full.relative_to(CHECKOUT) if full.is_relative_to(CHECKOUT) else full
    print(f"{'already there' if there else 'uploaded'}: {storage.url}/{target} ({megabytes(path.stat().st_size)})")
    print("to train on it, write into the stack file, under config:")
    print(f"  gpt2-training:data: {{path: {_yaml(shown.as_posix())}}}")
    return 0


def _yaml(text: str) -> str:
    return text if text.replace("/", "").replace("-", "").replace("_", "").replace(".", "").isalnum() else repr(text)


if __name__ == "__main__":
    run_main(main)
