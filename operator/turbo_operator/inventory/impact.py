"""Whether another count of the cluster may give another plan. Pure."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass

from turbo_operator.api import PlanReason, label_value
from turbo_operator.inventory.supply import ClusterInventory, Owner, resource_of, total_of, unit
from turbo_operator.plan import Plan
from turbo_operator.snapshot import NodeSupply

_Count = Callable[[Iterable[NodeSupply]], Counter[tuple[str, str]]]

# What more nodes, or larger ones, may mend.
SHORT = frozenset({PlanReason.INSUFFICIENT_CAPACITY, PlanReason.INVALID_PARALLELISM})


@dataclass(frozen=True, slots=True)
class Change:
    """The difference between two inventories."""

    grown: frozenset[str]  # accelerators of which a node has more than before, or more beside free ones
    shrunk: frozenset[str]  # accelerators of which a node has less than before
    lost: frozenset[Owner]  # whose pods are on fewer nodes' accelerators: another's may have taken the place
    quotas: frozenset[str]  # namespaces

    def __bool__(self) -> bool:
        return bool(self.grown or self.shrunk or self.lost or self.quotas)


def compare(before: ClusterInventory, after: ClusterInventory) -> Change:
    """Compare two inventories."""
    old_quotas, new_quotas = _amounts(before), _amounts(after)
    namespaces = old_quotas.keys() | new_quotas.keys()

    def find_grown(first: ClusterInventory, second: ClusterInventory, count: _Count) -> frozenset[str]:
        """Find what some place has more of in the second one; none is as good as nothing."""
        names = first.supply.keys() | second.supply.keys()
        old, new = ({name: count(row.supply.get(name, ())) for name in names} for row in (first, second))
        return frozenset(name for name in names if not new[name] <= old[name])

    return Change(
        grown=find_grown(before, after, _free) | find_grown(before, after, _hosted),
        shrunk=find_grown(after, before, _free),
        lost=frozenset(owner for owner in before.own if _placed(after, owner) < _placed(before, owner)),
        quotas=frozenset(name for name in namespaces if old_quotas.get(name) != new_quotas.get(name)),
    )


def concerns(plan: Plan, owner: Owner, change: Change, stock: ClusterInventory) -> bool:
    """Whether the TurboDeployment `owner`, whose last plan is `plan`, is to be planned anew.

    More of an accelerator matters to whoever was refused some; less of it to whoever runs on it and has not
    got all of its pods a place. What its own pods hold it has.
    """
    if owner.namespace in change.quotas:
        return True
    refused = {row.accelerator for row in plan.rejected if row.reason in SHORT}
    if not refused.isdisjoint(change.grown) or (
        change.grown and plan.reason == PlanReason.INSUFFICIENT_CAPACITY
    ):
        return True
    choice = plan.choice
    if choice is None or (choice.accelerator.name not in change.shrunk and owner not in change.lost):
        return False
    made_for = label_value(choice.accelerator.name)  # no pod that inspects, and none of a plan before
    placed = [usage for usage in stock.own.get(owner, ()) if usage.node is not None]
    missing = plan.replicas - sum(usage.accelerator == made_for for usage in placed)
    nodes = stock.supply.get(choice.accelerator.name, ())
    free = (node.free for node in nodes if choice.capacity_type in node.capacity_types)
    return missing > 0 and sum(number // choice.accelerators_per_replica for number in free) < missing


def _placed(stock: ClusterInventory, owner: Owner) -> int:
    return sum(usage.node is not None for usage in stock.own.get(owner, ()))


def _free(nodes: Iterable[NodeSupply]) -> Counter[tuple[str, str]]:
    """Count by node and capacity type: a node that changes its type is lost to the one it had."""
    return Counter({(node.name, kind): node.free for node in nodes for kind in node.capacity_types})


def _hosted(nodes: Iterable[NodeSupply]) -> Counter[tuple[str, str]]:
    """Count cores and memory beside free accelerators: where none is free, more of them makes no room."""
    hosts = [(node.name, node.host) for node in nodes if node.free and node.host]
    cores = {(name, "cpu"): host.millicores for name, host in hosts}
    return Counter(cores | {(name, "memory"): host.memory_bytes for name, host in hosts})


def _amounts(stock: ClusterInventory) -> Mapping[str, list[tuple[str, int, int]]]:
    """Collect by namespace what quotas bound of what an accelerator takes, and what pods hold of it."""
    taken = {name for row in stock.accelerators.values() for name in unit(row)}
    by_namespace: defaultdict[str, list[tuple[str, int, int]]] = defaultdict(list)
    for quota in stock.quotas:
        pods = [pod for pod in stock.charged if pod.namespace == quota.namespace]
        pods = [pod for pod in pods if pod.counts(quota, stock.time)]
        keys = [key for key in quota.hard if resource_of(key) in taken]
        by_namespace[quota.namespace] += [(key, quota.hard[key], total_of(pods, key)) for key in keys]
    return by_namespace
