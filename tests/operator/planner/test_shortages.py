"""Why no pod fits is told so that it says what to do: labels, nodes, devices, room."""

from __future__ import annotations

from dataclasses import replace
from decimal import Decimal

import pytest

from turbo_dev.plan_cases import plan
from turbo_dev.plan_examples import CARD, SMALL, fast, named, spec
from turbo_operator.api import CapacityType, PlanReason
from turbo_operator.snapshot import NodeSupply, Supply

TAKEN = Supply((NodeSupply("n1", 8, 0),))
ELASTIC = "write provisioning: Elastic on TurboAccelerator a where nodes can be added."


@pytest.mark.parametrize(
    ("supply", "said"),
    [
        (TAKEN, f"none of 8 a on 1 node is free: {ELASTIC}"),
        (
            replace(TAKEN, closed=2),
            "none of 8 a on 1 node is free, and 2 nodes with its labels take no pods (not ready, cordoned or",
        ),
        (
            Supply(closed=1),
            "1 node with its labels takes no pods (not ready, cordoned or tainted): make them ready, write",
        ),
        (
            Supply(),
            "no node has the labels gpu=a and pool=b: label its nodes, correct spec.nodeSelector of Turbo",
        ),
        (
            Supply((NodeSupply("n1", 0, 0),)),
            "no node with its labels offers enough nvidia.com/gpu for one a: check the device plugin or",
        ),
    ],
)
def test_no_such_node_closed_ones_and_taken_ones_are_told_apart(supply: Supply, said: str) -> None:
    """Found in a trial: one sentence for all, so that a wrong label looked like a full cluster."""
    card = named(fast("a", 80, "1.00", node_selector={"gpu": "a", "pool": "b"}))
    result = plan(spec(), SMALL, card, {"a": supply})
    assert (result.choice, result.reason) == (None, PlanReason.INSUFFICIENT_CAPACITY)
    assert f"1 replica of a is needed, and {said}" in result.detail


def test_labels_that_no_node_has_are_those_of_the_pod_template_too() -> None:
    template = {"spec": {"nodeSelector": {"pool": "mine"}}}
    result = plan(spec(podTemplate=template), SMALL, CARD, {"a": Supply()})
    assert "no node has the labels pool=mine: label its nodes, correct spec.podTemplate.spec" in result.detail


def test_fewer_replicas_and_other_accelerators_are_advised_where_there_are_any() -> None:
    result = plan(spec(replicas=2, accelerators={"allowed": ["a"]}), SMALL, CARD, {"a": TAKEN})
    assert f"is free: ask for fewer replicas, allow another accelerator or {ELASTIC}" in result.detail


def test_nodes_of_another_capacity_type_are_told_with_the_field_that_names_them() -> None:
    on_demand = frozenset({CapacityType.ON_DEMAND})
    supply = {"a": Supply((NodeSupply("n1", 8, 8, capacity_types=on_demand),))}
    card = named(replace(fast("a", 80, "1.00"), prices={CapacityType.SPOT: Decimal(1)}))
    result = plan(spec(accelerators={"capacityTypes": ["Spot"]}), SMALL, card, supply)
    assert (result.choice, result.reason) == (None, PlanReason.INSUFFICIENT_CAPACITY)
    assert (
        "the cluster has no free a (Spot), and 1 node of another capacity type (by its labels: name yours "
        "in spec.capacityTypes of TurboAccelerator a): write provisioning"
    ) in result.detail
