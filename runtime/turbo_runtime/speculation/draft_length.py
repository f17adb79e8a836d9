"""The draft lengths that bring most tokens a second. Pure."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray


def select_draft_lengths(
    acceptances: Sequence[Sequence[float]],
    answers: int,
    seconds: Sequence[float] | NDArray[np.float64],
    spent: float = 0.0,
) -> list[int]:
    """The number of tokens of each draft to verify: the n tokens with the greatest (answers + sum of their
    acceptances) / (spent + seconds[n]); of equal ones the fewest.

    `acceptances`: for each draft the chance of each token that it and all before it are accepted, never
    rising. `answers` get a token anyway. `seconds[n]`: of a step with n drafted tokens. `spent`: seconds
    spent already. The time depends on n alone, so the best n tokens are those of the greatest acceptances,
    which are prefixes.
    """
    order = sorted(
        ((chance, draft) for draft, chances in enumerate(acceptances) for chance in chances),
        key=lambda candidate: -candidate[0],
    )
    gains = np.concatenate([[0.0], np.cumsum([chance for chance, _ in order])])
    rates = (answers + gains) / (spent + np.asarray(seconds[: len(order) + 1]))
    counts = [0] * len(acceptances)
    for _, draft in order[: int(rates.argmax())]:
        counts[draft] += 1
    return counts
