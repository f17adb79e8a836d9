"""The catalogue: shipped accelerators as objects of the API, and such an object as the planner's row."""

from __future__ import annotations

import tomllib
from decimal import Decimal
from importlib import resources
from typing import Any

from turbo_operator.api import (
    API_VERSION,
    TURBOACCELERATOR,
    CapacityType,
    CapacityTypes,
    Efficiency,
    Pricing,
    TurboAccelerator,
    parse_accelerator,
    quantity,
)
from turbo_operator.snapshot import Accelerator

GIB = 1 << 30


def shipped_objects() -> tuple[dict[str, Any], ...]:
    """The shipped TurboAccelerators as the operator applies them, by name; all valid."""
    table = tomllib.loads(
        resources.files(__package__).joinpath("accelerators.toml").read_text(encoding="utf-8")
    )
    objects = tuple(
        {
            "apiVersion": API_VERSION,
            "kind": TURBOACCELERATOR,
            "metadata": {"name": name},
            "spec": spec,
        }
        for name, spec in sorted(table.items())
    )
    for each in objects:
        parse_accelerator(each)
    return objects


def catalogue() -> dict[str, Accelerator]:
    """The shipped accelerators by name."""
    return {each.metadata.name: as_row(each) for each in map(parse_accelerator, shipped_objects())}


def as_row(accelerator: TurboAccelerator) -> Accelerator:
    """One TurboAccelerator as the planner sees it."""
    spec = accelerator.spec
    pricing = spec.pricing
    return Accelerator(
        name=accelerator.metadata.name,
        resource_name=spec.resource_name,
        quantity=quantity(spec.quantity),
        memory_bytes=int(spec.memory_gib * GIB),
        memory_bandwidth=_giga(spec.memory_bandwidth_gbps),
        flops={
            name: float(rate) * 1e12
            for name in ("bf16", "fp8", "int8", "fp4")
            if spec.tflops is not None and (rate := getattr(spec.tflops, name)) is not None
        },
        link_bandwidth=_giga(spec.interconnect_gbps),
        network_bandwidth=_giga(spec.network_gbps),
        per_node=spec.per_node,
        prices=_prices(pricing),
        price_per_node=pricing.per_node if pricing else False,
        price_source=pricing.source if pricing else None,
        provisioning=spec.provisioning,
        most=spec.max,
        efficiency={
            name: float(value)
            for name, value in (spec.efficiency or Efficiency()).model_dump(exclude_none=True).items()
        },
        node_selector=dict(spec.node_selector or {}),
        tolerations=tuple(toleration.dump() for toleration in spec.tolerations or ()),
        capacity_selectors=_selectors(spec.capacity_types),
    )


def _giga(rate: Decimal | None) -> float | None:
    return None if rate is None else float(rate) * 1e9


def _selectors(nodes: CapacityTypes | None) -> dict[CapacityType, dict[str, str]]:
    if nodes is None:
        return {}
    written = {
        CapacityType.ON_DEMAND: nodes.on_demand,
        CapacityType.SPOT: nodes.spot,
        CapacityType.RESERVED: nodes.reserved,
    }
    return {kind: dict(each.node_selector) for kind, each in written.items() if each is not None}


def _prices(pricing: Pricing | None) -> dict[CapacityType, Decimal]:
    if pricing is None:
        return {}
    stated = pricing.per_accelerator_hour
    prices = {
        CapacityType.ON_DEMAND: stated.on_demand,
        CapacityType.SPOT: stated.spot,
        CapacityType.RESERVED: stated.reserved,
    }
    return {kind: price for kind, price in prices.items() if price is not None}
