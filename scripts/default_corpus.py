"""Writes data/default.txt, the text that the local stack trains on: the Python standard library's own sources.

The file is written once and then kept, as the library differs a little between Python versions.
"""

import argparse
import hashlib
import os
import sys
import sysconfig
import tokenize
from pathlib import Path

from scripts.support.common import CHECKOUT, UserError, megabytes, run_main
from trainer.contract.options import END_OF_TEXT

DEFAULT = Path("data/default.txt")
LARGEST = 6_000_000  # bytes: enough for a small model, tokenized in seconds
SMALLEST = 1_000_000
SEPARATOR = f"{END_OF_TEXT}\n"
# Tests, tables of characters, generated files and bundled third-party packages: poor reading, or another licence.
LEFT_OUT = {"test", "tests", "idlelib", "idle_test", "lib2to3", "turtledemo", "encodings", "site-packages"}
LEFT_OUT |= {"dist-packages", "_bundled", "pydoc_data", "__pycache__", "__phello__", "lib-dynload", "config"}


def collect(library: Path, largest: int = LARGEST) -> str:
    """The sources below `library`, shuffled the same way every time, a separator line between two; see LARGEST."""
    paths = [path.relative_to(library) for path in library.rglob("*.py")]
    paths = [path for path in paths if not LEFT_OUT & set(path.parts) and not path.name.startswith("_sysconfigdata")]
    # Ordered by a hash of the name: the end of the text, which is held out, is then a fair sample of all of it. In
    # the order of names it would be xml and zip alone, and the validation loss would speak of those.
    paths.sort(key=lambda path: hashlib.sha256(path.as_posix().encode()).digest())
    documents: list[str] = []
    size = 0
    for path in paths:
        try:
            with tokenize.open(library / path) as file:  # honours the encoding that the source declares
                document = file.read().strip("\n") + "\n"
        except (SyntaxError, UnicodeDecodeError, OSError):
            continue  # unreadable or not text: there are plenty of others
        grown = size + len(document.encode()) + len(SEPARATOR)
        if len(document) > 1 and grown <= largest and SEPARATOR.strip() not in document:
            documents.append(document)
            size = grown
    return SEPARATOR.join(documents)


def write(target: Path, library: Path) -> int:
    """Writes the corpus whole or not at all; returns its bytes. Raises ValueError if there are too few sources."""
    text = collect(library).encode()
    if len(text) < SMALLEST:
        raise ValueError(
            f"{library} has only {len(text):,} bytes of Python sources, and {SMALLEST:,} are needed:"
            f" put a text of your own at {target}, or name one as data.path"
        )
    target.parent.mkdir(parents=True, exist_ok=True)
    temporary = target.with_name(f".{target.name}.{os.getpid()}.tmp")
    try:
        temporary.write_bytes(text)
        temporary.replace(target)  # whole or not at all
    finally:
        temporary.unlink(missing_ok=True)
    return len(text)


def ensure(target: Path) -> None:
    """Writes the corpus to `target` if nothing is there, and says what it did. Raises UserError."""
    if target.exists():
        print(f"{target} is there ({megabytes(target.stat().st_size)}): kept")
        return
    try:
        size = write(target, Path(sysconfig.get_path("stdlib")))
    except OSError as error:
        raise UserError(f"{target} cannot be written: {error.strerror}; check the folder, or name another") from None
    except ValueError as error:
        raise UserError(str(error)) from None
    print(f"{target.name} written: {megabytes(size)} of sources of Python {sys.version.split()[0]}'s standard library")


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m scripts.default_corpus", description=__doc__)
    parser.add_argument("--output", type=Path, default=CHECKOUT / DEFAULT, help="where to write (default: %(default)s)")
    ensure(parser.parse_args(arguments).output)
    return 0


if __name__ == "__main__":
    run_main(main)
