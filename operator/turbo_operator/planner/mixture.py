"""The cheapest mixture of accelerators for one demand: branch and bound over single-accelerator plans. Pure.

    minimise sum of price_i n_i  with  sum of serves_i n_i >= demand,  0 <= n_i <= most_i whole

Kinds are tried in the order of price for what they serve; the relaxation that buys fractions of the best
kinds left bounds what a branch can still reach.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

NODES = 4000  # branches at most: what is found by then is a mixture all the same
HAIR = 1e-9  # of the demand that may be missing for the last bits of floats


@dataclass(frozen=True, slots=True)
class Kind:
    """What one replica of a plan serves and costs."""

    name: str
    serves: float  # of the demand, in its unit
    price: float  # per hour, in any unit of money
    most: int  # replicas that there can be


def cheapest(kinds: Sequence[Kind], demand: float, below: float = math.inf) -> tuple[int, ...] | None:
    """Replicas of each kind, in the order given; None where no mixture costs less than `below`."""
    order = sorted(
        (place for place, kind in enumerate(kinds) if kind.serves > 0 and kind.most > 0),
        key=lambda place: (kinds[place].price / kinds[place].serves, place),
    )
    search = _Search([kinds[place] for place in order], below)
    search.branch(0, demand, 0.0, [])
    if search.best is None:
        return None
    found = [0] * len(kinds)
    for place, number in zip(order, search.best, strict=False):
        found[place] = number
    return tuple(found)


class _Search:
    def __init__(self, kinds: Sequence[Kind], below: float) -> None:
        self.kinds = kinds
        self.cost = below
        self.best: list[int] | None = None
        self.left = NODES

    def branch(self, depth: int, demand: float, spent: float, taken: list[int]) -> None:
        """Every number of the kind at `depth`, the largest first."""
        if demand <= HAIR:
            if spent < self.cost:
                self.cost, self.best = spent, list(taken)
            return
        if depth == len(self.kinds) or self.left <= 0 or spent + self.bound(depth, demand) >= self.cost:
            return
        self.left -= 1
        kind = self.kinds[depth]
        enough = min(kind.most, math.ceil(demand / kind.serves * (1.0 - HAIR)))
        for number in range(enough, -1, -1):
            remaining = demand - number * kind.serves
            remaining = 0.0 if remaining <= HAIR * max(1.0, demand) else remaining
            self.branch(depth + 1, remaining, spent + number * kind.price, [*taken, number])

    def bound(self, depth: int, demand: float) -> float:
        """The least that the rest can cost, were replicas divisible."""
        cost = 0.0
        for kind in self.kinds[depth:]:
            number = min(kind.most, demand / kind.serves)
            cost += number * kind.price
            demand -= number * kind.serves
            if demand <= HAIR:
                return cost
        return math.inf
