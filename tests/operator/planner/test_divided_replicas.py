"""What replicas on several accelerators, and with drafts, ask of the engines and of their nodes."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from turbo_dev.plan_cases import plan
from turbo_dev.plan_examples import GIB, MIDDLE, SHORT, accelerator, fast, named, shape, spec
from turbo_operator.api import PlanReason, TurboDeploymentSpec

CARD = fast("card", 80, "4.00")
DRAFT = shape("Qwen/Qwen3-0.6B")
PHI = shape("microsoft/phi-4")  # 40 heads, 10 KV heads
VLLM = {"engine": {"type": "VLLM"}}


def drafted(**more: Any) -> TurboDeploymentSpec:
    drafts = {"mode": "Required", "method": "DraftModel", "draftModel": {"uri": "hf://a/draft"}}
    return spec(**{"model": SHORT, "speculation": {**drafts, **more.pop("speculation", {})}, **more})


def test_vllm_gets_no_degree_that_its_kv_heads_forbid() -> None:
    """Four of one node would hold it, and vLLM would end at its start: 10 KV heads make no quarters."""
    small = named(accelerator("small", 12, "1.00"))
    layouts = []
    for model in (PHI, replace(PHI, kv_heads=8)):
        choice = plan(spec(model=SHORT, **VLLM), model, small).choice
        assert choice is not None
        layouts.append((choice.tensor, choice.nodes))
    assert layouts == [(2, 2), (4, 1)]


@pytest.mark.parametrize(("heads", "kv_heads", "tensor"), [(40, 10, 4), (40, 10, 8), (24, 6, 4), (24, 3, 4)])
def test_a_pinned_degree_that_vllm_refuses_is_told_with_those_that_it_takes(
    heads: int, kv_heads: int, tensor: int
) -> None:
    model = replace(MIDDLE, heads=heads, kv_heads=kv_heads)
    made = plan(spec(model=SHORT, parallelism={"tensor": tensor}, **VLLM), model, named(CARD))
    assert (made.choice, made.reason) == (None, PlanReason.NOT_YET_SUPPORTED)
    assert f"vLLM does not divide the model's {heads} heads and {kv_heads} KV heads among" in made.detail
    fitting = made.detail.partition("write one of ")[2].partition(" in parallelism.tensor")[0].split(", ")
    assert str(tensor) not in fitting
    for degree in map(int, fitting):
        asked = spec(model=SHORT, parallelism={"tensor": degree}, **VLLM)
        choice = plan(asked, model, named(replace(CARD, count_per_node=64))).choice
        assert choice is not None
        assert choice.tensor == degree


@pytest.mark.parametrize(("heads", "kv_heads", "tensor"), [(32, 8, 8), (32, 2, 8), (40, 10, 5), (40, 1, 8)])
def test_vllm_gets_whole_kv_heads_and_copies_of_them(heads: int, kv_heads: int, tensor: int) -> None:
    model = replace(MIDDLE, heads=heads, kv_heads=kv_heads)
    made = plan(spec(model=SHORT, parallelism={"tensor": tensor}, **VLLM), model, named(CARD))
    assert made.choice is not None


def test_vllm_divides_a_draft_model_as_the_model() -> None:
    draft = replace(DRAFT, heads=14, kv_heads=2, vocab_size=MIDDLE.vocab_size)
    for tensor, is_divided in ((2, True), (4, False)):
        wanted = drafted(parallelism={"tensor": tensor}, **VLLM)
        made = plan(wanted, MIDDLE, named(CARD), draft=draft)
        assert (made.choice is not None) == is_divided, made.detail
    assert (
        "the draft model's 14 heads and 2 KV heads among 4 accelerators: write one of 1, 2 in" in made.detail
    )


@pytest.mark.parametrize(
    ("draft", "said"),
    [
        (replace(DRAFT, architecture="GemmaForCausalLM"), "architecture GemmaForCausalLM"),
        (replace(DRAFT, quantization="fp8", quantized_parameters=10**8), "serving fp8 weights"),
    ],
)
def test_engine_turbo_gets_no_draft_model_that_it_cannot_load(draft: Any, said: str) -> None:
    made = plan(drafted(), MIDDLE, named(CARD), draft=draft)
    assert (made.choice, made.reason) == (None, PlanReason.NOT_YET_SUPPORTED)
    assert f"as a draft model, {said}" in made.detail


def test_every_named_draft_has_room_where_drafts_are_layers() -> None:
    drafts = {"method": "EAGLE3", "draftRef": {"name": "own"}}
    more = [{"name": f"d{number}", "draftRef": {"name": f"d{number}"}} for number in range(3)]
    pools = []
    for named_drafts in ([], more):
        speculation = drafts | ({"namedDrafts": named_drafts} if named_drafts else {})
        choice = plan(
            spec(model=SHORT, speculation=speculation), MIDDLE, named(fast("small", 24, "1.00"))
        ).choice
        assert choice is not None
        pools.append(choice.kv_cache_bytes)
    assert pools[0] - pools[1] > GIB
