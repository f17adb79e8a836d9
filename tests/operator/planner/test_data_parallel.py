"""Data-parallel groups, which share routed experts: what they hold and take, and where there are none."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from turbo_dev.plan_cases import plan
from turbo_dev.plan_examples import LARGE, fast, named, shape, spec
from turbo_operator import planner, render
from turbo_operator.api import EngineName, PlanStatus, TurboDeployment, TurboDeploymentSpec, parse
from turbo_operator.plan import Choice, Plan, Running
from turbo_operator.planner.candidates import Candidates, enumerate_candidates, estimate_memory
from turbo_operator.planner.inputs import PlannerInputs, identify_running
from turbo_operator.planner.performance import candidate_curves, memory
from turbo_operator.planner.performance.calibration import describe_replica
from turbo_operator.planner.requirements import Requirements, build_requirements
from turbo_operator.render import vllm
from turbo_runtime.contract.documents import ModelInfo

MIXTURE, R1 = shape("Qwen/Qwen3-30B-A3B"), shape("deepseek-ai/DeepSeek-R1")
CARD = fast("card", 80, "1.00")
FOUND = ModelInfo(MIXTURE, "sha256:ab", "c0ffee", 1)
MODEL = {"uri": "hf://a/b", "maxModelLen": 4096}


def wanted(data: int | None, **more: Any) -> TurboDeploymentSpec:
    parallelism = {"tensor": 1, **({} if data is None else {"data": data})}
    fields = {"engine": {"type": "VLLM"}, "parallelism": parallelism, "speculation": {"mode": "Disabled"}}
    return spec(**{"model": MODEL, **fields, **more})


def planned(data: int | None, **more: Any) -> Plan:
    return plan(wanted(data, **more), MIXTURE, named(CARD))


def chosen(data: int | None, **more: Any) -> Choice:
    choice = planned(data, **more).choice
    assert choice is not None
    return choice


def candidates(data: int) -> tuple[Candidates, Requirements]:
    inputs = PlannerInputs(wanted(data), MIXTURE, named(CARD), None, None, {}, None)
    requirements = build_requirements(inputs, 0.0)
    return enumerate_candidates(requirements), requirements


def test_each_group_holds_the_dense_weights_and_its_share_of_the_experts() -> None:
    weights = memory.weights(MIXTURE, 2.0)
    for data in (1, 4, 8):
        use = estimate_memory(*candidates(data))
        assert use.weights[0] == np.ceil(weights.dense + weights.embedding + weights.expert / data)


def test_each_group_has_a_cache_and_a_batch_of_its_own() -> None:
    one, four = (estimate_memory(*candidates(data)) for data in (1, 4))
    assert four.slots[0] > 4 * one.slots[0], "and more room, beside fewer experts"
    assert four.slots[0] <= 4 * 256
    # The tokens of all groups come to the experts of each.
    assert four.activations[0] - one.activations[0] == 3 * 2 * MIXTURE.hidden_size * 2048 * 2


def test_a_replica_has_the_accelerators_of_all_groups_and_pays_for_them() -> None:
    choice = chosen(4)
    assert (choice.tensor, choice.data, choice.accelerators_per_replica) == (1, 4, 4)
    assert choice.predicted.cost_per_hour == 4
    two = plan(wanted(4, parallelism={"tensor": 2, "data": 4}), MIXTURE, named(CARD)).choice
    assert two is not None
    assert two.accelerators_per_replica == 8
    assert two.host_memory_bytes - choice.host_memory_bytes == 4 * 4 * memory.GIB  # a worker on each


def test_one_group_is_what_is_planned_where_none_is_asked_for() -> None:
    assert planned(1) == planned(None)


def test_as_many_requests_as_groups_take_the_time_of_one_and_all_groups_together_take_more() -> None:
    curves = []
    for data in (1, 8):
        found, requirements = candidates(data)
        rates, use = candidate_curves.build_rates(requirements), estimate_memory(found, requirements)
        use = replace(use, slots=np.full(len(found), 64.0 * data))
        engines, _ = candidate_curves.build_engines(found, use, rates, requirements)
        curves.append(engines)
    one, eight = curves
    few = eight.rows[0] <= 8
    assert few.sum() > 1
    assert set(eight.decode[0][few]) == {eight.decode[0][0]}, "all step together, with a request or without"
    assert (eight.rows[0] / eight.decode[0]).max() > 2.0 * (one.rows[0] / one.decode[0]).max()


EAGLE = {"method": "EAGLE3", "draftModel": {"uri": "hf://a/eagle"}, "maxDraftTokens": 6}
LOAD = {"requestsPerSecond": "40"}


def test_all_groups_draft_one_number_whatever_the_load_and_the_figures_are_of_it() -> None:
    """Found in review: vLLM takes no schedule with several groups, and drafted the most of it at any load."""
    choice = chosen(4, speculation=EAGLE, workload=LOAD)
    ((first, _, number),) = choice.draft_schedule
    assert (choice.method, first) == ("EAGLE3", 1)
    td, flag = deployment(data=4, speculation=EAGLE), "--speculative-config="
    (config,) = [each for each in vllm.arguments(td, choice, FOUND) if each.startswith(flag)]
    given = json.loads(config.removeprefix(flag))
    assert given["num_speculative_tokens"] == number > 1
    assert "num_speculative_tokens_per_batch_size" not in given

    one, same = (
        chosen(4, speculation={**EAGLE, "maxDraftTokens": limit}, workload=LOAD) for limit in (1, number)
    )
    tokens = [each.predicted.time_per_output_token or 0.0 for each in (same, one, chosen(4, workload=LOAD))]
    assert same.draft_schedule == choice.draft_schedule
    assert tokens == sorted(set(tokens)), "one draft saves less, none nothing"


def test_where_every_number_of_drafts_costs_time_at_some_load_groups_draft_none() -> None:
    def with_trained(mode: str, *acceptance: float) -> Plan:
        drafts = {"mode": mode, "method": "EAGLE3", "draftRef": {"name": "a"}}
        inputs = PlannerInputs(wanted(4, speculation=drafts), MIXTURE, named(CARD), None, None, {}, None)
        return planner.plan(replace(inputs, trained=acceptance), 0.0)

    off, refused = (with_trained(mode, 0.01, 0.01) for mode in ("Auto", "Required"))
    assert off.choice is not None
    assert off.choice.method == "Off"
    assert (refused.choice, refused.reason) == (None, "NotYetSupported")
    assert "no number of them saves time at every load: leave parallelism.data out" in refused.detail
    assert with_trained("Required", 0.9, 0.9).choice is not None


@pytest.mark.parametrize(
    ("parallelism", "said"),
    [
        (
            {"data": 2},
            "spec.parallelism.data is 2, and the model has no routed experts for the groups to share",
        ),
        ({"expert": True}, "spec.parallelism.expert is true, and the model has no routed experts"),
    ],
)
def test_a_dense_model_has_nothing_for_groups_to_share(parallelism: dict[str, Any], said: str) -> None:
    refused = plan(wanted(None, parallelism=parallelism), LARGE, named(CARD))
    assert (refused.choice, refused.reason) == (None, "InvalidParallelism")
    assert said in refused.detail


def test_groups_are_on_one_node() -> None:
    refused = plan(wanted(16), MIXTURE, named(CARD))
    assert (refused.choice, refused.reason) == (None, "InvalidParallelism")
    assert "16 accelerators of one node, and a node of card has 8: data-parallel groups on" in refused.detail
    bounded = planned(4, accelerators={"maxPerReplica": 2})
    assert "asks for 4 accelerators per replica, and spec.accelerators.maxPerReplica is 2" in bounded.detail


def test_the_plan_says_what_is_taken_to_wait() -> None:
    detail = planned(4, workload={"requestsPerSecond": "1"}).detail
    assert detail.startswith("4 x card in 4 data-parallel groups without speculation")
    assert "While one data-parallel group reads a prompt, the others are taken to wait." in detail


def test_the_latents_of_deepseek_are_held_once_a_group_and_not_once_an_accelerator() -> None:
    card = named(fast("card", 141, "1.00"))
    fields = {"workload": {"requestsPerSecond": "1"}}
    shared = plan(wanted(None, parallelism={"tensor": 8}, **fields), R1, card).choice
    grouped = plan(wanted(None, parallelism={"tensor": 1, "data": 8}, **fields), R1, card).choice
    assert shared is not None
    assert grouped is not None
    assert shared.capacity is not None
    assert grouped.capacity is not None
    assert grouped.capacity.concurrency > 2 * shared.capacity.concurrency


def deployment(speculation: dict[str, Any] | None = None, **parallelism: Any) -> TurboDeployment:
    meta = {"name": "chat", "namespace": "team", "uid": "u-1"}
    body = {"apiVersion": "serving.turbo.dev/v1alpha1", "kind": "TurboDeployment", "metadata": meta}
    given = {"parallelism": {"tensor": 1, **parallelism}, "speculation": speculation or {}}
    return parse({**body, "spec": {"model": MODEL, "engine": {"type": "VLLM"}, **given}})


def test_vllm_is_told_of_groups_and_whole_experts_and_each_is_another_plan() -> None:
    hashes = set()
    for parallelism, flags in (
        ({}, []),
        ({"data": 4}, ["--data-parallel-size=4"]),
        ({"data": 4, "expert": True}, ["--data-parallel-size=4", "--enable-expert-parallel"]),
        ({"expert": True}, ["--enable-expert-parallel"]),
    ):
        td = deployment(**parallelism)
        choice = plan(td.spec, MIXTURE, named(CARD)).choice
        assert choice is not None
        arguments = vllm.arguments(td, choice, FOUND)
        assert [it for it in arguments if "data-parallel" in it or "expert" in it] == flags
        hashes.add(render.plan_hash(td, choice, FOUND))
    assert len(hashes) == 4
    same = deployment(data=1, expert=False)
    choice = plan(same.spec, MIXTURE, named(CARD)).choice
    assert choice is not None
    assert render.plan_hash(same, choice, FOUND) in hashes


def test_what_runs_is_known_by_its_groups_and_its_steps_are_not_compared_with_the_model() -> None:
    status = PlanStatus(accelerator="card", engine="VLLM", tensor=1, data=4, method="Off")
    running = identify_running(status)
    assert running == Running("card", 1, "Off", EngineName.VLLM, data=4)
    assert describe_replica(wanted(4), MIXTURE, CARD, running) is None
    assert describe_replica(wanted(1), MIXTURE, CARD, replace(running, data=1)) is not None
