"""Text as bytes in a file: is it UTF-8, where may it be cut, which part is held out. Standard library only."""

import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import BinaryIO

from trainer.contract.errors import InputError
from trainer.contract.spec import END_OF_TEXT

MIB = 1 << 20
SEARCH = 1 << 16  # bytes within which a cut is looked for
# Where a cut changes no token: before a single space that a word follows, and after a single newline between two
# words. GPT-2's splitting rule (and those that came after it) always ends a piece there, so the tokens of the parts
# are those of the whole.
_CUT = re.compile(rb"\S\n(?=\S)|\S(?= \S)")
# What people give instead of plain text, by its first bytes.
_MAGIC = {
    b"\xff\xfe": "this is UTF-16, not UTF-8: convert it with `iconv -f UTF-16 -t UTF-8`",
    b"\xfe\xff": "this is UTF-16, not UTF-8: convert it with `iconv -f UTF-16 -t UTF-8`",
    b"\x1f\x8b": "this is compressed: gunzip it",
    b"PK\x03\x04": "this is a ZIP archive (or an office file): unpack it, or save it as plain text",
    b"%PDF": "this is a PDF: convert it with `pdftotext`",
}


def decode(data: bytes, offset: int, name: str) -> str:
    """The text of `data`, which lies at byte `offset` of the file called `name` in errors.

    Raises InputError for zero bytes and for anything that is not UTF-8, with the byte's place in the file.
    """
    remedy = next((cure for magic, cure in _MAGIC.items() if offset == 0 and data.startswith(magic)), None)
    if remedy:
        raise InputError(f"{name}: {remedy}")
    zero = data.find(b"\0")
    if zero >= 0:
        raise InputError(f"{name}: byte {offset + zero:,} is zero, so this is no text file: give plain UTF-8 text")
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError as error:
        at = error.start
        raise InputError(
            f"{name}: not UTF-8 at byte {offset + at:,} (0x{data[at]:02x}):"
            " convert the file, for example with `iconv -f LATIN1 -t UTF-8`, or remove the byte"
        ) from None


def size_of(path: Path, name: str) -> int:
    """Bytes of the text file. Raises InputError if it is missing, no file, or empty."""
    if path.is_dir():
        raise InputError(f"{name}: this is a folder: give one text file")
    try:
        size = path.stat().st_size
    except OSError as error:
        raise InputError(f"{name}: cannot be read ({error.strerror}): check the path") from None
    if size == 0:
        raise InputError(f"{name}: the file is empty: give a file with text")
    return size


def check_text(path: Path, name: str, progress: Callable[[int], None] | None = None) -> int:
    """Reads the whole file once, at about 1 GB/s, and returns its bytes. Errors are those of size_of() and decode().

    progress: called with the number of further bytes checked.
    """
    size = size_of(path, name)
    for start, end in chunks(path, 0, size):
        decode(read(path, start, end), start, name)
        if progress:
            progress(end - start)
    return size


def read(path: Path, start: int, end: int) -> bytes:
    with path.open("rb") as file:
        file.seek(start)
        return file.read(end - start)


def cut_after(data: bytes, position: int) -> int:
    """The first cut after `position` that changes no token, which may be the end of `data`.

    Where there is none for 64 KiB, the next border between two characters.
    """
    found = _CUT.search(data, position, position + SEARCH)
    if found:
        return found.end()
    return len(data) if len(data) - position <= SEARCH else _character(data, position)


def pieces(data: bytes, size: int) -> Iterator[bytes]:
    """`data` in pieces of about `size` bytes."""
    start = 0
    while len(data) - start > size:
        end = cut_after(data, start + size)
        yield data[start:end]
        start = end
    if start < len(data):
        yield data[start:]


def chunks(path: Path, start: int, end: int, size: int = MIB) -> Iterator[tuple[int, int]]:
    """(start, end) of consecutive chunks of about `size` bytes. They depend on the file alone."""
    with path.open("rb") as file:
        while end - start > size:
            border = start + size
            border += cut_after(_window(file, border, min(border + SEARCH + 1, end)), 0)
            yield start, border
            start = border
    if start < end:
        yield start, end


def held_out_start(path: Path, size: int, fraction: float) -> int:
    """Where the held-out end of the text begins: the last `fraction` of its bytes, a little less to begin cleanly.

    It begins with a document where one begins within the first half of it, else with a line, else with a character.
    """
    start = size - int(size * fraction)
    with path.open("rb") as file:
        window = _window(file, start, min(start + (size - start) // 2, start + 4 * MIB))
        first = _character(_window(file, start, start + 4), 0)
    separator = window.find(END_OF_TEXT.encode())
    line = window.find(b"\n", max(separator, 0))
    if line >= 0:
        return start + line + 1
    if separator >= 0:
        return start + separator + len(END_OF_TEXT)
    return start + first


def _character(data: bytes, position: int) -> int:
    while position < len(data) and data[position] & 0xC0 == 0x80:  # a character's later bytes
        position += 1
    return position


def _window(file: BinaryIO, start: int, end: int) -> bytes:
    file.seek(start)
    return file.read(end - start)
