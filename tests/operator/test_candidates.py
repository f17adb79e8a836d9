"""Which draft is tried: the newest that pods do not load already and that was not rejected as it is."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from turbo_dev.canaries import (
    FACTS,
    NEW,
    NOW,
    OLD,
    STABLE,
    WITH_OLD,
    decided,
    draft,
    planned,
    rejected_drafts,
    seen,
    td,
    variant_of,
)
from turbo_dev.trainings import promoted
from turbo_operator import status
from turbo_operator.api import CanaryReason, ConditionType, TurboDeployment
from turbo_operator.controller.cache.store import Cache, Key
from turbo_operator.controller.snapshot_builder import build_snapshot
from turbo_operator.drafts import canary
from turbo_operator.drafts.canary import CanaryVerdict
from turbo_operator.drafts.speedup import SpeedupTracker
from turbo_operator.inventory.store import InventoryStore
from turbo_operator.snapshot import DraftView, Snapshot

# What pods would load otherwise, each by itself.
CHANGES: list[dict[str, Any]] = [
    {"version": "other"},
    {"path": "chat/other"},
    {"claim_name": "others"},
    {"digest": "sha256:other"},
]


def observed_with(it: TurboDeployment, *drafts: DraftView) -> Snapshot:
    """What is seen where the cluster has those."""
    cache = Cache()
    for number, item in enumerate(drafts, 1):
        meta = {"namespace": "team", "name": item.name, "uid": item.name, "resourceVersion": str(number)}
        cache.drafts.put({"metadata": meta}, item)
    return replace(
        build_snapshot(cache, InventoryStore(lambda _: None), Key("team", "chat"), it, NOW), model=FACTS
    )


def test_the_newest_draft_is_tried_and_none_that_is_in_use_or_was_rejected() -> None:
    assert canary.candidate(WITH_OLD, seen()) == NEW
    assert canary.candidate(td(promoted(NEW)), seen(now=NEW)) is None
    assert canary.candidate(td({**promoted(OLD), **rejected_drafts(NEW)}), seen()) is None


def test_after_the_newest_the_one_before_it_has_its_turn_and_none_older_than_the_one_in_use() -> None:
    first, between = draft("chat-draft-0"), draft("chat-draft-1b")
    drafts = (first, OLD, between, NEW)
    assert canary.candidate(td({**promoted(OLD), **rejected_drafts(NEW)}), seen(drafts=drafts)) == between
    assert (
        canary.candidate(td({**promoted(OLD), **rejected_drafts(NEW, between)}), seen(drafts=drafts)) is None
    )


def test_drafts_that_were_rejected_longer_ago_than_is_remembered_are_not_tried_again() -> None:
    many = tuple(draft(f"chat-draft-{number}") for number in range(2, 9))
    reported = {**promoted(OLD), **rejected_drafts(*many[-5:])}
    assert canary.candidate(td(reported), seen(drafts=(OLD, *many))) is None


@pytest.mark.parametrize("change", CHANGES)
def test_a_draft_of_which_pods_would_load_something_else_is_another_draft(change: dict[str, Any]) -> None:
    again = replace(NEW, **change)
    reported = td({**promoted(OLD), **rejected_drafts(NEW)})
    assert canary.candidate(reported, seen(drafts=(OLD, again))) == again
    assert variant_of(reported, again) != variant_of(reported, NEW)


@pytest.mark.parametrize("change", CHANGES)
def test_the_draft_in_use_stays_as_it_was_while_what_was_changed_under_its_name_is_tried(
    change: dict[str, Any],
) -> None:
    it, changed = td({**promoted(OLD), **rejected_drafts(NEW)}), replace(OLD, **change)
    observed = observed_with(it, changed, NEW)
    assert observed.draft == replace(OLD, deployment=None, created=0.0)
    assert canary.candidate(it, observed) == changed
    as_it_was = observed_with(it, OLD, NEW)
    assert as_it_was.draft == OLD
    assert canary.candidate(it, as_it_was) is None


def test_what_is_rejected_is_remembered_with_all_that_pods_would_load() -> None:
    over = CanaryVerdict(NEW, "v1try", CanaryReason.NO_IMPROVEMENT, "It is slower.")
    made = decided(WITH_OLD, seen(), SpeedupTracker(), over)
    told = status.compute(WITH_OLD, seen(), made, NOW)
    assert canary.candidate(td(told.dump()), seen()) is None


def test_a_draft_of_another_model_or_beside_one_named_by_hand_is_not_tried() -> None:
    assert canary.candidate(WITH_OLD, seen(drafts=(draft("other", target="sha256:cd"),))) is None
    by_hand = td(promoted(OLD), speculation={"draftRef": {"name": "mine"}})
    assert canary.candidate(by_hand, seen()) is None


def test_a_draft_that_was_named_by_hand_stays_in_use_as_drafts_are_trained_and_is_not_told_to_be_gone() -> (
    None
):
    mine = replace(draft("mine"), deployment=None)
    it = td(promoted(mine))
    present, gone = observed_with(it, mine), observed_with(it)
    assert present.draft == mine
    assert gone.draft == replace(mine, gone=True, created=0.0)

    def said(observed: Snapshot) -> str:
        made = decided(it, observed, SpeedupTracker(), None)
        told = status.compute(it, observed, status.Outcome(made.scale, planned(it), STABLE), NOW)
        ready = told.condition(ConditionType.DRAFT_READY)
        assert ready is not None
        return ready.reason

    assert (said(present), said(gone)) == ("Loading", "NotFound")
