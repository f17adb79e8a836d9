"""Types of command-line arguments."""

from __future__ import annotations

import argparse
from collections.abc import Callable

UNBOUNDED = 1 << 40


def bounded_float(minimum: float, maximum: float) -> Callable[[str], float]:
    """Return a parser of numbers in a range."""

    def number(text: str) -> float:
        value = float(text)
        if not minimum <= value <= maximum:
            raise argparse.ArgumentTypeError(f"must lie between {minimum:g} and {maximum:g}, not {text}")
        return value

    return number


def bounded_int(minimum: int, maximum: int = UNBOUNDED) -> Callable[[str], int]:
    """Return a parser of whole numbers in a range."""

    def count(text: str) -> int:
        value = int(text)
        if not minimum <= value <= maximum:
            bound = f"at least {minimum}" if maximum == UNBOUNDED else f"between {minimum} and {maximum}"
            raise argparse.ArgumentTypeError(f"must be {bound}, not {text}")
        return value

    return count
