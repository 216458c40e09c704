"""Make the pairs that the examples train on: translation, sentiment, questions.

The texts are generated, so nobody has a copyright in them, and they are the same every time. For a stack whose
file does not exist yet, `make data STACK=sentiment` calls this command, which is `python -m examples.data sentiment`.
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
    """Return an ordinal number from 1 to 99 in words, as in "the twenty-third"."""
    if value > 20 and value % 10:
        return f"{TENS[value // 10]}-{ordinal(value % 10)}"
    return IRREGULAR.get(value) or (number(value)[:-1] + "ieth" if value >= 20 else number(value) + "th")


def year(value: int) -> str:
    """Return a year as it is read aloud: eighteen hundred, eighteen oh five, eighteen ninety-four."""
    century, rest = divmod(value, 100)
    return f"{number(century)} {'hundred' if not rest else number(rest) if rest > 9 else f'oh {number(rest)}'}"


def translation(random: Random) -> Iterator[Pair]:
    """Yield dates in words. Each day occurs once, so no day of the test part is in the training part in other words."""
    for number_of_day in random.sample(range(FIRST_DAY, LAST_DAY + 1), LAST_DAY + 1 - FIRST_DAY):
        day = datetime.date.fromordinal(number_of_day)
        month = MONTHS[day.month - 1]
        words = random.choice([f"the {ordinal(day.day)} of {month}", f"{month} the {ordinal(day.day)}"])
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
HELD_OUT = {"superb", "friendly", "perfect", "stale", "rude", "boring"}  # negated only in the test part
SPLIT_FRACTIONS = Data(path="", format="pairs")  # the defaults, which the example's stack file uses
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
NEGATION = 0.2  # with a half, no single word would indicate the answer, and learning would take many times longer
START, MIDDLE, END = (
    ["b", "br", "d", "f", "g", "gl", "k", "l", "m", "n", "p", "r", "s", "st", "t", "v", "z"],
    ["a", "e", "i", "o", "u", "ai", "ou"],
    ["l", "m", "n", "r", "s", "t", "nd", "rk"],
)


def invented(random: Random) -> str:
    """Return an invented name such as Glomaind."""
    pick = random.choice
    return (pick(START) + pick(MIDDLE) + pick(START) + pick(MIDDLE) + pick(END)).capitalize()


def sentiment(random: Random) -> Iterator[Pair]:
    """Yield statements about places. Each name and each statement occurs once, so both are new in the test part.

    The words in HELD_OUT are negated only in the test part, so the model must learn the effect of "not" from others.
    """
    seen: set[str] = set()
    while True:
        good, negated = random.random() < 0.5, random.random() < NEGATION
        word = random.choice(GOOD if good != negated else BAD)
        template = random.choice(NEGATED if negated else PLAIN)
        statement = template.format(a=random.choice(ASPECTS), d=random.choice(DEGREES), w=word)
        pair = _review(random, statement, good=good)
        while negated and word in HELD_OUT and part_of(pair.prompt, SPLIT_FRACTIONS) != "test":
            pair = _review(random, statement, good=good)
        name = pair.prompt.partition(":")[0]
        if name in seen or statement in seen:
            continue
        seen |= {name, statement}
        yield pair


def _review(random: Random, statement: str, *, good: bool) -> Pair:
    return Pair(f"{invented(random)}: {statement}\nSentiment: ", "positive" if good else "negative")


# -- questions: facts of a few people, and a question about one of them ------------------------------------------------

PEOPLE = "Ada Ben Cora Dan Eva Finn Gus Hana Ida Jon Kim Leo Mia Nils Olga Paul Rita Sam Tom Una Vera Will Yara Zoe"
FACTS: dict[str, tuple[str, str, str]] = {  # the statement, the question, the answers
    "home": ("{p} lives in {v}.", "Where does {p} live?", "Arvik Belmar Corda Dunfell Elsted Fornay Gralow Hestia"),
    "job": ("{p} works as a {v}.", "What is the work of {p}?", "baker pilot nurse farmer tailor singer doctor miner"),
    "pet": ("{p} keeps a {v}.", "Which animal has {p}?", "cat dog parrot rabbit turtle horse goat lizard"),
    "colour": (
        "{p} likes the colour {v}.",
        "What colour does {p} like?",
        "red blue green yellow black white violet grey",
    ),
}
CONTEXT_FACTS = 4  # of two people


def questions(random: Random) -> Iterator[Pair]:
    """Yield facts about two people with a question about one of the facts."""
    while True:
        people = random.sample(PEOPLE.split(), 2)
        subjects = [(person, kind) for person in people for kind in random.sample(sorted(FACTS), CONTEXT_FACTS // 2)]
        random.shuffle(subjects)
        answers = {subject: random.choice(FACTS[subject[1]][2].split()) for subject in subjects}
        context = " ".join(FACTS[kind][0].format(p=person, v=answers[person, kind]) for person, kind in subjects)
        person, kind = random.choice(subjects)
        yield Pair(f"{context}\n{FACTS[kind][1].format(p=person)} ", answers[person, kind])


# -- files -------------------------------------------------------------------------------------------------------------

EXAMPLES: dict[str, tuple[Callable[[Random], Iterator[Pair]], int]] = {  # the generator and the number of pairs
    "translation": (translation, 12_000),
    "sentiment": (sentiment, 4_000),
    "questions": (questions, 20_000),
}


def pairs(name: str, count: int | None = None) -> list[Pair]:
    """Return the pairs of an example, without repeated prompts. `count` is their number if not the usual one."""
    make, usual_count = EXAMPLES[name]
    by_prompt: dict[str, Pair] = {}
    for pair in make(Random(f"{SEED} {name}")):  # noqa: S311
        by_prompt.setdefault(pair.prompt, pair)
        if len(by_prompt) == (count or usual_count):
            break
    return list(by_prompt.values())


def lines(all_pairs: list[Pair]) -> bytes:
    """Return pairs as the JSON lines that trainer/data/pairs.py reads."""
    return "".join(json.dumps(vars(pair), ensure_ascii=False) + "\n" for pair in all_pairs).encode()


def default_path(name: str) -> Path:
    """Return the path that the stack files name, relative to the checkout."""
    return Path("data") / f"{name}.jsonl"


def ensure(name: str, target: Path) -> None:
    """Write an example's pairs to `target` unless that exists, and print what was done.

    Raise UserError if the file cannot be written.
    """
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
