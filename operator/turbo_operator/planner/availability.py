"""Money and stock: what each candidate's replicas cost, and how many may be had. Pure.

`budget` counts; here its answers become arrays, once per accelerator, capacity type and size of a replica.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from turbo_operator.api.constants import CapacityType
from turbo_operator.budget import Footprint
from turbo_operator.planner.candidates import Candidates, Indices
from turbo_operator.planner.request import MOST_REPLICAS, Requirements
from turbo_operator.snapshot import Host, Supply

Numbers = NDArray[np.float64]

MICRO = 1_000_000  # of a dollar: prices have no smaller part, so that sums of them are exact
NOTHING = Supply()


@dataclass(frozen=True, slots=True)
class Availability:
    """p pairs of a candidate and a capacity type; each array has p elements."""

    candidate: Indices
    capacity_type: Indices  # of the request's
    price: Numbers  # micro-dollars of one accelerator for an hour; NaN is unknown
    lot: Numbers  # replicas that are bought together
    lot_accelerators: Numbers  # that such a lot pays for
    room: Numbers  # replicas that the cluster has or can get
    within_total: Numbers  # replicas within accelerators.maxTotal
    affordable: Numbers  # replicas within cost.maxPerHour

    def paid(self, replicas: Numbers) -> Numbers:
        """Accelerators that are paid for."""
        found: Numbers = np.ceil(replicas / self.lot) * self.lot_accelerators
        return found

    def cost(self, replicas: Numbers) -> Numbers:
        """Micro-dollars per hour; NaN where the price is unknown."""
        return self.paid(replicas) * self.price


def stock(
    it: Candidates,
    request: Requirements,
    supply: Mapping[str, Supply] | None,
    now: float,
    hosts: Sequence[Host | None],
) -> Availability:
    """Every candidate with every capacity type that may be used; `hosts` is what a pod takes beside each of
    the accelerators.
    """
    types = request.capacity_types
    kinds = len(types)
    per_replica = it.per_replica.astype(np.int64)
    nodes = it.nodes.astype(np.int64)
    sizes, which = np.unique(
        np.stack((it.accelerator, per_replica, nodes), axis=1), axis=0, return_inverse=True
    )
    rows = np.array(
        [
            _terms(it, request, supply, now, hosts[place], int(place), int(size), int(stages), kind)
            for kind in types
            for place, size, stages in sizes
        ]
    ).reshape(kinds, len(sizes), 6)
    terms = rows[:, which.reshape(-1)].reshape(kinds * len(it), 6)
    return Availability(
        np.tile(np.arange(len(it)), kinds),
        np.repeat(np.arange(kinds), len(it)),
        *(terms[:, column] for column in range(6)),
    )


def footprint(it: Candidates, index: int, capacity_type: CapacityType) -> Footprint:
    """What one replica of a candidate holds, its host apart."""
    return Footprint(
        it.accelerator_of(index), capacity_type, int(it.per_replica[index]), int(it.nodes[index])
    )


def _terms(
    it: Candidates,
    request: Requirements,
    supply: Mapping[str, Supply] | None,
    now: float,
    host: Host | None,
    place: int,
    size: int,
    nodes: int,
    kind: CapacityType,
) -> tuple[float, ...]:
    accelerator = it.accelerators[place]
    holding = Footprint(accelerator, kind, size, nodes, host)
    price = accelerator.prices.get(kind)
    paid = holding.paid(1)
    room = None if supply is None else holding.room(supply.get(accelerator.name, NOTHING), now)
    total = None if request.max_total is None else holding.within(request.max_total)
    affordable = None if request.max_per_hour is None else holding.affordable(request.max_per_hour)
    return (
        np.nan if price is None else float(price * MICRO),
        1 if nodes > 1 else max(1, paid // size),
        paid,
        *(
            MOST_REPLICAS if bound is None else min(bound, MOST_REPLICAS)
            for bound in (room, total, affordable)
        ),
    )
