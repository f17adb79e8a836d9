"""Which drafts are worth verifying: the set of their prefixes that brings most tokens a second. Pure."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray


def select_draft_lengths(
    survivals: Sequence[Sequence[float]],
    answers: int,
    seconds: Sequence[float] | NDArray[np.float64],
    spent: float = 0.0,
) -> list[int]:
    """How many tokens of each draft to verify: those with the greatest
    (answers + sum of their survivals) / (spent + seconds[n]), n of them in all.

    `survivals`: for each draft the chance of each token that it and all before it are accepted, never rising.
    `answers`: how many get a token anyway. `seconds[n]`: of a step with n drafted tokens, for n up to all.
    `spent`: seconds that are gone whatever is chosen. Since the time depends on the number alone, the best n
    tokens are those of the greatest survivals, which are prefixes: all sets need not be tried, only all n.
    Where two are as good, the fewer tokens.
    """
    order = sorted(
        ((chance, draft) for draft, chances in enumerate(survivals) for chance in chances),
        key=lambda each: -each[0],
    )
    gains = np.concatenate([[0.0], np.cumsum([chance for chance, _ in order])])
    rates = (answers + gains) / (spent + np.asarray(seconds[: len(order) + 1]))
    counts = [0] * len(survivals)
    for _, draft in order[: int(rates.argmax())]:
        counts[draft] += 1
    return counts
