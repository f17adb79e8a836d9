"""What the operator would see of children that it has rendered."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from turbo_operator.api import LABEL_PLAN_HASH
from turbo_operator.snapshot import ChildView


def held(rendered: Iterable[Mapping[str, Any]]) -> tuple[ChildView, ...]:
    """The ConfigMaps and frozen templates among them."""
    return tuple(
        ChildView(
            each["kind"],
            each["metadata"]["name"],
            "u",
            None,
            plan_hash=each["metadata"]["labels"].get(LABEL_PLAN_HASH),
            data=each.get("data"),
        )
        for each in rendered
        if each["kind"] in ("ConfigMap", "ControllerRevision")
    )
