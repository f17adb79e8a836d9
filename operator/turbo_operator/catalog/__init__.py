"""The catalog: shipped accelerators as objects of the API; shapes of models without a model in `shapes`."""

from __future__ import annotations

import tomllib
from importlib import resources
from typing import Any

from turbo_operator import api
from turbo_operator.api import parse_accelerator
from turbo_operator.catalog.shapes import UnknownShapeError as UnknownShapeError
from turbo_operator.snapshot import Accelerator


def shipped_objects(billing_unit: str = "Accelerator") -> tuple[dict[str, Any], ...]:
    """Return the shipped TurboAccelerators as the operator applies them, by name; all valid.

    Those of several on a node have this `billing_unit`.
    """
    text = resources.files(__package__).joinpath("accelerators.toml").read_text(encoding="utf-8")
    kind = {"apiVersion": api.API_VERSION, "kind": api.TURBOACCELERATOR}
    rows = sorted(tomllib.loads(text).items())
    objects = tuple({**kind, "metadata": {"name": name}, "spec": spec} for name, spec in rows)
    for shipped in objects:
        spec = shipped["spec"]
        if billing_unit != "Accelerator" and spec.get("countPerNode", 1) > 1 and "pricing" in spec:
            spec["pricing"]["billingUnit"] = billing_unit
        parse_accelerator(shipped)
    return objects


def catalog() -> dict[str, Accelerator]:
    """Return the shipped accelerators by name."""
    return {row.metadata.name: Accelerator.of(row) for row in map(parse_accelerator, shipped_objects())}
