"""The read phase: one frozen `Snapshot` of what watches, or lists, have shown, without an API call.

The operator and `turbo explain` share it, so that both see the same.
"""

from __future__ import annotations

import dataclasses

from turbo_operator.api import DraftMethod, TurboDeployment
from turbo_operator.controller import model_inspection
from turbo_operator.controller.cache.store import Cache, Key
from turbo_operator.inventory.store import InventoryStore
from turbo_operator.inventory.supply import supply_of
from turbo_operator.inventory.unavailable import unavailable_until
from turbo_operator.snapshot import DraftView, Snapshot, identity


def build_snapshot(
    cache: Cache, inventory: InventoryStore, key: Key, td: TurboDeployment, now: float
) -> Snapshot:
    """Return all that one look at `td` sees; `now` is in seconds since the epoch."""
    observed = cache.observe(key, td.metadata.uid)
    facts, error = model_inspection.read(td, observed.children, cache.pods.inspecting(key))
    supply = supply_of(inventory.stock, key.owner, td.spec.template)
    free = None
    if td.spec.speculation.training is not None:
        free = supply_of(inventory.stock, key.owner.trainer, td.spec.template)
    for name, until in unavailable_until(td, observed.pods, now).items():
        for share in (supply, free):
            if share is not None and name in share:
                share[name] = dataclasses.replace(share[name], exhausted_until=until)
    return dataclasses.replace(
        observed,
        supply=supply,
        free=free,
        model=facts,
        model_error=error,
        draft=_draft(cache, key, td),
        named=tuple(
            (named.name, cache.drafts.get(Key(key.namespace, named.draft_ref.name)))
            for named in td.spec.speculation.named_drafts or ()
        ),
        drafts=cache.drafts_of(key),
    )


def _draft(cache: Cache, key: Key, td: TurboDeployment) -> DraftView | None:
    """Return the draft that pods are to use: the one that is named, else the one that was promoted."""
    ref, last = td.spec.speculation.draft_ref, td.status.draft
    # What pods draft with while the draft in the spec is not there: it may come, or come back.
    used: DraftView | None = None
    if last is not None:
        place = (last.claim_name, last.path, last.version, last.target_digest)
        used = DraftView(last.name, DraftMethod.TURBO_HEADS, *place, gone=True, digest=last.digest)
    if ref is not None:
        return cache.drafts.get(Key(key.namespace, ref.name)) or used
    if last is None or used is None:
        return None
    draft = cache.drafts.get(Key(key.namespace, last.name))
    is_candidate = draft is not None and draft.deployment == key.name
    if not is_candidate and td.spec.speculation.training is None:
        return None
    if draft is not None and identity(draft) == identity(last):
        return draft
    # one that was changed under its name is a new one, to be tried first
    return dataclasses.replace(used, gone=draft is None)
