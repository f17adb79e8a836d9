"""What no further training would mend is not paid for again, and what is on trial has its time."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from turbo_dev.trainings import (
    FACTS,
    HOUR,
    NOW,
    began,
    draft,
    job,
    look,
    message_of,
    pod,
    promoted,
    reason,
    seen,
    td,
)
from turbo_operator.api import TrainingStatus, rfc3339

AGAIN = {"trigger": {"speedupBelow": "1.30", "window": "24h"}}


def trained(**asked: Any) -> TrainingStatus:
    """The status of a training that is done, as a look has it that found its draft."""
    state = look(td(began(**asked), **asked), seen(drafts=(draft(created=NOW - HOUR),))).state
    assert state is not None
    assert state.result == "Trained"
    return state


@pytest.mark.parametrize("drafts", [(), (draft(target="sha256:other"),)])
def test_a_draft_that_does_not_fit_or_is_gone_stops_the_next_one(drafts: Any) -> None:
    state = trained()
    for late in (0.0, 1000 * HOUR):
        step = look(td(state), seen(drafts=drafts), NOW + late)
        assert (reason(step), step.job_request, step.query) == ("TrainingFailed", None, None)
        assert "chat-draft-1" in message_of(step)
        assert ("ConfigMap chat-model" if drafts else "spec.deploymentName: chat") in message_of(step)
        assert step.state == state
    fits = look(td(state), seen(drafts=(draft(),)))
    assert reason(fits) == "Trained"


def test_it_is_trained_again_for_another_spec_another_model_or_when_it_is_switched_on_again() -> None:
    state = trained()
    off = look(td(state, suspend=True), seen()).state
    other = seen(model=replace(FACTS, digest="sha256:cd"))
    for step in (look(td(state, maxOutputTokens=64), seen()), look(td(off), seen()), look(td(state), other)):
        assert step.job_request is not None
        assert step.job_request.number == 2


def test_a_model_that_was_replaced_in_place_is_trained_for_once() -> None:
    state, pods = began(), (pod(phase="Succeeded", exit_code=0, message="", ended=NOW),)
    other = {"drafts": (draft(target="sha256:cd"),)}
    step = look(td(state), seen(children=(job(complete=True),), trainings=pods, **other))
    assert (reason(step), step.job_request, step.kept_job) == ("TrainingFailed", None, None)
    assert step.state is not None
    assert step.state.result == "Trained"


def test_a_draft_on_trial_keeps_the_next_one_from_being_trained() -> None:
    first, second = draft(created=NOW - HOUR), draft(2)
    state = began(**AGAIN).model_copy(update={"number": 2, "result": "Trained"})
    waits = seen(drafts=(first, second), speedup=1.1)
    for hours in (1, 24, 1000):
        step = look(td(state, told=promoted(first), **AGAIN), waits, NOW + hours * HOUR)
        assert (reason(step), step.job_request) == ("Trained", None)
        assert step.state is not None
        assert step.state.below_threshold_time is None
        state = step.state
    down = {**promoted(second)["draft"], "reason": "NoImprovement", "message": "No."}
    down["time"] = rfc3339(NOW + 1000 * HOUR)
    judged = {**promoted(first), "rejectedDrafts": [down]}
    low = look(td(state, told=judged, **AGAIN), waits, NOW + 1001 * HOUR)
    assert (reason(low), low.job_request) == ("Trained", None)  # its window begins now
    step = look(td(low.state, told=judged, **AGAIN), waits, NOW + 1025 * HOUR)
    assert step.job_request is not None
    assert step.job_request.number == 3
