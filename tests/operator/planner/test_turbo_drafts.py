"""Engine Turbo on several accelerators, and with a draft model beside the model, apart or on cores."""

from __future__ import annotations

from dataclasses import replace
from decimal import Decimal
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from turbo_dev.plan_cases import catalogs, changed, models, plan, specs
from turbo_dev.plan_examples import (
    GIB,
    LARGE,
    LOAD,
    MIDDLE,
    SHORT,
    SMALL,
    accelerator,
    fast,
    named,
    shape,
    spec,
)
from turbo_dev.plan_referee import cost_of, planned
from turbo_dev.sizes import size
from turbo_operator.api import EngineName, Placement, PlanReason, Provenance, TurboDeploymentSpec
from turbo_operator.budget import footprint_of
from turbo_operator.plan import Choice
from turbo_operator.planner.capabilities import describe_lack
from turbo_operator.planner.performance import memory
from turbo_operator.planner.requirements import DRAFT_CORES, HOST_RESERVE
from turbo_operator.snapshot import Accelerator, Host, NodeSupply, Supply
from turbo_runtime.contract.documents import ModelShape

DRAFT = replace(shape("Qwen/Qwen3-0.6B"), vocab_size=MIDDLE.vocab_size)
CARD = fast("card", 80, "4.00")
CORES = Accelerator(
    "cores", "cpu", Decimal(16), 64 * GIB, memory_bandwidth=1e11, flops={"bf16": 2e12}, count_per_node=1
)
several = settings(max_examples=size(15, 50))


def drafted(placement: str = "Auto", **more: Any) -> TurboDeploymentSpec:
    drafts = {"mode": "Required", "method": "DraftModel", "draftModel": {"uri": "hf://a/draft"}}
    return spec(**{"model": SHORT, "speculation": {**drafts, "placement": placement}, **more})


def chosen(placement: str, *rows: Accelerator, model: ModelShape = MIDDLE, **more: Any) -> Choice:
    """The plan of the first of the accelerators, which alone is allowed."""
    allowed = {"accelerators": {"allowed": [rows[0].name]}}
    made = plan(drafted(placement, **{**allowed, **more}), model, named(*rows), draft=DRAFT)
    assert made.choice is not None, made.detail
    return made.choice


def test_every_ability_names_what_is_missing() -> None:
    for method, placement in (
        ("Suffix", None),
        ("EAGLE3", Placement.COLOCATED),
        ("DraftModel", Placement.CPU),
    ):
        assert describe_lack(EngineName.TURBO, method, placement, 1) is None
    assert describe_lack(EngineName.TURBO, "Suffix", None, 8) is None
    assert describe_lack(EngineName.VLLM, "Off", None, 16) is None
    for arguments, word in (
        ((EngineName.VLLM, "TurboHeads", None, 1), "TurboHeads"),
        ((EngineName.VLLM, "DraftModel", Placement.CPU, 1), "placed CPU"),
        ((EngineName.TURBO, "MTP", None, 1), "MTP"),
        ((EngineName.TURBO, "EAGLE3", Placement.COLOCATED, 2), "EAGLE3 for a model on 2 accelerators"),
    ):
        lack = describe_lack(*arguments)  # type: ignore[arg-type]
        assert lack is not None
        assert word in lack


def test_a_model_that_one_accelerator_does_not_hold_takes_two_with_half_of_the_weights_each() -> None:
    made = plan(spec(model=SHORT), LARGE, named(accelerator("mid", 48, "2.00")))
    choice = made.choice
    assert choice is not None
    assert (choice.engine, choice.tensor, choice.accelerators_per_replica) == ("Turbo", 2, 2)
    weights = LARGE.parameters * 2
    assert weights / 2 < choice.memory_bytes - choice.kv_cache_bytes < weights / 2 + 8 * GIB
    assert choice.host_memory_bytes == weights + 2 * HOST_RESERVE, "each rank reads its slices alone"
    assert choice.predicted.cost_per_hour == 4


def test_several_accelerators_are_faster_by_less_than_their_number() -> None:
    """What ranks exchange costs time."""
    one, two = (
        plan(spec(model=SHORT, parallelism={"tensor": tensor}), MIDDLE, named(CARD)) for tensor in (1, 2)
    )
    times = [made.choice.predicted.time_per_output_token for made in (one, two) if made.choice]
    assert times[1] < times[0] < 2 * times[1]
    assert two.choice is not None
    assert two.choice.predicted.provenance == Provenance.ASSUMED  # of lengths; else it is a roofline
    lengths = {"inputTokens": {"mean": 100}, "outputTokens": {"mean": 100}}
    stated = plan(spec(model=SHORT, parallelism={"tensor": 2}, workload=lengths), MIDDLE, named(CARD))
    assert stated.choice is not None
    assert stated.choice.predicted.provenance == Provenance.ROOFLINE


@pytest.mark.parametrize(
    ("model", "uri", "tensor", "said"),
    [
        (replace(MIDDLE, architecture="Gemma3ForCausalLM"), "hf://a/b", 2, "Gemma3ForCausalLM is not cut up"),
        (
            replace(MIDDLE, quantization="fp8", quantized_parameters=7 * 10**9, dequantizable=True),
            "hf://a/b",
            2,
            "quantized weights are not cut up",
        ),
        (
            replace(MIDDLE, mlp_width=12_290),
            "hf://a/b",
            4,
            "4 ranks do not divide the model's interm",
        ),
        (
            replace(MIDDLE, kv_heads=3, heads=24),
            "hf://a/b",
            4,
            "each of the model's 3 KV heads would be",
        ),
        (replace(MIDDLE, mlp_width=0), "hf://a/b", 2, "its intermediate_size is not known"),
        (MIDDLE, "pvc://models/m.gguf", 2, "a GGUF file is not cut up"),
    ],
)
def test_what_the_runtime_does_not_cut_up_is_told_with_the_remedy(
    model: ModelShape, uri: str, tensor: int, said: str
) -> None:
    wanted = spec(model={**SHORT, "uri": uri}, parallelism={"tensor": tensor})
    made = plan(wanted, model, named(CARD))
    assert (made.choice, made.reason) == (None, PlanReason.NOT_YET_SUPPORTED)
    assert f"does not divide the model among {tensor} accelerators ({said}" in made.detail
    assert "engine.type: VLLM" in made.detail
    free = plan(spec(model={**SHORT, "uri": uri}, workload=LOAD), model, named(CARD)).choice
    assert free is not None
    assert free.tensor == 1


def test_a_rank_with_a_head_more_has_room_for_what_belongs_to_it() -> None:
    uneven = replace(MIDDLE, kv_heads=10, heads=40)
    assert memory.largest_rank(uneven, 4) == 0.3
    assert memory.largest_rank(MIDDLE, 4) == 0.25
    assert memory.largest_rank(replace(MIDDLE, kv_heads=2), 4) == 0.25


def test_drafts_with_a_cache_are_for_one_accelerator() -> None:
    for drafts in ({"method": "DraftModel"}, {"method": "EAGLE3"}):
        asked = {"mode": "Required", "draftModel": {"uri": "hf://a/draft"}, **drafts}
        wanted = spec(model=SHORT, parallelism={"tensor": 2}, speculation=asked)
        made = plan(wanted, MIDDLE, named(CARD), draft=DRAFT)
        assert made.choice is None
        assert f"{drafts['method']} for a model on 2 accelerators" in made.detail
        assert "write parallelism.tensor: 1" in made.detail


def test_an_eagle3_draft_is_served_beside_the_model_and_its_memory_is_counted() -> None:
    drafts = {"mode": "Required", "method": "EAGLE3", "draftModel": {"uri": "hf://a/layer"}}
    with_it, without = (
        plan(spec(model=SHORT, speculation=asked), MIDDLE, named(fast("small", 24, "1"))).choice
        for asked in (drafts, {"mode": "Disabled"})
    )
    assert with_it is not None
    assert without is not None
    assert (with_it.method, with_it.placement, with_it.accelerators_per_replica) == ("EAGLE3", "Colocated", 1)
    assert with_it.kv_cache_bytes < without.kv_cache_bytes
    assert with_it.predicted.provenance == Provenance.ASSUMED


def test_an_eagle3_draft_is_planned_for_those_alone_who_have_one() -> None:
    made = plan(spec(model=SHORT, workload=LOAD), MIDDLE, named(CARD))
    assert all(row.method not in ("EAGLE3", "DraftModel") for row in made.rejected)


def test_a_draft_on_an_accelerator_of_its_own_costs_one_and_leaves_the_model_its_memory() -> None:
    small = fast("small", 24, "1.00")
    beside, apart = chosen("Colocated", small), chosen("Separate", small)
    assert (beside.tensor, beside.accelerators_per_replica, apart.accelerators_per_replica) == (1, 1, 2)
    assert (beside.predicted.cost_per_hour, apart.predicted.cost_per_hour) == (1, 2)
    assert apart.kv_cache_bytes > beside.kv_cache_bytes + GIB
    assert apart.draft_cores == 0
    detail = plan(drafted("Separate"), MIDDLE, named(small), draft=DRAFT).detail
    assert "DraftModel drafts of up to 32 tokens from an accelerator of their own" in detail


def test_the_pool_is_no_larger_than_what_a_draft_on_its_own_accelerator_caches() -> None:
    """Its cache has as many blocks as the model's."""
    wide = replace(DRAFT, layers=200)
    made = plan(drafted("Separate"), MIDDLE, named(fast("small", 24, "1.00")), draft=wide).choice
    assert made is not None
    tokens = made.kv_cache_bytes / memory.kv_bytes(MIDDLE, 2, 1, 1)
    needed = tokens * memory.kv_bytes(wide, 2, 1, 1) + wide.parameters * 2
    assert needed <= memory.usable(made.accelerator)
    assert made.kv_cache_bytes + MIDDLE.parameters * 2 < memory.usable(made.accelerator) - GIB


def test_a_draft_on_the_hosts_cores_takes_cores_and_memory_there() -> None:
    small = fast("small", 24, "1.00")
    beside, cores = chosen("Colocated", small), chosen("CPU", small, CORES)
    assert (cores.accelerators_per_replica, cores.draft_cores) == (1, DRAFT_CORES)
    assert cores.kv_cache_bytes > beside.kv_cache_bytes + GIB
    tokens = cores.kv_cache_bytes / memory.kv_bytes(MIDDLE, 2, 1, 1)
    held = tokens * memory.kv_bytes(DRAFT, 2, 1, 1) + DRAFT.parameters * 2
    assert cores.host_memory_bytes - beside.host_memory_bytes >= held
    host = footprint_of(cores, drafted().pod_template.spec).host
    assert host == Host(1000 * (2 + DRAFT_CORES), cores.host_memory_bytes)
    first = (beside.predicted.time_to_first_token, cores.predicted.time_to_first_token)
    assert first[0] is not None
    assert first[1] is not None
    assert first[1] > 2 * first[0], "cores read the prompt too"


def test_a_node_without_the_cores_holds_no_draft_there() -> None:
    small = fast("small", 24, "1.00")
    for cores, count in ((8, 0), (16, 1)):
        node = NodeSupply("a", 1, 1, Host(1000 * cores, 1 << 40))
        supply = {"small": Supply((node,), None)}
        wanted = drafted("CPU", accelerators={"allowed": ["small"]})
        fixed = replace(small, provisioning="Fixed")
        made = plan(wanted, MIDDLE, named(fixed, CORES), supply, draft=DRAFT)
        assert (made.choice is not None) == bool(count), made.detail


@pytest.mark.parametrize(
    ("placement", "rows", "said"),
    [
        ("Separate", (CORES,), "a draft of a model on cores is on cores too"),
        ("Separate", (replace(CARD, count_per_node=1),), "its nodes have no accelerator more for the draft"),
        ("CPU", (CARD,), "no TurboAccelerator states the speed of cores"),
    ],
)
def test_where_a_draft_cannot_be_is_told_with_the_remedy(
    placement: str, rows: tuple[Accelerator, ...], said: str
) -> None:
    priced = [replace(row, prices=CARD.prices) for row in rows]
    made = plan(drafted(placement), SMALL, named(*priced), draft=replace(DRAFT, vocab_size=SMALL.vocab_size))
    assert made.choice is None
    assert said in made.detail
    assert "write speculation.placement: " in made.detail


def test_where_all_is_on_cores_a_draft_on_cores_is_in_the_containers_memory() -> None:
    cores = replace(CORES, prices=CARD.prices)
    draft = replace(DRAFT, layers=2, parameters=20 * 10**6)
    small = replace(SMALL, vocab_size=DRAFT.vocab_size)
    by_place = {}
    for placement in ("Colocated", "CPU"):
        choice = plan(drafted(placement), small, named(cores), draft=draft).choice
        assert choice is not None
        assert choice.host_memory_bytes == cores.memory_bytes
        assert (choice.placement, choice.draft_cores) == (placement, 0)
        by_place[placement] = choice.memory_bytes, choice.predicted.time_per_output_token
    assert by_place["CPU"] == by_place["Colocated"]


@several
@given(specs(), models, catalogs)
def test_several_accelerators_to_choose_from_are_never_dearer(
    wanted: TurboDeploymentSpec, model: ModelShape, catalog: dict[str, Accelerator]
) -> None:
    asked = changed(wanted, scaling={"mode": "Planned"}, cost={}, planPolicy={})
    one = planned(changed(asked, parallelism={"tensor": 1}), model, catalog)
    assert cost_of(planned(asked, model, catalog)) <= cost_of(one)


@several
@given(specs(), catalogs, st.sampled_from([*Placement]))
def test_more_places_for_a_draft_are_never_dearer(
    wanted: TurboDeploymentSpec, catalog: dict[str, Accelerator], placement: Placement
) -> None:
    drafts = {"mode": "Required", "method": "DraftModel", "draftModel": {"uri": "hf://a/draft"}}
    asked = changed(wanted, scaling={"mode": "Planned"}, cost={}, planPolicy={}, speculation=drafts)
    pinned = changed(asked, speculation={**drafts, "placement": placement})
    free, bound = (plan(each, MIDDLE, catalog, draft=DRAFT) for each in (asked, pinned))
    assert cost_of(free) <= cost_of(bound)
    if bound.choice is not None:
        assert bound.choice.placement == placement
        assert bound.choice.accelerators_per_replica == bound.choice.tensor + (placement == "Separate")


def test_a_draft_model_that_saves_no_time_serves_only_where_its_place_is_given() -> None:
    wide = replace(DRAFT, layers=200, parameters=6 * 10**9)
    cards = named(fast("small", 80, "1.00"))
    refused = plan(drafted(), MIDDLE, cards, draft=wide)
    assert refused.choice is None
    assert "a pass of speculation.draftModel takes longer there than its tokens save" in refused.detail
    assert plan(drafted("Colocated"), MIDDLE, cards, draft=wide).choice is not None
    asked = {"mode": "Auto", "method": "DraftModel", "draftModel": {"uri": "hf://a/draft"}}
    chosen_freely = plan(spec(model=SHORT, speculation=asked), MIDDLE, cards, draft=wide).choice
    assert chosen_freely is not None
    assert chosen_freely.method != "DraftModel"


@pytest.mark.parametrize("count", [1, 2])
def test_a_draft_that_is_named_and_not_taken_is_among_the_rejected_with_the_reason(count: int) -> None:
    cards = named(replace(CARD, count_per_node=count))
    asked = drafted("Separate").speculation.model_copy(update={"mode": "Auto"})
    made = plan(drafted("Separate").model_copy(update={"speculation": asked}), MIDDLE, cards, draft=DRAFT)
    assert made.choice is not None
    assert made.choice.method == "Off"
    (row,) = [row for row in made.rejected if row.method == "DraftModel"]
    said = {
        1: (PlanReason.NOT_YET_SUPPORTED, "its nodes have no accelerator more for the draft"),
        2: (PlanReason.HIGHER_COST, "card with DraftModel drafts fits, and costs"),
    }
    assert row.reason == said[count][0]
    assert said[count][1] in row.detail


def test_who_names_cores_for_the_draft_is_not_said_to_gain_by_it() -> None:
    rows = named(CARD, replace(CORES, prices=CARD.prices))
    asked = drafted("CPU", accelerators={"allowed": [CARD.name]})
    auto = asked.speculation.model_copy(update={"mode": "Auto"})
    made = plan(asked.model_copy(update={"speculation": auto}), MIDDLE, rows, draft=DRAFT)
    assert made.choice is not None
    assert made.choice.placement == "CPU"
    (row,) = [row for row in made.rejected if row.method == "Off" and row.accelerator == CARD.name]
    assert (
        row.detail == "card fits at the same cost, but spec.speculation.placement names a place for drafts."
    )


@pytest.mark.parametrize(("more", "is_refused"), [(0, False), (999, False), (-60_000, True), (30_000, True)])
def test_a_draft_of_another_vocabulary_is_refused_and_a_padded_one_is_not(
    more: int, is_refused: bool
) -> None:
    draft = replace(DRAFT, vocab_size=MIDDLE.vocab_size + more)
    made = plan(drafted("Colocated"), MIDDLE, named(CARD), draft=draft)
    assert (made.choice is None) == is_refused
    assert ("has a vocabulary of" in made.detail) == is_refused
