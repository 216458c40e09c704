"""Read and check pairs of a prompt and its completion, and assign each pair to a part of the data.

The file has one JSON object per line: {"prompt": …, "completion": …}. Uses the standard library only.
"""

import hashlib
import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, cast

from trainer.contract.errors import InputError
from trainer.contract.options import END_OF_TEXT, Data
from trainer.data.text import MIB, decode, size_of

SplitName = Literal["train", "validation", "test"]
PARTS: tuple[SplitName, ...] = ("train", "validation", "test")
NAMED_LINES = 3  # bad lines that an error names


@dataclass(frozen=True)
class Pair:
    prompt: str
    completion: str


@dataclass(frozen=True)
class PairLine:
    number: int  # in the file, from 1
    content: bytes  # exactly as in the file, without the spaces and the newline around it
    pair: Pair


class PairFile:
    """The pairs of a file, in the file's order, read line by line. Empty lines are ignored.

    Iterating raises InputError if the file is not a text file, or if more than `skip` lines are bad. The error names
    the first bad lines.
    """

    def __init__(self, path: Path, name: str, skip: int = 0) -> None:
        """Open the pairs at `path`, which errors call `name`. Raise InputError if there is no such file."""
        self._path, self._name, self._skip = path, name, skip
        self.size = size_of(path, name)  # bytes
        self.done = 0  # bytes read
        self.skipped = 0  # bad lines
        self.bad: list[str] = []  # the first bad lines: their number and problem

    def __iter__(self) -> Iterator[PairLine]:
        self.done = self.skipped = 0
        self.bad = []
        with self._path.open("rb") as file:
            for number, content in enumerate(file, 1):
                if number == 1:
                    decode(content, 0, self._name)  # refuses files that are bad as a whole: compressed, UTF-16
                    content = content.removeprefix(b"\xef\xbb\xbf")
                self.done += len(content)
                content = content.strip()
                if not content:
                    continue
                try:
                    pair = parse_pair(content)
                except ValueError as error:
                    self._skip_line(number, error)
                    continue
                if self.skipped <= self._skip:  # otherwise reading continues only to find more bad lines to name
                    yield PairLine(number, content, pair)
        if self.skipped > self._skip:
            self._refuse("")

    def _skip_line(self, number: int, error: ValueError) -> None:
        self.skipped += 1
        if len(self.bad) < NAMED_LINES:
            self.bad.append(f"{number}: {error}")
        if self.skipped > max(self._skip, NAMED_LINES):
            self._refuse("at least ")

    def _refuse(self, at_least: str) -> None:
        first, *more = self.bad
        also = f" (and line {'; line '.join(more)})" if more else ""
        raise InputError(
            f"{self._name}:{first}{also}: fix {at_least}{self.skipped} bad {'line' if self.skipped == 1 else 'lines'},"
            f" or raise data.skipBadLines, which is {self._skip}"
        )


def parse_pair(content: bytes) -> Pair:
    """Return the pair of a line. Raise ValueError, which says what is wrong, if it is not a valid pair."""
    try:
        fields = json.loads(content.decode("utf-8"))
    except UnicodeDecodeError as error:
        raise ValueError(f"not UTF-8 at byte {error.start} of the line") from None
    except json.JSONDecodeError as error:
        raise ValueError(f"not JSON ({error.msg} at column {error.pos + 1})") from None
    except RecursionError:
        raise ValueError("not a pair, but lists in lists") from None
    if not isinstance(fields, dict):
        raise ValueError("not a JSON object with prompt and completion")
    for key in ("prompt", "completion"):
        if key not in fields:
            raise ValueError(f"no {key}")
        value = fields[key]
        if not isinstance(value, str):
            raise ValueError(f"{key} is no text in quotes")
        if not value:
            raise ValueError(f"{key} is empty")
        if any("\ud800" <= c <= "\udfff" for c in value):  # a lone surrogate such as \ud83d has no UTF-8 encoding
            raise ValueError(f"{key} has half of a character")
    if extra := sorted(fields.keys() - {"prompt", "completion"}):
        raise ValueError(f"unknown key {extra[0]}; only prompt and completion may be there")
    pair = Pair(**cast(dict[str, Any], fields))
    if END_OF_TEXT in pair.completion:
        raise ValueError(f"completion has {END_OF_TEXT} in it, which is added to it anyway")
    return pair


def begins_with_a_pair(path: Path) -> bool:
    """Return whether the first line of a file that is not empty is a JSON object with prompt and completion."""
    with path.open("rb") as file:
        first_line = next((line for line in iter(lambda: file.readline(MIB), b"") if line.strip()), b"")
    try:
        fields = json.loads(first_line.decode("utf-8-sig"))
    except (ValueError, RecursionError):
        return False
    return isinstance(fields, dict) and {"prompt", "completion"} <= fields.keys()


def part_of(prompt: str, data: Data) -> SplitName:
    """Return the part that a pair belongs to. It depends on the prompt alone, so that no prompt is in two parts."""
    position = int.from_bytes(hashlib.sha256(prompt.encode()).digest()[:8], "big") / 2**64
    if position < data.test_fraction:
        return "test"
    return "validation" if position < data.test_fraction + data.validation_fraction else "train"


def count_problem(counts: dict[SplitName, int], batch_size: int) -> str | None:
    """Return an error text if there are too few pairs to train, validate or evaluate, else None.

    The text does not begin with the file's name.
    """
    for part, needed, cure in (
        ("train", batch_size, "lower batchSize"),
        ("validation", 1, "raise data.validationFraction"),
        ("test", 1, "raise data.testFraction"),
    ):
        if counts[cast(SplitName, part)] < needed:
            sizes = " ".join(f"{name} {count:,}" for name, count in counts.items())
            return (
                f"the {part} part needs {needed} of the {sum(counts.values()):,} pairs ({sizes}): give more, or {cure}"
            )
    return None
