"""A trained EAGLE-3 draft is planned by its evaluation, and reaches pods of vLLM by a rollout."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import pytest

from turbo_dev.canaries import up
from turbo_dev.trainings import FACTS, promoted
from turbo_dev.vllm_canaries import (
    DIGEST,
    FIRST,
    SECOND,
    SETTINGS,
    chosen,
    decided,
    hash_of,
    planned,
    pod,
    seen,
    td,
)
from turbo_operator import planner, status
from turbo_operator.api import OFF, Condition, DraftReason, PlanReason, TurboDeployment, parse_draft
from turbo_operator.controller.cache.projection import draft as as_view
from turbo_operator.plan import Running
from turbo_operator.render.template import pod_template
from turbo_operator.snapshot import DraftView, PodView

NAMED = td(speculation={"method": "EAGLE3", "draftRef": {"name": FIRST.name}, "maxDraftTokens": 4})
BOTH = pytest.mark.parametrize("it", [NAMED, td()], ids=["named", "trained"])


def template(it: TurboDeployment, draft: DraftView | None) -> dict[str, Any]:
    return pod_template(it, chosen(it, seen(draft=draft)), FACTS, "v2abc", SETTINGS, draft)


def container(it: TurboDeployment, draft: DraftView | None) -> dict[str, Any]:
    (only,) = template(it, draft)["spec"]["containers"]
    return dict(only)


def speculative_config(it: TurboDeployment, draft: DraftView | None) -> Any:
    flag = "--speculative-config="
    (value,) = [each.removeprefix(flag) for each in container(it, draft)["args"] if each.startswith(flag)]
    return json.loads(value)


@BOTH
def test_pods_load_the_draft_from_its_claim_as_they_start(it: TurboDeployment) -> None:
    config = speculative_config(it, FIRST)
    assert (config["method"], config["model"]) == ("eagle3", "/drafts/drafts/chat/1-ab")
    made = template(it, FIRST)
    volumes = {each["name"]: each for each in made["spec"]["volumes"]}
    assert volumes["drafts"]["persistentVolumeClaim"] == {"claimName": "drafts", "readOnly": True}
    mounts = {each["name"]: each for each in container(it, FIRST)["volumeMounts"]}
    assert mounts["drafts"] == {"name": "drafts", "mountPath": "/drafts/drafts", "readOnly": True}
    assert "drafts-in-use" not in volumes
    assert made["metadata"]["labels"]["serving.turbo.dev/draft-version"] == "chat-1"


@BOTH
def test_another_draft_is_another_plan_and_another_name_of_the_same_is_not(it: TurboDeployment) -> None:
    assert len({hash_of(it, draft) for draft in (None, FIRST, SECOND)}) == 3
    assert hash_of(it, replace(FIRST, claim_name="other")) != hash_of(it, FIRST)
    same = replace(FIRST, name="renamed", gone=True, acceptance=())
    assert hash_of(it, same) == hash_of(it, FIRST)


@BOTH
@pytest.mark.parametrize(
    "unusable", [None, replace(FIRST, target_digest="sha256:cd"), replace(FIRST, method="TurboHeads")]
)
def test_without_a_draft_that_fits_pods_answer_without_drafts(
    it: TurboDeployment, unusable: DraftView | None
) -> None:
    plan = planned(it, seen(draft=unusable))
    assert plan.choice is not None
    assert plan.choice.method == OFF
    assert "drafts" not in json.dumps(template(it, unusable)["spec"]["volumes"])
    assert hash_of(it, unusable) == hash_of(
        td(engine={"type": "VLLM"}, speculation={"mode": "Disabled"}), None
    )


def test_the_number_of_drafts_follows_from_the_evaluation_and_never_exceeds_what_it_tells_of() -> None:
    def most(*acceptance: float) -> int:
        schedule = chosen(NAMED, seen(draft=replace(FIRST, acceptance=acceptance))).draft_schedule
        return max(drafts for _, _, drafts in schedule)

    assert most(0.95, 0.95, 0.95) == 3
    assert most(0.95) == 1
    assert most(0.9, 0.01, 0.01, 0.01) < most(0.9, 0.9, 0.9, 0.9) == 4
    assert most(0.0, 0.0) == 0


def test_a_better_draft_makes_a_faster_plan_and_the_plan_says_what_it_rests_on() -> None:
    load = {"inputTokens": {"mean": 500}, "outputTokens": {"mean": 200}, "requestsPerSecond": "4"}
    it = td(speculation={"draftRef": {"name": "a"}}, engine={"type": "VLLM"}, workload=load)

    def token(*acceptance: float) -> float:
        plan = planned(it, seen(draft=replace(FIRST, acceptance=acceptance)))
        assert plan.choice is not None
        assert "that the draft is as often right as in its evaluation" in plan.detail
        assert plan.choice.predicted.provenance == "Roofline"
        seconds = plan.choice.predicted.time_per_output_token
        assert seconds is not None
        return seconds

    assert token(0.9, 0.9) < token(0.5, 0.5) < token(0.1, 0.1)
    unknown = planned(it, seen(draft=replace(FIRST, acceptance=())))
    assert unknown.choice is not None
    assert unknown.choice.predicted.provenance == "Assumed"
    assert "the least of Spec-Bench" in unknown.detail


def test_what_runs_without_drafts_does_not_keep_a_new_draft_out() -> None:
    ran = {"hash": "v2old", "accelerator": "card", "tensor": 1, "method": OFF, "engine": "VLLM"}
    it = td({"plan": ran}, speculation=NAMED.spec.speculation.dump())
    observed = seen(pod("a", "v2old"), draft=FIRST, children=(up("v2old"),))
    inputs = planner.build_inputs(it, FACTS.shape, observed)
    old = planner.plan(replace(inputs, running=Running("card", 1, OFF, "VLLM")), 0.0).choice
    assert old is not None
    assert old.method == OFF  # at equal cost, what runs stays
    assert chosen(it, observed).method == "EAGLE3"


def test_a_draft_that_is_required_and_does_not_fit_leaves_no_plan() -> None:
    it = td(speculation={"mode": "Required", "method": "EAGLE3", "draftRef": {"name": "a"}})
    plan = planned(it, seen())
    assert (plan.choice, plan.reason) == (None, PlanReason.NOT_YET_SUPPORTED)
    assert "TurboDraft a cannot be loaded: the condition DraftReady says why" in plan.detail


def test_the_least_acceptance_of_an_evaluation_counts() -> None:
    rows = [
        {"domain": "math", "acceptanceLength": "3.1", "acceptancePerPosition": ["0.9", "0.8"]},
        {"domain": "chat", "acceptanceLength": "1.9", "acceptancePerPosition": ["0.6", "0.4"]},
        {"domain": "none"},
    ]
    body = {
        "apiVersion": "serving.turbo.dev/v1alpha1",
        "kind": "TurboDraft",
        "metadata": {"name": "d", "namespace": "team", "uid": "d"},
        "spec": {
            "method": "EAGLE3",
            "location": {"claimName": "drafts", "path": "d"},
            "version": "d",
            "digest": DIGEST,
            "targetDigest": FACTS.digest,
            "evaluation": rows,
        },
    }
    assert as_view(parse_draft(body)).acceptance == (0.6, 0.4)
    body["spec"] = {**body["spec"], "evaluation": rows[2:]}  # type: ignore[dict-item]
    assert as_view(parse_draft(body)).acceptance == ()


def ready(it: TurboDeployment, draft: DraftView | None, *pods: PodView) -> Condition | None:
    observed = seen(*pods, draft=draft)
    new = status.compute(it, observed, decided(it, observed), 1_700_000_000.0)
    return new.condition("DraftReady")


OLD_PODS = tuple(pod(name, "v2old") for name in "ab")
NEW_PODS = tuple(pod(name, "v2new", FIRST) for name in "cd")


@pytest.mark.parametrize(
    ("draft", "pods", "wanted", "message"),
    [
        (None, OLD_PODS, ("False", DraftReason.NOT_FOUND), "There is no TurboDraft chat-draft-1"),
        (
            replace(FIRST, method="TurboHeads"),
            OLD_PODS,
            ("False", DraftReason.NOT_YET_SUPPORTED),
            "drafts by TurboHeads, which vLLM cannot yet: train EAGLE3",
        ),
        (
            replace(FIRST, target_digest="sha256:cd"),
            OLD_PODS,
            ("False", DraftReason.TARGET_MODEL_MISMATCH),
            f"was trained for the model sha256:cd, and {FACTS.digest} is served: name one that was trained",
        ),
        (
            FIRST,
            (OLD_PODS[0], NEW_PODS[0]),
            ("Unknown", DraftReason.LOADING),
            "1 of 2 pods that answer draft with chat-1. vLLM loads a draft as it starts: the rollout brings",
        ),
        (FIRST, NEW_PODS, ("True", DraftReason.LOADED), "2 of 2 pods that answer draft with chat-1."),
    ],
)
def test_the_condition_says_whether_pods_load_it(
    draft: DraftView | None, pods: tuple[PodView, ...], wanted: tuple[str, str], message: str
) -> None:
    found = ready(NAMED, draft, *pods)
    assert found is not None
    assert (found.status, found.reason) == wanted
    assert message in found.message


def test_one_that_was_promoted_is_not_used_where_the_spec_asks_for_other_drafts() -> None:
    it = td(promoted(FIRST), engine={"type": "VLLM"}, speculation={"method": "NGram", "maxDraftTokens": 4})
    found = ready(it, FIRST, *OLD_PODS)
    assert found is not None
    assert (found.reason, found.message) == (
        DraftReason.SPECULATION_DISABLED,
        "TurboDraft chat-draft-1 is not used: the plan is one with NGram drafts.",
    )


def test_the_status_keeps_the_draft_that_pods_load_and_no_heads_on_vllm() -> None:
    def kept(draft: DraftView) -> str | None:
        observed = seen(*NEW_PODS, draft=draft)
        new = status.compute(NAMED, observed, decided(NAMED, observed), 0.0)
        return new.draft.version if new.draft is not None else None

    assert kept(FIRST) == "chat-1"
    assert kept(replace(FIRST, method="TurboHeads")) is None
