"""What examples of plans are made of."""

from __future__ import annotations

from dataclasses import replace
from decimal import Decimal
from typing import Any

from turbo_operator.api import CapacityType, PlanReason, TurboDeploymentSpec
from turbo_operator.catalog import shapes
from turbo_operator.plan import EvaluatedCandidate, Plan
from turbo_operator.snapshot import Accelerator
from turbo_runtime.contract.documents import ModelShape

GIB = 1 << 30
NAMES = ("alpha", "beta", "gamma", "delta")
RATES: dict[str, Any] = {
    "memory_bandwidth": 3.35e12,
    "flops": {"bf16": 989e12, "fp8": 1978e12},
    "interconnect_bandwidth": 4.5e11,
    "network_bandwidth": 5e10,
    "count_per_node": 8,
}
LOAD = {"inputTokens": {"mean": 500}, "outputTokens": {"mean": 200}, "requestsPerSecond": "4"}


def accelerator(name: str, gib: float, price: str | None, resource: str = "nvidia.com/gpu") -> Accelerator:
    """An accelerator of unknown speed."""
    prices = {} if price is None else {CapacityType.ON_DEMAND: Decimal(price)}
    return Accelerator(name, resource, Decimal(1), int(gib * GIB), prices=prices, count_per_node=8)


def fast(name: str, gib: float, price: str | None, **more: Any) -> Accelerator:
    """An accelerator as fast as an H100."""
    return replace(accelerator(name, gib, price), **{**RATES, **more})


def named(*each: Accelerator) -> dict[str, Accelerator]:
    """A catalog of these."""
    return {one.name: one for one in each}


def spec(**fields: Any) -> TurboDeploymentSpec:
    """A spec with these fields; of engine Turbo, which serves on all of the catalogs here."""
    usual = {"model": {"uri": "hf://a/b"}, "engine": {"type": "Turbo"}}
    return TurboDeploymentSpec.model_validate({**usual, **fields})


def shape(hub_id: str) -> ModelShape:
    """The shape of a shipped model."""
    found = shapes.shipped(hub_id)
    assert found is not None
    return found


def row_of(made: Plan, accelerator: str, reason: PlanReason) -> EvaluatedCandidate:
    """The one rejected row of an accelerator and a reason."""
    (found,) = [row for row in made.rejected if (row.accelerator, row.reason) == (accelerator, reason)]
    return found


SMALL = shape("HuggingFaceTB/SmolLM2-135M")
MIDDLE = shape("meta-llama/Llama-3.1-8B")
LARGE = shape("Qwen/Qwen3-32B")
CARD = named(fast("a", 80, "1.00"))
SHORT = {"uri": "hf://a/b", "maxModelLen": 8192}
