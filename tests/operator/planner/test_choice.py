"""Single choices that say what a law cannot: ties, prices, and what cannot be chosen."""

from __future__ import annotations

from dataclasses import replace
from decimal import Decimal
from typing import Any

import pytest

from turbo_dev.plan_cases import changed, plan
from turbo_dev.plan_examples import (
    LARGE,
    LOAD,
    MIDDLE,
    NAMES,
    SHORT,
    SMALL,
    accelerator,
    fast,
    named,
    row_of,
    spec,
)
from turbo_operator.api import CapacityType, PlanReason
from turbo_operator.catalog import catalog
from turbo_operator.plan import Plan
from turbo_operator.snapshot import Supply


def test_a_dearer_accelerator_of_the_same_size_is_rejected_as_dearer() -> None:
    catalog = named(accelerator("cheap", 24, "0.80"), accelerator("dear", 24, "1.00"))
    result = plan(spec(replicas=2), SMALL, catalog)
    assert result.choice is not None
    assert result.choice.accelerator.name == "cheap"
    assert result.choice.predicted.cost_per_hour == Decimal("1.60")
    assert row_of(result, "dear", PlanReason.HIGHER_COST)


def test_at_equal_price_the_order_of_the_allowed_decides() -> None:
    catalog = named(*(accelerator(name, 24, "1.00") for name in NAMES))
    result = plan(spec(accelerators={"allowed": ["gamma", "alpha"]}), SMALL, catalog)
    assert result.choice is not None
    assert result.choice.accelerator.name == "gamma"


def test_at_equal_price_the_order_of_capacity_types_decides_and_a_cheaper_one_wins() -> None:
    both = {CapacityType.SPOT: Decimal("1"), CapacityType.ON_DEMAND: Decimal("1")}
    catalog = named(replace(accelerator("a", 24, None), prices=both))
    asked = spec(accelerators={"capacityTypes": ["Spot", "OnDemand"]})
    result = plan(asked, SMALL, catalog).choice
    assert result is not None
    assert result.capacity_type == CapacityType.SPOT
    dear_spot = named(replace(catalog["a"], prices={**both, CapacityType.SPOT: Decimal("2")}))
    result = plan(asked, SMALL, dear_spot).choice
    assert result is not None
    assert result.capacity_type == CapacityType.ON_DEMAND


@pytest.mark.parametrize(
    ("allowed", "said"),
    [(["cheap"], "no other accelerator is allowed"), (["cheap", "tiny"], "no other accelerator is feasible")],
)
def test_an_accelerator_without_a_rival_is_told_to_be_the_only_one_allowed_or_feasible(
    allowed: list[str], said: str
) -> None:
    catalog = named(accelerator("cheap", 24, "0.80"), accelerator("tiny", 1, "0.10"))
    assert said in plan(spec(accelerators={"allowed": allowed}), SMALL, catalog).detail


@pytest.mark.parametrize(
    ("resource", "asked", "planned"),
    [
        ("nvidia.com/gpu", {}, "bfloat16"),
        ("nvidia.com/gpu", {"dtype": "Float32"}, "float32"),
        ("cpu", {}, "float32"),
        ("cpu", {"dtype": "BFloat16"}, "bfloat16"),
    ],
)
def test_weights_in_float32_are_computed_in_bfloat16_on_accelerators_unless_the_spec_says_otherwise(
    resource: str, asked: dict[str, str], planned: str
) -> None:
    catalog = named(accelerator("a", 80, "1.00", resource))
    asked_spec = spec(model={"uri": "hf://a/b", **asked})
    choice = plan(asked_spec, replace(SMALL, dtype="float32"), catalog).choice
    assert choice is not None
    assert choice.dtype == planned


@pytest.mark.parametrize("mode", ["Planned", "External", "Metrics"])
def test_of_whole_nodes_the_replica_that_takes_most_load_is_chosen_where_the_plan_says_how_many_run(
    mode: str,
) -> None:
    """Found in a trial: of two plans at the price of one node the slower one was chosen.

    Somebody who adds replicas fills the node with the smallest ones at no further cost.
    """
    asked = {"engine": {}, "speculation": {"mode": "Disabled"}, "workload": LOAD, "scaling": {"mode": mode}}
    whole = named(fast("a", 80, "1.00", price_per_node=True))
    result = plan(spec(model=SHORT, **asked), MIDDLE, whole)
    assert result.choice is not None
    assert result.choice.predicted.cost_per_hour == Decimal(8)
    assert result.choice.tensor == (8 if mode == "Planned" else 1)
    lost = row_of(result, "a", PlanReason.NOT_PREFERRED).detail
    assert "fits at the cost of the same node, but " in lost
    assert ("takes less load than 8 x a." in lost) == (mode == "Planned")
    by_card = plan(spec(model=SHORT, **asked), MIDDLE, named(fast("a", 80, "1.00"))).choice
    assert by_card is not None
    assert by_card.tensor == 1


def test_a_missing_price_is_never_assumed() -> None:
    catalog = named(accelerator("known", 24, "9.00"), accelerator("unknown", 24, None))
    result = plan(spec(), SMALL, catalog)
    assert result.choice is not None
    assert result.choice.accelerator.name == "known"
    assert row_of(result, "unknown", PlanReason.PRICE_UNKNOWN)


def test_prices_that_all_lack_are_told_of_all_and_none_is_nearest() -> None:
    """Found in a trial: the first of the alphabet was called nearest, or one that misses the target."""
    catalog = named(fast("a", 80, "1"), fast("b", 80, "2"), fast("slow", 80, "3", memory_bandwidth=1e10))
    asked = {"workload": LOAD, "targets": {"timePerOutputToken": {"max": "50ms"}}}
    result = plan(spec(model=SHORT, accelerators={"capacityTypes": ["Spot"]}, **asked), MIDDLE, catalog)
    assert (result.choice, result.reason, result.nearest) == (None, PlanReason.PRICE_UNKNOWN, None)
    assert result.detail == (
        "No plan is feasible. The Spot prices of all that would do are unknown: write "
        "spec.pricing.perAcceleratorHour.spot on TurboAccelerator a or b, or OnDemand in "
        "spec.accelerators.capacityTypes."
    )


def test_a_spot_price_is_the_users_or_unknown() -> None:
    result = plan(
        spec(accelerators={"allowed": ["a"], "capacityTypes": ["Spot"]}), SMALL, named(fast("a", 24, "1"))
    )
    assert (result.choice, result.reason) == (None, PlanReason.PRICE_UNKNOWN)
    assert "spec.pricing.perAcceleratorHour.spot" in result.detail


def test_an_unpriced_accelerator_serves_where_cost_decides_nothing() -> None:
    catalog = named(accelerator("own", 24, None))
    alone = plan(spec(accelerators={"allowed": ["own"]}), SMALL, catalog)
    assert alone.choice is not None
    assert alone.choice.predicted.cost_per_hour is None
    budgeted = plan(spec(accelerators={"allowed": ["own"]}, cost={"maxPerHour": "1.00"}), SMALL, catalog)
    assert (budgeted.choice, budgeted.reason) == (None, PlanReason.PRICE_UNKNOWN)


def test_the_nearest_infeasible_plan_is_the_cheapest_that_fits() -> None:
    catalog = named(accelerator("a", 24, "5.00"), accelerator("b", 24, "3.00"), accelerator("c", 1, "0.10"))
    result = plan(spec(cost={"maxPerHour": "1.00"}), SMALL, catalog)
    assert result.reason == PlanReason.BUDGET_EXCEEDED
    assert "b fits and costs 3.00 $/h for 1 replica" in result.detail
    assert result.nearest == result.rejected[0]


def test_what_has_no_price_is_not_told_as_nearest_before_what_has_one() -> None:
    catalog = named(accelerator("free", 80, None), accelerator("paid", 80, "9.00"))
    result = plan(spec(replicas=2), SMALL, catalog, {"free": Supply(), "paid": Supply()})
    assert result.nearest is not None
    assert [row.accelerator for row in (result.nearest, *result.rejected)] == ["paid", "paid", "free"]


def test_what_misses_a_target_by_little_is_told_with_how_much() -> None:
    slow, quick = fast("slow", 80, "1.00", memory_bandwidth=2.9e12), fast("quick", 80, "9.00")
    asked = {"model": SHORT, "workload": {**LOAD, "requestsPerSecond": "0.1"}, "parallelism": {"tensor": 1}}
    free = plan(spec(**asked), MIDDLE, named(quick)).choice
    assert free is not None
    assert free.predicted.time_per_output_token is not None
    bound = round(free.predicted.time_per_output_token * 1020, 2)  # ms: 2 % above what the quick one does
    result = plan(
        spec(**asked, targets={"timePerOutputToken": {"max": f"{bound}ms"}}), MIDDLE, named(slow, quick)
    )
    assert result.choice is not None
    assert result.choice.accelerator.name == "quick"
    assert result.nearest is not None
    assert result.nearest.accelerator == "slow"
    assert result.nearest.predicted is not None
    assert result.nearest.predicted.time_per_output_token is not None
    assert bound / 1000 < result.nearest.predicted.time_per_output_token <= bound / 1000 * 1.25
    assert "miss spec.targets.timePerOutputToken by" in result.nearest.detail


def test_a_model_that_only_several_devices_hold_says_so() -> None:
    whole = replace(LARGE, architecture="Gemma3ForCausalLM")
    result = plan(spec(), whole, named(accelerator("mid", 40, "2.00")))
    (row,) = result.rejected
    assert (row.tensor, row.reason) == (2, PlanReason.NOT_YET_SUPPORTED)
    assert "2 together would" in row.detail


def test_a_context_that_does_not_fit_names_the_longest_that_would() -> None:
    catalog = named(replace(accelerator("card", 24, "1.00"), count_per_node=1))
    result = plan(spec(engine={"type": "Turbo"}), MIDDLE, catalog)
    assert result.choice is None
    longest = int(result.rejected[0].detail.partition("requests of up to ")[2].split()[0])
    fits = spec(model={"uri": "hf://a/b", "maxModelLen": longest}, speculation={"mode": "Required"})
    assert plan(fits, MIDDLE, catalog).choice is not None
    longer = spec(model={"uri": "hf://a/b", "maxModelLen": longest + 512}, speculation={"mode": "Required"})
    assert plan(longer, MIDDLE, catalog).choice is None


def test_a_context_beyond_the_models_own_is_refused() -> None:
    asked = spec(model={"uri": "hf://a/b", "maxModelLen": 8193})
    result = plan(asked, SMALL, named(accelerator("a", 24, "1")))
    assert result.choice is None
    assert "up to 8192" in result.detail


def test_an_unknown_accelerator_is_named() -> None:
    result = plan(spec(accelerators={"allowed": ["nowhere"]}), SMALL, catalog())
    assert result.reason == PlanReason.ACCELERATOR_NOT_FOUND
    assert "nowhere" in result.detail


def test_a_misspelt_accelerator_is_told_which_there_are() -> None:
    catalog = named(*(accelerator(name, 80, "1") for name in ("beta", "alpha")))
    result = plan(spec(accelerators={"allowed": ["alpa"]}), SMALL, catalog)
    assert result.reason == PlanReason.ACCELERATOR_NOT_FOUND
    assert result.detail.startswith("There is no TurboAccelerator alpa:")
    assert result.detail.endswith("There are: alpha, beta.")


def test_an_empty_catalog_is_no_crash() -> None:
    assert plan(spec(), SMALL, {}).reason == PlanReason.ACCELERATOR_NOT_FOUND


def test_a_template_cannot_take_more_cores_or_leave_less_memory_than_was_counted() -> None:
    cores = named(accelerator("cores", 8, "0.04", "cpu"))
    for name, amount in (("cpu", "16"), ("memory", "1Gi")):
        for part in ("requests", "limits"):
            actual = plan(spec(podTemplate={"spec": {"resources": {part: {name: amount}}}}), SMALL, cores)
            assert (actual.choice, actual.reason) == (None, PlanReason.NOT_YET_SUPPORTED)
            assert f"spec.podTemplate.spec.resources.{part}.{name}" in actual.detail
            assert "choose another TurboAccelerator" in actual.detail


def test_beside_a_device_a_template_may_take_cores_and_memory_but_not_too_little() -> None:
    card = named(accelerator("card", 24, "1.00"))
    more = spec(podTemplate={"spec": {"resources": {"limits": {"cpu": "16", "memory": "64Gi"}}}})
    assert plan(more, SMALL, card).choice is not None
    actual = plan(spec(podTemplate={"spec": {"resources": {"limits": {"memory": "1Gi"}}}}), SMALL, card)
    assert (actual.choice, actual.reason) == (None, PlanReason.NOT_YET_SUPPORTED)
    assert "limits.memory is 1Gi" in actual.detail


def test_an_accelerator_without_a_profile_serves_until_speed_is_asked_for() -> None:
    catalog = named(accelerator("plain", 80, "1.00"))
    result = plan(spec(), SMALL, catalog)
    assert result.choice is not None
    assert result.choice.capacity is None
    assert result.choice.predicted.time_per_output_token is None
    asked = plan(spec(workload=LOAD), SMALL, catalog)
    assert (asked.choice, asked.reason) == (None, PlanReason.PERFORMANCE_UNKNOWN)
    assert "spec.memoryBandwidthGBps and spec.tflops" in asked.detail
    assert "There are" not in asked.detail  # it is there, and another name would be no remedy


def figures(found: Plan) -> list[Any]:
    """All that is told of each candidate but what it is called."""
    made = found.choice
    chosen = made and (made.engine, made.method, made.capacity, made.predicted)
    return [chosen, *((r.engine, r.method, r.tensor, r.reason, r.predicted) for r in found.rejected)]


@pytest.mark.parametrize("name", [name for name, row in catalog().items() if row.memory_bandwidth])
def test_no_time_depends_on_what_an_accelerator_or_a_model_is_called(name: str) -> None:
    """What is an accelerator's own stands in the catalog's efficiency, whatever its name."""
    row = replace(catalog()[name], prices={CapacityType.ON_DEMAND: Decimal(1)}, max_count=64)
    asked, other = spec(workload=LOAD), replace(row, name="other")
    told: list[Any] = []
    for known in (SMALL, MIDDLE):
        expected = plan(asked, known, named(row))
        told += [expected.choice, *expected.rejected]
        renamed = changed(asked, model={"uri": "hf://other/model"})
        unlike = replace(known, architecture="MistralForCausalLM")
        assert figures(plan(renamed, unlike, named(other))) == figures(expected)
    assert any(one and one.predicted and one.predicted.time_per_output_token for one in told)
