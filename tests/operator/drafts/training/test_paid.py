"""What a training costs: counted while somebody looks, bounded by what the spec says now."""

from __future__ import annotations

from decimal import Decimal

import pytest

from turbo_dev.trainings import HOUR, NOW, job, look, pod, ran, reason, seen, td
from turbo_operator.api import TrainingStatus, rfc3339
from turbo_operator.drafts.training.job_state import COUNTED_SECONDS, cost_until, update_state

PRICE = Decimal("0.04")


def cost(seconds: float) -> float:
    return pytest.approx(float(PRICE) * seconds / HOUR, abs=2e-6)


@pytest.mark.parametrize("was", [None, "100"])
def test_a_bound_that_is_set_or_lowered_while_it_runs_ends_it_once_that_is_spent(was: str | None) -> None:
    asked = {} if was is None else {"maxCost": was}
    state, there = ran(**asked), seen(children=(job(),), trainings=(pod(),))
    assert look(td(state, maxCost="0.04"), there, NOW + 3000).kept_job == "chat-train-1"
    step = look(td(state, maxCost="0.04"), there, NOW + HOUR)
    assert (reason(step), step.kept_job) == ("BudgetExceeded", "chat-train-1")
    assert step.state is not None
    assert step.state.last_cost_time is None
    assert float(step.state.cost or 0) == cost(HOUR + 60)
    after = look(td(step.state, maxCost="0.04"), there, NOW + 2 * HOUR)  # its pod is still going
    assert (reason(after), after.kept_job) == ("BudgetExceeded", None)
    assert after.state is not None
    assert after.state.cost == step.state.cost
    begun = look(td(after.state, maxCost="0.08"), seen(), NOW + 100 * HOUR).job_request
    assert begun is not None
    assert (begun.number, begun.deadline_seconds) == (1, 3539)


def test_a_bound_that_is_raised_while_it_runs_gives_it_another_job() -> None:
    state = ran(maxCost="0.04")
    over = pod(phase="Failed", exit_code=143, ended=NOW + 3540)
    late = seen(children=(job(failed=True, reason="DeadlineExceeded"),), trainings=(over,))
    step = look(td(state, maxCost="0.08"), late, NOW + HOUR)
    assert (reason(step), step.kept_job) == ("Training", None)
    begun = look(td(step.state, maxCost="0.08"), seen(), NOW + HOUR).job_request
    assert begun is not None
    assert (begun.number, begun.deadline_seconds) == (1, 3600)


def test_what_is_paid_is_counted_every_ten_minutes() -> None:
    state = ran()
    assert update_state(state, (pod(),), NOW + 500) == state
    after = update_state(state, (pod(),), NOW - 60 + COUNTED_SECONDS)
    assert after.last_cost_time == rfc3339(NOW - 60 + COUNTED_SECONDS)
    assert float(after.cost or 0) == cost(COUNTED_SECONDS)
    assert float(cost_until(after, NOW + HOUR)) == cost(HOUR + 60)


def unseen(state: TrainingStatus, now: float, job_ended: float | None = None) -> float:
    after = update_state(state, (), now, job_ended)
    assert after.last_cost_time is None
    return float(after.cost or 0)


def test_a_pod_that_went_unseen_is_paid_until_it_was_last_counted_and_no_hours_more() -> None:
    state = ran()
    assert unseen(state, NOW + 100) == cost(160)  # while somebody looked
    assert unseen(state, NOW + 50 * HOUR) == cost(COUNTED_SECONDS)
    assert unseen(state, NOW + 50 * HOUR, NOW + 2 * HOUR) == cost(2 * HOUR + 60)  # that long it may have run


def test_a_pod_that_has_followed_another_is_paid_for_its_own_time() -> None:
    state = ran()
    second = pod("second", started=NOW + 3 * HOUR)
    known = pod(phase="Failed", exit_code=137, ended=NOW + HOUR)
    for pods, paid in (((known, second), HOUR + 60), ((second,), COUNTED_SECONDS)):
        after = update_state(state, pods, NOW + 4 * HOUR)
        assert float(after.cost or 0) == cost(paid)
        assert after.last_cost_time == rfc3339(NOW + 3 * HOUR)


def test_one_that_is_over_is_counted_no_further() -> None:
    done = ran().model_copy(update={"result": "BudgetExceeded", "running_since": None})
    assert update_state(done, (pod(),), NOW + HOUR) == done
