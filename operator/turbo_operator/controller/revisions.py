"""A variant is a Deployment and the ControllerRevision of its template: where one of the two is not seen, the
other one must not be lost.

What lost its label or its owner reference is found by its name. A ControllerRevision that is gone is made
again of what the Deployment runs, so that no pod rolls; a Deployment that is gone is the rollout's matter.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import Any

from turbo_operator import render
from turbo_operator.api import LABEL_DEPLOYMENT, LABEL_OWNER_UID, TurboDeployment
from turbo_operator.controller.cache.projection import controller, is_controlled_by
from turbo_operator.controller.cache.store import Cache, Key
from turbo_operator.controller.field_ownership import owned_fields
from turbo_operator.controller.kube import ConflictError, Kube, RefusedError, StrangerError
from turbo_operator.render.metadata import owner_reference
from turbo_operator.resources import CHILDREN, TURBODEPLOYMENT

DEPLOYMENT, REVISION = CHILDREN["Deployment"], CHILDREN["ControllerRevision"]

log = logging.getLogger(__name__)


async def restore(api: Kube, cache: Cache, key: Key, td: TurboDeployment) -> RefusedError | None:
    """Put what is missing of variants into the cache. Calls the API server only if something is missing.

    Returns why a part cannot be had; the other one stays as it is.
    """
    refused: RefusedError | None = None
    held = cache.children(key, td.metadata.uid)
    for (kind, name), child in held.items():
        plan_hash = child.view.plan_hash
        if plan_hash is None or child.view.terminating:
            continue
        try:
            if kind == REVISION.kind and (DEPLOYMENT.kind, name) not in held:
                await _restore_deployment(api, cache, key, td, name)
            if kind == DEPLOYMENT.kind and (REVISION.kind, name) not in held:
                await _restore_revision(api, cache, key, td, plan_hash)
        except RefusedError as error:
            refused = error
    return refused


async def _restore_deployment(api: Kube, cache: Cache, key: Key, td: TurboDeployment, name: str) -> None:
    there = await api.find(DEPLOYMENT, key.namespace, name)
    if there is not None and is_orphan(there, td):
        there = await adopt(api, key, td, there)
    if there is not None and is_controlled_by(there, td.metadata.uid):
        cache.put_child(there)


async def _restore_revision(api: Kube, cache: Cache, key: Key, td: TurboDeployment, plan_hash: str) -> None:
    name = render.variant_name(td, plan_hash)
    there = await api.find(REVISION, key.namespace, name)
    if there is not None and is_orphan(there, td):
        there = await adopt(api, key, td, there)
    if there is not None and not is_controlled_by(there, td.metadata.uid):
        raise StrangerError(REVISION.kind, name)
    if there is None:
        deployment = await api.find(DEPLOYMENT, key.namespace, name)
        if deployment is None:  # gone meanwhile: its event is on its way
            return
        there = await api.apply(REVISION, render.revision(td, plan_hash, deployment["spec"]["template"]))
        log.info("created", extra={"object": str(key), "kind": REVISION.kind, "child": name})
    cache.put_child(there)


def is_orphan(body: Mapping[str, Any], td: TurboDeployment) -> bool:
    """Whether an object that we applied for `td` has lost its owner, and nobody else has taken it.

    What an earlier TurboDeployment of the name has left on purpose (`kubectl delete --cascade=orphan`) is
    not ours: it is older, and its pods bear the uid of that one.
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


def _owner_uid(body: Mapping[str, Any]) -> str | None:
    """The uid that the pods bear which the object makes or selects; None where it says nothing of one."""
    spec = body.get("spec") or {}
    template = (body.get("data") if body["kind"] == REVISION.kind else spec.get("template")) or {}
    selector = spec.get("selector") or {}
    for labels in ((template.get("metadata") or {}).get("labels"), selector.get("matchLabels"), selector):
        if labels and LABEL_OWNER_UID in labels:
            return str(labels[LABEL_OWNER_UID])
    return None


async def adopt(api: Kube, key: Key, td: TurboDeployment, body: Mapping[str, Any]) -> dict[str, Any]:
    """Give an orphan its owner back, as the controllers of Kubernetes adopt pods. ConflictError where the
    TurboDeployment is being removed: the garbage collector has let the orphan go, and would remove it next.
    """
    kind, name = body["kind"], body["metadata"]["name"]
    owner = await api.find(TURBODEPLOYMENT, key.namespace, key.name)
    if (
        owner is None
        or owner["metadata"]["uid"] != td.metadata.uid
        or "deletionTimestamp" in owner["metadata"]
    ):
        raise ConflictError(409, "Leaving", f"{TURBODEPLOYMENT.kind} {key.name} is being removed")
    others = body["metadata"].get("ownerReferences") or ()
    owners = [*(other for other in others if other["uid"] != td.metadata.uid), owner_reference(td)]
    meta = {"resourceVersion": body["metadata"]["resourceVersion"], "ownerReferences": owners}
    adopted = await api.merge(CHILDREN[kind], key.namespace, name, {"metadata": meta})
    log.info("adopted", extra={"object": str(key), "kind": kind, "child": name})
    return adopted
