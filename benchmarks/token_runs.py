"""Runs of tokens, by which an answer counts as a near-copy of another one."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

RUN = 12  # tokens that two answers share before they count as alike


def runs_of_tokens(tokens: Sequence[int]) -> Iterator[tuple[int, ...]]:
    """Every run of `RUN` tokens, in order of its first token."""
    return (tuple(tokens[start : start + RUN]) for start in range(len(tokens) - RUN + 1))
