"""On vLLM a new draft is tried on a pod that loads it, beside pods without it, and promoted by a rollout."""

from __future__ import annotations

from dataclasses import replace
from functools import cache
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from turbo_dev.canaries import NOW, rejected_drafts, up
from turbo_dev.plan_examples import fast
from turbo_dev.trainings import promoted
from turbo_dev.vllm_canaries import (
    CARD,
    FIRST,
    SECOND,
    children,
    chosen,
    decided,
    frozen,
    hash_of,
    load,
    look,
    planned,
    plans,
    pod,
    seen,
    td,
)
from turbo_operator import status
from turbo_operator.api import CanaryReason, ConditionType
from turbo_operator.controller.decision import Decision
from turbo_operator.drafts import canary
from turbo_operator.drafts.canary import CanaryVerdict
from turbo_operator.drafts.speedup import MIN_BLOCKS, GenerationStats, SpeedupTracker
from turbo_operator.render import canary_hashes
from turbo_operator.snapshot import DraftView, Snapshot
from turbo_runtime.contract.documents import Load

TRAINED = td()
PLAIN, TRY = hash_of(TRAINED, None), hash_of(TRAINED, FIRST)


@cache
def variant_of(draft: DraftView | None) -> str:
    return hash_of(TRAINED, draft)


def observe(
    new: Load | None, old: Load, draft: DraftView | None = None, tried: DraftView = FIRST, **more: Any
) -> Snapshot:
    """One pod of what serves, `draft` loaded, and where it says something the one that tries another one."""
    variant, others = variant_of(tried), variant_of(draft)
    pods = [pod("old", others, draft, old)]
    pods += [pod("new", variant, tried, new)] if new is not None else []
    drafts = tuple(each for each in (draft, tried) if each is not None)
    return seen(*pods, draft=draft, drafts=drafts, **more)


PLANS = plans(TRAINED, observe(load(0.0, 0), load(0.0, 0)))


def tried(new_ms: float, old_ms: float, minutes: int = 12) -> CanaryVerdict:
    """What is said of a draft in the end with which a token takes `new_ms`, beside `old_ms` without it."""
    speedups, verdict = SpeedupTracker(), None
    for minute in range(minutes):
        new = load(20.0 * minute, int(20_000 * minute / new_ms))
        old = load(900.0 + 30.0 * minute, 5000 + int(30_000 * minute / old_ms))
        speedups, verdict = look(TRAINED, observe(new, old), speedups, NOW + 60.0 * minute, PLANS)
        assert verdict is not None
        if verdict.is_over:
            break
    assert verdict is not None
    return verdict


def test_a_draft_with_which_a_token_takes_less_is_promoted_and_the_sentence_has_both_times() -> None:
    verdict = tried(10.0, 25.0)
    assert verdict.reason == CanaryReason.PROMOTED
    assert verdict.detail == (
        "A token took 10 ms on the pod with chat-1, and 25 ms on the others in the same time: 2.50 times as "
        "fast. From now on the planner counts on it."
    )


def test_a_draft_that_makes_tokens_slower_is_rejected() -> None:
    verdict = tried(30.0, 25.0)
    assert verdict.reason == CanaryReason.NO_IMPROVEMENT
    assert verdict.detail.endswith("0.83 times as fast, and it has to be at least 1.02.")


@given(st.integers(4, 100), st.integers(4, 100))
def test_none_is_promoted_that_is_slower_than_the_pods_without_it(new_ms: int, old_ms: int) -> None:
    verdict = tried(float(new_ms), float(old_ms))
    assert verdict.is_over
    if abs(old_ms / new_ms / 1.02 - 1) > 0.01:  # tokens are whole
        assert (verdict.reason == CanaryReason.PROMOTED) == (old_ms / new_ms > 1.02)


def test_nothing_is_judged_before_both_have_answered_enough() -> None:
    assert "warms up" in tried(10.0, 25.0, minutes=1).detail
    assert tried(10.0, 25.0, minutes=2).reason == CanaryReason.EVALUATING
    speedups = SpeedupTracker()
    for minute in range(9):  # the others answer nothing
        snapshot = observe(load(20.0 * minute, 2000 * minute), load(900.0, 5000))
        speedups, verdict = look(TRAINED, snapshot, speedups, NOW + 60.0 * minute)
        assert verdict is not None
        assert verdict.reason == CanaryReason.EVALUATING


def test_what_the_others_did_before_the_pod_was_warm_does_not_count() -> None:
    speedups = SpeedupTracker()
    for minute in range(2 + MIN_BLOCKS):
        new, old = 20.0 * minute, 900.0 + 10.0 * minute
        # While the pod that tries warms up, the others take a tenth of the time.
        before = 40_000 if minute else 0
        snapshot = observe(load(new, int(100 * new)), load(old, int(10 * old) + before))
        speedups, verdict = look(TRAINED, snapshot, speedups, NOW + 60.0 * minute, PLANS)
    assert verdict is not None
    assert verdict.reason == CanaryReason.PROMOTED
    assert "10 ms on the pod with chat-1, and 100 ms" in verdict.detail


def test_the_pod_is_warm_by_the_clock_however_many_requests_it_answers_at_once() -> None:
    """Found in review: with fifty requests at a time, the first look's were a minute of them."""
    speedups = SpeedupTracker()
    for seconds in range(0, 20, 5):
        snapshot = observe(load(50.0 * seconds, 5000 * seconds), load(900.0, 5000))
        speedups, verdict = look(TRAINED, snapshot, speedups, NOW + seconds, PLANS)
        assert verdict is not None
        assert "warms up" in verdict.detail
    assert speedups.run is not None
    assert speedups.run.warmup.decode_tokens == 5000 * 15


def test_a_pod_that_does_not_start_with_the_draft_ends_its_trial() -> None:
    broken = replace(pod("new", TRY, FIRST), ready=False, reason="CrashLoopBackOff")
    _, verdict = look(TRAINED, seen(broken, drafts=(FIRST,)), SpeedupTracker(), NOW)
    assert verdict is not None
    assert verdict.reason == CanaryReason.POD_FAILED


def replicas(made: Decision) -> dict[str, int]:
    deployments = [each for each in children(made).values() if each["kind"] == "Deployment"]
    return {each["metadata"]["name"].removeprefix("chat-"): each["spec"]["replicas"] for each in deployments}


def test_the_pod_that_tries_is_of_the_plan_that_a_promotion_leads_to() -> None:
    before = observe(None, load(1.0, 1), children=(up(PLAIN),))
    tracker, verdict = look(TRAINED, before, SpeedupTracker(), NOW)
    made = decided(TRAINED, before, tracker, verdict)
    assert replicas(made) == {PLAIN: 1, TRY: 1}
    template = children(made)[f"Deployment chat-{TRY}"]["spec"]["template"]
    (container,) = template["spec"]["containers"]
    assert any('"model": "/drafts/drafts/chat/1-ab"' in each for each in container["args"])
    assert template["metadata"]["labels"]["serving.turbo.dev/draft-version"] == "chat-1"
    assert "ConfigMap chat-drafts-canary" not in children(made)

    # The status tells of the promotion; the planner plans with the draft, and that plan has its pod already.
    after = td(promoted(FIRST))
    both = observe(load(1.0, 1), load(1.0, 1), children=(up(PLAIN), up(TRY), *frozen(made)))
    both = replace(both, draft=FIRST)
    tracker, verdict = look(after, both, SpeedupTracker(), NOW)
    assert verdict is None
    rolled = decided(after, both, tracker)
    assert rolled.plan_hash == TRY
    assert replicas(rolled).get(TRY) == 1
    assert rolled.rollout.serving == TRY  # a single replica: its pod takes over as it is
    assert not replicas(rolled).get(PLAIN)


def test_promotion_of_several_replicas_is_a_rollout_within_its_limits() -> None:
    after = td(promoted(FIRST), replicas=4, rollout={"maxSurge": 1, "maxUnavailable": 0})
    observed = seen(draft=FIRST, drafts=(FIRST,), children=(up(PLAIN, 3), up(TRY)))
    made = decided(after, observed)
    assert made.plan_hash == TRY
    assert replicas(made) == {PLAIN: 3, TRY: 2}
    assert made.rollout.serving == PLAIN


@pytest.mark.parametrize(("price", "moves"), [("0.95", False), ("0.80", True)])
def test_promotion_is_one_rollout_of_what_was_tried_unless_another_layout_with_the_draft_saves_enough(
    price: str, moves: bool
) -> None:
    """Found in review: it was promised that what was tried is what all pods become."""
    slow = replace(fast("slow", 80, price), memory_bandwidth=CARD.memory_bandwidth * 0.2)
    catalog = {CARD.name: CARD, slow.name: slow}  # which misses the target without a draft
    wanted = {"targets": {"timePerOutputToken": {"max": "2.3ms"}}, "workload": {"requestsPerSecond": "4"}}

    def look_on(
        reported: dict[str, Any], draft: DraftView | None, *up_now: str
    ) -> tuple[Decision, dict[str, Any]]:
        it = td(reported, **wanted)
        observed = seen(draft=draft, drafts=(FIRST,), children=tuple(map(up, up_now)))
        observed = replace(observed, accelerators=catalog)
        tracker, verdict = look(it, observed, SpeedupTracker(), NOW)
        made = decided(it, observed, tracker, verdict)
        return made, status.compute(it, observed, made, NOW).dump()

    first, reported = look_on({}, None)
    assert first.plan_hash is not None
    before, reported = look_on(reported, None, first.plan_hash)
    assert (reported["plan"]["accelerator"], reported["plan"]["method"]) == ("card", "Off")
    (tried,) = replicas(before).keys() - {before.plan_hash}
    after, reported = look_on({**reported, **promoted(FIRST)}, FIRST, first.plan_hash, tried)
    assert (reported["plan"]["accelerator"], reported["plan"]["method"]) == (
        "slow" if moves else "card",
        "EAGLE3",
    )
    assert after.plan_hash is not None
    assert (after.plan_hash == tried) != moves
    for serving in ((first.plan_hash, after.plan_hash), (after.plan_hash,)):
        later, reported = look_on(reported, FIRST, *serving)
        assert later.plan_hash == after.plan_hash, "and there it stays"


def test_a_rejected_draft_leaves_what_serves_as_it_was_and_is_not_tried_again() -> None:
    after = td({**promoted(FIRST), **rejected_drafts(SECOND)})
    bad = hash_of(after, SECOND)
    before = observe(load(1.0, 1), load(1.0, 1), FIRST, SECOND, children=(up(TRY), up(bad)))
    tracker, verdict = look(td(promoted(FIRST)), before, SpeedupTracker(), NOW)
    assert verdict is not None
    assert verdict.draft == SECOND
    made = decided(td(promoted(FIRST)), before, tracker, verdict)
    assert replicas(made) == {TRY: 1, bad: 1}
    tracker, verdict = look(after, before, SpeedupTracker(), NOW)
    assert verdict is None
    ended = decided(after, replace(before, children=(*before.children, *frozen(made))), tracker)
    assert ended.plan_hash == TRY
    assert replicas(ended).get(TRY) == 1
    assert not replicas(ended).get(bad)


def test_a_rejected_drafts_pod_never_counts_as_what_serves() -> None:
    recorded = {**rejected_drafts(FIRST), "servingPlan": {"hash": PLAIN}}
    before = observe(load(1.0, 1), load(1.0, 1), children=(up(PLAIN),))
    tracker, verdict = look(TRAINED, before, SpeedupTracker(), NOW)
    made = decided(TRAINED, before, tracker, verdict)
    lost = seen(drafts=(FIRST,), children=(up(PLAIN, 1, 0), up(TRY), *frozen(made)))
    assert canary_hashes(td(recorded), lost) == {TRY}
    assert decided(td(recorded), lost).rollout.serving == PLAIN
    assert canary_hashes(td({**recorded, **promoted(FIRST)}), lost) == frozenset()


@pytest.mark.parametrize(
    ("change", "drafts"),
    [
        pytest.param({}, (), id="its draft is deleted"),
        pytest.param({"podTemplate": {"metadata": {"labels": {"team": "a"}}}}, (FIRST,), id="another spec"),
    ],
)
def test_a_pod_that_tried_a_draft_ends_with_its_canary_and_never_counts_as_what_serves(
    change: dict[str, Any], drafts: tuple[DraftView, ...]
) -> None:
    """Found in review: what served failed for a moment, and the pod of a draft that nobody had judged was
    recorded as the variant that serves.
    """
    before = observe(None, load(1.0, 1), children=(up(PLAIN),))
    made = decided(TRAINED, before, *look(TRAINED, before, SpeedupTracker(), NOW))
    after = td({"servingPlan": {"hash": PLAIN}, "desiredReplicas": 1}, **change)

    def then(available: int) -> Decision:
        seen_now = seen(drafts=drafts, children=(up(PLAIN, 1, available), up(TRY), *frozen(made)))
        return decided(after, seen_now, *look(after, seen_now, SpeedupTracker(), NOW))

    lost, well = then(0), then(1)
    assert lost.rollout.serving == well.rollout.serving == PLAIN
    assert replicas(lost)[TRY] == 1  # all that answers
    assert replicas(lost)[PLAIN] == 1
    assert (replicas(well)[PLAIN], replicas(well).get(TRY, 0)) == (1, 0)


def test_a_draft_that_was_promoted_serves_whatever_is_in_use_after_it() -> None:
    before = observe(None, load(1.0, 1), children=(up(PLAIN),))
    made = decided(TRAINED, before, *look(TRAINED, before, SpeedupTracker(), NOW))
    there = (up(TRY), *frozen(made))
    assert canary_hashes(td(promoted(FIRST)), seen(draft=FIRST, children=there)) == frozenset()
    recorded = {**promoted(SECOND), "servingPlan": {"hash": TRY}}
    assert canary_hashes(td(recorded), seen(draft=SECOND, children=there)) == frozenset()
    same_version = replace(SECOND, version=FIRST.version)
    assert canary_hashes(td(promoted(same_version)), seen(draft=same_version, children=there)) == {TRY}


def test_the_status_tells_of_the_canary_and_of_its_verdict() -> None:
    observed = observe(load(1.0, 1), load(1.0, 1), children=(up(PLAIN), up(TRY)))
    tracker, verdict = look(TRAINED, observed, SpeedupTracker(), NOW)
    assert verdict is not None
    new = status.compute(TRAINED, observed, decided(TRAINED, observed, tracker, verdict), NOW)
    assert new.canary is not None
    assert new.canary.version == "chat-1"
    condition = new.condition(ConditionType.DRAFT_PROMOTED)
    assert condition is not None
    assert (condition.status, condition.reason) == ("Unknown", "Evaluating")
    over = replace(verdict, reason=CanaryReason.NO_IMPROVEMENT, detail="No.")
    end = status.compute(TRAINED, observed, decided(TRAINED, observed, SpeedupTracker(), over), NOW)
    assert end.canary is None
    assert [draft.version for draft in end.rejected_drafts] == ["chat-1"]
    over = replace(verdict, reason=CanaryReason.PROMOTED, detail="Yes.")
    outcome = decided(TRAINED, observed, SpeedupTracker(), over)
    end = status.compute(TRAINED, canary.add_verdict(observed, SpeedupTracker(), over), outcome, NOW)
    assert end.draft is not None
    assert end.draft.version == "chat-1"


def test_a_draft_that_does_not_fit_beside_the_model_waits_and_says_why() -> None:
    observed = observe(None, load(1.0, 1), children=(up(PLAIN),))
    (card,) = observed.accelerators.values()
    sizes = (replace(card, memory_bytes=number << 24) for number in range(64, 1024))
    tight = ({card.name: each} for each in sizes)
    snapshots = (replace(observed, accelerators=catalog) for catalog in tight)
    snapshot = next(each for each in snapshots if planned(TRAINED, each).choice is not None)
    _, verdict = look(TRAINED, snapshot, SpeedupTracker(), NOW)
    assert verdict is not None
    assert verdict.reason == CanaryReason.WAITING_FOR_PLAN
    assert verdict.detail.startswith("chat-1 cannot be tried on what serves. No plan is feasible.")
    new = status.compute(TRAINED, snapshot, decided(TRAINED, snapshot, None, verdict), NOW)
    condition = new.condition(ConditionType.DRAFT_PROMOTED)
    assert condition is not None
    assert condition.reason == "WaitingForPlan"


@pytest.mark.parametrize(
    "speculation",
    [
        {"method": "NGram"},
        {"mode": "Disabled"},
        {"draftRef": {"name": "mine"}},
        {"method": "EAGLE3", "draftModel": {"uri": "hf://acme/eagle"}},
    ],
)
def test_where_the_spec_says_how_to_draft_no_candidate_is_tried(speculation: dict[str, Any]) -> None:
    it = td(engine={"type": "VLLM"}, speculation=speculation)
    _, verdict = look(it, seen(drafts=(FIRST,), children=(up(PLAIN),)), SpeedupTracker(), NOW)
    assert verdict is None
    free = td(engine={"type": "VLLM"}, speculation={})
    _, verdict = look(free, seen(drafts=(FIRST,), children=(up(PLAIN),)), SpeedupTracker(), NOW)
    assert verdict is not None
    assert verdict.draft == FIRST


def test_estimated_seconds_may_fall_and_a_pod_that_starts_anew_is_known_by_its_tokens() -> None:
    before = GenerationStats(100.0, 200.0, 0, 0, 50.0, 500)
    assert GenerationStats(90.0, 180.0, 0, 0, 60.0, 600).since(before) == GenerationStats(
        0.0, 0.0, 0, 0, 10.0, 100
    )
    anew = GenerationStats(5.0, 9.0, 0, 0, 5.0, 50)
    assert anew.since(before) == anew


def test_the_pod_that_tries_has_the_data_parallel_groups_that_the_others_have() -> None:
    """Found in review: it was planned on one group, and a draft judged by what that one did."""
    it = td(parallelism={"tensor": 1, "data": 2})
    choice = replace(chosen(td(), seen()), data=2)
    asked = canary.trial(it, seen(drafts=(FIRST,)), choice)
    assert asked is not None
    assert asked.spec.parallelism is not None
    assert (asked.spec.parallelism.tensor, asked.spec.parallelism.data) == (1, 2)
