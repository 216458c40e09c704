"""Pairs of a prompt and its completion, as JSON lines: {"prompt": …, "completion": …}, one object a line.

How they are read and checked, and which part of the data each is in. Standard library only.
"""

import hashlib
import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, cast

from trainer.contract.errors import InputError
from trainer.contract.spec import END_OF_TEXT, Data
from trainer.data.text import MIB, decode, size_of

Part = Literal["train", "validation", "test"]
PARTS: tuple[Part, ...] = ("train", "validation", "test")
NAMED = 3  # bad lines that an error names


@dataclass(frozen=True)
class Pair:
    prompt: str
    completion: str


@dataclass(frozen=True)
class Line:
    number: int  # in the file, from 1
    content: bytes  # as it stands there, without its end
    pair: Pair


class PairFile:
    """The pairs of a file, in its order, read line by line. Empty lines are passed over.

    Iterating raises InputError, which names the first bad lines, if there are more than `skip` of them; and for what
    is no text file.
    """

    def __init__(self, path: Path, name: str, skip: int = 0) -> None:
        """name: how errors call the file."""
        self._path, self._name, self._skip = path, name, skip
        self.size = size_of(path, name)  # bytes
        self.done = 0  # bytes read
        self.skipped = 0  # bad lines
        self.bad: list[str] = []  # the first of them: number and what is wrong

    def __iter__(self) -> Iterator[Line]:
        self.done = self.skipped = 0
        self.bad = []
        with self._path.open("rb") as file:
            for number, content in enumerate(file, 1):
                if number == 1:
                    decode(content, 0, self._name)  # a compressed file, UTF-16: no line of it can be read
                    content = content.removeprefix(b"\xef\xbb\xbf")
                self.done += len(content)
                content = content.strip()
                if not content:
                    continue
                try:
                    pair = parse(content)
                except ValueError as error:
                    self._skipped(number, error)
                    continue
                if self.skipped <= self._skip:  # else it is read on only to name some more
                    yield Line(number, content, pair)
        if self.skipped > self._skip:
            self._refuse("")

    def _skipped(self, number: int, error: ValueError) -> None:
        self.skipped += 1
        if len(self.bad) < NAMED:
            self.bad.append(f"{number}: {error}")
        if self.skipped > max(self._skip, NAMED):
            self._refuse("at least ")

    def _refuse(self, least: str) -> None:
        first, *more = self.bad
        also = f" (and line {'; line '.join(more)})" if more else ""
        raise InputError(
            f"{self._name}:{first}{also}: mend {least}{self.skipped} bad {'line' if self.skipped == 1 else 'lines'},"
            f" or raise data.skipBadLines, which is {self._skip}"
        )


def parse(content: bytes) -> Pair:
    """The pair of a line. Raises ValueError with what is wrong, in words."""
    try:
        found = json.loads(content.decode("utf-8"))
    except UnicodeDecodeError as error:
        raise ValueError(f"not UTF-8 at byte {error.start} of the line") from None
    except json.JSONDecodeError as error:
        raise ValueError(f"not JSON ({error.msg} at column {error.pos + 1})") from None
    except RecursionError:
        raise ValueError("not a pair, but lists in lists") from None
    if not isinstance(found, dict):
        raise ValueError("not a JSON object with prompt and completion")
    for key in ("prompt", "completion"):
        if key not in found:
            raise ValueError(f"no {key}")
        value = found[key]
        if not isinstance(value, str):
            raise ValueError(f"{key} is no text in quotes")
        if not value:
            raise ValueError(f"{key} is empty")
        if any("\ud800" <= c <= "\udfff" for c in value):  # as \ud83d alone: it has no UTF-8
            raise ValueError(f"{key} has half of a character")
    if extra := sorted(found.keys() - {"prompt", "completion"}):
        raise ValueError(f"unknown key {extra[0]}; only prompt and completion may be there")
    pair = Pair(**cast(dict[str, Any], found))
    if END_OF_TEXT in pair.completion:
        raise ValueError(f"completion has {END_OF_TEXT} in it, which is added to it anyway")
    return pair


def begins_with_a_pair(path: Path) -> bool:
    """Whether a file's first line that is not empty is a JSON object with prompt and completion."""
    with path.open("rb") as file:
        first = next((line for line in iter(lambda: file.readline(MIB), b"") if line.strip()), b"")
    try:
        found = json.loads(first.decode("utf-8-sig"))
    except (ValueError, RecursionError):
        return False
    return isinstance(found, dict) and {"prompt", "completion"} <= found.keys()


def part_of(prompt: str, data: Data) -> Part:
    """Which part a pair is in: a function of its prompt alone, so that no prompt is in two parts."""
    place = int.from_bytes(hashlib.sha256(prompt.encode()).digest()[:8], "big") / 2**64
    if place < data.test_fraction:
        return "test"
    return "validation" if place < data.test_fraction + data.validation_fraction else "train"


def count_problem(counts: dict[Part, int], batch_size: int) -> str | None:
    """What to say if there are too few pairs to train, to validate or to evaluate; starts without the file's name."""
    for part, needed, cure in (
        ("train", batch_size, "lower batchSize"),
        ("validation", 1, "raise data.validationFraction"),
        ("test", 1, "raise data.testFraction"),
    ):
        found = counts[cast(Part, part)]
        if found < needed:
            of = " ".join(f"{name} {count:,}" for name, count in counts.items())
            return f"the {part} part needs {needed} of the {sum(counts.values()):,} pairs ({of}): give more, or {cure}"
    return None
