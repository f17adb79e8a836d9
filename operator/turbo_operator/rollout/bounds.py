"""What all variants together may hold: accelerators, money and what the cluster has. Pure."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from decimal import Decimal

from turbo_operator.budget import Footprint

Holding = tuple[Footprint | None, int]  # what one replica holds, and of how many


@dataclass(frozen=True, slots=True)
class Bounds:
    """The limits of one TurboDeployment; None or absent is no limit."""

    max_surge: int | None = None  # as written in the spec
    max_unavailable: int | None = None
    max_total: int | None = None  # accelerators
    max_per_hour: Decimal | None = None  # US dollars
    # By accelerator: how many of them nodes and quotas leave, those that its own pods hold included.
    stock: Mapping[str, int] = field(default_factory=dict)
    reserved: tuple[Holding, ...] = ()  # by what holds some in addition to the replicas: trainings

    def exceeded(self, holdings: Iterable[Holding]) -> str | None:
        """The first limit that these holdings and what is reserved break, as a clause; None where none is.

        A holding whose accelerator is not known counts for nothing: nobody can tell what it costs.
        """
        accelerators: defaultdict[str, int] = defaultdict(int)
        cost = Decimal(0)
        for footprint, replicas in (*holdings, *self.reserved):
            if footprint is not None and replicas > 0:
                accelerators[footprint.accelerator.name] += footprint.accelerators(replicas)
                cost += footprint.cost_per_hour(replicas) or Decimal(0)
        total = sum(accelerators.values())
        if self.max_total is not None and total > self.max_total:
            return f"spec.accelerators.maxTotal is {self.max_total}"
        if self.max_per_hour is not None and cost > self.max_per_hour:
            return f"spec.cost.maxPerHour is {self.max_per_hour}"
        for name, count in sorted(accelerators.items()):
            if count > self.stock.get(name, count):
                return f"the cluster and its quotas hold {self.stock[name]} of {name}"
        return None

    def most(self, footprint: Footprint | None, replicas: int) -> int:
        """As many of `replicas` as fit alone."""
        return next(
            (count for count in range(replicas, 0, -1) if self.exceeded([(footprint, count)]) is None), 0
        )
