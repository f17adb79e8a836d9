"""Writes the shipped accelerators as TurboAccelerator objects when the operator starts. A user's edit wins.

An object is written when it is missing, or when another version of its entry is shipped than was written
last and nobody else owns a field of its spec. So a start that has nothing new to ship writes nothing, and a
user's price stays.

A ConfigMap beside the operator remembers what was ever shipped, so that what a user has deleted stays away.
Where there is no TurboAccelerator at all, the memory is of kinds that were removed and installed anew, and
everything is shipped.
"""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Mapping
from typing import Any

from turbo_operator.api import ANNOTATION_APPLIED_HASH, FIELD_MANAGER
from turbo_operator.catalog import shipped_objects
from turbo_operator.controller.kube import ConflictError, Kube, KubeError, RefusedError
from turbo_operator.resources import CHILDREN, TURBOACCELERATOR

MEMORY_NAME = "turbo-shipped-accelerators"  # the chart's role names it too
_CONFIG_MAP = CHILDREN["ConfigMap"]

log = logging.getLogger(__name__)


async def apply(api: Kube, namespace: str, billing_unit: str) -> None:
    """Create what is missing and was never shipped, update what is still ours.

    `namespace` is the operator's own. Where the memory cannot be read, what was deleted comes back.
    """
    existing = {item["metadata"]["name"]: item for item in await api.list_all(TURBOACCELERATOR, None)}
    where = {"object": f"{namespace}/{MEMORY_NAME}"}
    shipped: dict[str, str] | None = None  # what was ever shipped, each with its last version
    try:
        shipped = dict((await api.find(_CONFIG_MAP, namespace, MEMORY_NAME) or {}).get("data") or {})
    except RefusedError as error:
        message = "what was shipped before cannot be read, so deleted TurboAccelerators come back: %s"
        log.warning(message, error.message, extra=where)
    memory = dict(shipped or {}) if existing else {}
    for entry in shipped_objects(billing_unit):
        name, version = entry["metadata"]["name"], _version(entry["spec"])
        if name in memory and name not in existing:
            log.info("TurboAccelerator stays deleted", extra={"object": name})
            continue
        memory[name] = version
        if not needs_write(version, existing.get(name)):
            continue
        metadata = {**entry["metadata"], "annotations": {ANNOTATION_APPLIED_HASH: version}}
        try:
            await api.apply(TURBOACCELERATOR, {**entry, "metadata": metadata}, force=False)
        except ConflictError as error:  # edited since the list
            log.info("TurboAccelerator stays as its user wrote it: %s", error.message, extra={"object": name})
        else:
            log.info("TurboAccelerator written", extra={"object": name})
    if shipped is not None and memory != shipped:
        try:
            metadata = {"name": MEMORY_NAME, "namespace": namespace}
            await api.apply(_CONFIG_MAP, {"metadata": metadata, "data": memory})
        except KubeError as error:  # the next start tries again
            message = "what was shipped cannot be remembered, so deleted TurboAccelerators come back: %s"
            log.warning(message, error.message, extra=where)


def needs_write(version: str, existing: Mapping[str, Any] | None) -> bool:
    """Whether an accelerator is missing, or was shipped in another `version` and edited by nobody since."""
    if existing is None:
        return True
    meta = existing["metadata"]
    if (meta.get("annotations") or {}).get(ANNOTATION_APPLIED_HASH) == version:
        return False
    return not any(
        entry["manager"] != FIELD_MANAGER and "f:spec" in entry.get("fieldsV1", {})
        for entry in meta.get("managedFields") or ()
    )


def _version(spec: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(spec, sort_keys=True).encode()).hexdigest()[:16]
