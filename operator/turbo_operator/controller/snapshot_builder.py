"""The read phase: one frozen `Observed` of what watches, or lists, have shown, without an API call.

The operator and `turbo explain` look through the same function, so that both see the same.
"""

from __future__ import annotations

import dataclasses

from turbo_operator.api import DraftMethod, DraftStatus, TurboDeployment
from turbo_operator.controller import model_inspection
from turbo_operator.controller.cache.store import Cache, Key
from turbo_operator.inventory.store import InventoryStore
from turbo_operator.inventory.supply import Owner, supply_of
from turbo_operator.inventory.unavailable import exhausted
from turbo_operator.snapshot import DraftView, Snapshot, identity


def build_snapshot(
    cache: Cache, ledger: InventoryStore, key: Key, td: TurboDeployment, now: float
) -> Snapshot:
    """All that one look at `td` sees: accelerators, what there is of them, children, pods, the model.

    `now` is in seconds since the epoch.
    """
    observed = cache.observe(key, td.metadata.uid)
    facts, error = model_inspection.read(td, observed.children, cache.pods.inspecting(key))
    owner = Owner(key.namespace, key.name)
    supply = supply_of(ledger.stock, owner, td.spec.template)
    free = None
    if td.spec.speculation.training is not None:
        free = supply_of(ledger.stock, owner.trainer, td.spec.template)
    for name, until in exhausted(td, observed.pods, now).items():
        for each in (supply, free):
            if each is not None and name in each:
                each[name] = dataclasses.replace(each[name], exhausted_until=until)
    return dataclasses.replace(
        observed,
        supply=supply,
        free=free,
        model=facts,
        model_error=error,
        draft=_draft(cache, key, td),
        named=tuple(
            (each.name, cache.drafts.get(key.namespace, each.draft_ref.name))
            for each in td.spec.speculation.named_drafts or ()
        ),
        drafts=cache.drafts.of(key.namespace, key.name),
    )


def _draft(cache: Cache, key: Key, td: TurboDeployment) -> DraftView | None:
    """The draft that pods are to use: the one that is named, else the one that was promoted."""
    ref, last = td.spec.speculation.draft_ref, td.status.draft
    if ref is not None:
        return cache.drafts.get(key.namespace, ref.name) or (_as_used(last) if last is not None else None)
    if last is None:
        return None
    found = cache.drafts.get(key.namespace, last.name)
    is_candidate = found is not None and found.deployment == key.name
    if not is_candidate and td.spec.speculation.training is None:
        return None
    if found is not None and identity(found) == identity(last):
        return found
    # one that was changed under its name is a new one, to be tried first
    return dataclasses.replace(_as_used(last), gone=found is None)


def _as_used(last: DraftStatus) -> DraftView:
    """What pods draft with while the draft that is asked for is not there: it may come, or come back."""
    return DraftView(
        last.name,
        DraftMethod.TURBO_HEADS,
        last.claim_name,
        last.path,
        last.version,
        last.target_digest,
        gone=True,
        digest=last.digest,
    )
