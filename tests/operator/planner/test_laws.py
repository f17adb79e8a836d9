"""The planner's laws for any spec, catalog and supply."""

from __future__ import annotations

from dataclasses import replace
from decimal import Decimal
from typing import Any

from hypothesis import assume, given, settings
from hypothesis import strategies as st

from turbo_dev.plan_cases import (
    NOW,
    accelerators,
    budgets,
    catalogs,
    cents,
    changed,
    latency,
    models,
    specs,
    supplies,
)
from turbo_dev.plan_referee import (
    cost_of,
    planned,
    room,
)
from turbo_dev.sizes import size
from turbo_operator.api import PlanReason, TurboDeploymentSpec
from turbo_operator.budget import footprint_of
from turbo_operator.plan import Choice, Running
from turbo_operator.planner import PlannerInputs, frontier
from turbo_operator.planner.feasibility import CODES
from turbo_operator.planner.performance import memory
from turbo_operator.planner.requirements import demand
from turbo_operator.snapshot import Accelerator, Supply
from turbo_runtime.contract.documents import ModelShape

several = settings(max_examples=size(25, 50))  # of laws that compare plans, each of which takes its time


@settings(max_examples=size(50, 100))
@given(specs(), models, catalogs, supplies)
def test_no_plan_breaks_memory_budget_or_supply(
    wanted: TurboDeploymentSpec,
    model: ModelShape,
    catalog: dict[str, Accelerator],
    supply: dict[str, Supply] | None,
) -> None:
    result = planned(wanted, model, catalog, supply)
    choice = result.choice
    if choice is None:
        return
    row = choice.accelerator
    assert choice.memory_bytes <= row.memory_bytes
    width = 4 if choice.dtype == "float32" else 2
    one_request = memory.kv_bytes(model, width, choice.tensor, choice.max_model_len) * choice.max_model_len
    assert choice.kv_cache_bytes >= one_request
    assert choice.kv_cache_bytes + model.parameters * width / choice.tensor <= memory.usable(row)
    if wanted.cost and wanted.cost.max_per_hour is not None:
        assert choice.predicted.cost_per_hour is not None
        assert choice.predicted.cost_per_hour <= wanted.cost.max_per_hour
    accelerators = result.replicas * choice.accelerators_per_replica
    assert result.replicas <= 1000
    assert all(accelerators <= bound for bound in room(wanted, row, supply, choice.capacity_type)[1:])
    asked = demand(wanted)
    # Under External the load decides which candidate, somebody else how many.
    if asked.tokens_per_second and asked.concurrency and wanted.scaling_mode != "External":
        assert choice.predicted.tokens_per_second is not None
        assert choice.predicted.tokens_per_second >= asked.tokens_per_second * (1 - 1e-9)


def by_load(wanted: TurboDeploymentSpec) -> TurboDeploymentSpec:
    """The same, where a plan's cost is what it is chosen by: under External somebody else decides how many of
    the candidate run that is the cheapest for the load.
    """
    return changed(wanted, scaling={"mode": "Planned"}) if wanted.scaling_mode == "External" else wanted


@several
@given(specs(), models, catalogs, supplies)
def test_the_same_input_gives_the_same_plan_whatever_the_order_of_the_catalog(
    wanted: TurboDeploymentSpec,
    model: ModelShape,
    catalog: dict[str, Accelerator],
    supply: dict[str, Supply] | None,
) -> None:
    backwards = dict(reversed(catalog.items()))
    assert planned(wanted, model, catalog, supply) == planned(wanted, model, backwards, supply)


@several
@given(specs(), models, catalogs, budgets, budgets)
def test_a_larger_budget_takes_no_plan_away(
    wanted: TurboDeploymentSpec,
    model: ModelShape,
    catalog: dict[str, Accelerator],
    one: str | None,
    other: str | None,
) -> None:
    tight, wide = sorted(
        (one, other), key=lambda item: Decimal("Infinity") if item is None else Decimal(item)
    )
    asked = by_load(wanted)
    narrow = planned(
        changed(asked, cost={"maxPerHour": tight} if tight else {}, planPolicy={}), model, catalog
    )
    loose = planned(changed(asked, cost={"maxPerHour": wide} if wide else {}, planPolicy={}), model, catalog)
    if narrow.choice is not None and tight is not None:
        assert cost_of(loose) == cost_of(narrow) or (loose.choice is None and wide is None)
    if narrow.choice is not None and wide is not None:
        assert loose.choice is not None


@several
@given(specs(), models, catalogs, supplies, latency, latency)
def test_a_tighter_target_is_never_cheaper(
    wanted: TurboDeploymentSpec,
    model: ModelShape,
    catalog: dict[str, Accelerator],
    supply: dict[str, Supply] | None,
    one: str,
    other: str,
) -> None:
    tight, wide = sorted((one, other), key=lambda item: float(item[:-2]))
    rest = {"workload": {"requestsPerSecond": "3"}, "cost": {}, "planPolicy": {}}
    asked = by_load(wanted)
    narrow, loose = (
        planned(
            changed(asked, **rest, targets={"timePerOutputToken": {"max": item}}),
            model,
            catalog,
            supply,
        )
        for item in (tight, wide)
    )
    assert cost_of(loose) <= cost_of(narrow)


@several
@given(specs(), models, catalogs, accelerators("omega"))
def test_one_more_accelerator_to_choose_from_is_never_dearer(
    wanted: TurboDeploymentSpec, model: ModelShape, catalog: dict[str, Accelerator], new: Accelerator
) -> None:
    every = changed(by_load(wanted), accelerators={"capacityTypes": ["OnDemand"]}, cost={}, planPolicy={})
    assert cost_of(planned(every, model, {**catalog, "omega": new})) <= cost_of(
        planned(every, model, catalog)
    )


@several
@given(specs(), models, catalogs, supplies)
def test_more_supply_is_never_dearer(
    wanted: TurboDeploymentSpec,
    model: ModelShape,
    catalog: dict[str, Accelerator],
    supply: dict[str, Supply] | None,
) -> None:
    asked = changed(by_load(wanted), cost={}, planPolicy={})
    assert cost_of(planned(asked, model, catalog, None)) <= cost_of(planned(asked, model, catalog, supply))


@several
@given(specs(), models, accelerators("alpha"), cents)
def test_a_dearer_accelerator_is_never_chosen_at_equal_capacity(
    wanted: TurboDeploymentSpec, model: ModelShape, row: Accelerator, extra: int
) -> None:
    assume(extra > 0)
    dear = replace(
        row, name="aaa", prices={kind: price + Decimal(extra) / 100 for kind, price in row.prices.items()}
    )  # first by its name
    asked = changed(wanted, accelerators={"capacityTypes": ["OnDemand"]}, cost={}, planPolicy={})
    result = planned(asked, model, {"alpha": row, "aaa": dear})
    assert result.choice is None or result.choice.accelerator.name == "alpha"


@several
@given(specs(), models, catalogs)
def test_without_drafts_is_always_a_candidate(
    wanted: TurboDeploymentSpec, model: ModelShape, catalog: dict[str, Accelerator]
) -> None:
    open_, off = (
        planned(changed(by_load(wanted), speculation={"mode": mode}, cost={}, planPolicy={}), model, catalog)
        for mode in ("Auto", "Disabled")
    )
    assert cost_of(open_) <= cost_of(off)


@several
@given(specs(), models, catalogs, supplies)
def test_what_runs_stays_unless_another_saves_enough(
    wanted: TurboDeploymentSpec,
    model: ModelShape,
    catalog: dict[str, Accelerator],
    supply: dict[str, Supply] | None,
) -> None:
    rest = {"cost": {}, "planPolicy": {"minSavingFraction": "0.30"}, "replicas": max(1, wanted.replicas)}
    asked = changed(by_load(wanted), accelerators={"capacityTypes": ["OnDemand"]}, **rest)
    best = planned(asked, model, catalog, supply)
    for name in catalog:
        alone = changed(asked, accelerators={"allowed": [name], "capacityTypes": ["OnDemand"]})
        own = planned(alone, model, catalog, supply).choice
        if own is None or own.predicted.cost_per_hour is None:
            continue
        assert best.choice is not None
        now = planned(asked, model, catalog, supply, running=running(own)).choice
        assert now is not None
        least, enough = Decimal(cost_of(best)), own.predicted.cost_per_hour * Decimal("0.70")
        stays = least > enough or least == own.predicted.cost_per_hour
        expected = own if stays else best.choice
        assert now.accelerator.name == expected.accelerator.name


def running(choice: Choice) -> Running:
    return Running(
        choice.accelerator.name,
        choice.tensor,
        choice.method,
        choice.engine,
        choice.capacity_type,
        choice.nodes,
        choice.data,
        choice.placement,
    )


@settings(max_examples=size(50, 100))
@given(specs(), models, catalogs, supplies)
def test_every_accelerator_asked_for_is_chosen_or_rejected_with_a_sentence(
    wanted: TurboDeploymentSpec,
    model: ModelShape,
    catalog: dict[str, Accelerator],
    supply: dict[str, Supply] | None,
) -> None:
    result = planned(wanted, model, catalog, supply)
    allowed = wanted.accelerators.allowed if wanted.accelerators else None
    asked = set(allowed) if allowed else set(catalog)
    reported = {row.accelerator for row in result.rejected}
    if result.choice:
        reported.add(result.choice.accelerator.name)
    assert reported == asked
    for row in result.rejected:
        assert PlanReason(row.reason)
        assert row.detail.endswith(".")
    assert result.detail.endswith(".")


@several
@given(specs(), models, catalogs, supplies)
def test_the_frontier_holds_the_choice(
    wanted: TurboDeploymentSpec,
    model: ModelShape,
    catalog: dict[str, Accelerator],
    supply: dict[str, Supply] | None,
) -> None:
    result = planned(wanted, model, catalog, supply)
    points = frontier(PlannerInputs(wanted, model, catalog, supply, None, {}, None), NOW)
    feasible = [item for item in points if item.reason == PlanReason.FEASIBLE]
    if result.choice is None:
        assert not feasible
    elif result.choice.capacity is not None:
        best = feasible[0]
        assert (best.accelerator, best.capacity_type, best.method) == (
            result.choice.accelerator.name,
            result.choice.capacity_type,
            result.choice.method,
        )


def test_the_generated_cases_reach_every_outcome_and_often_many_replicas() -> None:
    """The strategies are no use where all their plans end alike. The same cases every time."""
    seen: set[str] = set()
    counts: list[int] = []

    @settings(derandomize=True, max_examples=200)
    @given(specs(), models, catalogs, supplies)
    def look(wanted: TurboDeploymentSpec, model: ModelShape, catalog: Any, supply: Any) -> None:
        result = planned(wanted, model, catalog, supply)
        seen.update([result.reason, *(row.reason for row in result.rejected)])
        if result.choice is not None:
            counts.append(result.replicas)

    look()
    assert seen >= set(CODES)
    assert sum(count > 3 for count in counts) > len(counts) / 8


@several
@given(specs(), models, catalogs, supplies, st.integers(0, 5))
def test_another_number_of_external_replicas_is_the_same_candidate_unless_stock_or_money_decides(
    wanted: TurboDeploymentSpec,
    model: ModelShape,
    catalog: dict[str, Accelerator],
    supply: dict[str, Supply] | None,
    count: int,
) -> None:
    one, other = (
        changed(wanted, scaling={"mode": "External"}, replicas=replicas)
        for replicas in (wanted.replicas, count)
    )
    before, after = (planned(item, model, catalog, supply) for item in (one, other))
    if before.choice is None:
        return
    was = before.choice
    if after.choice is not None and running(after.choice) == running(was):
        assert after.replicas == count
        return
    forbidden = {PlanReason.INSUFFICIENT_CAPACITY, PlanReason.BUDGET_EXCEEDED}
    if after.choice is None:
        assert forbidden & {row.reason for row in after.rejected}
        return
    # One of the two may not run as often as is asked there: the other's count forbids the better one.
    name, it = was.accelerator.name, after.choice.accelerator.name
    failed = {row.accelerator for row in (*after.rejected, *before.rejected) if row.reason in forbidden}
    # Or nodes are bought whole: what fills them is the cheaper one of so many, and not of fewer.
    footprints = (footprint_of(choice, wanted.pod_template.spec) for choice in (was, after.choice))
    old, new = (footprint.cost_per_hour(max(count, 1)) for footprint in footprints)
    is_whole = was.accelerator.price_per_node or after.choice.accelerator.price_per_node
    assert {name, it} & failed or (is_whole and old is not None and new is not None and new < old)
