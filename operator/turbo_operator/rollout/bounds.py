"""What all variants together may hold: accelerators, money and what the cluster has. Pure."""

from __future__ import annotations

from bisect import bisect_left
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from decimal import Decimal

from turbo_operator.api import Accelerators, CapacityType, Cost, TurboDeployment
from turbo_operator.budget import Footprint, labeled_footprint
from turbo_operator.commitments import NO_BUDGET, NOTHING, Allowance, Amount
from turbo_operator.snapshot import Snapshot, Supply

# The count of the cluster may be of just before, and its clock is another one.
SETTLED_SECONDS = 5.0

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
    # Of these, by capacity type.
    by_type: Mapping[tuple[str, CapacityType], int] = field(default_factory=dict)
    reserved: tuple[Holding, ...] = ()  # by trainings, in addition to the replicas
    allowance: Allowance = NO_BUDGET  # that TurboBudgets leave

    def exceeded(self, holdings: Iterable[Holding]) -> str | None:
        """Describe the first limit that these holdings and what is reserved break, as a clause."""
        held = [(footprint, number) for footprint, number in holdings if footprint is not None and number > 0]
        if broken := self._spent(held):
            return f"spec.{broken}"
        if broken := self._spent([*held, *self.reserved]):
            return f"with the training that runs, {broken} of the spec"
        if broken := self.allowance.refuses(amount_of(held)):
            return broken
        by_name: Counter[str] = Counter()
        by_type: Counter[tuple[str, CapacityType]] = Counter()
        for footprint, number in held:  # trainings are no longer in stock
            name, count = footprint.accelerator.name, footprint.accelerators(number)
            by_name[name] += count
            by_type[name, footprint.capacity_type] += count
        for name, count in sorted(by_name.items()):
            if count > self.stock.get(name, count):
                return f"the cluster and its quotas hold {self.stock[name]} of {name}"
        for (name, kind), count in sorted(by_type.items()):
            if count > self.by_type.get((name, kind), count):
                paid = "" if kind == CapacityType.ON_DEMAND else f" ({kind})"
                return f"the cluster and its quotas hold {self.by_type[name, kind]} of {name}{paid}"
        return None

    def is_overspent(self, holdings: Iterable[Holding]) -> bool:
        """Whether these alone break one of the user's own limits."""
        return self._spent(holdings) is not None

    def _spent(self, holdings: Iterable[Holding]) -> str | None:
        """Describe which of the user's own limits these break."""
        total, cost = 0, Decimal(0)
        for footprint, number in holdings:
            if footprint is not None:
                total += footprint.accelerators(number)
                cost += footprint.cost_per_hour(number) or Decimal(0)
        if self.max_total is not None and total > self.max_total:
            return f"accelerators.maxTotal is {self.max_total}"
        if self.max_per_hour is not None and cost > self.max_per_hour:
            return f"cost.maxPerHour is {self.max_per_hour}"
        return None

    def most(self, footprint: Footprint | None, replicas: int) -> int:
        """Count how many of `replicas` fit alone."""
        counts = range(1, replicas + 1)
        return bisect_left(counts, True, key=lambda count: self.exceeded([(footprint, count)]) is not None)


def bounds_of(
    td: TurboDeployment, observed: Snapshot, footprints: Iterable[Footprint | None], now: float
) -> Bounds:
    """Build the limits of the spec and the cluster; `footprints` are those of all variants.

    Labels do not hold the cores and memory that a pod requests: another footprint's stand for them.
    """
    known = [footprint for footprint in footprints if footprint is not None]
    hosts = {footprint.accelerator.name: footprint.host for footprint in known if footprint.host is not None}
    stock: dict[str, int] = {}
    by_type: dict[tuple[str, CapacityType], int] = {}
    trainings = trainings_holding(observed)
    coming = trainings[0][0] if trainings and not _is_counted(td, observed, now) else None
    for footprint in known:
        name = footprint.accelerator.name
        if (supply := (observed.supply or {}).get(name)) is None:
            continue
        if coming is not None and coming.accelerator.name == name:
            supply = _without(supply, coming.per_replica)
        if supply.quota is not None:
            stock[name] = supply.quota
        room = replace(footprint, host=footprint.host or hosts.get(name)).room(supply, now)
        if room is not None:
            place = name, footprint.capacity_type
            by_type[place] = max(by_type.get(place, 0), footprint.accelerators(room))
    return Bounds(
        td.spec.rollout.max_surge,
        td.spec.rollout.max_unavailable,
        (td.spec.accelerators or Accelerators()).max_total,
        (td.spec.cost or Cost()).max_per_hour,
        stock,
        by_type,
        trainings,
        observed.allowance,
    )


def amount_of(holdings: Iterable[Holding]) -> Amount:
    """Sum what these hold and cost."""
    return sum((footprint.amount(number) for footprint, number in holdings if footprint is not None), NOTHING)


def _is_counted(td: TurboDeployment, observed: Snapshot, now: float) -> bool:
    """Whether the inventory includes the pod that trains, or its wait for a node has timed out."""
    timeout = (td.spec.accelerators or Accelerators()).pending_timeout.seconds
    pod = next((pod for pod in observed.trainings if pod.exit_code is None), None)
    if pod is not None and pod.scheduled_since is not None:
        return pod.scheduled_since + SETTLED_SECONDS <= observed.counted_time
    if pod is not None and pod.pending_since is not None:
        return now - pod.pending_since >= timeout
    return pod is not None


def _without(supply: Supply, accelerators: int) -> Supply:
    """Return the supply once so many accelerators of it are taken, of the node that has most."""
    nodes = sorted(supply.nodes, key=lambda node: -node.free)
    if nodes:
        nodes[0] = replace(nodes[0], free=max(0, nodes[0].free - accelerators))
    quota = None if supply.quota is None else max(0, supply.quota - accelerators)
    return replace(supply, nodes=tuple(nodes), quota=quota)


def trainings_holding(observed: Snapshot) -> tuple[Holding, ...]:
    """Return what trainings hold: pods that run, and Jobs that are yet to have their next one."""
    pods = [pod for pod in observed.trainings if pod.exit_code is None]
    present = {pod.job for pod in pods}
    jobs = (
        child
        for child in observed.children
        if child.kind == "Job" and child.accelerator and not (child.complete or child.failed)
    )
    labeled = [*pods, *(job for job in jobs if job.name not in present)]
    return tuple((labeled_footprint(each, observed.accelerators), 1) for each in labeled)
