"""What the cluster has of each accelerator: nodes, less what pods hold on them, within quotas. Pure.

What a TurboDeployment's own pods hold counts as free for it, since a new plan may take their place. On nodes
that take no new pods of a capacity type that is what its pods of the same accelerator and type hold, unless
they are leaving. Amounts of resources are whole thousandths, so that they add up exactly. What is not seen
(pods of namespaces that are not watched) is not counted.
"""

from __future__ import annotations

import math
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import product
from typing import Any, NamedTuple

from turbo_operator.api import CapacityType, PodSpec, label_value
from turbo_operator.capacity_types import NodeClassifier
from turbo_operator.snapshot import Accelerator, Host, NodeSupply, Supply

Amounts = Mapping[str, int]  # by resource, in thousandths of its unit

CPU, MEMORY = "cpu", "memory"
# Of a quota, what counts a resource of that name; extended resources are counted by their requests alone.
_QUOTA_PREFIXES = ("", "requests.", "limits.")
# Scopes that every serving pod falls under: it has requests and no deadline. Others depend on its class.
SERVING_SCOPES = frozenset({"NotTerminating", "NotBestEffort"})


class Owner(NamedTuple):
    """The TurboDeployment that a pod belongs to."""

    namespace: str
    name: str

    @property
    def trainer(self) -> Owner:
        """The owner of its pods that train a draft: they and those that serve are no room for each other."""
        return Owner(self.namespace, f"{self.name}/train")  # no object has such a name


@dataclass(frozen=True, slots=True)
class Node:
    """A node as far as pods are placed by it."""

    name: str
    labels: Mapping[str, str]
    taints: tuple[Mapping[str, str], ...]  # those of effect NoSchedule and NoExecute
    takes_pods: bool  # ready and not cordoned
    allocatable: Amounts


@dataclass(frozen=True, slots=True)
class PodUsage:
    """The resources that one pod holds until it ends: on its node, or before it has one, of quotas alone."""

    owner: Owner | None  # None: a stranger
    node: str | None
    requests: Amounts
    limits: Amounts
    leaving: bool = False  # told to end
    accelerator: str | None = None  # that it was made for, as its label says
    capacity_type: str = CapacityType.ON_DEMAND
    namespace: str = ""
    scopes: frozenset[str] = SERVING_SCOPES  # that it falls under
    overdue: float = math.inf  # when it should have ended at the latest, in seconds since the epoch

    def counts(self, quota: Quota, now: float) -> bool:
        """Whether Kubernetes charges the quota for it: a pod that cannot end is not held against others."""
        return quota.scopes <= self.scopes and now <= self.overdue


@dataclass(frozen=True, slots=True)
class Quota:
    """A ResourceQuota that serving pods fall under."""

    namespace: str
    hard: Amounts
    scopes: frozenset[str] = frozenset()


@dataclass(frozen=True, slots=True)
class ClusterInventory:
    """The cluster at one moment, for everybody; `supply_of` is one TurboDeployment's share of it."""

    accelerators: Mapping[str, Accelerator] = field(default_factory=dict)
    nodes: Mapping[str, Node] = field(default_factory=dict)
    held: Mapping[str, Amounts] = field(default_factory=dict)  # by node
    own: Mapping[Owner, tuple[PodUsage, ...]] = field(default_factory=dict)
    quotas: tuple[Quota, ...] = ()
    charged: Sequence[PodUsage] = ()  # pods of namespaces that have a quota, seen at the same moment
    supply: Mapping[str, tuple[NodeSupply, ...]] = field(default_factory=dict)  # with nobody's pods as free
    # By accelerator: nodes with its labels that are not ready, cordoned, or have taints that it does not
    # tolerate, if only as one capacity type.
    closed: Mapping[str, tuple[Node, ...]] = field(default_factory=dict)
    time: float = 0.0  # of quotas and their pods, in seconds since the epoch
    counted_time: float = 0.0  # of nodes and what they have free


def take_stock(
    accelerators: Mapping[str, Accelerator],
    nodes: Iterable[Node],
    holdings: Iterable[PodUsage],
    quotas: Sequence[Quota] = (),
    now: float = 0.0,
) -> ClusterInventory:
    """Count what `nodes` have of each accelerator while `holdings` hold what they hold.

    `now` is in seconds since the epoch.
    """
    by_name = {node.name: node for node in sorted(nodes, key=lambda node: node.name)}
    pods = tuple(holdings)
    held = _by_node(pods)
    own: defaultdict[Owner, tuple[PodUsage, ...]] = defaultdict(tuple)
    for pod in pods:
        if pod.owner is not None:
            own[pod.owner] += (pod,)
    supply: dict[str, tuple[NodeSupply, ...]] = {}
    closed: dict[str, tuple[Node, ...]] = {}
    for name, accelerator in accelerators.items():
        classifier, selector = NodeClassifier(accelerator), accelerator.node_selector
        opened = [
            (node, _open_to(node, selector, accelerator.tolerations, classifier))
            for node in by_name.values()
            if _matches(node, selector)
        ]
        supply[name] = tuple(
            _on_node(accelerator, node, held.get(node.name, {}), {}, types) for node, types in opened if types
        )
        closed[name] = tuple(node for node, types in opened if types != classifier.classify(node.labels))
    limited = {quota.namespace for quota in quotas}
    charged, rows = [pod for pod in pods if pod.namespace in limited], tuple(quotas)
    return ClusterInventory(dict(accelerators), by_name, held, own, rows, charged, supply, closed, now, now)


def supply_of(stock: ClusterInventory, owner: Owner, overlay: PodSpec | None = None) -> dict[str, Supply]:
    """Return by accelerator what `owner` may plan with; its template narrows the nodes."""
    mine = stock.own.get(owner, ())
    own, left = _by_node(mine), _left(stock, owner)
    supply = {}
    for name, accelerator in stock.accelerators.items():
        nodes, quota = _nodes(stock, accelerator, mine, own, overlay), _quota(accelerator, left)
        selector, opened = _selector(accelerator, overlay), {row.name for row in nodes}
        closed = [node for node in _further(stock, accelerator, selector) if node.name not in opened]
        supply[name] = Supply(nodes, quota, closed=sum(_matches(node, selector) for node in closed))
    return supply


def unit(accelerator: Accelerator) -> Amounts:
    """Return what one accelerator takes of a node; of `cpu` its memory too, which is the machine's."""
    amounts = {accelerator.resource_name: max(1, math.ceil(accelerator.quantity * 1000))}
    if accelerator.resource_name == CPU:
        amounts[MEMORY] = max(1, accelerator.memory_bytes * 1000)
    return amounts


def is_open(node: Node, selector: Mapping[str, str], tolerations: Sequence[Mapping[str, Any]]) -> bool:
    """Whether a new pod with this selector and these tolerations may go to the node, were it empty."""
    return (
        node.takes_pods
        and _matches(node, selector)
        and all(any(_tolerates(toleration, taint) for toleration in tolerations) for taint in node.taints)
    )


def _nodes(
    stock: ClusterInventory,
    accelerator: Accelerator,
    mine: Sequence[PodUsage],
    own: Mapping[str, Amounts],
    overlay: PodSpec | None,
) -> tuple[NodeSupply, ...]:
    selector, base = _selector(accelerator, overlay), stock.supply[accelerator.name]
    if overlay is not None and (overlay.node_selector or overlay.tolerations):
        base = _under(stock, accelerator, selector, [item.dump() for item in overlay.tolerations or ()])
    if not own:
        return base
    rows = {node.name: node for node in base}
    label = label_value(accelerator.name)
    staying = [pod for pod in mine if pod.accelerator == label and not pod.leaving]
    kept: list[NodeSupply] = []
    for name, amounts in own.items():
        node = stock.nodes.get(name)
        if node is None or not _matches(node, selector):
            continue
        types = rows[name].capacity_types if name in rows else frozenset()
        if types:
            rows[name] = _on_node(accelerator, node, stock.held[name], amounts, types)
        for kind in sorted(set(CapacityType) - types):  # takes no new pods of it; ours need not leave
            pods = (pod for pod in staying if (pod.node, pod.capacity_type) == (name, kind))
            if units := _units(accelerator, _by_node(pods).get(name, {})):
                kept.append(NodeSupply(name, units, units, None, frozenset({kind})))
    return tuple(sorted((*rows.values(), *kept), key=lambda row: row.name))


def _selector(accelerator: Accelerator, overlay: PodSpec | None) -> Mapping[str, str]:
    own = overlay.node_selector if overlay is not None else None
    return {**accelerator.node_selector, **own} if own else accelerator.node_selector


def _further(
    stock: ClusterInventory, accelerator: Accelerator, selector: Mapping[str, str]
) -> Iterable[Node]:
    """Return the nodes that are not counted as the accelerator's, and that a template may open."""
    if any(selector[key] != value for key, value in accelerator.node_selector.items()):
        return stock.nodes.values()  # other nodes altogether
    return stock.closed[accelerator.name]


def _under(
    stock: ClusterInventory,
    accelerator: Accelerator,
    selector: Mapping[str, str],
    more: Sequence[Mapping[str, Any]],
) -> tuple[NodeSupply, ...]:
    """Count the nodes under a template's whole selector and tolerations, with nobody's pods as free.

    A template mostly narrows what is counted already, and every look at its TurboDeployment comes here.
    """
    name, tolerations = accelerator.name, (*accelerator.tolerations, *more)
    rows = {row.name: row for row in stock.supply[name] if _matches(stock.nodes[row.name], selector)}
    classifier = NodeClassifier(accelerator)
    # Without more tolerations a node that is counted for nobody opens to labels of other nodes alone.
    for node in _further(stock, accelerator, selector) if more or not rows else ():
        if types := _open_to(node, selector, tolerations, classifier):
            rows[node.name] = _on_node(accelerator, node, stock.held.get(node.name, {}), {}, types)
    return tuple(rows[name] for name in sorted(rows))


def _open_to(
    node: Node,
    selector: Mapping[str, str],
    tolerations: Sequence[Mapping[str, Any]],
    classifier: NodeClassifier,
) -> frozenset[CapacityType]:
    """Return the capacity types whose new pods may go to the node, were it empty."""
    return frozenset(
        kind
        for kind in classifier.classify(node.labels)
        if is_open(node, selector, (*tolerations, *classifier.constraints[kind].tolerations))
    )


def _on_node(
    accelerator: Accelerator, node: Node, held: Amounts, own: Amounts, capacity_types: frozenset[CapacityType]
) -> NodeSupply:
    free = {
        name: node.allocatable[name] - held.get(name, 0) + own.get(name, 0)
        for name in (*unit(accelerator), CPU, MEMORY)
        if name in node.allocatable
    }
    host = None
    if accelerator.resource_name != CPU and CPU in free and MEMORY in free:
        host = Host(max(0, free[CPU]), max(0, free[MEMORY] // 1000))
    allocatable = _units(accelerator, node.allocatable)
    return NodeSupply(node.name, allocatable, _units(accelerator, free), host, capacity_types)


def _units(accelerator: Accelerator, amounts: Amounts) -> int:
    """Count the whole accelerators in these amounts; never negative."""
    return max(0, min(amounts.get(name, 0) // size for name, size in unit(accelerator).items()))


def _left(stock: ClusterInventory, owner: Owner) -> dict[str, int]:
    """Count by what quotas name how much the tightest leaves the owner, what it holds already included.

    What the others use is what their pods hold. The quota's status says the same earlier or later: with a
    pod that it counts too many, a replica would make room for one that has room.
    """
    left: dict[str, int] = {}
    taken = {name for row in stock.accelerators.values() for name in unit(row)}
    pods = [pod for pod in stock.charged if pod.namespace == owner.namespace]
    for quota in (quota for quota in stock.quotas if quota.namespace == owner.namespace):
        others = [pod for pod in pods if pod.owner != owner and pod.counts(quota, stock.time)]
        for key, hard in quota.hard.items():
            if resource_of(key) not in taken:
                continue
            left[key] = min(left.get(key, hard), max(0, hard - total_of(others, key)))
    return left


def resource_of(key: str) -> str:
    """Return the resource that an entry of a quota is about."""
    return key.removeprefix("requests.").removeprefix("limits.")


def total_of(pods: Iterable[PodUsage], key: str) -> int:
    """Add up what pods hold of what a quota names."""
    name = resource_of(key)
    return sum((pod.limits if key.startswith("limits.") else pod.requests).get(name, 0) for pod in pods)


def _quota(accelerator: Accelerator, left: Amounts) -> int | None:
    """Count the accelerators that quotas leave; None where none names their resource."""
    units = product(_QUOTA_PREFIXES, unit(accelerator).items())
    counts = (left[prefix + name] // size for prefix, (name, size) in units if prefix + name in left)
    return min(counts, default=None)


def _matches(node: Node, selector: Mapping[str, str]) -> bool:
    return all(node.labels.get(key) == value for key, value in selector.items())


def _tolerates(toleration: Mapping[str, Any], taint: Mapping[str, str]) -> bool:
    """Compare as the scheduler does: no key stands for every key, no effect for every effect."""
    if any(toleration.get(field) not in (None, taint[field]) for field in ("effect", "key")):
        return False
    if toleration.get("operator") == "Exists":
        return True
    return toleration.get("key") is not None and (toleration.get("value") or "") == taint.get("value", "")


def _by_node(holdings: Iterable[PodUsage]) -> dict[str, Amounts]:
    """Add up what pods request of each node."""
    totals: defaultdict[str, Counter[str]] = defaultdict(Counter)
    for pod in holdings:
        if pod.node is not None:
            totals[pod.node].update(pod.requests)
    return dict(totals)
