"""`turbo plan` and `turbo explain` keep the plan that was tried and the one that serves apart."""

from __future__ import annotations

from typing import Any

from turbo_operator.api import TurboDeployment, parse
from turbo_operator.cli.output import serving_document, serving_sentences

OLD = {
    "hash": "v1old",
    "accelerator": "l4",
    "method": "Suffix",
    "reason": "Feasible",
    "predicted": {"timePerOutputToken": "12.3ms", "costPerHour": "0.80"},
    "rejected": [
        {"accelerator": "h100", "tensor": 1, "method": "Off", "reason": "HigherCost", "message": "Dear."}
    ],
}
NEW = {**OLD, "hash": "v1new", "accelerator": "h100", "predicted": {"costPerHour": "3.93"}}


def td(**status: Any) -> TurboDeployment:
    return parse(
        {
            "apiVersion": "serving.turbo.dev/v1alpha1",
            "kind": "TurboDeployment",
            "metadata": {"name": "chat"},
            "spec": {"model": {"uri": "pvc://models/chat"}},
            "status": status,
        }
    )


def test_one_plan_is_told_once() -> None:
    assert serving_sentences(td(plan=OLD, servingPlan=OLD)) == ()
    assert serving_sentences(td(plan=OLD)) == ()
    assert serving_sentences(td()) == ()


def test_a_plan_that_takes_over_and_the_one_that_serves_are_told_with_their_predictions() -> None:
    rollout = {"planHash": "v1new", "specHash": "s"}
    assert serving_sentences(td(plan=NEW, servingPlan=OLD, rollout=rollout)) == (
        "Plan v1new takes over: h100 with Suffix drafts, as Feasible; predicted 3.93 $/h.",
        "Plan v1old serves: l4 with Suffix drafts, as Feasible; predicted 12.3ms per output token, 0.80 $/h.",
    )


def test_a_plan_that_cannot_take_over_is_not_told_as_if_it_did() -> None:
    stalled = {"type": "Stalled", "status": "True", "reason": "UserActionRequired", "message": "It waits."}
    conditions = [{**stalled, "lastTransitionTime": "2026-01-01T00:00:00Z", "observedGeneration": 1}]
    (first, _) = serving_sentences(td(plan=NEW, servingPlan=OLD, conditions=conditions))
    assert first.startswith("Plan v1new waits to take over: ")


def test_a_plan_that_was_rolled_back_is_told_with_what_its_pod_said() -> None:
    message = "Pod p: ImagePullBackOff: no such image."
    rollout = {"planHash": "v1new", "specHash": "s", "reason": "RolledBack", "message": message}
    it = td(plan=NEW, servingPlan=OLD, rollout=rollout)
    assert f"was rolled back ({message})" in serving_sentences(it)[0]
    found = serving_document(it)
    assert (found["tried"]["hash"], found["serving"]["hash"]) == ("v1new", "v1old")
    assert found["rollout"]["reason"] == "RolledBack"
    assert "rejected" not in found["serving"]


def test_what_holds_up_a_plan_that_takes_over_is_told() -> None:
    """Found on the real node: for ten minutes a plan took over whose image did not exist."""
    ready = {"type": "Ready", "status": "False", "reason": "ImagePullBackOff", "message": "Pod p: no image."}
    conditions = [{**ready, "lastTransitionTime": "2026-01-01T00:00:00Z", "observedGeneration": 1}]
    rollout = {"planHash": "v1new", "specHash": "s"}
    told = serving_sentences(td(plan=NEW, servingPlan=OLD, rollout=rollout, conditions=conditions))
    assert told[-1] == "ImagePullBackOff: Pod p: no image."
    over = {**rollout, "reason": "RolledBack", "message": "Pod p: no image."}
    assert len(serving_sentences(td(plan=NEW, servingPlan=OLD, rollout=over, conditions=conditions))) == 2
