"""Coupled verification: accepts drafts while they equal the engine's own tokens.

The engine's own token at a row never depends on drafts (see `sampling`), so the committed stream is the same
with any drafter and any number of drafts: plain decoding is this function with no drafts (Daliri, Musco,
Suresh, arXiv 2408.07978). Pure.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from typing import NamedTuple


class VerificationResult(NamedTuple):
    """The tokens that a step commits for one sequence."""

    tokens: tuple[int, ...]  # at least one: accepted drafts, then the correction or the bonus
    accepted: int  # drafts among `tokens`
    finish_reason: str | None = None  # "stop" or "length"


def verify(
    token_at: Callable[[int], int], drafts: Sequence[int], *, stop_ids: Collection[int], room: int
) -> VerificationResult:
    """Commit tokens row by row.

    `token_at(i)` is the engine's token after the context and the first i drafts (row i of len(drafts) + 1);
    it is called only while all earlier drafts were right, since later rows have seen a wrong context. A row
    that raises ValueError ends the step before it; in the next step it is the first, and the error the
    caller's. So the tokens before it are the same with any drafts. `room` >= 1 tokens may follow; a token of
    `stop_ids` ends the answer and is included.
    """
    if room < 1:
        raise ValueError("an answer without room for a token is finished already")
    tokens: list[int] = []
    accepted, finish_reason = 0, None
    for row, draft in enumerate((*drafts, None)):
        try:
            token = token_at(row)
        except ValueError:
            if row == 0:
                raise
            break
        tokens.append(token)
        accepted += token == draft
        finish_reason = "stop" if token in stop_ids else "length" if len(tokens) == room else None
        if finish_reason or token != draft:
            break
    return VerificationResult(tuple(tokens), accepted, finish_reason)
