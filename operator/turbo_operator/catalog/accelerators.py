"""The catalogue: shipped accelerators as objects of the API, and such an object as the planner's row."""

from __future__ import annotations

import tomllib
from collections.abc import Iterable
from importlib import resources
from typing import Any

from turbo_operator.api import API_VERSION, TURBOACCELERATOR, TurboAccelerator, parse_accelerator, quantity
from turbo_operator.observed import Accelerator

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


def catalogue(overlay: Iterable[TurboAccelerator] = ()) -> dict[str, Accelerator]:
    """The shipped accelerators by name, those of `overlay` in their place or beside them."""
    objects = {each.metadata.name: each for each in map(parse_accelerator, shipped_objects())}
    objects |= {each.metadata.name: each for each in overlay}
    return {name: as_row(each) for name, each in objects.items()}


def as_row(accelerator: TurboAccelerator) -> Accelerator:
    """One TurboAccelerator as the planner sees it."""
    spec = accelerator.spec
    pricing = spec.pricing
    return Accelerator(
        name=accelerator.metadata.name,
        resource_name=spec.resource_name,
        quantity=quantity(spec.quantity),
        memory_bytes=int(spec.memory_gib * GIB),
        price_per_hour=pricing.per_accelerator_hour.on_demand if pricing else None,
        price_source=pricing.source if pricing else None,
        node_selector=dict(spec.node_selector or {}),
        tolerations=tuple(toleration.dump() for toleration in spec.tolerations or ()),
    )
