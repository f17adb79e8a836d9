"""A training's money and accelerators are there before it begins, beside those of the replicas."""

from __future__ import annotations

from typing import Any

import pytest

from turbo_dev.trainings import look, reason, seen, td


@pytest.mark.parametrize(
    ("bound", "waits"),
    [
        ({"cost": {"maxPerHour": "0.09"}}, False),
        ({"cost": {"maxPerHour": "0.07"}}, True),
        ({"accelerators": {"allowed": ["cpu"], "maxTotal": 2}}, False),
        ({"accelerators": {"allowed": ["cpu"], "maxTotal": 1}}, True),
    ],
)
def test_a_training_begins_only_where_it_is_within_budget_with_the_replicas(
    bound: dict[str, Any], waits: bool
) -> None:
    step = look(td(spec=bound), seen())
    assert (reason(step) == "WaitingForBudget") == waits
    assert (step.job_request is None) == waits
    if waits:
        assert step.condition is not None
        assert "which holds for the replica and the training together" in step.condition.message


def test_as_many_replicas_count_as_are_wanted_now() -> None:
    within = {"cost": {"maxPerHour": "0.17"}}
    assert look(td(spec=within, told={"desiredReplicas": 3}), seen()).job_request is not None
    assert reason(look(td(spec=within, told={"desiredReplicas": 4}), seen())) == "WaitingForBudget"
