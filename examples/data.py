"""Make the pairs of the examples translation, sentiment and questions. They are nobody's text, the same every time.

`make data STACK=sentiment` calls this for a stack whose file is not there yet. `python -m examples.data sentiment` does
the same.
"""

import argparse
import datetime
import json
from collections.abc import Callable, Iterator
from itertools import islice
from pathlib import Path
from random import Random

from scripts.support.common import UserError, megabytes, run_main
from trainer.contract.options import Data
from trainer.data.pairs import Pair, part_of
from trainer.storage.base import new_file

SEED = 7

# -- translation: dates in words to ISO 8601 ---------------------------------------------------------------------------

ONES = "zero one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen sixteen"
ONES += " seventeen eighteen nineteen"
NUMBERS = dict(enumerate(ONES.split()))
TENS = {2: "twenty", 3: "thirty", 4: "forty", 5: "fifty", 6: "sixty", 7: "seventy", 8: "eighty", 9: "ninety"}
MONTHS = [
    "January",
    "February",
    "March",
    "April",
    "May",
    "June",
    "July",
    "August",
    "September",
    "October",
    "November",
    "December",
]
IRREGULAR = {1: "first", 2: "second", 3: "third", 5: "fifth", 8: "eighth", 9: "ninth", 12: "twelfth"}
FIRST_DAY, LAST_DAY = datetime.date(1200, 1, 1).toordinal(), datetime.date(2099, 12, 31).toordinal()


def number(value: int) -> str:
    """Return a number from 0 to 99 in words."""
    tens, ones = divmod(value, 10)
    return NUMBERS[value] if value < 20 else TENS[tens] + (f"-{NUMBERS[ones]}" if ones else "")


def ordinal(value: int) -> str:
    """Return an ordinal from 1 to 99 in words, as in "the twenty-third"."""
    if value > 20 and value % 10:
        return f"{TENS[value // 10]}-{ordinal(value % 10)}"
    return IRREGULAR.get(value) or (number(value)[:-1] + "ieth" if value >= 20 else number(value) + "th")


def year(value: int) -> str:
    """Return a year as it is spoken: eighteen hundred, eighteen oh five, eighteen ninety-four."""
    century, rest = divmod(value, 100)
    return f"{number(century)} {'hundred' if not rest else number(rest) if rest > 9 else f'oh {number(rest)}'}"


def translation(chance: Random) -> Iterator[Pair]:
    """Yield each day once, so that the training part does not have the test part's days in other words."""
    for number_of_day in chance.sample(range(FIRST_DAY, LAST_DAY + 1), LAST_DAY + 1 - FIRST_DAY):
        day = datetime.date.fromordinal(number_of_day)
        month = MONTHS[day.month - 1]
        words = chance.choice([f"the {ordinal(day.day)} of {month}", f"{month} the {ordinal(day.day)}"])
        yield Pair(f"{words}, {year(day.year)} = ", day.isoformat())


# -- sentiment: a statement about a place ------------------------------------------------------------------------------

GOOD = [
    "good",
    "great",
    "lovely",
    "superb",
    "tasty",
    "fresh",
    "friendly",
    "charming",
    "pleasant",
    "perfect",
    "wonderful",
    "delightful",
]
BAD = [
    "bad",
    "awful",
    "terrible",
    "stale",
    "rude",
    "dull",
    "dirty",
    "horrible",
    "boring",
    "dreadful",
    "bland",
    "disappointing",
]
HELD_OUT = {"superb", "friendly", "perfect", "stale", "rude", "boring"}  # negated in the test part alone
PARTED = Data(path="", format="pairs")  # with the fractions of the stack file
ASPECTS = [
    "food",
    "service",
    "soup",
    "staff",
    "room",
    "music",
    "bread",
    "coffee",
    "view",
    "dessert",
    "garden",
    "waiter",
]
DEGREES = ["", "", "very ", "really ", "quite "]
PLAIN = ["The {a} was {d}{w}.", "I found the {a} {d}{w}.", "What {d}{w} {a}!", "They serve {d}{w} {a}, I think."]
NEGATED = ["The {a} was not {w}.", "I would not call the {a} {w}.", "Nobody can say the {a} was {w}."]
NEGATED += ["The {a} was never {w}.", "The {a} was anything but {w}."]
NEGATION = 0.2  # with a half, no single word would be a hint, and learning would take many times longer
START, MIDDLE, END = (
    ["b", "br", "d", "f", "g", "gl", "k", "l", "m", "n", "p", "r", "s", "st", "t", "v", "z"],
    ["a", "e", "i", "o", "u", "ai", "ou"],
    ["l", "m", "n", "r", "s", "t", "nd", "rk"],
)


def invented(chance: Random) -> str:
    """Return a name such as Glomaind."""
    pick = chance.choice
    return (pick(START) + pick(MIDDLE) + pick(START) + pick(MIDDLE) + pick(END)).capitalize()


def sentiment(chance: Random) -> Iterator[Pair]:
    """Yield each name and each statement once, so that both are new in the test part.

    Words that are HELD_OUT are negated in the test part alone: the model has to learn from other words what "not" does.
    """
    seen: set[str] = set()
    while True:
        good, negated = chance.random() < 0.5, chance.random() < NEGATION
        word = chance.choice(GOOD if good != negated else BAD)
        how = chance.choice(NEGATED if negated else PLAIN)
        said = how.format(a=chance.choice(ASPECTS), d=chance.choice(DEGREES), w=word)
        pair = _review(chance, said, good=good)
        while negated and word in HELD_OUT and part_of(pair.prompt, PARTED) != "test":
            pair = _review(chance, said, good=good)
        name = pair.prompt.partition(":")[0]
        if name in seen or said in seen:
            continue
        seen |= {name, said}
        yield pair


def _review(chance: Random, said: str, *, good: bool) -> Pair:
    return Pair(f"{invented(chance)}: {said}\nSentiment: ", "positive" if good else "negative")


# -- questions: facts of a few people, and a question about one of them ------------------------------------------------

PEOPLE = "Ada Ben Cora Dan Eva Finn Gus Hana Ida Jon Kim Leo Mia Nils Olga Paul Rita Sam Tom Una Vera Will Yara Zoe"
FACTS: dict[str, tuple[str, str, str]] = {  # the fact, the question, the answers
    "home": ("{p} lives in {v}.", "Where does {p} live?", "Arvik Belmar Corda Dunfell Elsted Fornay Gralow Hestia"),
    "job": ("{p} works as a {v}.", "What is the work of {p}?", "baker pilot nurse farmer tailor singer doctor miner"),
    "pet": ("{p} keeps a {v}.", "Which animal has {p}?", "cat dog parrot rabbit turtle horse goat lizard"),
    "colour": (
        "{p} likes the colour {v}.",
        "What colour does {p} like?",
        "red blue green yellow black white violet grey",
    ),
}
TOLD = 4  # facts in a context


def questions(chance: Random) -> Iterator[Pair]:
    while True:
        people = chance.sample(PEOPLE.split(), 2)
        subjects = [(person, kind) for person in people for kind in chance.sample(sorted(FACTS), TOLD // 2)]
        chance.shuffle(subjects)
        answers = {subject: chance.choice(FACTS[subject[1]][2].split()) for subject in subjects}
        told = " ".join(FACTS[kind][0].format(p=person, v=answers[person, kind]) for person, kind in subjects)
        person, kind = chance.choice(subjects)
        yield Pair(f"{told}\n{FACTS[kind][1].format(p=person)} ", answers[person, kind])


# -- files -------------------------------------------------------------------------------------------------------------

EXAMPLES: dict[str, tuple[Callable[[Random], Iterator[Pair]], int]] = {  # and the number of pairs
    "translation": (translation, 12_000),
    "sentiment": (sentiment, 4_000),
    "questions": (questions, 20_000),
}


def pairs(name: str, count: int | None = None) -> list[Pair]:
    """Return the pairs of an example, each prompt once."""
    make, usual = EXAMPLES[name]
    found: dict[str, Pair] = {}
    for pair in make(Random(f"{SEED} {name}")):  # noqa: S311
        found.setdefault(pair.prompt, pair)
        if len(found) == (count or usual):
            break
    return list(found.values())


def lines(found: list[Pair]) -> bytes:
    """Return pairs as JSON lines, as trainer/data/pairs.py reads them."""
    return "".join(json.dumps(vars(pair), ensure_ascii=False) + "\n" for pair in found).encode()


def default_path(name: str) -> Path:
    """Return the path in the stack files, relative to the checkout's top level."""
    return Path("data") / f"{name}.jsonl"


def ensure(name: str, target: Path) -> None:
    """Write an example's pairs to `target` if nothing is there, and print the result. Raises UserError."""
    if target.exists():
        print(f"{target} is there ({megabytes(target.stat().st_size)}): kept")
        return
    content = lines(pairs(name))
    try:
        with new_file(target) as file:
            file.write(content)
    except OSError as error:
        raise UserError(f"{target} cannot be written: {error.strerror}; check the folder, or name another") from None
    print(f"{target.name} written: {content.count(b'{'):,} pairs, {megabytes(len(content))}")


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m examples.data", description=__doc__)
    parser.add_argument("name", choices=sorted(EXAMPLES))
    parser.add_argument("--to", type=Path, metavar="FILE", help="default: data/NAME.jsonl")
    parser.add_argument("--show", type=int, metavar="N", help="print N pairs instead")
    options = parser.parse_args(arguments)
    if options.show:
        print(lines(list(islice(pairs(options.name), options.show))).decode(), end="")
    else:
        ensure(options.name, options.to or default_path(options.name))


if __name__ == "__main__":
    run_main(main)
