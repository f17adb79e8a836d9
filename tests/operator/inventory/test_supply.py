"""Supply: nodes less what pods hold, one's own pods as free, within quotas; and who is to be planned anew."""

from __future__ import annotations

import math
from dataclasses import replace
from decimal import Decimal
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from turbo_operator.api import CapacityType, PodSpec
from turbo_operator.budget import Footprint
from turbo_operator.inventory import usage
from turbo_operator.inventory.store import InventoryStore
from turbo_operator.inventory.supply import (
    ClusterInventory,
    Node,
    Owner,
    PodUsage,
    is_open,
    supply_of,
    take_stock,
)
from turbo_operator.snapshot import Accelerator, Host, Supply

GIB = 1 << 30
GPU = "nvidia.com/gpu"
MINE, THEIRS = Owner("team", "chat"), Owner("team", "other")
H100 = Accelerator("h100", GPU, Decimal(1), 80 * GIB, node_selector={"product": "H100"})
CORES = Accelerator("cpu", "cpu", Decimal(2), 4 * GIB)
CATALOG = {"h100": H100, "cpu": CORES}


def node(name: str = "n", gpus: int = 8, cores: int = 16, memory: int = 64, **more: Any) -> Node:
    room = {GPU: gpus * 1000, "cpu": cores * 1000, "memory": memory * GIB * 1000}
    fields = {"labels": {"product": "H100"}, "taints": (), "takes_pods": True, "allocatable": room}
    return Node(name, **(fields | more))


def pod(
    gpus: int = 1,
    on: str | None = "n",
    owner: Owner | None = None,
    resource: str = GPU,
    leaving: bool = False,
    **more: Any,
) -> PodUsage:
    amounts = {resource: gpus * 1000}
    return PodUsage(owner, on, amounts, amounts, leaving, "h100", namespace="team", **more)


def free(stock: ClusterInventory, owner: Owner = MINE, accelerator: str = "h100") -> list[int]:
    return [each.free for each in supply_of(stock, owner)[accelerator].nodes]


def test_cores_and_memory_that_no_pod_holds_are_told_beside_devices() -> None:
    """A node with free GPUs and no memory left for the process that feeds them takes no pod."""
    amounts = {GPU: 1000, "cpu": 2000, "memory": 20 * GIB * 1000}
    pods = [PodUsage(owner, "n", amounts, amounts, accelerator="h100") for owner in (MINE, THEIRS, None)]
    stock = take_stock(CATALOG, [node(), node("bare", allocatable={GPU: 8000})], pods)
    bare, full = supply_of(stock, Owner("team", "nobody"))["h100"].nodes
    assert (full.free, full.host) == (5, Host(10_000, 4 * GIB))
    assert supply_of(stock, MINE)["h100"].nodes[1].host == Host(12_000, 24 * GIB)  # its own may make way
    assert bare.host is None
    assert [each.host for each in stock.supply["cpu"]] == [None, None]  # they are the accelerator


owners = st.sampled_from([None, MINE, THEIRS])
placed = st.builds(pod, st.integers(0, 8), st.sampled_from(["a", "b", None]), owners)


@given(st.lists(placed, max_size=12), st.integers(0, 8), st.integers(0, 8))
def test_free_is_what_strangers_leave_and_never_below_nothing(
    pods: list[PodUsage], gpus_a: int, gpus_b: int
) -> None:
    """The model of it in one line: allocatable less what pods of others hold, on each node."""
    stock = take_stock(CATALOG, [node("a", gpus_a), node("b", gpus_b)], pods)
    for owner in (MINE, THEIRS):
        foreign = {
            name: sum(
                each.requests[GPU] // 1000 for each in pods if each.node == name and each.owner != owner
            )
            for name in ("a", "b")
        }
        expected = [max(0, gpus_a - foreign["a"]), max(0, gpus_b - foreign["b"])]
        assert free(stock, owner) == expected


@given(st.lists(placed, max_size=12))
def test_to_a_stranger_nothing_that_is_held_is_free(pods: list[PodUsage]) -> None:
    stock = take_stock(CATALOG, [node("a"), node("b")], pods)
    assert free(stock, Owner("team", "nobody")) == [each.free for each in stock.supply["h100"]]


def test_cores_are_bounded_by_the_memory_that_goes_with_them() -> None:
    stock = take_stock(CATALOG, [node("a", cores=16, memory=9), node("b", cores=3, memory=64)], [])
    assert free(stock, accelerator="cpu") == [2, 1]


@pytest.mark.parametrize(
    "closed",
    [
        {"takes_pods": False},
        {"labels": {"product": "L4"}},
        {"taints": ({"key": "gpu", "value": "x", "effect": "NoSchedule"},)},
    ],
)
def test_a_node_that_takes_no_such_pod_counts_for_nobody(closed: dict[str, Any]) -> None:
    assert free(take_stock(CATALOG, [node(**closed)], [])) == []


def test_what_runs_on_a_cordoned_node_need_not_leave_it_and_nothing_else_there_is_free() -> None:
    stock = take_stock(CATALOG, [node(takes_pods=False)], [pod(2, owner=MINE), pod(1, owner=THEIRS)])
    assert free(stock) == [2]
    assert free(stock, THEIRS) == [1]
    assert stock.supply["h100"] == ()


def test_the_cores_of_a_pod_that_holds_gpus_are_none_to_plan_with_where_no_pod_on_cores_may_go() -> None:
    amounts = {GPU: 1000, "cpu": 4000, "memory": 32 * GIB * 1000}
    mine = [PodUsage(MINE, "n", amounts, amounts, accelerator="h100")]
    tainted = node(taints=({"key": "gpu", "value": "x", "effect": "NoSchedule"},))
    for closed in (tainted, node(takes_pods=False)):
        stock = take_stock(CATALOG, [closed], mine)
        assert free(stock) == [1]
        assert free(stock, accelerator="cpu") == []
    assert free(take_stock(CATALOG, [node()], mine), accelerator="cpu") == [8]


def test_what_a_pod_leaves_on_a_node_that_takes_no_other_is_no_place_to_plan_with() -> None:
    """A drain, or a dead node, whose pods should end and stay for as long as it is dead."""
    pods = [pod(2, owner=MINE), pod(1, owner=MINE, leaving=True)]
    assert free(take_stock(CATALOG, [node(takes_pods=False)], pods)) == [2]
    assert free(take_stock(CATALOG, [node()], pods)) == [8]


@pytest.mark.parametrize(
    ("toleration", "open_"),
    [
        ({"operator": "Exists"}, True),
        ({"key": "gpu", "operator": "Exists"}, True),
        ({"key": "gpu", "operator": "Exists", "effect": "NoExecute"}, False),
        ({"key": "gpu", "value": "x"}, True),
        ({"key": "gpu", "operator": "Equal", "value": "y"}, False),
        ({"key": "cpu", "operator": "Exists"}, False),
    ],
)
def test_a_taint_is_tolerated_as_the_scheduler_compares(toleration: dict[str, Any], open_: bool) -> None:
    tainted = node(taints=({"key": "gpu", "value": "x", "effect": "NoSchedule"},))
    assert is_open(tainted, {}, (toleration,)) is open_


taint_sets = st.lists(st.sampled_from(["gpu", "pool"]), unique=True).map(
    lambda keys: tuple({"key": key, "effect": "NoSchedule"} for key in keys)
)
label_sets = st.fixed_dictionaries(
    {}, optional={"product": st.sampled_from(["H100", "L4"]), "zone": st.sampled_from(["y", "z"])}
)
overlays = st.fixed_dictionaries(
    {},
    optional={
        "nodeSelector": label_sets,
        "tolerations": st.lists(st.sampled_from(["gpu", "pool"]), max_size=2).map(
            lambda keys: [{"key": key, "operator": "Exists"} for key in keys]
        ),
    },
)


@given(st.lists(st.tuples(label_sets, taint_sets, st.booleans()), max_size=6), overlays)
def test_a_template_leaves_the_nodes_that_its_pods_may_go_to(
    nodes: list[tuple[dict[str, str], tuple[dict[str, str], ...], bool]], overlay: dict[str, Any]
) -> None:
    there = [
        node(str(place), labels=labels, taints=taints, takes_pods=ready)
        for place, (labels, taints, ready) in enumerate(nodes)
    ]
    template = PodSpec.model_validate(overlay)
    tolerated = [{"key": "gpu", "operator": "Exists"}]
    h100 = replace(H100, tolerations=tuple(tolerated))
    found = supply_of(take_stock({"h100": h100}, there, []), MINE, template)["h100"]
    selector = {**h100.node_selector, **overlay.get("nodeSelector", {})}
    tolerated += overlay.get("tolerations", [])
    labeled = [each for each in there if selector.items() <= each.labels.items()]
    opened = [each.name for each in labeled if is_open(each, selector, tolerated)]
    assert [each.name for each in found.nodes] == opened
    assert found.closed == len(labeled) - len(opened)


def test_the_templates_selector_narrows_the_nodes_and_its_tolerations_widen_them() -> None:
    taint = ({"key": "gpu", "value": "x", "effect": "NoSchedule"},)
    stock = take_stock(
        CATALOG, [node("a", taints=taint), node("b", labels={"product": "H100", "zone": "z"})], []
    )
    zone = PodSpec.model_validate({"nodeSelector": {"zone": "z"}})
    assert [each.name for each in supply_of(stock, MINE, zone)["h100"].nodes] == ["b"]
    anywhere = PodSpec.model_validate({"tolerations": [{"operator": "Exists"}]})
    assert [each.name for each in supply_of(stock, MINE, anywhere)["h100"].nodes] == ["a", "b"]


def test_replicas_do_not_straddle_nodes() -> None:
    stock = take_stock(CATALOG, [node("a", 3), node("b", 5)], [])
    footprint = Footprint(H100, CapacityType.ON_DEMAND, 2)
    assert footprint.room(Supply(stock.supply["h100"]), 0.0) == 3


# Projections


def raw_pod(**spec: Any) -> dict[str, Any]:
    return {"metadata": {"name": "p", "namespace": "team", "labels": {}}, "spec": spec, "status": {}}


def container(**requests: str) -> dict[str, Any]:
    return {"name": "c", "resources": {"requests": requests}}


FIRST, BESIDE = container(cpu="3"), {**container(cpu="250m"), "restartPolicy": "Always"}


@pytest.mark.parametrize(
    ("before", "cpu"),
    [
        ([], 1500),
        ([BESIDE], 1750),
        ([FIRST, BESIDE], 3000),  # what is first has ended when the other starts
        ([BESIDE, FIRST], 3250),
        ([BESIDE, BESIDE, FIRST, BESIDE], 3500),
    ],
)
def test_a_pod_holds_what_the_scheduler_counts(before: list[dict[str, Any]], cpu: int) -> None:
    body = raw_pod(
        nodeName="n",
        containers=[container(cpu="500m"), container(cpu="1", memory="1Gi")],
        initContainers=before,
        overhead={"cpu": "100m"},
    )
    held = usage.holding(body)
    assert held is not None
    assert held.requests == {"cpu": cpu + 100, "memory": GIB * 1000}
    assert (held.owner, held.node, held.leaving) == (None, "n", False)
    body["metadata"]["deletionTimestamp"] = "2026-01-01T00:00:00Z"
    ending = usage.holding(body)
    assert ending is not None
    assert ending.leaving
    assert (held.overdue, ending.overdue) == (math.inf, 1767225600.0)
    body["metadata"]["deletionGracePeriodSeconds"] = 30
    ending = usage.holding(body)
    assert ending is not None
    assert ending.overdue == 1767225630.0


def test_the_scopes_of_a_pod_are_those_that_kubernetes_sees() -> None:
    assert usage.holding(raw_pod()).scopes == {"NotTerminating", "NotBestEffort"}  # type: ignore[union-attr]
    body = raw_pod(activeDeadlineSeconds=60) | {"status": {"qosClass": "BestEffort"}}
    assert usage.holding(body).scopes == frozenset()  # type: ignore[union-attr]


def test_amounts_of_the_whole_pod_go_before_those_of_its_containers() -> None:
    held = usage.holding(
        raw_pod(containers=[container(cpu="1", memory="1Ki")], resources={"requests": {"cpu": "4"}})
    )
    assert held is not None
    assert held.requests == {"cpu": 4000, "memory": 1024 * 1000}


def test_what_serves_and_what_trains_are_no_room_for_each_other() -> None:
    pods = [pod(2, owner=MINE), pod(owner=MINE.trainer), pod(owner=THEIRS.trainer)]
    stock = take_stock(CATALOG, [node()], pods)
    assert (free(stock), free(stock, MINE.trainer)) == ([6], [5])


def test_a_pod_that_trains_is_told_by_its_role() -> None:
    for role, owner in (("serving", MINE), ("train", MINE.trainer)):
        body = raw_pod(containers=[container(cpu="1")])
        labels = {"serving.turbo.dev/deployment": MINE.name, "serving.turbo.dev/role": role}
        body["metadata"] = {**body["metadata"], "namespace": MINE.namespace, "labels": labels}
        held = usage.holding(body)
        assert held is not None
        assert held.owner == owner
        assert held.requests == {"cpu": 1000}


@pytest.mark.parametrize("phase", ["Succeeded", "Failed"])
def test_a_pod_that_has_ended_holds_nothing(phase: str) -> None:
    assert usage.holding(raw_pod(containers=[]) | {"status": {"phase": phase}}) is None


def test_a_node_takes_pods_when_it_is_ready_and_not_cordoned() -> None:
    body = {
        "metadata": {"name": "n"},
        "spec": {"taints": [{"key": "a", "effect": "PreferNoSchedule"}, {"key": "b", "effect": "NoExecute"}]},
        "status": {"conditions": [{"type": "Ready", "status": "True"}], "allocatable": {GPU: "8"}},
    }
    seen = usage.node(body)
    assert seen == Node("n", {}, ({"key": "b", "effect": "NoExecute"},), True, {GPU: 8000})
    assert not usage.node({**body, "spec": {"unschedulable": True}}).takes_pods
    assert not usage.node({**body, "status": {}}).takes_pods


# The inventory


def raw_node(name: str, gpus: int) -> dict[str, Any]:
    ready = [{"type": "Ready", "status": "True"}]
    return {
        "metadata": {"name": name, "uid": name, "labels": {"product": "H100"}},
        "status": {"conditions": ready, "allocatable": {GPU: str(gpus)}},
    }


def test_the_inventory_moves_only_when_something_that_counts_has_changed() -> None:
    inventory = InventoryStore(lambda _: None)
    inventory.put("Node", raw_node("a", 8))
    inventory.take_stock(CATALOG, 0.0)
    heartbeat = raw_node("a", 8)
    heartbeat["status"]["conditions"].append({"type": "MemoryPressure", "status": "False"})
    inventory.put("Node", heartbeat)
    assert not inventory.moved
    inventory.put("Node", raw_node("a", 7))
    assert inventory.moved


def test_what_a_full_list_does_not_show_is_gone_in_its_namespace_alone() -> None:
    inventory = InventoryStore(lambda _: None)
    inventory.put("Node", raw_node("a", 8))
    for namespace in ("team", "elsewhere"):
        body = raw_pod(nodeName="a", containers=[container(**{GPU: "2"})])
        inventory.put("Pod", {**body, "metadata": {"name": "p", "uid": namespace, "namespace": namespace}})
    inventory.take_stock(CATALOG, 0.0)
    assert free(inventory.stock) == [4]
    inventory.keep_only("Pod", set(), "1", "team")
    inventory.take_stock(CATALOG, 0.0)
    assert free(inventory.stock) == [6]
