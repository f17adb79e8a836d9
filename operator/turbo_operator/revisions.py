"""A Deployment of ours whose ControllerRevision is not seen: what its pods are made of must not be lost.

One that lost its label stands there still, and is found by its name. One that is gone is made again of what
the Deployment runs, so that no pod rolls.
"""

from __future__ import annotations

import logging
from typing import Any

from turbo_operator import render
from turbo_operator.api import TurboDeployment
from turbo_operator.cache import Cache, Key
from turbo_operator.kube import Kube, RefusedError
from turbo_operator.resources import CHILDREN

DEPLOYMENT, REVISION = CHILDREN["Deployment"], CHILDREN["ControllerRevision"]

log = logging.getLogger(__name__)


async def restore(api: Kube, cache: Cache, key: Key, td: TurboDeployment) -> RefusedError | None:
    """Put missing ControllerRevisions into the cache. Calls the API server only if one is missing.

    Returns why one was refused; its Deployment stays as it is.
    """
    refused: RefusedError | None = None
    held = cache.children(key, td.metadata.uid)
    for (kind, name), child in held.items():
        plan_hash = child.view.plan_hash
        if kind != DEPLOYMENT.kind or plan_hash is None or child.view.terminating:
            continue
        if (REVISION.kind, name) in held:
            continue
        try:
            there = await api.find(REVISION, key.namespace, name) or await _remake(api, key, td, plan_hash)
        except RefusedError as error:
            refused = error
            continue
        if there is not None:
            cache.put_child(there)
    return refused


async def _remake(api: Kube, key: Key, td: TurboDeployment, plan_hash: str) -> dict[str, Any] | None:
    name = render.variant_name(td, plan_hash)
    deployment = await api.find(DEPLOYMENT, key.namespace, name)
    if deployment is None:  # gone meanwhile: its event is on its way
        return None
    made = await api.apply(REVISION, render.revision(td, plan_hash, deployment["spec"]["template"]))
    log.info("created", extra={"object": str(key), "kind": REVISION.kind, "child": name})
    return made
