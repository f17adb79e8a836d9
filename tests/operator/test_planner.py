"""The planner's laws: memory and budget hold, nothing cheaper was feasible, all are accounted for."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from decimal import Decimal
from itertools import product
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from turbo_operator.api import CapacityType, PlanReason, TurboDeploymentSpec
from turbo_operator.catalog import catalogue, shapes
from turbo_operator.observed import Accelerator
from turbo_operator.planned import Plan
from turbo_operator.planner import memory, plan
from turbo_runtime.contract import ModelShape

GIB = 1 << 30
NAMES = ("alpha", "beta", "gamma", "delta")


def accelerator(name: str, gib: float, price: str | None, resource: str = "nvidia.com/gpu") -> Accelerator:
    cost = {} if price is None else {CapacityType.ON_DEMAND: Decimal(price)}
    return Accelerator(name, resource, Decimal(1), int(gib * GIB), prices=cost)


def spec(**fields: Any) -> TurboDeploymentSpec:
    return TurboDeploymentSpec.model_validate({"model": {"uri": "hf://a/b"}, **fields})


def shape(hub_id: str) -> ModelShape:
    found = shapes.shipped(hub_id)
    assert found is not None
    return found


SMALL = shape("HuggingFaceTB/SmolLM2-135M")
LARGE = shape("Qwen/Qwen3-32B")

prices = st.none() | st.integers(0, 2000).map(lambda cents: Decimal(cents) / 100)
catalogues = st.fixed_dictionaries(
    {},
    optional={
        name: st.builds(
            accelerator,
            st.just(name),
            st.sampled_from((2, 3, 4, 8, 24, 40, 80, 141)),
            prices,
            st.sampled_from(("cpu", "nvidia.com/gpu")),
        )
        for name in NAMES
    },
)
budgets = st.none() | st.integers(1, 4000).map(lambda cents: f"{Decimal(cents) / 100:.2f}")
specs = st.builds(
    lambda allowed, budget, mode, tokens, dtype, length: spec(
        **({"accelerators": {"allowed": allowed}} if allowed else {}),
        **({"cost": {"maxPerHour": budget}} if budget else {}),
        speculation={"mode": mode, "maxDraftTokens": tokens},
        model={"uri": "hf://a/b", "dtype": dtype, **({"maxModelLen": length} if length else {})},
    ),
    st.lists(st.sampled_from(NAMES), unique=True),
    budgets,
    st.sampled_from(("Auto", "Required", "Disabled")),
    st.sampled_from((1, 8, 64)),
    st.sampled_from(("Auto", "Float32", "BFloat16")),
    st.sampled_from((None, 256, 4096)),
)
models = st.sampled_from((SMALL, shape("Qwen/Qwen3-8B"), LARGE, replace(SMALL, dtype="Q4_1")))
replica_counts = st.integers(0, 5)


def brute_force(
    wanted: TurboDeploymentSpec, model: ModelShape, there: Mapping[str, Accelerator], replicas: int
) -> tuple[Decimal, bool] | None:
    """Price and draftlessness of the best candidate, straight from the rules; None when there is none."""
    allowed = wanted.accelerators.allowed if wanted.accelerators else None
    budget = wanted.cost.max_per_hour if wanted.cost else None
    mode, ceiling = wanted.speculation.mode, wanted.speculation.max_draft_tokens
    ceilings = {"Auto": (0, ceiling), "Required": (ceiling,), "Disabled": (0,)}[mode]
    best: list[tuple[Decimal, bool]] = []
    for name, tokens in product(there.keys() & set(allowed or there), ceilings):
        row = there[name]
        cpu = row.resource_name == "cpu"
        size = {"Float32": 4, "BFloat16": 2, "Auto": 4 if cpu else 2}[wanted.model.dtype]
        length = wanted.model.max_model_len or model.max_position
        weights = (model.parameters + (model.vocab_size * model.hidden_size if cpu else 0)) * size
        cache = 2 * model.layers * model.kv_heads * model.head_dim * size * (length + tokens + 17)
        cache += -cache % (GIB // 64)
        logits = min(32 * (tokens + 1), 512) * model.vocab_size * 4
        held = weights + cache + logits
        if cpu and model.dtype == "Q4_1":
            held = max(held, 2 * weights)
        if held > int(0.95 * row.memory_bytes) - (3 * GIB // 2 if cpu else 2 * GIB):
            continue
        alone = allowed is not None and len(allowed) == 1 and budget is None
        if row.prices.get("OnDemand") is None and not alone:
            continue
        price = row.prices.get("OnDemand") or Decimal(0)
        if budget is None or price * replicas <= budget:
            best.append((price, tokens == 0))
    return min(best, default=None)


@given(specs, models, catalogues, replica_counts)
def test_the_choice_is_the_best_of_all_candidates(
    wanted: TurboDeploymentSpec, model: ModelShape, there: dict[str, Accelerator], replicas: int
) -> None:
    made = plan(wanted, model, there, replicas)
    best = brute_force(wanted, model, there, replicas)
    if best is None:
        assert made.choice is None
        assert made.reason != PlanReason.FEASIBLE
    else:
        assert made.choice is not None
        assert (
            made.choice.accelerator.prices.get("OnDemand") or Decimal(0),
            made.choice.method == "Off",
        ) == best


@given(specs, models, catalogues, replica_counts)
def test_no_plan_breaks_memory_or_budget(
    wanted: TurboDeploymentSpec, model: ModelShape, there: dict[str, Accelerator], replicas: int
) -> None:
    choice = plan(wanted, model, there, replicas).choice
    if choice is None:
        return
    row = choice.accelerator
    assert choice.memory_bytes <= row.memory_bytes
    size = 4 if choice.dtype == "float32" else 2
    one_request = memory.kv_bytes_per_token(model, choice.dtype) * choice.max_model_len
    assert choice.kv_cache_bytes >= one_request
    assert choice.kv_cache_bytes + model.parameters * size <= memory.usable(row)
    if wanted.cost and wanted.cost.max_per_hour is not None:
        assert choice.predicted.cost_per_hour is not None
        assert choice.predicted.cost_per_hour <= wanted.cost.max_per_hour


@given(specs, models, catalogues, replica_counts)
def test_the_same_input_gives_the_same_plan_whatever_the_order_of_the_catalogue(
    wanted: TurboDeploymentSpec, model: ModelShape, there: dict[str, Accelerator], replicas: int
) -> None:
    backwards = dict(reversed(there.items()))
    assert plan(wanted, model, there, replicas) == plan(wanted, model, backwards, replicas)


@given(specs, models, catalogues, st.integers(1, 5), budgets, budgets)
def test_a_tighter_budget_makes_no_plan_cheaper_and_none_feasible(
    wanted: TurboDeploymentSpec,
    model: ModelShape,
    there: dict[str, Accelerator],
    replicas: int,
    one: str | None,
    other: str | None,
) -> None:
    def planned(budget: str | None) -> Plan:
        fields = {**wanted.dump(), "cost": {"maxPerHour": budget} if budget else None}
        return plan(TurboDeploymentSpec.model_validate(fields), model, there, replicas)

    tight, wide = sorted(
        (one, other), key=lambda each: Decimal("Infinity") if each is None else Decimal(each)
    )
    narrow, loose = planned(tight).choice, planned(wide).choice
    if narrow is not None:
        assert loose is not None
        assert narrow.predicted.cost_per_hour == loose.predicted.cost_per_hour or tight is None


@given(specs, models, catalogues, replica_counts)
def test_every_accelerator_asked_for_is_chosen_or_rejected_with_a_sentence(
    wanted: TurboDeploymentSpec, model: ModelShape, there: dict[str, Accelerator], replicas: int
) -> None:
    made = plan(wanted, model, there, replicas)
    asked = (
        set(wanted.accelerators.allowed)
        if wanted.accelerators and wanted.accelerators.allowed
        else set(there)
    )
    told = {row.accelerator for row in made.rejected}
    if made.choice:
        told.add(made.choice.accelerator.name)
    assert told == asked
    for row in made.rejected:
        assert PlanReason(row.reason)
        assert row.detail.endswith(".")
    assert made.detail.endswith(".")


def test_a_dearer_accelerator_of_the_same_size_is_rejected_as_dearer() -> None:
    there = {each.name: each for each in (accelerator("cheap", 24, "0.80"), accelerator("dear", 24, "1.00"))}
    made = plan(spec(), SMALL, there, 2)
    assert made.choice is not None
    assert made.choice.accelerator.name == "cheap"
    assert made.choice.predicted.cost_per_hour == Decimal("1.60")
    assert ("dear", PlanReason.DEARER) in {(row.accelerator, row.reason) for row in made.rejected}


def test_at_equal_price_the_order_of_the_allowed_decides() -> None:
    there = {name: accelerator(name, 24, "1.00") for name in NAMES}
    made = plan(spec(accelerators={"allowed": ["gamma", "alpha"]}), SMALL, there, 1)
    assert made.choice is not None
    assert made.choice.accelerator.name == "gamma"


def test_a_missing_price_is_never_assumed() -> None:
    there = {"known": accelerator("known", 24, "9.00"), "unknown": accelerator("unknown", 24, None)}
    made = plan(spec(), SMALL, there, 1)
    assert made.choice is not None
    assert made.choice.accelerator.name == "known"
    (row,) = [row for row in made.rejected if row.accelerator == "unknown"]
    assert row.reason == PlanReason.PRICE_UNKNOWN


def test_an_unpriced_accelerator_serves_where_cost_decides_nothing() -> None:
    there = {"own": accelerator("own", 24, None)}
    alone = plan(spec(accelerators={"allowed": ["own"]}), SMALL, there, 1)
    assert alone.choice is not None
    assert alone.choice.predicted.cost_per_hour is None
    budgeted = plan(spec(accelerators={"allowed": ["own"]}, cost={"maxPerHour": "1.00"}), SMALL, there, 1)
    assert (budgeted.choice, budgeted.reason) == (None, PlanReason.PRICE_UNKNOWN)


def test_the_nearest_infeasible_plan_is_the_cheapest_that_fits() -> None:
    there = {
        "a": accelerator("a", 24, "5.00"),
        "b": accelerator("b", 24, "3.00"),
        "c": accelerator("c", 1, "0.10"),
    }
    made = plan(spec(cost={"maxPerHour": "1.00"}), SMALL, there, 1)
    assert made.reason == PlanReason.OVER_BUDGET
    assert "b fits and costs 3.00 $/h for 1 replica" in made.detail


def test_a_model_that_only_several_devices_hold_says_so() -> None:
    made = plan(spec(), LARGE, {"mid": accelerator("mid", 40, "2.00")}, 1)
    (row,) = made.rejected
    assert (row.tensor, row.reason) == (2, PlanReason.NOT_YET_SUPPORTED)


def test_a_context_that_does_not_fit_names_the_longest_that_would() -> None:
    there = {"card": accelerator("card", 24, "1.00")}
    model = shape("meta-llama/Llama-3.1-8B")
    made = plan(spec(), model, there, 1)
    assert made.choice is None
    longest = memory.longest_model_len(there["card"], model, "bfloat16", 8)
    assert f"up to {longest} tokens" in made.rejected[0].detail
    shorter = spec(model={"uri": "hf://a/b", "maxModelLen": longest})
    assert plan(shorter, model, there, 1).choice is not None
    longer = spec(model={"uri": "hf://a/b", "maxModelLen": longest + 512}, speculation={"mode": "Required"})
    assert plan(longer, model, there, 1).choice is None


def test_a_context_beyond_the_models_own_is_refused() -> None:
    made = plan(
        spec(model={"uri": "hf://a/b", "maxModelLen": 8193}), SMALL, {"a": accelerator("a", 24, "1")}, 1
    )
    assert made.choice is None
    assert "up to 8192" in made.detail


def test_an_unknown_accelerator_is_named() -> None:
    made = plan(spec(accelerators={"allowed": ["nowhere"]}), SMALL, catalogue(), 1)
    assert made.reason == PlanReason.NO_PROFILE
    assert "nowhere" in made.detail


def test_an_empty_catalogue_is_no_crash() -> None:
    assert plan(spec(), SMALL, {}, 1).reason == PlanReason.NO_PROFILE


def test_a_template_cannot_take_more_cores_or_leave_less_memory_than_was_counted() -> None:
    cores = accelerator("cores", 8, "0.04", "cpu")
    for name, amount in (("cpu", "16"), ("memory", "1Gi")):
        for part in ("requests", "limits"):
            asked = spec(template={"resources": {part: {name: amount}}})
            found = plan(asked, SMALL, {"cores": cores}, 1)
            assert (found.choice, found.reason) == (None, PlanReason.NOT_YET_SUPPORTED)
            assert f"spec.template.resources.{part}.{name}" in found.detail
            assert "choose another TurboAccelerator" in found.detail


def test_beside_a_device_a_template_may_take_cores_and_memory_but_not_too_little() -> None:
    card = {"card": accelerator("card", 24, "1.00")}
    more = spec(template={"resources": {"limits": {"cpu": "16", "memory": "64Gi"}}})
    assert plan(more, SMALL, card, 1).choice is not None
    found = plan(spec(template={"resources": {"limits": {"memory": "1Gi"}}}), SMALL, card, 1)
    assert (found.choice, found.reason) == (None, PlanReason.NOT_YET_SUPPORTED)
    assert "limits.memory is 1Gi" in found.detail


def test_a_misspelt_accelerator_is_told_which_there_are() -> None:
    there = {name: accelerator(name, 80, Decimal(1)) for name in ("beta", "alpha")}
    made = plan(spec(accelerators={"allowed": ["alpa"]}), SMALL, there, 1)
    assert made.reason == PlanReason.NO_PROFILE
    assert made.detail.startswith("There is no TurboAccelerator alpa:")
    assert made.detail.endswith("There are: alpha, beta.")
