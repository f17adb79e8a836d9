"""The choice against every candidate in turn."""

from __future__ import annotations

from collections.abc import Mapping

from hypothesis import given, settings
from hypothesis import strategies as st

from turbo_dev.plan_cases import (
    MIDDLE,
    SMALL,
    catalogs,
    changed,
    models,
    roomy,
    specs,
    supplies,
)
from turbo_dev.plan_referee import brute_force, planned
from turbo_dev.sizes import size
from turbo_operator.api import PlanReason, TurboDeploymentSpec
from turbo_operator.snapshot import Accelerator, Supply
from turbo_runtime.contract.documents import ModelShape


@settings(max_examples=size(50, 300))
@given(specs(), models, catalogs, supplies)
def test_the_choice_is_the_best_of_all_candidates(
    wanted: TurboDeploymentSpec,
    model: ModelShape,
    catalog: dict[str, Accelerator],
    supply: dict[str, Supply] | None,
) -> None:
    agree(wanted, model, catalog, supply)


@settings(max_examples=size(20, 100))
@given(roomy(), st.sampled_from((SMALL, MIDDLE)))
def test_the_choice_is_the_best_where_many_are_feasible(
    case: tuple[TurboDeploymentSpec, dict[str, Accelerator]], model: ModelShape
) -> None:
    agree(case[0], model, case[1], None)


def agree(
    wanted: TurboDeploymentSpec,
    model: ModelShape,
    catalog: Mapping[str, Accelerator],
    supply: Mapping[str, Supply] | None,
) -> None:
    """The planner and the referee choose the same, of the same number and at the same cost; the referee knows
    replicas of one accelerator.
    """
    wanted = changed(wanted, parallelism={"tensor": 1})
    result = planned(wanted, model, catalog, supply)
    best = brute_force(wanted, model, catalog, supply)
    if best is None:
        assert result.choice is None
        assert result.reason != PlanReason.FEASIBLE
        return
    assert result.choice is not None
    it = result.choice
    assert (it.accelerator.name, it.capacity_type, it.method) == (best.accelerator, best.kind, best.method)
    assert result.replicas == best.replicas
    assert it.predicted.cost_per_hour == best.cost
