"""What replicas hold and cost: bounds are exact, whole nodes paid whole, and a supply is never overdrawn."""

from __future__ import annotations

from dataclasses import replace
from decimal import Decimal

from hypothesis import given
from hypothesis import strategies as st

from turbo_operator.api import CapacityType, Provisioning, Resources
from turbo_operator.budget import Footprint, beside
from turbo_operator.snapshot import Accelerator, Host, NodeSupply, Supply

PRICES = {CapacityType.ON_DEMAND: Decimal("2.50"), CapacityType.SPOT: Decimal("0.90")}
H100 = Accelerator("h100", "nvidia.com/gpu", Decimal(1), 80 << 30, count_per_node=8, prices=PRICES)
NOW = 1000.0

footprints = st.builds(
    lambda price, per_node, whole, item, nodes: Footprint(
        replace(H100, prices={CapacityType.ON_DEMAND: price}, count_per_node=per_node, price_per_node=whole),
        CapacityType.ON_DEMAND,
        item * nodes,
        nodes,
    ),
    st.decimals("0.01", "100", places=2),
    st.sampled_from((None, 1, 4, 8)),
    st.booleans(),
    st.sampled_from((1, 2, 3, 4, 8)),
    st.sampled_from((1, 2)),
)
supplies = st.builds(
    lambda free, quota: Supply(
        tuple(NodeSupply(f"n{number}", 8, item) for number, item in enumerate(free)), quota
    ),
    st.lists(st.integers(0, 8), max_size=5),
    st.none() | st.integers(0, 40),
)


@given(footprints, st.decimals("0", "5000", places=2))
def test_one_replica_more_than_affordable_breaks_the_budget(footprint: Footprint, budget: Decimal) -> None:
    most = footprint.affordable(budget)
    assert most is not None
    cost, above = footprint.cost_per_hour(most), footprint.cost_per_hour(most + 1)
    assert cost is not None
    assert above is not None
    assert cost <= budget < above


@given(footprints, st.integers(0, 200), st.integers(0, 200))
def test_more_replicas_never_cost_less(footprint: Footprint, one: int, other: int) -> None:
    fewer, more = (footprint.cost_per_hour(item) for item in sorted((one, other)))
    assert fewer is not None
    assert more is not None
    assert fewer <= more


@given(footprints, st.integers(0, 100))
def test_what_is_paid_holds_what_runs(footprint: Footprint, replicas: int) -> None:
    assert footprint.paid(replicas) >= footprint.accelerators(replicas)


@given(footprints, supplies)
def test_a_supply_is_never_overdrawn(footprint: Footprint, supply: Supply) -> None:
    room = footprint.room(supply, NOW)
    assert room is not None
    assert footprint.accelerators(room) <= sum(node.free for node in supply.nodes)
    assert supply.quota is None or footprint.accelerators(room) <= supply.quota


def test_nodes_bought_whole_are_paid_whole() -> None:
    footprint = Footprint(replace(H100, price_per_node=True), CapacityType.ON_DEMAND, 2)
    assert [footprint.paid(replicas) for replicas in (0, 1, 4, 5)] == [0, 8, 8, 16]
    assert footprint.cost_per_hour(5) == Decimal("40.00")


def test_a_replica_over_two_nodes_pays_for_both() -> None:
    footprint = Footprint(replace(H100, price_per_node=True), CapacityType.ON_DEMAND, 16, nodes=2)
    assert footprint.paid(3) == 48


def test_an_unknown_price_affords_nothing() -> None:
    footprint = Footprint(H100, CapacityType.RESERVED, 1)
    assert footprint.cost_per_hour(1) is None
    assert footprint.affordable(Decimal(1000)) == 0


def test_what_is_free_of_charge_has_no_bound() -> None:
    free = Footprint(replace(H100, prices={CapacityType.SPOT: Decimal(0)}), CapacityType.SPOT, 1)
    assert free.affordable(Decimal(1)) is None


def test_a_replica_fits_on_one_node_or_not_at_all() -> None:
    split = Supply((NodeSupply("a", 8, 3), NodeSupply("b", 8, 3)))
    assert Footprint(H100, CapacityType.ON_DEMAND, 4).room(split, NOW) == 0
    assert Footprint(H100, CapacityType.ON_DEMAND, 3).room(split, NOW) == 2


def test_an_elastic_class_grows_to_its_bound_until_a_pod_has_waited_in_vain() -> None:
    footprint = Footprint(
        replace(H100, provisioning=Provisioning.ELASTIC, max_count=16), CapacityType.SPOT, 4
    )
    nodes = (NodeSupply("a", 8, 8),)
    assert footprint.room(Supply(nodes), NOW) == 4
    assert footprint.room(Supply(nodes, quota=8), NOW) == 2
    assert footprint.room(Supply(nodes, unavailable_until=NOW + 1), NOW) == 2
    assert footprint.room(Supply(nodes, unavailable_until=NOW), NOW) == 4
    unbounded = Footprint(replace(footprint.accelerator, max_count=None), CapacityType.SPOT, 4)
    assert unbounded.room(Supply(nodes), NOW) is None


def test_a_replica_goes_only_where_its_cores_and_memory_are_free() -> None:
    footprint = Footprint(H100, CapacityType.ON_DEMAND, 2, host=Host(2000, 10))
    hosts = (Host(4000, 100), Host(64_000, 19), Host(1999, 100), None)
    nodes = [NodeSupply(f"n{number}", 8, 8, host) for number, host in enumerate(hosts)]
    assert [footprint.room(Supply((node,)), NOW) for node in nodes] == [2, 1, 0, 4]
    spread = replace(footprint, per_replica=4, nodes=2)
    assert spread.room(Supply(tuple(nodes)), NOW) == 1


def test_nodes_of_another_capacity_type_are_no_room() -> None:
    spot, both = frozenset({CapacityType.SPOT}), frozenset(CapacityType)
    supply = Supply(
        (NodeSupply("a", 8, 3, capacity_types=spot), NodeSupply("b", 8, 2, capacity_types=both)),
    )
    kinds = (CapacityType.SPOT, CapacityType.ON_DEMAND)
    assert [Footprint(H100, kind, 1).room(supply, NOW) for kind in kinds] == [5, 2]
    assert [Footprint(H100, kind, 4, nodes=2).room(supply, NOW) for kind in kinds] == [1, 0]


def test_what_a_pod_takes_beside_a_device_is_the_plans_or_the_templates() -> None:
    asked = Resources.model_validate({"requests": {"cpu": "500m", "memory": "1Gi"}})
    assert beside(H100, 7, None) == Host(2000, 7)
    assert beside(H100, 7, asked) == Host(500, 1 << 30)
    assert beside(replace(H100, resource_name="cpu"), 7, None) is None
