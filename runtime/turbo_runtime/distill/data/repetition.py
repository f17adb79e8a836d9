"""Answers that say one thing over and over: any drafter is fast on them, and no user wants them."""

from __future__ import annotations

from collections.abc import Sequence

_TIMES = 3  # in a row at an answer's end make a loop
_LEAST = 24  # tokens that are said again: shorter repeats are lists and tables


def loops(tokens: Sequence[int]) -> bool:
    """Whether the answer's end repeats with any period, at least three times over at least 24 tokens."""
    for period in range(1, len(tokens) // _TIMES + 1):
        length = max(_TIMES * period, _LEAST)
        end = tokens[-length:]
        if len(end) == length and all(end[i] == end[i - period] for i in range(period, length)):
            return True
    return False
