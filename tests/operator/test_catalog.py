"""The catalog: what ships is valid and sourced, and a user's object wins."""

from __future__ import annotations

from decimal import Decimal

import pytest

from turbo_operator.api import CapacityType, parse_accelerator
from turbo_operator.catalog import catalog, shipped_objects
from turbo_operator.snapshot import Accelerator

GIB = 1 << 30
# AWS' own prices of the instances, on demand in us-east-1 on 2026-01-19, with their number of GPUs.
INSTANCES = {
    "a10g": ("g5.xlarge", "1.006", 1),
    "a10g-x4": ("g5.12xlarge", "5.672", 4),
    "l4": ("g6.xlarge", "0.8048", 1),
    "l4-x4": ("g6.12xlarge", "4.6016", 4),
    "l40s": ("g6e.xlarge", "1.861", 1),
    "l40s-x4": ("g6e.12xlarge", "10.49264", 4),
    "a100-40gb": ("p4d.24xlarge", "21.957642", 8),
    "a100-80gb": ("p4de.24xlarge", "27.44705", 8),
    "h100": ("p5.48xlarge", "55.04", 8),
    "h200": ("p5en.48xlarge", "63.296", 8),
    "b200": ("p6-b200.48xlarge", "113.9328", 8),
}
UNPRICED = {"cpu", "h100-pcie", "b300", "gb200", "gb300", "rtx-pro-6000"}


def test_every_shipped_accelerator_has_a_profile() -> None:
    for row in catalog().values():
        assert row.memory_bandwidth
        assert row.flops["bf16"] > 0
        assert row.interconnect_bandwidth or row.count_per_node in (None, 1), row.name
        assert row.network_bandwidth or row.resource_name == "cpu", row.name


def test_a_price_is_shipped_where_aws_has_one_and_no_other_is() -> None:
    priced = {name for name, row in catalog().items() if row.prices}
    assert priced == set(INSTANCES)
    assert set(catalog()) - priced == UNPRICED


@pytest.mark.parametrize("name", INSTANCES)
def test_a_shipped_price_is_its_instances_and_says_so(name: str) -> None:
    instance, price, gpus = INSTANCES[name]
    row = catalog()[name]
    assert row.count_per_node == gpus
    assert abs(row.prices[CapacityType.ON_DEMAND] * gpus - Decimal(price)) < Decimal("0.00001")
    assert not row.price_per_node
    (entry,) = (item for item in shipped_objects() if item["metadata"]["name"] == name)
    pricing = entry["spec"]["pricing"]
    of = f" / {gpus}" if gpus > 1 else ""
    assert pricing["source"] == row.price_source == f"AWS {instance}{of}, us-east-1"
    assert pricing["asOf"] == "2026-01-19"


# By hand from the sources: GiB, GB/s, dense TFLOPS, cards of a node, GB/s one way between them.
@pytest.mark.parametrize(
    ("name", "memory", "bandwidth", "flops", "per_node", "link"),
    [
        ("h100", 80, 3350, {"bf16": 989, "fp8": 1978, "int8": 1978}, 8, 450),
        ("a100-40gb", 40, 1555, {"bf16": 312, "int8": 624}, 8, 300),
        ("b200", 180, 7700, {"bf16": 2250, "fp8": 4500, "int8": 4500, "fp4": 9000}, 8, 900),
        ("gb300", 277.54, 8000, {"bf16": 2500, "fp8": 5000, "int8": 165, "fp4": 15000}, 4, 900),
    ],
)
def test_a_profile_is_that_of_its_source(
    name: str, memory: float, bandwidth: float, flops: dict[str, float], per_node: int, link: float
) -> None:
    row = catalog()[name]
    assert row.memory_bytes == int(memory * GIB)
    assert row.memory_bandwidth == bandwidth * 1e9
    assert row.flops == {kind: pytest.approx(rate * 1e12) for kind, rate in flops.items()}
    assert (row.count_per_node, row.interconnect_bandwidth) == (per_node, link * 1e9)


def test_the_shipped_accelerators_are_rows_of_the_planner() -> None:
    rows = catalog()
    assert rows["l4"].prices.get("OnDemand") == Decimal("0.8048")
    assert rows["l40s"].memory_bytes == int(Decimal("44.98") * GIB)
    assert rows["cpu"].prices.get("OnDemand") is None
    assert rows["h100"].node_selector == {"nvidia.com/gpu.product": "NVIDIA-H100-80GB-HBM3"}
    assert rows["h100"].tolerations == (
        {"key": "nvidia.com/gpu", "operator": "Exists", "effect": "NoSchedule"},
    )


def test_a_users_accelerator_is_a_row_of_what_it_says() -> None:
    mine = parse_accelerator(
        {
            "apiVersion": "serving.turbo.dev/v1alpha1",
            "kind": "TurboAccelerator",
            "metadata": {"name": "cpu"},
            "spec": {
                "resourceName": "cpu",
                "quantity": "1500m",
                "memory": "2.5Gi",
                "pricing": {"perAcceleratorHour": {"onDemand": "0.04"}},
                "capacityTypes": {"spot": {"nodeSelector": {"pool": "cheap"}}},
            },
        }
    )
    row = Accelerator.of(mine)
    assert (row.quantity, row.memory_bytes) == (Decimal("1.5"), int(2.5 * GIB))
    assert row.prices.get("OnDemand") == Decimal("0.04")
    assert row.capacity_selectors == {"Spot": {"pool": "cheap"}}
    assert catalog()["cpu"].prices.get("OnDemand") is None
