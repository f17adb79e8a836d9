"""What becomes an Event: each change that a person would want to read of, and nothing twice."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from turbo_operator.api import Condition, PlanStatus, Predicted, ScaleEvent, TurboDeploymentStatus
from turbo_operator.status.transitions import Transition, transitions

KINDS = ("Ready", "DraftTrained", "DraftPromoted", "WithinBudget", "DraftReady", "Available", "Stalled")


def condition(kind: str, status: str, reason: str, message: str = "A sentence.") -> Condition:
    return Condition(
        type=kind,
        status=status,  # type: ignore[arg-type]
        reason=reason,
        message=message,
        last_transition_time="2026-01-19T08:30:00Z",
    )


def found(old: TurboDeploymentStatus, new: TurboDeploymentStatus) -> list[Transition]:
    return list(transitions(old.dump(), new.dump()))


def of_conditions(*conditions: Condition) -> TurboDeploymentStatus:
    return TurboDeploymentStatus(conditions=conditions)


NOTHING = TurboDeploymentStatus()


@given(
    st.builds(
        TurboDeploymentStatus,
        conditions=st.lists(
            st.builds(
                condition,
                st.sampled_from(KINDS),
                st.sampled_from(["True", "False", "Unknown"]),
                st.sampled_from(["Serving", "ModelLoading", "OOMKilled"]),
            ),
            unique_by=lambda each: each.type,
            max_size=7,
        ).map(tuple),
        plan=st.none() | st.builds(PlanStatus, hash=st.none() | st.just("ab"), message=st.just("m")),
    )
)
def test_the_same_status_again_is_no_event(status: TurboDeploymentStatus) -> None:
    assert found(status, status) == []


@pytest.mark.parametrize(
    ("kind", "last", "now", "is_warning"),
    [
        ("Ready", None, ("Unknown", "Inspecting"), False),
        ("Ready", ("Unknown", "Inspecting"), ("Unknown", "InspectRetrying"), True),
        ("Ready", ("Unknown", "Inspecting"), ("False", "ModelLoading"), False),
        ("Ready", ("True", "Serving"), ("False", "ModelLoading"), False),
        ("Stalled", ("False", "NotStalled"), ("True", "ProgressDeadlineExceeded"), True),
        ("Ready", ("False", "ModelLoading"), ("False", "OOMKilled"), True),
        ("Ready", ("False", "OOMKilled"), ("True", "Serving"), False),
        ("Ready", None, ("False", "InvalidSpec"), True),
        ("DraftPromoted", ("Unknown", "Evaluating"), ("False", "NoImprovement"), True),
        ("DraftTrained", ("False", "Training"), ("False", "TrainingFailed"), True),
        ("WithinBudget", ("True", "WithinBudget"), ("False", "BudgetExceeded"), True),
        ("WithinBudget", ("False", "BudgetExceeded"), ("True", "WithinBudget"), False),
    ],
)
def test_a_step_is_an_event_with_the_conditions_reason_and_sentence(
    kind: str, last: tuple[str, str] | None, now: tuple[str, str], is_warning: bool
) -> None:
    old = of_conditions(condition(kind, *last)) if last else NOTHING
    expected = Transition(is_warning, now[1], "What it is now.")
    assert found(old, of_conditions(condition(kind, *now, "What it is now."))) == [expected]


def test_another_sentence_alone_is_no_event() -> None:
    """Counts in a sentence move while pods start."""
    old, new = (of_conditions(condition("Ready", "True", "Serving", text)) for text in ("One.", "Two."))
    assert found(old, new) == []


@pytest.mark.parametrize("kind", ["WithinBudget", "DraftReady"])
def test_what_is_well_from_the_first_is_no_event(kind: str) -> None:
    assert found(NOTHING, of_conditions(condition(kind, "True", "Loaded"))) == []
    loading = of_conditions(condition(kind, "Unknown", "Loading"))
    assert found(loading, of_conditions(condition(kind, "True", "Loaded"))) == []


@pytest.mark.parametrize(("last", "now"), [("ModelLoading", "WaitingForPods"), ("OOMKilled", "ModelLoading")])
def test_what_is_usual_after_another_state_that_is_not_ready_is_no_event(last: str, now: str) -> None:
    """Found by a reader: eight Events told of one rollout, and the ninth that mattered was dropped."""
    assert found(*(of_conditions(condition("Ready", "False", reason)) for reason in (last, now))) == []


def test_of_two_conditions_with_one_cause_the_first_tells_it() -> None:
    over = [condition(kind, "False", "BudgetExceeded", f"{kind}.") for kind in ("Ready", "WithinBudget")]
    assert found(NOTHING, of_conditions(*over)) == [Transition(True, "BudgetExceeded", "Ready.")]


def test_a_new_plan_is_an_event_that_says_what_it_takes_and_whether_that_is_new() -> None:
    serves = {"engine": "VLLM", "accelerator": "h100", "accelerators_per_replica": 8, "method": "MTP"}
    paid = Predicted(cost_per_hour="55.04")
    old = TurboDeploymentStatus(plan=PlanStatus(hash="ab", **serves, replicas=1, predicted=paid))
    new = TurboDeploymentStatus(plan=PlanStatus(hash="cd", **serves, replicas=2, predicted=paid))
    (event,) = found(NOTHING, old)
    words = "1 replica of engine VLLM on 8 x h100, drafts MTP, 55.04 $/h."
    assert event == Transition(False, "Planned", f"Plan ab: {words}")
    (event,) = found(old, new)
    assert event.message.endswith("the model, image, arguments or pod template differ.")
    (event,) = found(old, new.model_copy(update={"plan": PlanStatus(hash="cd", accelerator="l4")}))
    assert "as before" not in event.message
    assert found(new, TurboDeploymentStatus(plan=PlanStatus(message="None is feasible."))) == []


def test_a_change_of_replicas_is_an_event_with_its_cause() -> None:
    first = ScaleEvent(time="2026-01-19T08:30:00Z", before=1, after=3, reason="Scaling")
    second = ScaleEvent(time="2026-01-19T08:40:00Z", before=3, after=2, reason="Scaling")
    new = TurboDeploymentStatus(scale_history=(first,))
    up = Transition(False, "ScaledUp", "From 1 to 3 replicas, as the load asks.")
    assert found(NOTHING, new) == [up]
    later = TurboDeploymentStatus(scale_history=(first, second))
    assert found(new, later) == [Transition(False, "ScaledDown", "From 3 to 2 replicas, as the load asks.")]


def test_who_scales_what_is_not_followed_is_told_once() -> None:
    """Found by a reader: `kubectl scale` said scaled, and nothing happened or was said."""
    said = "2 replicas as before. spec.replicas of {} is not followed: that takes scaling.mode External."
    plain = of_conditions(condition("ScalingActive", "True", "Stable", "2 replicas as before."))
    scaled, again = (
        of_conditions(condition("ScalingActive", "True", "Stable", said.format(n))) for n in (3, 4)
    )
    assert found(plain, scaled) == [Transition(True, "ReplicasNotFollowed", said.format(3))]
    assert found(scaled, again) == []
