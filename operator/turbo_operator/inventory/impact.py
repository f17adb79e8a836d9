"""Whether another count of the cluster may give another plan. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import TypeVar

from turbo_operator.api import CapacityType, PlanReason, label_value
from turbo_operator.inventory.supply import ClusterInventory, Owner, Quota, room
from turbo_operator.plan import Plan
from turbo_operator.snapshot import NodeSupply

Place = TypeVar("Place")

# What more nodes, or larger ones, may mend.
SHORT = frozenset({PlanReason.NO_CAPACITY, PlanReason.INVALID_PARALLELISM})


@dataclass(frozen=True, slots=True)
class Change:
    """What lies between two stocks."""

    grown: frozenset[str]  # accelerators of which a node has more than before, or more beside free ones
    shrunk: frozenset[str]  # accelerators of which a node has less than before
    quotas: frozenset[str]  # namespaces

    def __bool__(self) -> bool:
        return bool(self.grown or self.shrunk or self.quotas)


def moved(before: ClusterInventory, after: ClusterInventory) -> Change:
    """The change from one stock to the next."""
    names = before.supply.keys() | after.supply.keys()
    old = {name: _free(before.supply.get(name, ())) for name in names}
    new = {name: _free(after.supply.get(name, ())) for name in names}
    earlier, later = _by_namespace(before.quotas), _by_namespace(after.quotas)
    return Change(
        grown=frozenset(
            name
            for name in names
            if _is_less(old[name], new[name])
            or _is_less(_hosted(before.supply.get(name, ())), _hosted(after.supply.get(name, ())))
        ),
        shrunk=frozenset(name for name in names if _is_less(new[name], old[name])),
        quotas=frozenset(
            namespace
            for namespace in earlier.keys() | later.keys()
            if earlier.get(namespace) != later.get(namespace)
        ),
    )


def concerns(plan: Plan, owner: Owner, change: Change, stock: ClusterInventory) -> bool:
    """Whether the TurboDeployment `owner`, whose last plan is `plan`, is to be planned anew.

    More of an accelerator matters to whoever was refused some; less of it to whoever runs on it and has not
    got all of its pods a place. What its own pods hold it has.
    """
    if owner.namespace in change.quotas:
        return True
    refused = {row.accelerator for row in plan.rejected if row.reason in SHORT}
    if not refused.isdisjoint(change.grown) or (change.grown and plan.reason == PlanReason.NO_CAPACITY):
        return True
    choice = plan.choice
    if choice is None or choice.accelerator.name not in change.shrunk:
        return False
    made_for = label_value(choice.accelerator.name)  # no pod that inspects, and none of a plan before
    placed = [each for each in stock.own.get(owner, ()) if each.node is not None]
    missing = plan.replicas - sum(each.accelerator == made_for for each in placed)
    there = stock.supply.get(choice.accelerator.name, ())
    return missing > 0 and room(there, choice.accelerators_per_replica, choice.capacity_type) < missing


def _free(nodes: Iterable[NodeSupply]) -> Mapping[tuple[str, CapacityType], int]:
    """By node and capacity type: a node that becomes one of another type is lost to the one it had."""
    return {(node.name, kind): node.free for node in nodes for kind in node.capacity_types}


def _hosted(nodes: Iterable[NodeSupply]) -> Mapping[tuple[str, str], int]:
    """Cores and memory beside free accelerators: where none is free, more of them makes no room."""
    hosts = {node.name: node.host for node in nodes if node.free and node.host}
    return {
        (name, what): amount
        for name, host in hosts.items()
        for what, amount in (("cpu", host.millicores), ("memory", host.memory_bytes))
    }


def _is_less(one: Mapping[Place, int], other: Mapping[Place, int]) -> bool:
    """Whether some place has less in `one` than in `other`; none is as good as nothing."""
    return any(one.get(place, 0) < free for place, free in other.items())


def _by_namespace(quotas: Iterable[Quota]) -> Mapping[str, list[Quota]]:
    found: dict[str, list[Quota]] = {}
    for quota in quotas:
        found.setdefault(quota.namespace, []).append(quota)
    return found
