"""Writes the shipped accelerators as TurboAccelerator objects when the operator starts. A user's edit wins.

An object is written when it is missing, or when another version of its entry is shipped than was written
last and nobody else owns a field of its spec. So a start that has nothing new to ship writes nothing, and a
user's price stays.
"""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Mapping
from typing import Any

from turbo_operator.api import ANNOTATION_APPLIED_HASH, FIELD_MANAGER
from turbo_operator.catalog import shipped_objects
from turbo_operator.kube import ConflictError, Kube
from turbo_operator.resources import TURBOACCELERATOR

log = logging.getLogger(__name__)


async def apply(api: Kube) -> None:
    """Create what is missing, update what is still ours."""
    items, _ = await api.list_all(TURBOACCELERATOR, None)
    there = {item["metadata"]["name"]: item for item in items}
    for entry in shipped_objects():
        name, version = entry["metadata"]["name"], _version(entry["spec"])
        if not needs_write(version, there.get(name)):
            continue
        metadata = {**entry["metadata"], "annotations": {ANNOTATION_APPLIED_HASH: version}}
        try:
            await api.apply(TURBOACCELERATOR, {**entry, "metadata": metadata}, force=False)
        except ConflictError as error:  # edited since the list
            log.info("TurboAccelerator stays as its user wrote it: %s", error.message, extra={"object": name})
        else:
            log.info("TurboAccelerator written", extra={"object": name})


def needs_write(version: str, there: Mapping[str, Any] | None) -> bool:
    """Whether an accelerator is missing, or was shipped in another `version` and edited by nobody since."""
    if there is None:
        return True
    meta = there["metadata"]
    if (meta.get("annotations") or {}).get(ANNOTATION_APPLIED_HASH) == version:
        return False
    return not any(
        entry["manager"] != FIELD_MANAGER and "f:spec" in entry.get("fieldsV1", {})
        for entry in meta.get("managedFields") or ()
    )


def _version(spec: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(spec, sort_keys=True).encode()).hexdigest()[:16]
