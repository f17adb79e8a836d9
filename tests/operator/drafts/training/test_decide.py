"""Whether a training is due, runs or has ended: from what the cluster holds, and never two at once."""

from __future__ import annotations

import json
import random
from dataclasses import replace
from typing import Any

import pytest

from turbo_dev.trainings import (
    CORES,
    HOUR,
    L4,
    LOAD,
    MADE,
    NOW,
    ROOM,
    began,
    draft,
    job,
    look,
    pending,
    pod,
    promoted,
    ran,
    reason,
    seen,
    td,
)
from turbo_operator.api import TrainingReason, TrainingStatus, rfc3339
from turbo_operator.commitments import Allowance, Budget
from turbo_operator.drafts import training
from turbo_operator.drafts.training import manifests
from turbo_operator.snapshot import ChildView, DraftView, LoadSample, NodeSupply, PodView, Supply, TrainPod
from turbo_runtime.contract.documents import JobProgress


def test_the_first_training_begins_on_the_cheapest_that_has_room() -> None:
    step = look(td(maxCost="0.08"), seen())
    assert step.job_request is not None
    assert (step.job_request.number, step.job_request.choice.accelerator.name) == (1, "cpu")
    assert step.job_request.deadline_seconds == 7200
    assert step.job_request.choice.accelerator == CORES  # all of it, a training's own memory included
    crowded = seen(free={**ROOM, "cpu": Supply((NodeSupply("n", 4, 0),))})
    begun = look(td(), crowded).job_request
    assert begun is not None
    assert begun.choice.accelerator.name == "l4"
    assert begun.deadline_seconds is None


def test_no_training_begins_while_a_pod_of_an_earlier_one_ends() -> None:
    """Found in review: both held an accelerator, and wrote to one folder."""
    ending = TrainPod("t", "chat-train-1", "Running", accelerator="cpu", terminating=True)
    step = look(td(), seen(trainings=(ending,)))
    assert (reason(step), step.job_request) == ("WaitingForAccelerator", None)
    assert step.condition is not None
    assert step.condition.message.startswith("Pod t of an earlier Job has yet to end")
    assert look(td(), seen(trainings=(replace(ending, exit_code=143),))).job_request is not None


def test_a_training_takes_what_budgets_allow() -> None:
    """Found in review: it waited for the cheapest accelerator, which a budget did not allow."""
    only = Allowance((Budget("team", allowed=frozenset({"l4"})),))
    begun = look(td(), seen(allowance=only)).job_request
    assert begun is not None
    assert begun.choice.accelerator.name == "l4"


def test_a_named_accelerator_is_taken_whether_it_has_room_or_not() -> None:
    begun = look(td(acceleratorName="l4"), seen(free={})).job_request
    assert begun is not None
    assert begun.choice.accelerator.name == "l4"


def test_what_waits_is_named() -> None:
    assert reason(look(td(), seen(model=None))) == "WaitingForPlan"
    assert reason(look(td(suspend=True), seen())) == "Suspended"
    assert reason(look(td(), seen(free={}))) == "WaitingForAccelerator"
    gone = look(td(acceleratorName="gone"), seen())
    assert reason(gone) == "NoAccelerator"
    assert gone.condition.message == (
        "There is no TurboAccelerator gone: create it, or correct spec.speculation.training.acceleratorName."
    )
    free = replace(CORES, prices={})
    unpriced = replace(seen(), accelerators={"cpu": free, "l4": L4})
    step = look(td(acceleratorName="cpu", maxCost="1"), unpriced)
    assert (reason(step), step.job_request) == ("PriceUnknown", None)
    step = look(td(acceleratorName="cpu"), unpriced)
    assert step.job_request is not None  # without a bound no price is needed
    assert step.state is not None
    assert step.state.cost_per_hour is None
    step = look(td(maxCost="0.0001"), seen())
    assert (reason(step), step.job_request) == ("BudgetExceeded", None)
    small = {name: replace(row, memory_bytes=1 << 30) for name, row in seen().accelerators.items()}
    assert reason(look(td(), replace(seen(), accelerators=small))) in ("NoAccelerator", "WaitingForPlan")


def test_nothing_is_told_and_no_job_stays_where_no_training_is_asked_for() -> None:
    step = look(td(began(), absent=True), seen(children=(job(),), trainings=(pod(),)))
    assert (step.condition, step.kept_job, step.job_request, step.finished) == (None, None, None, None)
    assert step.state is not None
    assert step.state.number == 1  # so that no folder is used twice


def test_captured_prompts_are_waited_for() -> None:
    asked = {"prompts": {"type": "Captured"}, "trigger": {"minPrompts": 10}}

    def pods(*captured: int) -> tuple[PodView, ...]:
        return tuple(
            PodView(f"p{n}", "v1", "Running", True, None, None, None)
            if count < 0
            else PodView(
                *(f"p{n}", "v1", "Running", True, None, None, None),
                load=LoadSample(NOW, replace(LOAD, captured=count)),
            )
            for n, count in enumerate(captured)
        )

    assert reason(look(td(**asked), seen(pods=pods(4, 5)))) == "WaitingForPrompts"
    assert look(td(**asked), seen(pods=pods(4, 6, -1))).job_request is not None


def test_a_job_that_has_run_is_frozen_whatever_becomes_of_the_spec() -> None:
    state = ran()
    for changed in (td(state), td(state, maxOutputTokens=64), td(state, acceleratorName="l4")):
        step = look(changed, seen(children=(job(),), trainings=(pod(),)))
        assert (step.kept_job, step.job_request) == ("chat-train-1", None)
        assert reason(step) == "Training"


def test_the_status_is_written_at_a_tenth_of_a_stage_and_counts_what_was_paid() -> None:
    state = look(td(began()), seen(children=(job(),), trainings=(pod(),))).state
    assert state is not None
    assert state.last_cost_time == rfc3339(NOW - 60)

    def at(done: int, state: TrainingStatus, now: float) -> TrainingStatus:
        progress = JobProgress("answers", done, 100, "prompts", 130.0)
        found = look(td(state), seen(children=(job(),), trainings=(pod(progress=progress),)), now).state
        assert found is not None
        return found

    first = at(41, state, NOW + 60)
    assert (first.progress, first.estimated_remaining) == ("answers 40 %", "3m")
    assert float(first.cost or 0) == pytest.approx(0.04 * 120 / 3600, abs=2e-6)
    assert at(49, first, NOW + 600) == first  # nothing that is worth a write
    second = at(50, first, NOW + 3600)
    assert second.progress == "answers 50 %"
    assert float(second.cost or 0) == pytest.approx(0.04 * 3660 / 3600, abs=2e-6)
    ended = pod(phase="Failed", exit_code=137, ended=NOW + 7200)
    after = look(td(second), seen(children=(job(),), trainings=(ended,)), NOW + 9000).state
    assert after is not None
    assert after.last_cost_time is None
    assert float(after.cost or 0) == pytest.approx(0.04 * 7260 / 3600, abs=2e-6)


def test_a_draft_is_made_of_what_the_pod_told_and_the_job_goes_when_it_is_there() -> None:
    state = began()
    done = pod(phase="Succeeded", exit_code=0, message=MADE.to_json(), ended=NOW)
    step = look(td(state), seen(children=(job(complete=True),), trainings=(done,)))
    assert step.kept_job == "chat-train-1"
    assert step.finished == MADE
    step = look(td(step.state), seen(children=(job(complete=True),), trainings=(done,), drafts=(draft(),)))
    assert (step.kept_job, step.finished, step.job_request) == (None, None, None)
    assert reason(step) == "Trained"
    assert step.state is not None
    assert step.state.result == "Trained"


def test_a_job_whose_pod_is_gone_before_it_told_is_made_anew_in_the_same_folder() -> None:
    assert look(td(began()), seen(children=(job(complete=True),), trainings=(pod(),))).kept_job == job().name
    step = look(td(began()), seen(children=(job(complete=True),)))
    assert (step.kept_job, step.job_request, step.finished) == (None, None, None)
    begun = look(td(step.state), seen()).job_request
    assert begun is not None
    assert begun.number == 1


def test_a_permanent_error_waits_for_another_spec_and_then_takes_another_folder() -> None:
    gone = pod(phase="Failed", exit_code=3, message="prompts.jsonl:3: no prompt")
    step = look(td(began()), seen(children=(job(failed=True, reason="PodFailurePolicy"),), trainings=(gone,)))
    assert reason(step) == "TrainingFailed"
    assert step.condition is not None
    assert "prompts.jsonl:3: no prompt" in step.condition.message
    assert step.kept_job == "chat-train-1"  # until the status has it
    off = look(td(step.state, suspend=True), seen())
    assert (reason(off), look(td(off.state), seen()).job_request is None) == ("Suspended", False)
    for _ in range(3):  # and its Job stays, with what its pods have said
        step = look(td(step.state), seen(children=(job(failed=True),)), NOW + 1000 * HOUR)
        assert (reason(step), step.kept_job, step.job_request) == ("TrainingFailed", "chat-train-1", None)
    step = look(td(step.state, maxOutputTokens=64), seen(children=(job(failed=True),)))
    assert step.job_request is not None
    assert (step.job_request.number, step.kept_job) == (2, None)


def test_a_failure_on_captured_prompts_is_tried_again_after_a_window() -> None:
    asked = {"prompts": {"type": "Captured"}, "trigger": {"minPrompts": 1, "window": "2h"}}
    full = PodView(
        *("p", "v1", "Running", True, None, None, None), load=LoadSample(NOW, replace(LOAD, captured=9))
    )
    state = look(td(**asked), seen(pods=(full,))).state
    gone = pod(phase="Failed", exit_code=3, message="too few")
    step = look(td(state, **asked), seen(children=(job(failed=True),), trainings=(gone,), pods=(full,)))
    assert look(td(step.state, **asked), seen(pods=(full,)), NOW + HOUR).job_request is None
    begun = look(td(step.state, **asked), seen(pods=(full,)), NOW + 2 * HOUR).job_request
    assert begun is not None
    assert begun.number == 2


def test_over_budget_it_waits_and_goes_on_in_its_folder_with_what_a_higher_bound_leaves() -> None:
    state = ran(maxCost="0.04")
    late = seen(children=(job(failed=True, reason="DeadlineExceeded", ended=NOW + HOUR),))
    step = look(td(state, maxCost="0.04"), late, NOW + HOUR)
    assert reason(step) == "BudgetExceeded"
    assert step.condition is not None
    assert "maxCost" in step.condition.message
    assert look(td(step.state, maxCost="0.04"), seen(), NOW + 100 * HOUR).job_request is None
    begun = look(td(step.state, maxCost="0.08"), seen(), NOW + 100 * HOUR).job_request
    assert begun is not None
    assert begun.number == 1
    assert begun.deadline_seconds is not None
    assert 3500 <= begun.deadline_seconds < 3600


def test_after_an_upgrade_what_was_half_done_begins_anew_in_another_folder(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    state = ran()
    on = look(td(state), seen()).job_request  # else it goes on under its number
    assert on is not None
    assert on.number == 1
    monkeypatch.setattr(manifests, "turbo_version", lambda: "9.9.9")
    running = look(td(state), seen(children=(job(),), trainings=(pod(),)))
    anew = look(td(state), seen()).job_request
    assert anew is not None
    assert (running.kept_job, anew.number) == ("chat-train-1", 2)


def test_a_deadline_that_a_pod_only_waited_for_is_no_end() -> None:
    step = look(
        td(began(maxCost="0.04"), maxCost="0.04"),
        seen(children=(job(failed=True, reason="DeadlineExceeded"),)),
    )
    assert (reason(step), step.kept_job) == ("Training", None)
    begun = look(td(step.state, maxCost="0.04"), seen()).job_request
    assert begun is not None
    assert (begun.number, begun.deadline_seconds) == (1, 3600)


def test_another_one_is_trained_when_the_gain_stays_low_for_the_window() -> None:
    asked = {"trigger": {"speedupBelow": "1.30", "window": "24h"}}
    done = began(**asked).model_copy(update={"result": "Trained"})
    first, second = draft(created=NOW - HOUR), draft(2, NOW + 10 * HOUR)
    there = {"drafts": (first,)}

    def after(hours: float, speedup: float | None, state: TrainingStatus | None) -> training.TrainingDecision:
        return look(
            td(state, told=promoted(first), **asked), seen(**there, speedup=speedup), NOW + hours * HOUR
        )

    low = after(0, 1.1, done)
    assert reason(low) == "Trained"
    assert low.state is not None
    assert low.state.below_threshold_time == rfc3339(NOW)
    assert after(23, 1.1, low.state).job_request is None
    assert after(23, None, low.state).state == low.state  # silence is no gain
    high = after(23, 1.4, low.state).state
    assert high is not None
    assert high.below_threshold_time is None
    assert after(24, None, low.state).job_request is None  # nor a reason to pay
    begun = after(24, 1.1, low.state).job_request
    assert begun is not None
    assert begun.number == 2
    newer = seen(drafts=(first, second), speedup=1.1)
    step = look(td(low.state, told=promoted(second), **asked), newer, NOW + 25 * HOUR)
    assert step.job_request is None
    assert step.state is not None
    assert step.state.below_threshold_time == rfc3339(NOW + 25 * HOUR)
    # once, without a bound
    assert look(td(done), seen(**there, speedup=0.9), NOW + 1000 * HOUR).job_request is None


def test_a_candidate_that_somebody_else_has_trained_is_followed_like_our_own() -> None:
    asked = {"trigger": {"speedupBelow": "1.30", "window": "24h"}}
    theirs = replace(draft(created=NOW - HOUR), name="by-hand")
    low = look(td(told=promoted(theirs), **asked), seen(drafts=(theirs,), speedup=1.1))
    assert (reason(low), low.job_request) == ("Trained", None)
    later = td(low.state, told=promoted(theirs), **asked)
    begun = look(later, seen(drafts=(theirs,), speedup=1.1), NOW + 24 * HOUR).job_request
    assert begun is not None
    assert begun.number == 1


def test_another_model_has_another_draft_under_a_number_of_its_own() -> None:
    begun = look(td(), seen(drafts=(draft(7, target="sha256:old"),))).job_request
    assert begun is not None
    assert begun.number == 8


@pytest.mark.parametrize("number", range(40))
def test_whatever_happens_there_is_one_job_at_a_time_and_every_state_is_left_or_named(number: int) -> None:
    """A cluster of Jobs, pods and drafts that things happen to at random, and an operator that is stopped
    and started between any two looks: it has nothing but what the cluster holds.
    """
    chance = random.Random(number)
    jobs: dict[int, ChildView] = {}
    pods: dict[int, TrainPod] = {}
    drafts: dict[int, DraftView] = {}
    status: TrainingStatus | None = None
    asked: dict[str, Any] = {"maxCost": "0.20", "trigger": {"speedupBelow": "1.30", "window": "1h"}}
    now, speedup = NOW, 1.5
    for _ in range(120):
        newest = max(drafts) if drafts else None
        it = td(status, told=promoted(drafts[newest]) if newest else None, **asked)
        there = {"children": tuple(jobs.values()), "trainings": tuple(pods.values())}
        world = seen(**there, drafts=tuple(drafts.values()), speedup=speedup if drafts else None)
        step = look(it, world, now)
        assert step == look(it, world, now)
        assert reason(step)
        if step.job_request is not None:
            assert step.job_request.number not in drafts
            if step.job_request.number not in jobs:
                assert step.kept_job is None
                jobs[step.job_request.number] = job(step.job_request.number)
        kept = {step.kept_job, f"chat-train-{step.job_request.number}" if step.job_request else None}
        for gone in [n for n in jobs if f"chat-train-{n}" not in kept]:
            del jobs[gone]
            pods.pop(gone, None)
        assert len(jobs) <= 1
        if step.finished is not None and step.state is not None and chance.random() < 0.8:
            drafts[step.state.number] = draft(step.state.number, now)
        if chance.random() < 0.8:  # else the operator dies before it writes
            status = step.state
        now += chance.choice((1.0, 60.0, 600.0))
        speedup = chance.choice((speedup, speedup, 1.1, 1.5))
        if chance.random() < 0.05:
            asked |= {"maxCost": chance.choice(("0.20", "0.40")), "maxOutputTokens": chance.choice((64, 256))}
        for n, each in list(jobs.items()):
            event = chance.random()
            if each.complete or each.failed:
                if event < 0.1:
                    pods.pop(n, None)
            elif event < 0.15 and n not in pods:
                pods[n] = pending(now, number=n)
            elif event < 0.3:
                pods[n] = pod(number=n, started=now)
            elif event < 0.4:
                pods.pop(n, None)
            elif event < 0.5 and n in pods:
                pods[n] = pod(number=n, phase="Succeeded", exit_code=0, message=MADE.to_json(), ended=now)
                jobs[n] = replace(each, complete=True)
            elif event < 0.55 and n in pods:
                pods[n] = pod(number=n, phase="Failed", exit_code=3, message="no", ended=now)
                jobs[n] = replace(each, failed=True, reason="PodFailurePolicy")
            elif event < 0.6:
                pods.pop(n, None)
                jobs[n] = replace(each, failed=True, reason="DeadlineExceeded")
            elif event < 0.63:
                del jobs[n]
    assert status is not None
    assert json.dumps(status.dump())
    assert TrainingReason(look(td(status, **asked), seen(), now).condition.reason)  # type: ignore[union-attr]
