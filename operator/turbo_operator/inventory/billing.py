"""As what a pod of somebody else is billed: the accelerators of its node that it holds. Pure."""

from __future__ import annotations

import math
from collections.abc import Mapping

from turbo_operator.api import CapacityType
from turbo_operator.capacity_types import NodeClassifier
from turbo_operator.inventory.supply import CPU, Node, PodUsage, unit
from turbo_operator.snapshot import Accelerator, AcceleratorLabels


def billed_as(pod: PodUsage, node: Node, accelerators: Mapping[str, Accelerator]) -> AcceleratorLabels | None:
    """Find the TurboAccelerator that a pod holds on its node; None where none fits.

    One of a device that the pod requests goes before cores, then the one that names its nodes most closely,
    then the one of which the least is paid for and not requested.
    """
    found = []
    for name, row in accelerators.items():
        amounts = {resource: pod.requests.get(resource, 0) for resource in unit(row)}
        if not amounts[row.resource_name]:
            continue
        if any(node.labels.get(key) != value for key, value in row.node_selector.items()):
            continue
        count = max(math.ceil(amount / unit(row)[resource]) for resource, amount in amounts.items())
        surplus = count * unit(row)[row.resource_name] - amounts[row.resource_name]
        found.append((row.resource_name == CPU, -len(row.node_selector), surplus, name, count))
    if not found:
        return None
    *_, name, count = min(found)
    types = NodeClassifier(accelerators[name]).classify(node.labels)
    kind = CapacityType.ON_DEMAND if CapacityType.ON_DEMAND in types or not types else min(types)
    return AcceleratorLabels(accelerator=name, accelerators=count, capacity_type=kind)
