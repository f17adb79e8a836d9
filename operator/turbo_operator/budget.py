"""What replicas hold and cost: the one count that planner, autoscaler and status share. Pure.

Whole nodes are paid for where nodes are bought whole. A bound is a number of replicas: 0 where none is
allowed, None where nothing bounds them.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from decimal import Decimal

from turbo_operator.api import (
    CapacityType,
    EngineName,
    PodSpec,
    Provisioning,
    Resources,
    label_value,
    quantity,
)
from turbo_operator.commitments import NOTHING, Amount
from turbo_operator.plan import Choice
from turbo_operator.snapshot import Accelerator, AcceleratorLabels, Host, NodeSupply, Supply

DEVICE_POD_CORES = 2  # server and engine process of a pod whose arithmetic is on a device


def device_pod_cores(engine: EngineName, tensor: int, draft_cores: int) -> int:
    """Count the cores that such a pod requests, with those of a draft on cores: engine Turbo has a process
    for each of `tensor` accelerators.
    """
    ranks = tensor if engine == EngineName.TURBO else 1
    return DEVICE_POD_CORES - 1 + ranks + draft_cores


def beside(
    accelerator: Accelerator, memory_bytes: int, resources: Resources | None, cores: int = DEVICE_POD_CORES
) -> Host | None:
    """Return what one pod takes beside its devices, the template's amounts over the plan's; None on cores."""
    if accelerator.resource_name == "cpu":
        return None
    requests = (resources.requests if resources else None) or {}
    memory = quantity(requests["memory"]) if "memory" in requests else memory_bytes
    return Host(math.ceil(quantity(requests.get("cpu", str(cores))) * 1000), math.ceil(memory))


@dataclass(frozen=True, slots=True)
class Footprint:
    """What one replica holds: `per_replica` accelerators on `nodes` nodes, paid for as `capacity_type`."""

    accelerator: Accelerator
    capacity_type: CapacityType
    per_replica: int
    nodes: int = 1
    host: Host | None = None  # of one pod, in addition to its accelerators; None is not counted

    def accelerators(self, replicas: int) -> int:
        """Count the accelerators that `replicas` hold."""
        return self.per_replica * replicas

    @property
    def lot(self) -> tuple[int, int]:
        """Replicas that are bought together, and the accelerators that they pay for."""
        if not self.accelerator.price_per_node:
            return 1, self.per_replica
        per_node = self.accelerator.count_per_node or 1
        nodes = max(self.nodes, math.ceil(self.per_replica / per_node))
        return (1, nodes * per_node) if nodes > 1 else (per_node // self.per_replica, per_node)

    def paid(self, replicas: int) -> int:
        """Count the accelerators that `replicas` pay for: all of every node where nodes are bought whole."""
        together, accelerators = self.lot
        return math.ceil(replicas / together) * accelerators

    def cost_per_hour(self, replicas: int) -> Decimal | None:
        """Return US dollars per hour of `replicas`; None where the price is unknown."""
        price = self.accelerator.prices.get(self.capacity_type)
        return None if price is None else price * self.paid(replicas)

    def amount(self, replicas: int) -> Amount:
        """Return what `replicas` hold and cost together."""
        if replicas <= 0:
            return NOTHING
        name, count = self.accelerator.name, self.accelerators(replicas)
        return Amount.of(name, count, self.cost_per_hour(replicas))

    def affordable(self, max_per_hour: Decimal) -> int | None:
        """Return the maximum of replicas within the budget; 0 where the price is unknown."""
        price = self.accelerator.prices.get(self.capacity_type)
        if price is None:
            return 0
        if price == 0:
            return None
        together, accelerators = self.lot
        return int(max_per_hour // price) // accelerators * together

    def within(self, accelerators: int) -> int:
        """Return the maximum of replicas that so many accelerators hold, wherever they are."""
        return accelerators // self.per_replica

    def room(self, supply: Supply, now: float) -> int | None:
        """Return the maximum of replicas that the cluster can hold at `now`, those that run included."""
        bounds = [] if supply.quota is None else [self.within(supply.quota)]
        # An Elastic accelerator may grow to its bound unless a pod timed out.
        is_unavailable = supply.unavailable_until is not None and supply.unavailable_until > now
        if self.accelerator.provisioning == Provisioning.FIXED or is_unavailable:
            bounds.append(self._on_nodes(supply))
        elif self.accelerator.max_count is not None:
            bounds.append(self.within(self.accelerator.max_count))
        return min(bounds, default=None)

    def _on_nodes(self, supply: Supply) -> int:
        """Count replicas on the free part of nodes: each on one node, or on a node group of its own."""
        share = math.ceil(self.per_replica / self.nodes)
        pods = [
            min(node.free // share, self._hosted(node))
            for node in supply.nodes
            if self.capacity_type in node.capacity_types
        ]
        return sum(pods) if self.nodes == 1 else sum(number > 0 for number in pods) // self.nodes

    def _hosted(self, node: NodeSupply) -> int:
        """Count the pods for which a node has cores and memory."""
        if self.host is None or node.host is None:
            return node.allocatable
        cores = node.host.millicores // max(1, self.host.millicores)
        return min(cores, node.host.memory_bytes // max(1, self.host.memory_bytes))


def footprint_of(choice: Choice, pod: PodSpec) -> Footprint:
    """Return the footprint of one replica of a plan, cores and memory in addition to its devices included."""
    cores = device_pod_cores(choice.engine, choice.tensor, choice.draft_cores)
    host = beside(choice.accelerator, choice.host_memory_bytes, pod.resources, cores)
    return Footprint(
        choice.accelerator, choice.capacity_type, choice.accelerators_per_replica, choice.nodes, host
    )


def labeled_footprint(labeled: AcceleratorLabels, accelerators: Mapping[str, Accelerator]) -> Footprint:
    """Return the footprint of a pod's replica by its labels; no price where its TurboAccelerator is gone."""
    name = labeled.accelerator or ""
    by_label = (row for key, row in accelerators.items() if label_value(key) == name)
    row = accelerators.get(name) or next(by_label, None) or Accelerator(name, "", Decimal(1), 0)
    kinds = (kind for kind in CapacityType if kind == labeled.capacity_type)
    kind, per_replica = next(kinds, CapacityType.ON_DEMAND), labeled.accelerators * labeled.nodes
    return Footprint(row, kind, per_replica, labeled.nodes)


def cost_of(holding: Iterable[AcceleratorLabels], accelerators: Mapping[str, Accelerator]) -> Decimal | None:
    """Return US dollars per hour of what pods hold, by their labels; None where a price is not known."""
    groups: defaultdict[tuple[object, ...], list[AcceleratorLabels]] = defaultdict(list)
    for pod in holding:
        groups[pod.accelerator, pod.capacity_type, pod.accelerators, pod.nodes].append(pod)
    total = Decimal(0)
    for pods in groups.values():  # together, since whole nodes may be bought
        cost = labeled_footprint(pods[0], accelerators).cost_per_hour(len(pods))
        if cost is None:
            return None
        total += cost
    return total
