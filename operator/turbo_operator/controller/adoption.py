"""Children that have lost their owner reference: which are orphans of a TurboDeployment, and their return."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import Any

from turbo_operator.api import LABEL_DEPLOYMENT, LABEL_OWNER_UID, TURBODEPLOYMENT, TurboDeployment
from turbo_operator.controller.cache.projection import controller, template_labels
from turbo_operator.controller.cache.store import Key
from turbo_operator.controller.field_ownership import owned_fields
from turbo_operator.controller.kube import ConflictError, Kube
from turbo_operator.render.metadata import owner_reference
from turbo_operator.resources import CHILDREN
from turbo_operator.resources import TURBODEPLOYMENT as OWNER

log = logging.getLogger(__name__)


def is_orphan(body: Mapping[str, Any], td: TurboDeployment) -> bool:
    """Whether an object that the operator applied for `td` has lost its owner, and nobody else took it.

    What an earlier TurboDeployment of the name left on purpose (`kubectl delete --cascade=orphan`) is not an
    orphan of this one: it is older, and its pods have the uid of the earlier one.
    """
    meta = body["metadata"]
    is_ours = (meta.get("labels") or {}).get(LABEL_DEPLOYMENT) == td.metadata.name
    created = td.metadata.creation_timestamp
    return (
        is_ours
        and controller(body) is None
        and bool(owned_fields(meta.get("managedFields") or ()))
        and created is not None
        and meta["creationTimestamp"] >= created  # RFC 3339 in UTC, both in seconds
        and _owner_uid(body) in (None, td.metadata.uid)
    )


async def adopt(api: Kube, td: TurboDeployment, body: Mapping[str, Any]) -> dict[str, Any]:
    """Give an orphan its owner back, as the controllers of Kubernetes adopt pods.

    Raises ConflictError while the TurboDeployment is being removed: the garbage collector has let the orphan
    go, and would remove it next.
    """
    key, kind, name = Key(td.metadata.namespace, td.metadata.name), body["kind"], body["metadata"]["name"]
    owner = await api.find(OWNER, key.namespace, key.name)
    meta = owner["metadata"] if owner is not None else {}
    if meta.get("uid") != td.metadata.uid or "deletionTimestamp" in meta:
        raise ConflictError(409, "Conflict", f"{TURBODEPLOYMENT} {key.name} is being removed")
    others = body["metadata"].get("ownerReferences") or ()
    owners = [*(other for other in others if other["uid"] != td.metadata.uid), owner_reference(td)]
    patch = {"resourceVersion": body["metadata"]["resourceVersion"], "ownerReferences": owners}
    adopted = await api.merge(CHILDREN[kind], key.namespace, name, {"metadata": patch})
    log.info("adopted", extra={"object": str(key), "kind": kind, "child": name})
    return adopted


def _owner_uid(body: Mapping[str, Any]) -> str | None:
    """Return the owner's uid that the pods have which the object makes or selects; None where it has none."""
    selector = (body.get("spec") or {}).get("selector") or {}
    for labels in (template_labels(body), selector.get("matchLabels"), selector):
        if labels and LABEL_OWNER_UID in labels:
            return str(labels[LABEL_OWNER_UID])
    return None
