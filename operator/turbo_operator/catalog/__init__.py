"""The catalog: what may serve and what may be served. Shipped accelerators as objects of the API, and such an
object as the planner's row; shapes of models without a model in `shapes`.
"""

from __future__ import annotations

import tomllib
from decimal import Decimal
from importlib import resources
from typing import Any

from pydantic import BaseModel

from turbo_operator import api
from turbo_operator.api import CapacityType, parse_accelerator
from turbo_operator.catalog.shapes import UnknownShapeError as UnknownShapeError
from turbo_operator.snapshot import Accelerator


def shipped_objects() -> tuple[dict[str, Any], ...]:
    """Return the shipped TurboAccelerators as the operator applies them, by name; all valid."""
    text = resources.files(__package__).joinpath("accelerators.toml").read_text(encoding="utf-8")
    kind = {"apiVersion": api.API_VERSION, "kind": api.TURBOACCELERATOR}
    rows = sorted(tomllib.loads(text).items())
    objects = tuple({**kind, "metadata": {"name": name}, "spec": spec} for name, spec in rows)
    for shipped in objects:
        parse_accelerator(shipped)
    return objects


def catalog() -> dict[str, Accelerator]:
    """Return the shipped accelerators by name."""
    return {row.metadata.name: as_row(row) for row in map(parse_accelerator, shipped_objects())}


def as_row(accelerator: api.TurboAccelerator) -> Accelerator:
    """Convert one TurboAccelerator to the planner's row."""
    spec, pricing = accelerator.spec, accelerator.spec.pricing
    selectors = _by_type(spec.capacity_types)
    return Accelerator(
        name=accelerator.metadata.name,
        resource_name=spec.resource_name,
        quantity=api.quantity(spec.quantity),
        memory_bytes=int(api.quantity(spec.memory)),
        memory_bandwidth=_giga(spec.memory_bandwidth_gbps),
        flops={name: rate * 1e12 for name, rate in _floats(spec.tflops).items()},
        link_bandwidth=_giga(spec.interconnect_gbps),
        network_bandwidth=_giga(spec.network_gbps),
        per_node=spec.count_per_node,
        prices=_by_type(pricing.per_accelerator_hour if pricing else None),
        price_per_node=pricing.billing_unit == "Node" if pricing else False,
        price_source=pricing.source if pricing else None,
        provisioning=spec.provisioning,
        most=spec.max_count,
        efficiency=_floats(spec.efficiency),
        node_selector=dict(spec.node_selector or {}),
        tolerations=tuple(toleration.dump() for toleration in spec.tolerations or ()),
        capacity_selectors={kind: dict(nodes.node_selector) for kind, nodes in selectors.items()},
    )


def _floats(amounts: BaseModel | None) -> dict[str, float]:
    """The amounts that a part of a spec states."""
    return {name: float(value) for name, value in amounts or () if value is not None}


def _giga(rate: Decimal | None) -> float | None:
    return None if rate is None else float(rate) * 1e9


def _by_type(stated: object) -> dict[CapacityType, Any]:
    """What an object of the API states for each capacity type."""
    values = {kind: getattr(stated, kind.name.lower(), None) for kind in CapacityType}
    return {kind: value for kind, value in values.items() if value is not None}
