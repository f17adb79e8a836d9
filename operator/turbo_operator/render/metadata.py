"""What makes an object ours: its name, labels, owner, and the hashes by which it is known. Pure."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping
from typing import Any

from turbo_operator import api
from turbo_operator.resources import CHILDREN
from turbo_operator.snapshot import ChildView

APP_NAME = "turbo"


def digest(value: object) -> str:
    """Return the sha256, in hex, of the one JSON text of a value: the same input gives the same bytes."""
    text = json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=True)
    return hashlib.sha256(text.encode()).hexdigest()


def labels(td: api.TurboDeployment, role: str) -> dict[str, str]:
    """Return the labels of a child; `role` is also its component."""
    return {
        api.LABEL_NAME: APP_NAME,
        api.LABEL_INSTANCE: td.metadata.name,
        api.LABEL_MANAGED_BY: api.FIELD_MANAGER,
        api.LABEL_COMPONENT: role,
        api.LABEL_DEPLOYMENT: td.metadata.name,
        api.LABEL_ROLE: role,
    }


def serving_selector(td: api.TurboDeployment) -> dict[str, str]:
    """Return labels that the serving pods of all variants have; inspecting pods have another role."""
    return {api.LABEL_DEPLOYMENT: td.metadata.name, api.LABEL_ROLE: api.ROLE_SERVING}


def traffic_selector(td: api.TurboDeployment, children: Iterable[ChildView]) -> dict[str, str]:
    """Return labels by which the serving pods of all variants are found, and hardly a stranger's.

    The owner's uid is among them as soon as no variant is left whose pods were made without it.
    """
    frozen = [child.data or {} for child in children if child.kind == "ControllerRevision"]
    labels = [(template.get("metadata") or {}).get("labels") for template in frozen]
    uids = {each.get(api.LABEL_OWNER_UID) if isinstance(each, Mapping) else None for each in labels}
    if uids <= {td.metadata.uid}:
        return {**serving_selector(td), api.LABEL_OWNER_UID: td.metadata.uid}
    return serving_selector(td)


def build_child(
    td: api.TurboDeployment,
    kind: str,
    name: str,
    role: str,
    body: Mapping[str, Any],
    more_labels: Mapping[str, str] = {},
) -> dict[str, Any]:
    """Build a child around its `body`: owned by the TurboDeployment, so that the garbage collector removes
    it, and sealed with the hash of itself as an annotation, to tell what was applied from what is wanted.
    """
    manifest = {
        "apiVersion": CHILDREN[kind].api_version,
        "kind": kind,
        "metadata": {
            "name": name,
            "namespace": td.metadata.namespace,
            "labels": {**labels(td, role), **more_labels},
            "ownerReferences": [owner_reference(td)],
        },
        **body,
    }
    annotations = {api.ANNOTATION_APPLIED_HASH: digest(manifest)[:16]}
    return {**manifest, "metadata": {**manifest["metadata"], "annotations": annotations}}


def owner_reference(td: api.TurboDeployment) -> dict[str, Any]:
    """Return the TurboDeployment as the controller of a child.

    blockOwnerDeletion is false: the deletion of the user's object never waits for ours.
    """
    return {
        "apiVersion": api.API_VERSION,
        "kind": api.TURBODEPLOYMENT,
        "name": td.metadata.name,
        "uid": td.metadata.uid,
        "controller": True,
        "blockOwnerDeletion": False,
    }


def configmap(
    td: api.TurboDeployment, name: str, data: Mapping[str, str], role: str = api.ROLE_SERVING
) -> dict[str, Any]:
    """Build a ConfigMap, by default of files that serving pods mount."""
    return build_child(td, "ConfigMap", name, role, {"data": dict(data)})
