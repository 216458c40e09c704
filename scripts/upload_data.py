"""Put a text file into a bucket under data/, where a run finds it. Checked, and safe to stop and to run again."""

import argparse
import codecs
from pathlib import Path

from scripts.common import CHECKOUT, UserError, add_bucket_arguments, bucket_url, megabytes, progress_bar, run_main
from trainer.spec import fingerprint
from trainer.storage import Progress, Storage, open_storage

BLOCK = 1024 * 1024  # bytes


def check_text(path: Path, progress: Progress) -> None:
    """Raises UserError unless the file is UTF-8 text; reads it in pieces."""
    decoder = codecs.getincrementaldecoder("utf-8")()
    done = 0
    with path.open("rb") as file:
        start = file.read(4)
        file.seek(0)
        while True:
            block = file.read(BLOCK)
            nul = block.find(b"\0")
            if nul >= 0 and not start.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
                raise UserError(f"{path}: not text, there is a NUL byte at byte {done + nul:,}; give a text file")
            done += len(block)
            try:
                decoder.decode(block, final=not block)
            except UnicodeDecodeError as error:
                # The decoder also holds the unfinished character at the end of the block before.
                offset = done - len(error.object) + error.start
                raise UserError(
                    f"{path}: not valid UTF-8 at byte {offset:,} (0x{error.object[error.start]:02x});"
                    f" {_remedy(path, start)}"
                ) from None
            progress(len(block))
            if not block:
                return


def _remedy(path: Path, start: bytes) -> str:
    for magic, words in (
        (b"\x1f\x8b", "it is compressed: gunzip it"),
        (b"PK\x03\x04", "it is a ZIP archive: unpack it"),
    ):
        if start.startswith(magic):
            return words
    encoding = "UTF-16" if start.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)) else "LATIN1"
    return f"convert it, such as with: iconv -f {encoding} -t UTF-8 {path.name} > new.txt"


def upload(storage: Storage, path: Path) -> tuple[str, bool]:
    """Checks and uploads a file; gives its path in the storage and whether it was there already. Raises UserError."""
    if not path.is_file():
        raise UserError(f"{path}: {'not a file' if path.exists() else 'no such file'}; give the path of a text file")
    try:
        before = path.stat()
        if before.st_size == 0:
            raise UserError(f"{path}: the file is empty; give a file with text")
        with progress_bar("checking", before.st_size) as progress:
            check_text(path, progress)
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
