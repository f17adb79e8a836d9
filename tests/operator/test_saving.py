"""What speculation saves: never more than was measured, nor than the plan without it costs more."""

from __future__ import annotations

from dataclasses import replace
from decimal import Decimal
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from turbo_dev.trainings import CORES, seen
from turbo_operator import planner
from turbo_operator.api import Saving, parse
from turbo_operator.catalog import shapes
from turbo_operator.plan import Plan
from turbo_operator.snapshot import Accelerator, PodView, Snapshot
from turbo_operator.status.saving import is_saving_asked, saving

FAST = replace(CORES, memory_bandwidth=50e9, flops={"bf16": 4e12, "fp32": 2e12})
SHAPE = shapes.shipped("HuggingFaceTB/SmolLM2-135M")
assert SHAPE is not None


def td(**spec: Any) -> Any:
    return parse(
        {
            "apiVersion": "serving.turbo.dev/v1alpha1",
            "kind": "TurboDeployment",
            "metadata": {"name": "chat", "namespace": "team", "uid": "u", "generation": 1},
            "spec": {"model": {"uri": "pvc://models/chat"}, **spec},
        }
    )


def running(pods: int, row: Accelerator = FAST) -> Snapshot:
    rows = tuple(
        PodView(f"p{number}", "v1", "Running", True, "10.0.0.1", None, None, accelerator=row.name)
        for number in range(pods)
    )
    return seen(accelerators={row.name: row}, supply=None, pods=rows)


def undrafted(rate: str) -> Plan:
    it = td(workload={"requestsPerSecond": rate}, speculation={"mode": "Disabled"})
    return planner.plan(planner.build_inputs(it, SHAPE, running(0)), 0.0)


def test_it_is_what_the_plan_without_speculation_costs_more() -> None:
    plan = undrafted("40")
    assert plan.choice is not None
    few = plan.replicas * plan.choice.accelerators_per_replica - 1
    assert few > 0
    found = saving(running(few), plan, "9.00")
    assert found == Saving(accelerators=1, per_hour="0.04")


def test_it_is_bounded_by_the_measured_speedup() -> None:
    assert saving(running(4), undrafted("400"), "1.50") == Saving(accelerators=2, per_hour="0.08")
    assert saving(running(4), undrafted("400"), "0.90") == Saving(accelerators=0, per_hour="0.00")


def test_what_nothing_reaches_without_speculation_counts_by_the_speedup_alone() -> None:
    it = td(targets={"timePerOutputToken": {"max": "1ms"}}, workload={"requestsPerSecond": "1"})
    none = planner.plan(planner.build_inputs(it, SHAPE, running(0)), 0.0)
    assert none.choice is None
    assert saving(running(2), none, "2.00") == Saving(accelerators=2, per_hour="0.08")


def test_nothing_is_said_before_a_speedup_is_measured_or_without_a_price() -> None:
    plan = undrafted("40")
    assert saving(running(2), plan, None) is None
    assert saving(running(2), None, "2.00") is None
    assert saving(running(2, replace(FAST, prices={})), plan, "2.00") is None
    assert saving(running(0), plan, "2.00") is None


@given(st.integers(1, 20), st.decimals("0.5", "9", places=2), st.sampled_from(["1", "40", "400"]))
def test_it_is_never_more_than_either_bound(pods: int, speedup: Decimal, rate: str) -> None:
    observed, plan = running(pods), undrafted(rate)
    found = saving(observed, plan, str(speedup))
    assert found is not None
    cost = Decimal("0.04") * pods
    assert plan.choice is not None
    assert plan.choice.predicted.cost_per_hour is not None
    assert Decimal(0) <= Decimal(found.per_hour) <= max(Decimal(0), cost * (speedup - 1)) + Decimal("0.0001")
    more = plan.choice.predicted.cost_per_hour - cost
    assert Decimal(found.per_hour) <= max(Decimal(0), more) + Decimal("0.0001")


@pytest.mark.parametrize(
    ("spec", "asked"),
    [
        ({"workload": {"requestsPerSecond": "4"}}, True),
        ({"workload": {"requestsPerSecond": "4"}, "speculation": {"mode": "Disabled"}}, False),
        ({}, False),
        ({"workload": {"requestsPerSecond": "4"}, "scaling": {"mode": "External"}}, False),
    ],
)
def test_it_is_asked_where_the_planner_decides_what_drafts_are_worth(
    spec: dict[str, Any], asked: bool
) -> None:
    it = td(**spec)
    plan = planner.plan(planner.build_inputs(it, SHAPE, running(0)), 0.0)
    assert plan.choice is not None
    assert is_saving_asked(it, plan) is asked
