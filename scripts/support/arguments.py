"""Types of command-line arguments: each parses a text and raises ArgumentTypeError if it is not such a value."""

import argparse


def whole_number(text: str) -> int:
    if not text.isascii() or not text.isdigit() or len(text) > 18:
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number from 0 to 18 digits")
    return int(text)


def positive(text: str) -> int:
    if (number := whole_number(text)) < 1:
        raise argparse.ArgumentTypeError("at least 1 is needed")
    return number


def temperature(text: str) -> float:
    if not 0 <= (number := _number(text)) <= 100:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number from 0 to 100; 0 always takes the likeliest token")
    return number


def share(text: str) -> float:
    if not 0 < (number := _number(text)) <= 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number above 0 and up to 1")
    return number


def stop(text: str) -> str:
    if not text:
        raise argparse.ArgumentTypeError("an empty text is everywhere; give the text that ends it")
    return text


def _number(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        return float("nan")
