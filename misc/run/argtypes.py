"""The types of arguments; each says in one line what is wrong with a value."""

import argparse
import math
from collections.abc import Callable


def positive(text: str) -> int:
    """A whole number of at least 1."""
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"{text} is not at least 1")
    return value


def not_negative(text: str) -> int:
    """A whole number of at least 0."""
    value = int(text)
    if value < 0:
        raise argparse.ArgumentTypeError(f"{text} is below 0")
    return value


def finite(text: str) -> float:
    """A number that is neither infinite nor NaN."""
    value = float(text)
    if not math.isfinite(value):
        raise argparse.ArgumentTypeError(f"{text} is not a finite number")
    return value


def above_zero(text: str) -> float:
    """A number above 0."""
    value = finite(text)
    if value <= 0:
        raise argparse.ArgumentTypeError(f"{text} is not a number above 0")
    return value


def share(text: str) -> float:
    """A number between 0 and 1, neither of which it may be."""
    value = above_zero(text)
    if value >= 1:
        raise argparse.ArgumentTypeError(f"{text} is not below 1")
    return value


positive.__name__ = not_negative.__name__ = "whole number"
above_zero.__name__ = finite.__name__ = share.__name__ = "number"


def floats(count: int | None = None) -> Callable[[str], tuple[float, ...]]:
    """A type of numbers joined by commas, exactly `count` of them if given."""
    return _numbers(finite, count)


def integers(count: int | None = None) -> Callable[[str], tuple[int, ...]]:
    """A type of whole numbers joined by commas, exactly `count` of them if given."""
    return _numbers(int, count)


def _numbers(kind: type, count: int | None) -> Callable:
    def parse(text: str) -> tuple:
        values = tuple(kind(part) for part in text.strip("()[] ").split(",") if part.strip())
        if count is not None and len(values) != count:
            raise argparse.ArgumentTypeError(f"{text!r} has {len(values)} values, wanted {count} joined by commas")
        return values

    parse.__name__ = "list of numbers joined by commas"
    return parse


def words(*choices: str) -> Callable[[str], tuple[str, ...]]:
    """A type of words out of `choices`, joined by commas, each at most once and at least one of them."""

    def parse(text: str) -> tuple[str, ...]:
        values = tuple(part.strip() for part in text.strip("()[] ").split(",") if part.strip())
        if not values or len(set(values)) < len(values) or not set(values) <= set(choices):
            raise argparse.ArgumentTypeError(f"{text!r} is no list of different words out of {', '.join(choices)}")
        return values

    parse.__name__ = "list of words joined by commas"
    return parse


def boolean(text: str) -> bool:
    words = {"true": True, "yes": True, "1": True, "on": True, "false": False, "no": False, "0": False, "off": False}
    if text.lower() not in words:
        raise argparse.ArgumentTypeError(f"{text!r} is neither True nor False")
    return words[text.lower()]
