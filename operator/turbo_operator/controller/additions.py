"""What others add to the spec of a child is taken out, which a server-side apply leaves alone."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import Any

from turbo_operator.api import TurboDeployment
from turbo_operator.controller.cache.store import Cache, Key
from turbo_operator.controller.field_ownership import added_fields, replaced
from turbo_operator.controller.kube import Kube
from turbo_operator.resources import CHILDREN

log = logging.getLogger(__name__)


async def take_out(
    api: Kube,
    cache: Cache,
    key: Key,
    td: TurboDeployment,
    wanted: Mapping[str, Any],
    futile: set[tuple[str, str]],
) -> bool:
    """Replace the child by what is `wanted` of it, where somebody else owns a field; whether it was written.

    A field that stays although it was taken out once (a default that somebody owns) is kept in `futile`.
    """
    kind, name = wanted["kind"], wanted["metadata"]["name"]
    held = cache.children(key, td.metadata.uid).get((kind, name))
    if held is None or not held.added or (held.view.uid, " ".join(held.added)) in futile:
        return False
    there = await api.find(CHILDREN[kind], key.namespace, name)
    if there is None or there["metadata"]["uid"] != held.view.uid:
        return False  # gone meanwhile: its event is on its way
    there = await api.replace(CHILDREN[kind], replaced(there, wanted))
    cache.put_child(there)
    if left := added_fields(kind, there["metadata"].get("managedFields") or ()):
        futile.add((held.view.uid, " ".join(left)))
    what = {"object": str(key), "kind": kind, "child": name, "fields": " ".join(held.added)}
    log.info("taken out", extra=what)
    return True
