"""As which TurboAccelerator a pod of somebody else is billed."""

from __future__ import annotations

from decimal import Decimal
from typing import Any

from turbo_operator.api import CapacityType
from turbo_operator.inventory.billing import billed_as
from turbo_operator.inventory.supply import Node, PodUsage
from turbo_operator.snapshot import Accelerator, AcceleratorLabels

GIB = 1 << 30
GPU = "nvidia.com/gpu"
H100 = Accelerator("h100", GPU, Decimal(1), 80 * GIB, node_selector={"product": "H100"})
ANY = Accelerator("any-gpu", GPU, Decimal(1), 80 * GIB)
CORES = Accelerator("cpu", "cpu", Decimal(2), 4 * GIB)
BIG = Accelerator("cpu-8", "cpu", Decimal(8), 32 * GIB)
CATALOG = {row.name: row for row in (H100, ANY, CORES, BIG)}


def node(**labels: str) -> Node:
    return Node("n", {"product": "H100"} | labels, (), takes_pods=True, allocatable={})


def pod(gpus: int = 0, cores: int = 4, memory: int = 8) -> PodUsage:
    amounts = {GPU: gpus * 1000, "cpu": cores * 1000, "memory": memory * GIB * 1000}
    return PodUsage(None, "n", amounts, {})


def billed(it: PodUsage, where: Node | None = None, catalog: Any = CATALOG) -> AcceleratorLabels | None:
    return billed_as(it, where or node(), catalog)


def test_devices_go_before_cores_and_the_closest_selector_before_others() -> None:
    assert billed(pod(gpus=2)) == AcceleratorLabels(accelerator="h100", accelerators=2)
    assert billed(pod(gpus=2), node(product="A10")) == AcceleratorLabels(
        accelerator="any-gpu", accelerators=2
    )


def test_cores_are_billed_by_what_leaves_the_least_over_and_memory_counts() -> None:
    assert billed(pod(cores=3, memory=2)) == AcceleratorLabels(accelerator="cpu", accelerators=2)
    assert billed(pod(cores=8, memory=40), catalog={"cpu": CORES}) == AcceleratorLabels(
        accelerator="cpu", accelerators=10
    )


def test_a_node_of_no_accelerator_bills_nothing() -> None:
    assert billed(pod(gpus=1), node(product="A10"), {"h100": H100}) is None
    assert billed(PodUsage(None, "n", {}, {})) is None


def test_a_spot_node_is_billed_as_spot() -> None:
    spot = billed(pod(gpus=1), node(**{"karpenter.sh/capacity-type": "spot"}))
    assert spot == AcceleratorLabels(accelerator="h100", capacity_type=CapacityType.SPOT)
