"""Replicas, stock, quota and money, and what predictions rest on, example by example."""

from __future__ import annotations

from decimal import Decimal

import pytest

from turbo_dev.plan_cases import plan
from turbo_dev.plan_examples import GIB, LOAD, MIDDLE, SHORT, SMALL, fast, named, row_of, spec
from turbo_operator.api import PlanReason, Provenance
from turbo_operator.planner.performance.step_time import Calibration
from turbo_operator.snapshot import Host, NodeSupply, Supply


def test_too_few_external_replicas_serve_and_the_plan_says_so() -> None:
    catalog = named(fast("a", 80, "1.00", memory_bandwidth=3e11))
    load = {**LOAD, "requestsPerSecond": "30"}
    need = plan(spec(model=SHORT, workload=load), MIDDLE, catalog).replicas
    assert need > 1
    for count in (0, need - 1, need):
        asked = spec(model=SHORT, workload=load, scaling={"mode": "External"}, replicas=count)
        result = plan(asked, MIDDLE, catalog)
        assert result.choice is not None
        assert result.replicas == count
        assert result.choice.predicted.cost_per_hour == count
        message = f"The load needs {need}, spec.replicas is {count}."
        assert result.detail.endswith(message) == (count < need)


@pytest.mark.parametrize("count", [0, 1, 9])
def test_rows_beside_external_replicas_speak_of_the_number_that_they_are_compared_by(count: int) -> None:
    """A row of one replica that is called dearer by what two cost cannot be checked by anybody."""
    slow = {"memory_bandwidth": 3e11}
    catalog = named(fast("a", 80, "1.00", **slow), fast("b", 80, "7.00"), fast("c", 80, "2.00", **slow))
    load = {**LOAD, "requestsPerSecond": "9"}
    asked = spec(model=SHORT, workload=load, scaling={"mode": "External"}, replicas=count)
    needed = plan(spec(model=SHORT, workload=load), MIDDLE, catalog)
    result = plan(asked, MIDDLE, catalog)
    assert needed.replicas > 1
    for name in ("b", "c"):
        reported, same = (row_of(item, name, PlanReason.HIGHER_COST) for item in (result, needed))
        assert (reported.replicas, reported.detail) == (same.replicas, same.detail)
        assert reported.predicted == same.predicted


def test_what_misses_by_little_is_told_with_as_many_external_replicas_as_the_load_needs() -> None:
    catalog = named(fast("slow", 80, "0.50", memory_bandwidth=2.9e12), fast("quick", 80, "1.00"))
    load = {**LOAD, "requestsPerSecond": "40"}
    asked = {"model": SHORT, "workload": load, "targets": {"timePerOutputToken": {"max": "12ms"}}}
    planned = plan(spec(**asked), MIDDLE, catalog)
    result = plan(spec(**asked, scaling={"mode": "External"}, replicas=1), MIDDLE, catalog)
    assert planned.nearest is not None
    assert planned.nearest.replicas != 1
    assert result.nearest == planned.nearest


def test_what_no_number_of_external_replicas_reaches_is_no_plan() -> None:
    targets = {"timePerOutputToken": {"max": "1ms"}}
    asked = spec(model=SHORT, targets=targets, scaling={"mode": "External"}, replicas=9)
    result = plan(asked, MIDDLE, named(fast("a", 80, "1.00")))
    assert (result.choice, result.reason) == (None, PlanReason.TARGET_UNREACHABLE)


def test_a_fixed_class_with_too_few_nodes_is_no_capacity_with_the_remedy() -> None:
    catalog = named(fast("a", 80, "1.00"))
    supply = {"a": Supply((NodeSupply("n1", 8, 1), NodeSupply("n2", 8, 1)))}
    assert plan(spec(replicas=2), SMALL, catalog, supply).choice is not None
    result = plan(spec(replicas=3), SMALL, catalog, supply)
    assert (result.choice, result.reason) == (None, PlanReason.INSUFFICIENT_CAPACITY)
    assert "3 replicas of a are needed, and the cluster has 2 of 16 a free on 2 nodes" in result.detail
    assert "provisioning: Elastic" in result.detail
    other = {**catalog, "b": fast("b", 80, "5.00")}
    both = {**supply, "b": Supply((NodeSupply("n3", 8, 8),))}
    moved = plan(spec(replicas=3), SMALL, other, both)
    assert moved.choice is not None
    assert moved.choice.accelerator.name == "b"


def test_an_elastic_class_that_a_pod_waited_for_in_vain_is_passed_over_for_a_while() -> None:
    elastic = fast("a", 80, "1.00", provisioning="Elastic")
    catalog = named(elastic, fast("b", 80, "5.00", provisioning="Elastic"))
    supply = {"a": Supply(unavailable_until=100.0), "b": Supply()}
    passed = plan(spec(), SMALL, catalog, supply, now=50.0)
    assert passed.choice is not None
    assert passed.choice.accelerator.name == "b"
    assert "spec.accelerators.pendingTimeout" in row_of(passed, "a", PlanReason.INSUFFICIENT_CAPACITY).detail
    again = plan(spec(), SMALL, catalog, supply, now=150.0)
    assert again.choice is not None
    assert again.choice.accelerator.name == "a"


def test_a_node_whose_devices_are_all_unwell_is_no_capacity() -> None:
    catalog = named(fast("a", 80, "1.00", count_per_node=None))
    result = plan(spec(), SMALL, catalog, {"a": Supply((NodeSupply("n1", 0, 0),))})
    assert (result.choice, result.reason) == (None, PlanReason.INSUFFICIENT_CAPACITY)
    assert [row.accelerator for row in result.rejected] == ["a"]


def test_a_quota_bounds_the_replicas() -> None:
    catalog = named(fast("a", 80, "1.00"))
    supply = {"a": Supply((NodeSupply("n1", 8, 8),), quota=2)}
    result = plan(spec(replicas=3), SMALL, catalog, supply)
    assert (result.choice, result.reason) == (None, PlanReason.INSUFFICIENT_CAPACITY)
    assert "quota leaves 2 a" in result.detail


def test_a_node_without_memory_or_cores_beside_its_devices_is_no_room() -> None:
    """MIDDLE has 16.1 GB of weights, twice of which and 4 GiB a container takes to load them."""
    catalog = named(fast("a", 80, "1.00"), fast("b", 80, "5.00"))
    needs = 2 * 2 * MIDDLE.parameters + 4 * GIB
    for host, cores in (
        (Host(64_000, 2 * needs - 1), "2"),
        (Host(3_999, 64 * needs), "2"),
        (Host(7_999, 2 * needs), "4"),
    ):
        supply = {"a": Supply((NodeSupply("n1", 8, 8, host),)), "b": Supply((NodeSupply("n2", 8, 8),))}
        template = {"resources": {"requests": {"cpu": cores}}}
        one, two = (
            plan(
                spec(
                    model=SHORT,
                    replicas=replicas,
                    parallelism={"tensor": 1},
                    podTemplate={"spec": template},
                ),
                MIDDLE,
                catalog,
                supply,
            )
            for replicas in (1, 2)
        )
        assert one.choice is not None
        assert one.choice.accelerator.name == "a"
        assert two.choice is not None
        assert two.choice.accelerator.name == "b"
        message = f"enough for 1 such replica, each with {cores} cores and 33.9 GiB of memory beside: ask"
        assert message in row_of(two, "a", PlanReason.INSUFFICIENT_CAPACITY).detail


def test_whole_nodes_are_paid_where_they_are_bought() -> None:
    catalog = named(fast("a", 80, "1.00", price_per_node=True))
    result = plan(spec(replicas=9), SMALL, catalog)
    assert result.choice is not None
    assert result.choice.predicted.cost_per_hour == Decimal(16)


def test_tokens_cost_what_an_hour_costs_over_its_tokens() -> None:
    result = plan(spec(model=SHORT, workload=LOAD), MIDDLE, named(fast("a", 80, "6.88")))
    assert result.choice is not None
    does = result.choice.predicted
    assert does.tokens_per_second == pytest.approx(800)  # 4 requests of 200 tokens
    expected = result.choice.predicted.cost_per_hour / Decimal(800 * 3600) * 1_000_000  # type: ignore[operator]
    assert does.cost_per_million_tokens == pytest.approx(expected, rel=Decimal("1e-4"))


def test_no_plan_promises_what_drafts_might_gain() -> None:
    catalog = named(fast("a", 80, "6.88"))
    asked = {"model": SHORT, "workload": LOAD}
    drafting = plan(spec(**asked), MIDDLE, catalog).choice
    plain = plan(spec(**asked, speculation={"mode": "Disabled"}), MIDDLE, catalog).choice
    assert drafting is not None
    assert plain is not None
    assert drafting.method == "Suffix"
    assert drafting.predicted.time_per_output_token == plain.predicted.time_per_output_token


def test_provenance_is_assumed_until_lengths_are_given_and_calibrated_where_measured() -> None:
    catalog = named(fast("a", 80, "6.88"))
    lengths = {key: LOAD[key] for key in ("inputTokens", "outputTokens")}
    bare, given = (
        plan(spec(model=SHORT), MIDDLE, catalog),
        plan(spec(model=SHORT, workload=lengths), MIDDLE, catalog),
    )
    slower = {("Turbo", "a"): Calibration(2.0, 2.0)}
    measured = plan(spec(model=SHORT, workload=lengths), MIDDLE, catalog, calibrations=slower)
    actual = [item.choice.predicted for item in (bare, given, measured) if item.choice]
    assert [item.provenance for item in actual] == [
        Provenance.ASSUMED,
        Provenance.ROOFLINE,
        Provenance.CALIBRATED,
    ]
    before, after = actual[1].capacity_tokens_per_second, actual[2].capacity_tokens_per_second
    assert before is not None
    assert after is not None
    assert after == pytest.approx(before / 2, rel=1e-3)


def test_bounds_of_replicas_that_external_does_not_read_change_nothing() -> None:
    catalog = named(fast("a", 80, "1.00", memory_bandwidth=3e11))
    external = {"mode": "External"}
    asked = spec(model=SHORT, workload=LOAD, scaling=external)
    bounded = spec(model=SHORT, workload=LOAD, scaling={**external, "minReplicas": 50, "maxReplicas": 60})
    assert plan(bounded, MIDDLE, catalog) == plan(asked, MIDDLE, catalog)
