"""A new draft is tried on a pod of its own, and judged by what was measured there beside the others."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from turbo_dev.canaries import (
    NEW,
    NOW,
    OLD,
    SETTINGS,
    STABLE,
    TRY,
    WITH_OLD,
    children,
    look,
    named,
    planned,
    replicas,
    seen,
    stable_of,
    td,
    up,
)
from turbo_dev.loads import load, pod
from turbo_dev.trainings import promoted
from turbo_operator import status
from turbo_operator.api import Canary, CanaryReason, ConditionType, TurboDeployment
from turbo_operator.autoscaler import History
from turbo_operator.controller.decision import decide
from turbo_operator.drafts import canary, training
from turbo_operator.drafts.canary import CanaryVerdict
from turbo_operator.drafts.speedup import SpeedupTracker
from turbo_operator.snapshot import ChildView, MissingFile
from turbo_runtime.contract.config import RuntimeConfig


def tried(
    new: float,
    old: float,
    *,
    audits: int = 3,
    mismatches: int = 0,
    minutes: int = 12,
    usual: float = 0.0,
    **trying: Any,
) -> CanaryVerdict:
    """What is said in the end of a draft with the gain `new`, beside pods with the gain `old`, whose answers
    differ too by the share `usual`.
    """
    speedups, verdict = SpeedupTracker(), None
    version = trying.pop("version", NEW.version)
    for minute in range(minutes):
        seconds = 20.0 * minute
        audited = {"audits": audits, "audit_mismatches": mismatches}
        told = load(seconds, seconds * new, draft_version=version, **audited, **trying)
        counted = {"audits": 1000, "audit_mismatches": int(1000 * usual)}
        stable = load(500.0 + seconds, 800.0 + seconds * old, draft_version=OLD.version, **counted)
        pods = [pod("a", stable), pod("t", told, variant=TRY)]
        speedups, verdict = look(WITH_OLD, seen(*pods), speedups, NOW + 60.0 * minute)
        assert verdict is not None
        if verdict.is_over:
            break
    assert verdict is not None
    return verdict


def test_a_draft_that_gains_more_is_promoted_and_one_that_gains_less_is_not() -> None:
    assert tried(1.6, 1.5).reason == CanaryReason.PROMOTED
    worse = tried(1.2, 1.5)
    assert worse.reason == CanaryReason.NO_IMPROVEMENT
    assert "1.20 times as fast as no drafts, and what was there 1.50" in worse.detail


@given(st.floats(0.2, 5.0), st.floats(0.2, 5.0))
def test_no_draft_is_promoted_that_gains_less_than_what_was_there(new: float, old: float) -> None:
    verdict, asked = tried(new, old), old * float(Canary().min_speedup_ratio)
    assert verdict.is_over
    assert (verdict.reason == CanaryReason.PROMOTED) == (new >= asked) or abs(new / asked - 1) < 1e-6


def test_nothing_is_judged_before_enough_was_answered_long_enough_and_audited() -> None:
    assert tried(1.6, 1.5, minutes=2).reason == CanaryReason.EVALUATING
    assert "warms up" in tried(1.6, 1.5, minutes=1).detail
    assert tried(1.6, 1.5, audits=0).reason == CanaryReason.EVALUATING
    assert "audited" in tried(1.6, 1.5, audits=0).detail


def test_one_wrong_answer_ends_a_trial_at_once_where_bytes_are_promised() -> None:
    assert tried(9.0, 1.0, minutes=1, mismatches=1).reason == CanaryReason.AUDIT_MISMATCH


@pytest.mark.parametrize(
    ("audits", "mismatches", "usual", "reason"),
    [
        (3, 1, 0.0, CanaryReason.PROMOTED),  # a rare accident
        (100, 2, 0.0, CanaryReason.PROMOTED),  # no larger share than the alert lets pass
        (100, 3, 0.0, CanaryReason.AUDIT_MISMATCH),
        (100, 3, 0.03, CanaryReason.PROMOTED),  # as many differ on the other pods
        (100, 4, 0.03, CanaryReason.AUDIT_MISMATCH),
    ],
)
def test_where_the_law_is_promised_a_larger_share_of_wrong_answers_than_of_the_others_ends_a_trial(
    audits: int, mismatches: int, usual: float, reason: CanaryReason
) -> None:
    said = tried(1.6, 1.5, audits=audits, mismatches=mismatches, usual=usual, guarantee="distribution")
    assert said.reason == reason
    if reason == CanaryReason.PROMOTED:
        assert f"{audits} answers audited, {mismatches} of them differ" in said.detail


def test_a_pod_that_goes_on_refusing_the_draft_ends_its_trial_and_trouble_with_another_one_does_not() -> None:
    def said(version: str, ready_for: float) -> CanaryReason:
        told = load(0.0, 0.0, draft_version=version, draft_error="heads.safetensors cannot be read")
        pods = seen(pod("t", told, TRY, ready_since=NOW - ready_for))
        _, verdict = look(WITH_OLD, pods, SpeedupTracker(), NOW)
        assert verdict is not None
        return verdict.reason

    assert said("", 90.0) == CanaryReason.LOAD_FAILED
    assert said("", 10.0) == CanaryReason.STARTING  # it tries again by itself
    assert said(NEW.version, 90.0) == CanaryReason.EVALUATING  # the sentence is about a further draft


def test_a_draft_whose_pod_does_not_start_is_rejected() -> None:
    broken = pod("t", load(0.0, 0.0), variant=TRY, ready=False, reason="CrashLoopBackOff", load=None)
    _, verdict = look(WITH_OLD, seen(broken), SpeedupTracker(), NOW)
    assert verdict is not None
    assert verdict.reason == CanaryReason.POD_FAILED


def test_a_pod_that_a_node_has_ended_says_nothing_of_the_draft() -> None:
    ended = pod("t", load(0.0, 0.0), TRY, ready=False, reason="OOMKilled", load=None, phase="Failed")
    _, verdict = look(WITH_OLD, seen(ended), SpeedupTracker(), NOW)
    assert verdict is not None
    assert verdict.reason == CanaryReason.STARTING


def test_a_trial_without_a_verdict_is_over_a_day_after_a_node_has_its_pod() -> None:
    loads = pod("t", load(0.0, 0.0), TRY, ready=False, load=None)
    speedups, first = look(WITH_OLD, seen(loads), SpeedupTracker(), NOW)
    _, verdict = look(WITH_OLD, seen(loads), speedups, NOW + canary.GIVE_UP_SECONDS)
    assert first is not None
    assert verdict is not None
    assert (first.reason, verdict.reason) == (CanaryReason.STARTING, CanaryReason.INCONCLUSIVE)


@pytest.mark.parametrize(
    ("bound", "name"),
    [
        ({"cost": {"maxPerHour": "0.07"}}, "spec.cost.maxPerHour"),
        ({"accelerators": {"maxTotal": 1}}, "spec.accelerators.maxTotal"),
    ],
)
def test_a_second_pod_that_the_budget_does_not_hold_is_not_made(bound: dict[str, Any], name: str) -> None:
    speedups, verdict = look(td(promoted(OLD), **bound), seen(), SpeedupTracker(), NOW)
    assert verdict is not None
    assert (verdict.reason, verdict.is_over, speedups.run) == (
        CanaryReason.WAITING_FOR_BUDGET,
        False,
        None,
    )
    assert name in verdict.detail
    _, of_two = look(td({**promoted(OLD), "desiredReplicas": 2}, **bound), seen(), SpeedupTracker(), NOW)
    assert of_two is not None
    assert of_two.reason == CanaryReason.STARTING  # one of the two makes room


def test_nothing_is_tried_where_no_pod_is_wanted() -> None:
    for spec in ({"replicas": 0}, {"suspend": True}):
        assert look(td(promoted(OLD), **spec), seen(), SpeedupTracker(), NOW)[1] is None


def test_a_draft_waits_where_no_request_comes() -> None:
    """Found in review: it was rejected after a day, for the traffic that there was none of."""
    spec = {"routing": "Router", "scaling": {"mode": "Metrics", "minReplicas": 0}}
    for desired, is_tried in ((0, False), (1, True)):
        it = td({**promoted(OLD), "desiredReplicas": desired}, **spec)
        assert (look(it, seen(), SpeedupTracker(), NOW)[1] is not None) == is_tried


def test_the_pod_that_tries_has_its_own_file_its_label_and_more_audits() -> None:
    speedups, verdict = look(WITH_OLD, seen(), SpeedupTracker(), NOW)
    observed = replace(seen(), children=(up(STABLE),))
    made = children(WITH_OLD, observed, speedups, verdict)
    assert named(made) == '{"heads": "/drafts/drafts/chat/chat-draft-1", "version": "chat-draft-1"}\n'
    assert (
        named(made, "chat-drafts-canary")
        == '{"heads": "/drafts/drafts/chat/chat-draft-2", "version": "chat-draft-2"}\n'
    )
    template = made[f"Deployment chat-{TRY}"]["spec"]["template"]
    assert template["metadata"]["labels"]["serving.turbo.dev/draft-version"] == NEW.version
    (container,) = template["spec"]["containers"]
    assert RuntimeConfig.from_argv(container["args"]).audit_fraction == 0.1
    volumes = {volume["name"]: volume for volume in template["spec"]["volumes"]}
    assert volumes["drafts-in-use"]["configMap"]["name"] == "chat-drafts-canary"
    service = made["Service chat"]["spec"]["selector"]
    assert service.items() <= template["metadata"]["labels"].items()


def test_a_promotion_changes_the_file_of_running_pods_and_nothing_else_of_them() -> None:
    observed = replace(seen(), children=(up(STABLE), up(TRY)))
    promoted = CanaryVerdict(NEW, TRY, CanaryReason.PROMOTED, "Faster.")
    made = children(WITH_OLD, observed, SpeedupTracker(), promoted)
    assert named(made) == '{"heads": "/drafts/drafts/chat/chat-draft-2", "version": "chat-draft-2"}\n'
    assert replicas(made) == {STABLE: 1, TRY: 0}
    assert "ConfigMap chat-drafts-canary" not in made


def test_the_first_draft_needs_no_rollout_either() -> None:
    before = td()
    without = stable_of(before, None)
    assert without == STABLE
    speedups, _ = look(before, seen(now=None), SpeedupTracker(), NOW)
    made = children(before, replace(seen(now=None), children=(up(without),)), speedups, None)
    assert named(made) == "{}\n"


def test_the_status_says_what_is_tried_what_was_promoted_and_what_was_rejected_and_why() -> None:
    observed = seen()

    def after(it: TurboDeployment, verdict: CanaryVerdict | None) -> Any:
        judged = canary.add_verdict(observed, SpeedupTracker(), verdict)
        made = decide(it, judged, SETTINGS, NOW, planned(it), History(), verdict=verdict)
        return status.compute(it, judged, made, NOW)

    trying = after(WITH_OLD, CanaryVerdict(NEW, TRY, CanaryReason.EVALUATING, "It warms up."))
    assert (trying.draft.name, trying.canary.name) == (OLD.name, NEW.name)
    assert trying.condition(ConditionType.DRAFT_PROMOTED).status == "Unknown"
    bad = after(WITH_OLD, CanaryVerdict(NEW, TRY, CanaryReason.NO_IMPROVEMENT, "It is slower."))
    assert (bad.draft.name, bad.canary) == (OLD.name, None)
    assert [(each.name, each.reason, each.message) for each in bad.rejected_drafts] == [
        (NEW.name, "NoImprovement", "It is slower.")
    ]
    later = after(td(bad.dump()), None)
    assert later.condition(ConditionType.DRAFT_PROMOTED).reason == "NoImprovement"
    assert later.rejected_drafts == bad.rejected_drafts
    good = after(WITH_OLD, CanaryVerdict(NEW, TRY, CanaryReason.PROMOTED, "It is faster."))
    assert (good.draft.name, good.canary, good.rejected_drafts) == (NEW.name, None, ())
    assert good.condition(ConditionType.DRAFT_PROMOTED).status == "True"


def test_a_promoted_draft_is_kept_while_no_plan_is_feasible() -> None:
    it = td(promoted(NEW))
    decision = decide(it, seen(now=NEW), SETTINGS, NOW, None, History())
    made = status.compute(it, seen(now=NEW), decision, NOW)
    assert made.draft is not None
    assert made.draft.name == NEW.name


def test_a_suspended_deployment_trains_nothing() -> None:
    step = training.decide(td(suspend=True), seen(), planned(td()), None, NOW)
    assert step.condition is not None
    assert (step.condition.reason, step.job_request, step.query) == ("Suspended", None, None)


def test_a_job_of_a_training_before_the_one_in_the_status_says_nothing() -> None:
    told = {"training": {"number": 2, "inputHash": "w", "specHash": "h"}}
    before = ChildView("Job", "chat-train-1", "u", None, failed=True, message="It broke.")
    step = training.decide(td(told), replace(seen(drafts=()), children=(before,)), planned(td()), None, NOW)
    # the planner is asked where the second one runs
    assert (step.kept_job, step.query is None) == (None, False)


def test_a_pod_that_does_not_find_the_model_ends_no_trial_and_one_that_fails_does() -> None:
    """Found in review: a file that a claim had lost had a good draft rejected."""
    fails = pod("t", load(0.0, 0.0), variant=TRY, ready=False, reason="CrashLoopBackOff", load=None)
    lacks = replace(fails, lacks=MissingFile("/cache/hub/config.json", NOW))
    for one, reason in ((fails, CanaryReason.POD_FAILED), (lacks, CanaryReason.STARTING)):
        speedups, verdict = look(WITH_OLD, seen(one), SpeedupTracker(), NOW)
        assert verdict is not None
        assert verdict.reason == reason
    _, verdict = look(WITH_OLD, seen(lacks), speedups, NOW + canary.GIVE_UP_SECONDS)
    assert verdict is not None
    assert verdict.reason == CanaryReason.STARTING, "nor does it in a day"
