"""What replicas on several accelerators, and with drafts, ask of the engines and of their nodes."""

from __future__ import annotations

from dataclasses import replace
from decimal import Decimal
from typing import Any

import pytest

from turbo_dev.plan_cases import plan
from turbo_dev.plan_examples import GIB, LARGE, MIDDLE, SHORT, accelerator, fast, named, shape, spec
from turbo_operator.api import PlanReason, TurboDeploymentSpec
from turbo_operator.budget import footprint_of
from turbo_operator.planner.requirements import DRAFT_CORES, HOST_RESERVE
from turbo_operator.snapshot import Accelerator, Host, NodeSupply, Supply

CARD = fast("card", 80, "4.00")
CORES = Accelerator(
    "cores", "cpu", Decimal(16), 64 * GIB, memory_bandwidth=1e11, flops={"bf16": 2e12}, count_per_node=1
)
DRAFT = replace(shape("Qwen/Qwen3-0.6B"), vocab_size=MIDDLE.vocab_size)
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


def test_each_rank_of_engine_turbo_has_a_core_beside_the_servers() -> None:
    wanted = spec(model=SHORT, parallelism={"tensor": 4})
    choice = plan(wanted, MIDDLE, named(CARD)).choice
    assert choice is not None
    assert footprint_of(choice, wanted.pod_template.spec).host == Host(5000, choice.host_memory_bytes)
    for cores, fits in ((4, False), (5, True)):
        node = NodeSupply("a", 4, 4, Host(1000 * cores, 1 << 40))
        fixed = replace(CARD, provisioning="Fixed")
        made = plan(wanted, MIDDLE, named(fixed), {"card": Supply((node,), None)})
        assert (made.choice is not None) == fits, made.detail
    vllm = spec(model=SHORT, parallelism={"tensor": 4}, **VLLM)
    choice = plan(vllm, MIDDLE, named(CARD)).choice
    assert choice is not None
    host = footprint_of(choice, vllm.pod_template.spec).host
    assert host is not None
    assert host.millicores == 2000


def test_a_node_and_a_template_need_the_memory_of_the_replica_that_is_planned() -> None:
    """Ranks read their own parts of the files, so that two hold what one process would hold twice."""
    mid, weights = accelerator("mid", 48, "2.00"), LARGE.parameters * 2
    enough = weights + 2 * HOST_RESERVE
    for memory_bytes, fits in ((enough - GIB, False), (enough, True)):
        node = NodeSupply("a", 2, 2, Host(64_000, memory_bytes))
        supply = {"mid": Supply((node,), None)}
        made = plan(spec(model=SHORT), LARGE, named(replace(mid, provisioning="Fixed")), supply)
        assert (made.choice is not None) == fits, made.detail
        limits = {"spec": {"resources": {"limits": {"memory": str(memory_bytes)}}}}
        made = plan(spec(model=SHORT, podTemplate=limits), LARGE, named(mid))
        assert (made.choice is not None) == fits, made.detail


def test_a_template_without_the_memory_of_a_draft_on_cores_contradicts_the_plan() -> None:
    small = fast("small", 24, "1.00")
    wanted = {"speculation": {"placement": "CPU"}, "accelerators": {"allowed": ["small"]}}
    catalog = named(small, CORES)
    choice = plan(drafted(**wanted), MIDDLE, catalog, draft=DRAFT).choice
    assert choice is not None
    for spare, fits in ((-1, False), (0, True)):
        limits = {"memory": str(choice.host_memory_bytes + spare)}
        template = {"podTemplate": {"spec": {"resources": {"limits": limits}}}}
        made = plan(drafted(**{**wanted, **template}), MIDDLE, catalog, draft=DRAFT)
        assert (made.choice is not None) == fits, made.detail
    node = NodeSupply("a", 1, 1, Host(8000, 1 << 40))
    fixed = named(replace(small, provisioning="Fixed"), CORES)
    made = plan(drafted(**wanted), MIDDLE, fixed, {"small": Supply((node,), None)}, draft=DRAFT)
    assert f"each with {2 + DRAFT_CORES} cores and " in made.detail


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
