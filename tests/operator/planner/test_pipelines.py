"""A replica of several stages: what a pipeline takes, and what each of its accelerators holds."""

from __future__ import annotations

from dataclasses import replace
from decimal import Decimal
from typing import Any

import numpy as np
import pytest

from turbo_dev.plan_cases import plan
from turbo_dev.plan_examples import LARGE, accelerator, named
from turbo_operator.api import CapacityType, TurboDeploymentSpec
from turbo_operator.catalog import shapes
from turbo_operator.plan import Plan
from turbo_operator.planner.arrays import Indices
from turbo_operator.planner.candidates import Candidates, enumerate_candidates, estimate_memory
from turbo_operator.planner.inputs import PlannerInputs
from turbo_operator.planner.performance import candidate_curves, memory, speculation
from turbo_operator.planner.performance.queueing import Engines
from turbo_operator.planner.requirements import Requirements, build_requirements
from turbo_operator.snapshot import Accelerator
from turbo_runtime.contract.documents import ModelShape

GIB = 1 << 30
CARD = Accelerator(
    "card",
    "nvidia.com/gpu",
    Decimal(1),
    80 * GIB,
    memory_bandwidth=3.35e12,
    flops={"bf16": 989e12},
    interconnect_bandwidth=4.5e11,
    network_bandwidth=1.25e9,
    count_per_node=1,
    prices={CapacityType.ON_DEMAND: Decimal(1)},
)
SLOTS = 40  # every state from 1 on
DENSE, EXPERTS, ODD = "Qwen/Qwen3-8B", "Qwen/Qwen3-30B-A3B", "deepseek-ai/DeepSeek-R1"


def shape(hub_id: str) -> ModelShape:
    actual = shapes.shipped(hub_id)
    assert actual is not None
    return actual


def stages(hub_id: str, number: int, **fields: Any) -> tuple[Candidates, Requirements]:
    """All ways to serve it with vLLM over so many nodes."""
    asked = TurboDeploymentSpec.model_validate(
        {
            "model": {"uri": "hf://a/b", "maxModelLen": 4096},
            "engine": {"type": "VLLM"},
            "parallelism": {"tensor": 1, "pipeline": number},
            "speculation": {"mode": "Disabled"},
            **fields,
        }
    )
    inputs = PlannerInputs(asked, shape(hub_id), {"card": CARD}, None, None, {}, None)
    what = build_requirements(inputs, 0.0)
    return enumerate_candidates(what), what


def sent(hub_id: str) -> float:
    """Seconds of one token between two stages: activations and their residual, of two bytes, at 10 Gb/s."""
    return 2 * 2 * shape(hub_id).hidden_size / 1.25e9


def curves(it: Candidates, what: Requirements) -> tuple[Engines, Indices]:
    # As much memory as it takes: the same states are looked at for any number of stages.
    held = replace(estimate_memory(it, what), slots=np.full(len(it), float(SLOTS)))
    rates = candidate_curves.build_rates(what)
    return candidate_curves.build_engines(it, held, rates, what)


def curve(it: Candidates, what: Requirements) -> Engines:
    return curves(it, what)[0]


@pytest.mark.parametrize("hub_id", [DENSE, EXPERTS])
@pytest.mark.parametrize("number", [2, 3, 4])
def test_a_request_alone_waits_for_all_stages_and_all_hops(hub_id: str, number: int) -> None:
    one, several = (curve(*stages(hub_id, item)) for item in (1, number))
    hops = (number - 1) * sent(hub_id) + number * candidate_curves.HOP_SECONDS
    uneven = number * -(-shape(hub_id).layers // number) / shape(hub_id).layers
    assert several.decode[0, 0] == pytest.approx(one.decode[0, 0] * uneven + hops)


@pytest.mark.parametrize("hub_id", [DENSE, EXPERTS])
def test_no_pipeline_does_more_than_its_stages_would_alone(hub_id: str) -> None:
    one, several = (curve(*stages(hub_id, item)) for item in (1, 4))
    token_each = one.rows / one.decode
    assert (several.rows / several.decode < 4.0 * np.maximum(token_each, 1.0 / one.decode)).all()
    assert several.prefill[0] >= one.prefill[0] / 4.0


EAGLE3 = {"mode": "Required", "method": "EAGLE3", "draftModel": {"uri": "hf://a/draft"}}


def test_the_last_stage_makes_the_drafts_of_every_group() -> None:
    rows, required = 8, {**EAGLE3, "maxDraftTokens": 1}
    share = speculation.pass_share("EAGLE3", shape(DENSE))
    both = {number: curve(*stages(DENSE, number, speculation=required)) for number in (1, 4)}
    plain = {number: curve(*stages(DENSE, number)) for number in (1, 4)}
    # A group of two of eight requests verifies as two alone do.
    alone, several = both[1].decode[0, 1], both[4].decode[0, rows - 1]
    hops = plain[4].decode[0, rows - 1] - plain[1].decode[0, 1]
    hops += 3 * 2 * sent(DENSE)  # of the drafts of two requests
    tau = speculation.committed("EAGLE3", 1)
    turns = 4 * plain[4].decode[0, rows - 1] - plain[1].decode[0, 1]
    assert several * tau == pytest.approx(alone * tau + hops + share * turns, rel=1e-3)


def test_a_step_reads_what_decoding_and_verification_leave_of_it() -> None:
    plain = curve(*stages(DENSE, 1))
    assert plain.chunk[0] == 2048 - SLOTS  # a token of each request
    required = {**EAGLE3, "maxDraftTokens": 5}
    drafting, number = curves(*stages(DENSE, 1, speculation=required))
    left = [
        (2048 - (k + 1) * (place + 1)) / speculation.committed("EAGLE3", k)
        for place, k in enumerate(number[0].tolist())
    ]
    assert max(number[0]) > 1
    assert drafting.chunk[0] == pytest.approx(min(left))


@pytest.mark.parametrize("number", [2, 3, 8])
def test_the_largest_stage_fits(number: int) -> None:
    it, what = stages(ODD, number)
    model = shape(ODD)
    held = estimate_memory(it, what)
    layers = -(-model.layers // number)
    table = 2 * model.vocab_size * model.hidden_size
    between = memory.weights(model, 2.0).total - 2 * table
    assert held.weights[0] == pytest.approx(between * layers / model.layers + table, rel=1e-6)
    one = memory.kv_bytes(model, 2.0, 1.0, 4096.0)
    assert held.kv_longest[0] == pytest.approx(one * layers / model.layers, rel=1e-6)


@pytest.mark.parametrize(
    ("pinned", "fact", "nodes"),
    [
        ({}, "8 x card on one node do not hold them either; 2 nodes do", 2),
        ({"tensor": 8}, "2 nodes hold them", 2),
        ({"tensor": 4}, "3 nodes hold them", 3),
    ],
)
def test_fewer_nodes_than_hold_the_model_are_told_with_how_many_do(
    pinned: dict[str, int], fact: str, nodes: int
) -> None:
    asked = {"model": {"uri": "hf://a/b", "maxModelLen": 4096}, "parallelism": {"pipeline": 1, **pinned}}
    it = TurboDeploymentSpec.model_validate(asked)
    detail = plan(it, shape(ODD), {"card": replace(CARD, count_per_node=8)}).detail
    expected = f"{fact}: set spec.parallelism.pipeline (now 1) to {nodes}."
    assert f"not even the weights and one short request fit. {expected}" in detail


def test_no_more_nodes_are_advised_where_one_holds_a_short_request() -> None:
    def answer(**pinned: int) -> str:
        model = {"uri": "hf://a/b", "maxModelLen": 131072}
        it = TurboDeploymentSpec.model_validate({"model": model, "parallelism": {"pipeline": 1, **pinned}})
        small = replace(CARD, memory_bytes=23 * GIB, count_per_node=8)
        return plan(it, shape("meta-llama/Llama-3.1-70B-Instruct"), {"card": small}).detail

    assert "requests of up to 84770 tokens would fit" in answer(tensor=8)
    assert "not even the weights and one short request fit." in answer()
    assert "spec.parallelism" not in answer()


@pytest.mark.parametrize(("size", "nodes"), [(60, 4), (66, 4), (74, 3), (78, 3)])
def test_so_many_nodes_are_advised_as_hold_the_draft_too(size: int, nodes: int) -> None:
    draft = shape("meta-llama/Llama-3.1-8B-Instruct")
    own = {"uri": "hf://meta-llama/Llama-3.1-8B-Instruct"}

    def answer(pipeline: int) -> Plan:
        asked = {
            "model": {"uri": "hf://a/b", "maxModelLen": 4096},
            "engine": {"type": "VLLM"},
            "parallelism": {"pipeline": pipeline, "tensor": 1},
            "speculation": {"mode": "Required", "method": "DraftModel", "draftModel": own},
        }
        card = replace(CARD, memory_bytes=size * GIB, count_per_node=8)
        it = TurboDeploymentSpec.model_validate(asked)
        return plan(it, shape("meta-llama/Llama-3.1-70B-Instruct"), {"card": card}, draft=draft)

    assert f"{nodes} nodes hold them: set spec.parallelism.pipeline (now 1) to {nodes}." in answer(1).detail
    assert answer(nodes - 1).choice is None
    made = answer(nodes).choice
    assert made is not None
    assert (made.nodes, made.method) == (nodes, "DraftModel")


@pytest.mark.parametrize(
    ("pinned", "remedy"),
    [
        ({"tensor": 16}, "write at most that, parallelism: {tensor: 8, pipeline: 2} for 2 nodes, or set "),
        ({"tensor": 16, "pipeline": 2}, "write at most that, parallelism: {tensor: 8, pipeline: 4} for 4 "),
        ({"tensor": 32, "pipeline": 32}, "write at most that, or set spec.countPerNode"),
    ],
)
def test_accelerators_of_more_nodes_than_one_are_told_as_stages(pinned: dict[str, int], remedy: str) -> None:
    asked = {"model": {"uri": "hf://a/b", "maxModelLen": 4096}, "parallelism": pinned}
    it = TurboDeploymentSpec.model_validate(asked)
    detail = plan(it, shape(ODD), {"card": replace(CARD, count_per_node=8)}).detail
    assert f"and a node of card has 8: {remedy}" in detail


def test_a_row_tells_the_nodes_of_one_replica() -> None:
    card = replace(CARD, count_per_node=8)
    asked = TurboDeploymentSpec.model_validate({"model": {"uri": "hf://a/b", "maxModelLen": 4096}})
    (row,) = plan(asked, shape(ODD), {"card": card}).rejected
    assert (row.tensor, row.nodes) == (8, 2)
    assert "8 x card on each of 2 nodes" in row.detail


def test_several_nodes_are_planned_only_where_one_does_not_do_or_the_spec_says_so() -> None:
    single = accelerator("large", 160, "9.00")
    cheap = replace(accelerator("little", 40, "0.50"), count_per_node=1)
    model = {"uri": "hf://a/b", "maxModelLen": 1024}
    it = TurboDeploymentSpec.model_validate({"model": model, "engine": {"type": "VLLM"}})
    made = plan(it, LARGE, named(single, cheap))
    assert made.choice is not None
    assert (made.choice.accelerator.name, made.choice.nodes) == ("large", 1)
    assert "the least of what is feasible on one node" in made.detail
    (row,) = (row for row in made.rejected if row.nodes > 1 and row.reason == "NotPreferred")
    assert "several nodes are planned only where one does not do" in row.detail
    alone = plan(it, LARGE, named(cheap)).choice
    assert alone is not None
    assert alone.nodes == row.nodes
