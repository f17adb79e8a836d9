"""What is told of what was not taken, example by example."""

from __future__ import annotations

from dataclasses import replace
from decimal import Decimal
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from turbo_dev.plan_cases import plan
from turbo_dev.plan_examples import (
    CARD,
    GIB,
    LARGE,
    LOAD,
    MIDDLE,
    SHORT,
    SMALL,
    accelerator,
    fast,
    named,
    row_of,
    shape,
    spec,
)
from turbo_operator.api import CapacityType, EngineName, PlanReason, Provenance
from turbo_operator.catalog import catalog
from turbo_operator.plan import Running
from turbo_operator.planner.requirements import demand, describe_overlong
from turbo_operator.snapshot import Supply


def test_a_pinned_degree_that_does_not_divide_the_heads_is_refused() -> None:
    result = plan(spec(engine={}, parallelism={"tensor": 5}), MIDDLE, named(fast("a", 80, "1")))
    assert (result.choice, result.reason) == (None, PlanReason.INVALID_PARALLELISM)
    assert "does not divide the model's 32 heads: write one of 1, 2, 4, 8, 16, 32" in result.detail


def test_a_pinned_degree_above_a_nodes_accelerators_is_refused() -> None:
    result = plan(spec(engine={}, parallelism={"tensor": 16}), MIDDLE, named(fast("a", 80, "1")))
    assert (result.choice, result.reason) == (None, PlanReason.INVALID_PARALLELISM)
    assert "a node of a has 8" in result.detail


def test_a_fixed_number_of_accelerators_bounds_a_replica_and_all_of_them() -> None:
    catalog = named(accelerator("mid", 40, "2.00"))
    result = plan(spec(accelerators={"maxPerReplica": 1}), LARGE, catalog)
    assert {row.reason for row in result.rejected} == {PlanReason.INSUFFICIENT_MEMORY}
    total = plan(spec(accelerators={"maxTotal": 2}, replicas=3), SMALL, catalog)
    assert (total.choice, total.reason) == (None, PlanReason.INSUFFICIENT_CAPACITY)
    assert "spec.accelerators.maxTotal is 2" in total.detail


def test_what_is_not_supported_is_told_only_where_it_would_do_better() -> None:
    cheap = plan(spec(model=SHORT, engine={}), MIDDLE, named(fast("a", 80, "1.00")))
    assert cheap.choice is not None
    assert PlanReason.NOT_YET_SUPPORTED not in {row.reason for row in cheap.rejected}
    targets = {"timePerOutputToken": {"max": "6ms"}}
    quick = spec(model=SHORT, engine={}, workload={**LOAD, "requestsPerSecond": "10"}, targets=targets)
    busy = plan(quick, MIDDLE, named(fast("a", 80, "1.00")))
    assert busy.choice is not None
    better = row_of(busy, "a", PlanReason.NOT_YET_SUPPORTED)
    assert better.replicas is not None
    assert better.predicted is not None
    assert better.predicted.cost_per_hour < busy.choice.predicted.cost_per_hour  # type: ignore[operator]
    assert "no EAGLE-3 draft of the model is named: write speculation.method: EAGLE3" in better.detail


def test_vllm_serves_gpus_and_turbo_cores_unless_the_object_names_its_engine() -> None:
    cores = replace(fast("cores", 64, "0.50"), resource_name="cpu", quantity=Decimal(8))
    both = named(fast("a", 80, "1.00"), cores)
    for name, engine in (("a", EngineName.VLLM), ("cores", EngineName.TURBO)):
        only = {name: both[name]}
        choice = plan(spec(model=SHORT, engine={}), SMALL, only).choice
        assert choice is not None
        assert choice.engine == engine
        for wanted in EngineName:
            named_engine = {"type": wanted, "image": "mine:1"}
            choice = plan(spec(model=SHORT, engine=named_engine), SMALL, only).choice
            assert choice is not None
            assert choice.engine == wanted


@pytest.mark.parametrize(
    "asked",
    [
        {"capture": {"persistentVolumeClaim": {"claimName": "kept"}}},
        {"speculation": {"draftRef": {"name": "draft"}}},
        {"speculation": {"method": "TurboHeads"}},
    ],
)
def test_what_only_turbo_can_do_is_asked_of_turbo(asked: dict[str, Any]) -> None:
    choice = plan(spec(model=SHORT, engine={}, **asked), SMALL, named(fast("a", 80, "1.00"))).choice
    assert choice is not None
    assert choice.engine == EngineName.TURBO


def test_what_vllm_cannot_start_is_not_planned() -> None:
    catalog = named(fast("a", 80, "1.00"))
    required = {"mode": "Required", "method": "Suffix"}
    suffix = plan(spec(model=SHORT, engine={"type": "VLLM"}, speculation=required), SMALL, catalog)
    assert suffix.choice is None
    assert "arctic-inference" in suffix.detail
    cores = replace(fast("cores", 64, "0.50"), resource_name="cpu", quantity=Decimal(8))
    on_cores = plan(spec(model=SHORT, engine={"type": "VLLM"}), SMALL, named(cores))
    assert on_cores.choice is None
    assert "vLLM needs an image for CPUs: name it in engine.image" in on_cores.detail


def test_a_method_that_is_named_and_not_used_is_told_with_what_it_lacks() -> None:
    """Found in a trial: Suffix on vLLM was dropped without a word, and a draft was said not to be named."""
    vllm: dict[str, Any] = {"model": SHORT, "engine": {"type": "VLLM"}}
    dropped = plan(spec(**vllm, speculation={"method": "Suffix"}), SMALL, CARD)
    assert dropped.choice is not None
    assert "It has no Suffix drafts: vLLM needs the package arctic-inference" in dropped.detail
    used = plan(spec(**vllm, speculation={"method": "NGram"}), SMALL, CARD)
    assert "What NGram drafts gain depends on the text and is not counted." in used.detail
    unnamed = {"mode": "Required", "draftModel": {"uri": "hf://a/draft"}}
    detail = plan(spec(**vllm, speculation=unnamed), SMALL, CARD).detail
    assert "write speculation.method: EAGLE3 if speculation.draftModel is an EAGLE-3 draft" in detail


@pytest.mark.parametrize(
    "asked",
    [
        {"model": {"uri": "pvc://models/m.gguf", "maxModelLen": 1024}},
        {"engine": {"image": "mine:1"}},
        {"speculation": {"method": "Suffix"}},
    ],
)
def test_what_ran_by_turbo_on_a_gpu_and_vllm_could_not_start_stays_turbos(asked: dict[str, Any]) -> None:
    choice = plan(spec(**{"model": SHORT, "engine": {}, **asked}), SMALL, named(fast("a", 80, "1.00"))).choice
    assert choice is not None
    assert choice.engine == EngineName.TURBO


def test_a_container_of_vllm_takes_what_its_processes_do_and_not_the_weights() -> None:
    choice = plan(spec(engine={}), LARGE, named(accelerator("mid", 40, "2.00"))).choice
    assert choice is not None
    assert choice.host_memory_bytes == 14 * GIB  # two workers


def test_one_replica_of_vllm_takes_several_accelerators_of_a_node() -> None:
    choice = plan(spec(engine={}), LARGE, named(accelerator("mid", 40, "2.00"))).choice
    assert choice is not None
    assert (choice.engine, choice.tensor, choice.nodes, choice.accelerators_per_replica) == ("VLLM", 2, 1, 2)


def test_a_mixture_that_would_cost_less_is_told() -> None:
    load = {**LOAD, "requestsPerSecond": "13"}
    large, little = fast("large", 80, "4.00"), fast("little", 80, "1.10", memory_bandwidth=6e11)
    result = plan(spec(model=SHORT, workload=load), MIDDLE, named(large, little))
    assert result.choice is not None
    mixed = [row for row in result.rejected if "more than one class" in row.detail]
    alone = {
        name: plan(spec(model=SHORT, workload=load), MIDDLE, {name: row}).choice
        for name, row in named(large, little).items()
    }
    least = min(choice.predicted.cost_per_hour for choice in alone.values() if choice)  # type: ignore[type-var]
    assert result.choice.predicted.cost_per_hour == least
    for row in mixed:
        cost = Decimal(row.detail.partition("do for ")[2].split()[0])
        assert cost < least  # type: ignore[operator]


def test_a_price_is_not_asked_for_where_none_would_help() -> None:
    catalog = named(fast("a", 80, None), fast("b", 80, None))
    result = plan(spec(model=SHORT, targets={"timePerOutputToken": {"max": "1ms"}}), MIDDLE, catalog)
    assert (result.choice, result.reason) == (None, PlanReason.TARGET_UNREACHABLE)
    none = plan(spec(model=SHORT), MIDDLE, catalog, {"a": Supply(), "b": Supply()})
    assert (none.choice, none.reason) == (None, PlanReason.INSUFFICIENT_CAPACITY)


def test_a_load_beyond_all_replicas_is_told_with_what_it_takes() -> None:
    load = {**LOAD, "requestsPerSecond": "1000000"}
    asked = spec(model=SHORT, workload=load, parallelism={"tensor": 1})
    result = plan(asked, MIDDLE, named(fast("a", 80, "1.00")))
    row = row_of(result, "a", PlanReason.TARGET_UNREACHABLE)
    assert row.replicas is not None
    assert row.predicted is not None
    assert f"the load needs {row.replicas}, and a TurboDeployment has 1000 replicas at most" in row.detail
    assert row.predicted.cost_per_hour == Decimal(row.replicas)
    assert row.predicted.time_to_first_token is not None


def test_what_is_overloaded_yields_no_more_than_it_can() -> None:
    load = {**LOAD, "requestsPerSecond": "1000"}
    asked = spec(model=SHORT, workload=load, scaling={"mode": "External"}, replicas=1)
    chosen = plan(asked, MIDDLE, named(fast("a", 80, "1.00"))).choice
    assert chosen is not None
    does = chosen.predicted
    assert does.tokens_per_second is not None
    assert does.capacity_tokens_per_second is not None
    assert does.tokens_per_second <= does.capacity_tokens_per_second / 0.9 * (1 + 1e-9)


def test_requests_under_way_bound_the_throughput_that_replicas_can_bring() -> None:
    catalog = named(fast("a", 80, "1.00"), fast("b", 80, "9.00", memory_bandwidth=8e12))
    lengths = {key: LOAD[key] for key in ("inputTokens", "outputTokens")}
    for item, chosen in ((100, "a"), (160, "b"), (1000, None)):  # tokens per second of each of ten requests
        asked = {"workload": {**lengths, "concurrency": 10}, "targets": {"tokensPerSecond": str(10 * item)}}
        result = plan(spec(model=SHORT, parallelism={"tensor": 1}, **asked), MIDDLE, catalog)
        if chosen is None:
            assert (result.choice, result.reason) == (None, PlanReason.TARGET_UNREACHABLE)
            continue
        assert result.choice is not None
        assert result.choice.accelerator.name == chosen
        assert result.choice.predicted.tokens_per_second >= 10 * item  # type: ignore[operator]


def test_what_an_assumed_acceptance_would_gain_is_not_what_is_told() -> None:
    load = {**LOAD, "requestsPerSecond": "10"}
    result = plan(
        spec(model=SHORT, engine={"type": "Turbo"}, workload=load),
        shape("deepseek-ai/DeepSeek-R1"),
        catalog(),
    )
    assert result.nearest is not None
    assert result.nearest.predicted is not None
    assert result.nearest.predicted.provenance == Provenance.ROOFLINE
    assert all("assumed" not in row.detail for row in result.rejected)
    targets = {"timePerOutputToken": {"max": "6ms"}}
    quick = spec(model=SHORT, engine={}, workload=load, targets=targets)
    asked = plan(quick, MIDDLE, named(fast("a", 80, "1.00")))
    better = row_of(asked, "a", PlanReason.NOT_YET_SUPPORTED)
    assert "(assumed: 3.39 tokens per step of 5 drafts, the least of" in better.detail


def test_a_plan_says_which_lengths_and_which_acceptance_it_assumes() -> None:
    """Found in a trial: the number was told of rejected candidates alone, and the lengths nowhere."""
    draft = {"method": "EAGLE3", "draftModel": {"uri": "hf://a/draft"}}
    eagle = plan(spec(model=SHORT, engine={}, speculation=draft, workload=LOAD), MIDDLE, CARD)
    assert eagle.choice is not None
    assert " This assumes 3.39 tokens per step of 5 drafts, the least of Spec-Bench" in eagle.detail
    output = {"outputTokens": {"mean": 100}, "requestsPerSecond": "1"}
    assert plan(spec(model=SHORT, workload=output), MIDDLE, CARD).detail.endswith(
        " This assumes a mean of 512 input tokens."
    )
    late = spec(model=SHORT, targets={"timePerOutputToken": {"max": "1ms"}})
    lengths = " This assumes a mean of 512 input tokens and a mean of 256 output tokens."
    assert plan(late, MIDDLE, CARD).detail.endswith(lengths)
    assert "assumes" not in plan(spec(model=SHORT, workload=LOAD), MIDDLE, CARD).detail


def test_required_drafts_are_advised_of_the_engine_that_was_measured() -> None:
    result = plan(spec(model=SHORT, engine={}, speculation={"mode": "Required"}), MIDDLE, CARD)
    assert result.choice is None
    assert "write speculation.method: EAGLE3, and the draft in speculation.draftModel.uri" in result.detail


def test_a_slower_candidate_is_not_called_dearer_where_speed_decides() -> None:
    catalog = named(fast("slow", 80, "1.10", memory_bandwidth=1e12), fast("quick", 80, "9.00"))
    for objective, best in (("Latency", "fastest"), ("Throughput", "most")):
        cost, policy = {"maxPerHour": "9.95"}, {"objective": objective}
        result = plan(spec(model=SHORT, workload=LOAD, cost=cost, planPolicy=policy), MIDDLE, catalog)
        assert result.choice is not None
        (lost,) = {"slow", "quick"} - {result.choice.accelerator.name}
        row = row_of(result, lost, PlanReason.NOT_PREFERRED)
        assert f"is not the {best} of what is feasible" in row.detail


def test_what_is_cheaper_than_what_runs_says_why_it_does_not_run() -> None:
    catalog = named(fast("a", 80, "1.00"), fast("b", 80, "0.99"))
    asked = spec(model=SHORT, planPolicy={"minSavingFraction": "0.10"})
    runs = plan(asked, MIDDLE, {"a": catalog["a"]}).choice
    assert runs is not None
    now = Running("a", runs.tensor, runs.method, placement=runs.placement)
    result = plan(asked, MIDDLE, catalog, running=now)
    assert result.choice is not None
    assert result.choice.accelerator.name == "a"
    detail = row_of(result, "b", PlanReason.NOT_PREFERRED).detail
    assert (
        detail
        == "b would be better by 0.01 $/h, but not by spec.planPolicy.minSavingFraction: what runs stays."
    )


def test_lengths_that_no_request_holds_are_refused_with_their_fields() -> None:
    lengths = {"inputTokens": {"mean": 9000}, "outputTokens": {"mean": 400}}
    result = plan(spec(model=SHORT, workload=lengths), MIDDLE, named(fast("a", 80, "1.00")))
    assert (result.choice, result.reason) == (None, PlanReason.NOT_YET_SUPPORTED)
    assert result.detail.startswith(
        "spec.workload.inputTokens.mean is 9000 and outputTokens.mean is 400, but requests end at "
        "spec.model.maxModelLen of 8192 tokens"
    )
    assert "or raise maxModelLen (up to " in result.detail
    alone = plan(spec(model=SHORT, workload={"outputTokens": {"mean": 8192}}), MIDDLE, {})
    assert alone.detail.startswith("spec.workload.outputTokens.mean is 8192, but")


@given(st.integers(2, 5000), *2 * (st.none() | st.integers(1, 3000),), st.none() | st.integers(1, 9000))
def test_no_planned_length_is_beyond_what_is_served(
    longest: int, prompt: int | None, answer: int | None, p95: int | None
) -> None:
    high = {} if p95 is None or prompt is None else {"p95": max(prompt, p95)}
    written = {
        **({"inputTokens": {"mean": prompt, **high}} if prompt else {}),
        **({"outputTokens": {"mean": answer}} if answer else {}),
    }
    asked = spec(workload=written)
    actual = demand(asked, longest)
    if describe_overlong(asked, longest) is not None:
        assert (prompt or 1) + (answer or 1) > longest
        return
    assert actual.prompt.mean <= actual.prompt.p95
    assert actual.output.mean <= actual.output.p95
    assert actual.prompt.p95 + actual.output.mean <= longest + 1e-9
    assert actual.prompt.mean + actual.output.p95 <= longest + 1e-9
    assert prompt is None or actual.prompt.mean == prompt
    assert answer is None or actual.output.mean == answer


def test_where_nothing_comes_near_the_targets_the_one_that_misses_by_least_is_nearest() -> None:
    catalog = named(fast("cheap", 80, "1.00", memory_bandwidth=3e11), fast("quick", 80, "9.00"))
    targets = {"timePerOutputToken": {"max": "1ms"}}
    result = plan(spec(model=SHORT, targets=targets, parallelism={"tensor": 1}), MIDDLE, catalog)
    assert (result.choice, result.reason) == (None, PlanReason.TARGET_UNREACHABLE)
    assert result.nearest is not None
    assert result.nearest.accelerator == "quick"
    assert result.detail.startswith("No plan is feasible. Nearest: quick would miss")


def test_without_a_load_latency_is_that_of_a_request_alone_and_throughput_that_at_capacity() -> None:
    catalog = named(fast("a", 80, "1.00"))
    lengths = {key: LOAD[key] for key in ("inputTokens", "outputTokens")}
    bare, single, bounded = (
        plan(spec(model=SHORT, workload={**lengths, **more}, targets=targets), MIDDLE, catalog)
        for more, targets in (
            ({}, {}),
            ({"concurrency": 1}, {}),
            ({}, {"timePerOutputToken": {"max": "1s"}}),
        )
    )
    actual, alone, full = (item.choice.predicted for item in (bare, single, bounded) if item.choice)
    assert actual.time_per_output_token == alone.time_per_output_token
    assert actual.time_to_first_token == alone.time_to_first_token
    assert actual.tokens_per_second == pytest.approx(full.tokens_per_second, rel=1e-3)
    assert full.time_per_output_token > 1.2 * actual.time_per_output_token  # type: ignore[operator]
    assert "A request alone on a replica: " in bare.detail
    assert " at most " in bare.detail


def test_no_replicas_yield_no_tokens() -> None:
    result = plan(spec(model=SHORT, workload=LOAD, scaling={"mode": "External"}, replicas=0), MIDDLE, CARD)
    assert result.choice is not None
    assert result.choice.predicted.tokens_per_second is None
    assert result.choice.predicted.cost_per_million_tokens is None


def test_what_misses_the_targets_under_any_load_promises_no_throughput() -> None:
    asked = spec(model=SHORT, workload=LOAD, targets={"timePerOutputToken": {"max": "1ms"}})
    does = row_of(plan(asked, MIDDLE, CARD), "a", PlanReason.TARGET_UNREACHABLE).predicted
    assert does is not None
    assert does.tokens_per_second is None


def test_a_row_says_how_both_are_paid_for_where_it_is_not_on_demand() -> None:
    prices = {CapacityType.SPOT: Decimal("0.50"), CapacityType.ON_DEMAND: Decimal("1.00")}
    catalog = named(replace(fast("a", 80, None), prices=prices))
    result = plan(spec(accelerators={"capacityTypes": ["OnDemand", "Spot"]}), SMALL, catalog)
    row = row_of(result, "a", PlanReason.HIGHER_COST)
    assert row.detail == "a fits, and costs 0.50 $/h more per replica than a (Spot)."
    dear = {**prices, CapacityType.SPOT: Decimal("2.00")}
    other = plan(
        spec(accelerators={"capacityTypes": ["OnDemand", "Spot"]}),
        SMALL,
        named(replace(catalog["a"], prices=dear)),
    )
    assert row_of(other, "a", PlanReason.HIGHER_COST).detail.startswith(
        "a (Spot) fits, and costs 1.00 $/h more"
    )


def test_what_only_costs_more_is_not_called_dearer_where_speed_decides() -> None:
    catalog = named(fast("a", 80, "1.00"), fast("b", 80, "2.00"))
    more = {"cost": {"maxPerHour": "2.00"}, "planPolicy": {"objective": "Latency"}}
    result = plan(
        spec(model=SHORT, workload=LOAD, scaling={"mode": "Metrics"}, parallelism={"tensor": 1}, **more),
        MIDDLE,
        catalog,
    )
    assert result.choice is not None
    row = row_of(result, "b", PlanReason.NOT_PREFERRED)
    assert row.detail.endswith("and it is no better by spec.planPolicy.objective Latency.")
