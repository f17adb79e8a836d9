"""Where nothing is missing but room, as many replicas run as fit."""

from __future__ import annotations

from decimal import Decimal
from typing import Any

from turbo_dev.plan_cases import plan
from turbo_operator.api import CapacityType, PlanReason, TurboDeploymentSpec
from turbo_operator.catalog import shapes
from turbo_operator.plan import Running
from turbo_operator.snapshot import Accelerator, NodeSupply, Supply

SHAPE = shapes.shipped("HuggingFaceTB/SmolLM2-135M")
assert SHAPE is not None
PRICE = {CapacityType.ON_DEMAND: Decimal("0.04")}
CPU = Accelerator("cpu", "cpu", Decimal(2), 6 << 30, prices=PRICE)
BIG = Accelerator("big", "cpu", Decimal(4), 12 << 30, prices=PRICE)


def spec(**fields: Any) -> TurboDeploymentSpec:
    return TurboDeploymentSpec.model_validate({"model": {"uri": "pvc://models/chat"}, **fields})


def free(**accelerators: int) -> dict[str, Supply]:
    return {name: Supply((NodeSupply("n", 8, count),)) for name, count in accelerators.items()}


def running(name: str) -> Running:
    return Running(name, 1, "Suffix")


def test_as_many_replicas_as_fit_are_served_of_a_plan_that_says_how_many_do_not() -> None:
    actual = plan(spec(replicas=3), SHAPE, {"cpu": CPU}, free(cpu=2))
    assert (actual.choice, actual.reason, actual.replicas) == (
        None,
        PlanReason.INSUFFICIENT_CAPACITY,
        3,
    )
    assert actual.served is not None
    assert actual.served.accelerator.name == "cpu"
    assert actual.detail.startswith("Not all of 3 replicas fit: 3 replicas of cpu are needed, and ")
    assert actual.detail.endswith("2 of 3 replicas on cpu can run until then.")
    assert actual.served.predicted.cost_per_hour == Decimal("0.08"), "of those that run"


def test_where_not_one_replica_fits_nothing_is_served_but_what_runs() -> None:
    assert plan(spec(), SHAPE, {"cpu": CPU}, free(cpu=0)).served is None
    kept = plan(spec(), SHAPE, {"cpu": CPU}, free(cpu=0), running=running("cpu"))
    assert kept.served is not None
    assert "0 of 1 replica on cpu can run" in kept.detail


def test_the_one_that_comes_closest_is_served_unless_another_runs() -> None:
    catalog, supply = {"cpu": CPU, "big": BIG}, free(cpu=1, big=2)
    actual = plan(spec(replicas=3), SHAPE, catalog, supply)
    assert actual.served is not None
    assert actual.served.accelerator.name == "big"
    stays = plan(spec(replicas=3), SHAPE, catalog, supply, running=running("cpu"))
    assert stays.served is not None
    assert stays.served.accelerator.name == "cpu"


def test_what_is_short_of_money_is_not_served_in_part() -> None:
    over = plan(spec(replicas=3, cost={"maxPerHour": "0.08"}), SHAPE, {"cpu": CPU}, free(cpu=8))
    assert (over.reason, over.served) == (PlanReason.BUDGET_EXCEEDED, None)


def test_a_total_that_is_too_low_leaves_as_many_as_it_allows() -> None:
    actual = plan(spec(replicas=3, accelerators={"maxTotal": 2}), SHAPE, {"cpu": CPU}, free(cpu=8))
    assert actual.served is not None
    assert "2 of 3 replicas on cpu" in actual.detail


def test_what_fits_in_whole_is_chosen_before_what_fits_in_part() -> None:
    actual = plan(spec(replicas=3), SHAPE, {"cpu": CPU, "big": BIG}, free(cpu=2, big=3))
    assert actual.choice is not None
    assert (actual.choice.accelerator.name, actual.partial) == ("big", None)
