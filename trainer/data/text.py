"""Read a text as bytes: check that it is UTF-8, cut it into chunks, hold out its end.

Uses the standard library only.
"""

import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import BinaryIO

from trainer.contract.errors import InputError
from trainer.contract.options import END_OF_TEXT

MIB = 1 << 20
SEARCH_BYTES = 1 << 16  # how far cut_after() searches
# A cut changes no token before a single space that a word follows, and after a single newline between two words.
# GPT-2's splitting rule (and its successors) always ends a piece there, so the parts have the same tokens as the whole.
_CUT = re.compile(rb"\S\n(?=\S)|\S(?= \S)")
# Files that are not plain text, by their first bytes.
_MAGIC = {
    b"\xff\xfe": "this is UTF-16, not UTF-8: convert it with `iconv -f UTF-16 -t UTF-8`",
    b"\xfe\xff": "this is UTF-16, not UTF-8: convert it with `iconv -f UTF-16 -t UTF-8`",
    b"\x1f\x8b": "this is compressed: gunzip it",
    b"PK\x03\x04": "this is a ZIP archive (or an office file): unpack it, or save it as plain text",
    b"%PDF": "this is a PDF: convert it with `pdftotext`",
}


def decode(data: bytes, offset: int, name: str) -> str:
    """Return the text of `data`, which begins at byte `offset` of the file that errors call `name`.

    Raise InputError, which names the byte's place in the file, for zero bytes and for anything that is not UTF-8.
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
    """Return a text file's bytes. Raise InputError if it is missing, a folder, or empty."""
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
    """Check a whole file, at about 1 GB/s, and return its bytes. Raise InputError as size_of() and decode() do.

    `progress` is called with the number of bytes checked since the previous call.
    """
    size = size_of(path, name)
    for start, end in chunks(path, 0, size):
        decode(read_bytes(path, start, end), start, name)
        if progress:
            progress(end - start)
    return size


def read_bytes(path: Path, start: int, end: int) -> bytes:
    """Return bytes start to end of a file."""
    with path.open("rb") as file:
        file.seek(start)
        return file.read(end - start)


def cut_after(data: bytes, position: int) -> int:
    """Return the first cut after `position` that changes no token, or the end of `data`.

    If there is none within SEARCH_BYTES, return the next border between two characters.
    """
    cut = _CUT.search(data, position, position + SEARCH_BYTES)
    if cut:
        return cut.end()
    return len(data) if len(data) - position <= SEARCH_BYTES else _character_start(data, position)


def pieces(data: bytes, size: int) -> Iterator[bytes]:
    """Yield `data` in pieces of about `size` bytes, cut where it changes no token."""
    start = 0
    while len(data) - start > size:
        end = cut_after(data, start + size)
        yield data[start:end]
        start = end
    if start < len(data):
        yield data[start:]


def chunks(path: Path, start: int, end: int, size: int = MIB) -> Iterator[tuple[int, int]]:
    """Yield (start, end) of consecutive chunks of about `size` bytes. They depend on the file alone."""
    with path.open("rb") as file:
        while end - start > size:
            border = start + size
            border += cut_after(_window(file, border, min(border + SEARCH_BYTES + 1, end)), 0)
            yield start, border
            start = border
    if start < end:
        yield start, end


def held_out_start(path: Path, size: int, fraction: float) -> int:
    """Return the byte at which the held-out end of a text begins.

    The end is the last `fraction` of the text's `size` bytes, shortened to begin cleanly: with a document if one begins
    within its first half, else with a line, else with a character.
    """
    start = size - int(size * fraction)
    with path.open("rb") as file:
        window = _window(file, start, min(start + (size - start) // 2, start + 4 * MIB))
        first = _character_start(_window(file, start, start + 4), 0)
    separator = window.find(END_OF_TEXT.encode())
    line = window.find(b"\n", max(separator, 0))
    if line >= 0:
        return start + line + 1
    if separator >= 0:
        return start + separator + len(END_OF_TEXT)
    return start + first


def _character_start(data: bytes, position: int) -> int:
    while position < len(data) and data[position] & 0xC0 == 0x80:  # a continuation byte of UTF-8
        position += 1
    return position


def _window(file: BinaryIO, start: int, end: int) -> bytes:
    file.seek(start)
    return file.read(end - start)
