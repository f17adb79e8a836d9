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


async def apply(api: Kube, namespace: str) -> None:
    """Create what is missing and was never shipped, update what is still ours.

    `namespace` is the operator's own. Where the memory cannot be read, what was deleted comes back.
    """
    items, _ = await api.list_all(TURBOACCELERATOR, None)
    there = {item["metadata"]["name"]: item for item in items}
    remembered = await _read_memory(api, namespace)
    memory = dict(remembered or {}) if there else {}
    for entry in shipped_objects():
        name, version = entry["metadata"]["name"], _version(entry["spec"])
        if name in memory and name not in there:
            log.info("TurboAccelerator stays deleted", extra={"object": name})
            continue
        memory[name] = version
        if not needs_write(version, there.get(name)):
            continue
        metadata = {**entry["metadata"], "annotations": {ANNOTATION_APPLIED_HASH: version}}
        try:
            await api.apply(TURBOACCELERATOR, {**entry, "metadata": metadata}, force=False)
        except ConflictError as error:  # edited since the list
            log.info("TurboAccelerator stays as its user wrote it: %s", error.message, extra={"object": name})
        else:
            log.info("TurboAccelerator written", extra={"object": name})
    if remembered is not None and memory != remembered:
        await _write_memory(api, namespace, memory)


async def _read_memory(api: Kube, namespace: str) -> dict[str, str] | None:
    """What was ever shipped, each with its last version; None where we may not know."""
    try:
        body = await api.find(_CONFIG_MAP, namespace, MEMORY_NAME)
    except RefusedError as error:
        log.warning(
            "what was shipped before cannot be read, so deleted TurboAccelerators come back: %s",
            error.message,
            extra={"object": f"{namespace}/{MEMORY_NAME}"},
        )
        return None
    return dict((body or {}).get("data") or {})


async def _write_memory(api: Kube, namespace: str, memory: Mapping[str, str]) -> None:
    wanted = {
        "apiVersion": _CONFIG_MAP.api_version,
        "kind": _CONFIG_MAP.kind,
        "metadata": {"name": MEMORY_NAME, "namespace": namespace},
        "data": memory,
    }
    try:
        await api.apply(_CONFIG_MAP, wanted)
    except KubeError as error:  # the next start tries again
        log.warning(
            "what was shipped cannot be remembered, so TurboAccelerators that are deleted come back: %s",
            error.message,
            extra={"object": f"{namespace}/{MEMORY_NAME}"},
        )


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
