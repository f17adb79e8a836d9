"""What makes an object ours: its name, labels, owner, and the hashes by which it is known. Pure."""

from __future__ import annotations

import base64
import hashlib
import json
from collections.abc import Iterable, Mapping
from typing import Any

from turbo_operator.api import (
    ANNOTATION_APPLIED_HASH,
    API_VERSION,
    FIELD_MANAGER,
    LABEL_COMPONENT,
    LABEL_DEPLOYMENT,
    LABEL_INSTANCE,
    LABEL_MANAGED_BY,
    LABEL_NAME,
    LABEL_OWNER_UID,
    LABEL_ROLE,
    ROLE_SERVING,
    TURBODEPLOYMENT,
    TurboDeployment,
)
from turbo_operator.snapshot import ChildView

APP_NAME = "turbo"


def canonical(value: object) -> bytes:
    """The one JSON text of a value: the same input gives the same bytes."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=True).encode()


def digest(value: object) -> str:
    """sha256 of the canonical JSON text, in hex."""
    return hashlib.sha256(canonical(value)).hexdigest()


def short(value: object) -> str:
    """Four letters of base 32 (20 bits): enough to tell the few sources that one object ever had apart."""
    return base64.b32encode(hashlib.sha256(canonical(value)).digest()).decode().lower()[:4]


def labels(td: TurboDeployment, role: str, **more: str) -> dict[str, str]:
    """Labels of a child; `role` is also its component."""
    return {
        LABEL_NAME: APP_NAME,
        LABEL_INSTANCE: td.metadata.name,
        LABEL_MANAGED_BY: FIELD_MANAGER,
        LABEL_COMPONENT: role,
        LABEL_DEPLOYMENT: td.metadata.name,
        LABEL_ROLE: role,
        **more,
    }


def serving_selector(td: TurboDeployment) -> dict[str, str]:
    """Labels that the serving pods of all variants have always had; inspecting pods bear another role."""
    return {LABEL_DEPLOYMENT: td.metadata.name, LABEL_ROLE: ROLE_SERVING}


def traffic_selector(td: TurboDeployment, children: Iterable[ChildView]) -> dict[str, str]:
    """Labels by which the serving pods of all variants are found, and hardly a stranger's.

    The owner's uid is among them as soon as no variant is left whose pods were made without it.
    """
    frozen = [child.data or {} for child in children if child.kind == "ControllerRevision"]
    uids = {template.get("metadata", {}).get("labels", {}).get(LABEL_OWNER_UID) for template in frozen}
    if uids <= {td.metadata.uid}:
        return {**serving_selector(td), LABEL_OWNER_UID: td.metadata.uid}
    return serving_selector(td)


def metadata(td: TurboDeployment, name: str, child_labels: Mapping[str, str]) -> dict[str, Any]:
    """Metadata of a child: owned by the TurboDeployment, so that the garbage collector removes it.

    blockOwnerDeletion is false: the deletion of the user's object never waits for ours.
    """
    return {
        "name": name,
        "namespace": td.metadata.namespace,
        "labels": dict(child_labels),
        "ownerReferences": [owner_reference(td)],
    }


def owner_reference(td: TurboDeployment) -> dict[str, Any]:
    """The TurboDeployment as the controller of a child."""
    return {
        "apiVersion": API_VERSION,
        "kind": TURBODEPLOYMENT,
        "name": td.metadata.name,
        "uid": td.metadata.uid,
        "controller": True,
        "blockOwnerDeletion": False,
    }


def configmap(td: TurboDeployment, name: str, data: Mapping[str, str]) -> dict[str, Any]:
    """Of files that serving pods mount."""
    return sealed(
        {
            "apiVersion": "v1",
            "kind": "ConfigMap",
            "metadata": metadata(td, name, labels(td, ROLE_SERVING)),
            "data": dict(data),
        }
    )


def sealed(manifest: dict[str, Any]) -> dict[str, Any]:
    """The manifest with the hash of itself as an annotation, to tell what was applied from what is wanted."""
    meta = manifest["metadata"]
    annotations = {**meta.get("annotations", {}), ANNOTATION_APPLIED_HASH: digest(manifest)[:16]}
    return {**manifest, "metadata": {**meta, "annotations": annotations}}
