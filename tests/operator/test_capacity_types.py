"""Nodes of a capacity type: where pods may go for it, and that the stock counts what the scheduler takes."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from decimal import Decimal
from typing import Any

import pytest
from hypothesis import event, given
from hypothesis import strategies as st

from turbo_dev.plan_cases import plan
from turbo_operator import render
from turbo_operator.api import CapacityType, TurboDeployment, parse
from turbo_operator.budget import Footprint
from turbo_operator.capacity_types import LABELS, TAINTS, build_constraint
from turbo_operator.catalog import shapes
from turbo_operator.drafts.training import JobRequest
from turbo_operator.drafts.training.manifests import training_job
from turbo_operator.inventory.supply import Node, Owner, PodUsage, is_open, supply_of, take_stock
from turbo_operator.plan import Choice
from turbo_operator.render.template import pod_template
from turbo_operator.settings import Settings
from turbo_operator.snapshot import Accelerator, Supply
from turbo_runtime.contract.documents import ModelInfo

ON_DEMAND, SPOT, RESERVED = CapacityType.ON_DEMAND, CapacityType.SPOT, CapacityType.RESERVED
GIB = 1 << 30
GPU = "nvidia.com/gpu"
SHAPE = shapes.shipped("HuggingFaceTB/SmolLM2-135M")
assert SHAPE is not None
FACTS = ModelInfo(SHAPE, "sha256:ab", None, 270_000_000)
MINE = Owner("team", "chat")
PRICES = {kind: Decimal("0.80") for kind in CapacityType}
CARD = Accelerator("l4", GPU, Decimal(1), 24 * GIB, prices=PRICES, node_selector={"gpu": "l4"})
OWN = replace(CARD, capacity_selectors={SPOT: {"pool": "cheap", "market": "spot"}})
TAINT = {"effect": "NoSchedule"}
AKS = {"key": "kubernetes.azure.com/scalesetpriority", "value": "spot", **TAINT}


def node(labels: Mapping[str, str], *taints: dict[str, str], name: str = "n") -> Node:
    amounts = {GPU: 8000, "cpu": 64_000, "memory": 512 * GIB * 1000}
    return Node(name, {"gpu": "l4", **labels}, taints, True, amounts)


ENGINE = {"engine": {"type": "Turbo"}}


def td(kind: CapacityType = ON_DEMAND, **spec: Any) -> TurboDeployment:
    accelerators = {"capacityTypes": [kind]}
    return parse(
        {
            "apiVersion": "serving.turbo.dev/v1alpha1",
            "kind": "TurboDeployment",
            "metadata": {"name": "chat", "namespace": "team", "uid": "u-1", "generation": 1},
            "spec": {"model": {"uri": "pvc://models/chat"}, "accelerators": accelerators, **ENGINE, **spec},
        }
    )


def chosen(kind: CapacityType, accelerator: Accelerator = CARD, **spec: Any) -> Choice:
    choice = plan(td(kind, **spec).spec, SHAPE, {accelerator.name: accelerator}).choice  # type: ignore[arg-type]
    assert choice is not None
    assert choice.capacity_type == kind
    return choice


def pod(kind: CapacityType, accelerator: Accelerator = CARD, **spec: Any) -> dict[str, Any]:
    template = pod_template(
        td(kind, **spec), chosen(kind, accelerator, **spec), FACTS, "v1", Settings(runtime_image="r:1")
    )
    actual: dict[str, Any] = template["spec"]
    return actual


def schedules(spec: Mapping[str, Any], where: Node) -> bool:
    """As the scheduler reads a pod: its selector, its affinity and its tolerations."""
    affinity = spec["affinity"]["nodeAffinity"]["requiredDuringSchedulingIgnoredDuringExecution"]
    operators = {
        "In": lambda value, values: value in values,
        "NotIn": lambda value, values: value not in values,
    }
    return is_open(where, spec.get("nodeSelector", {}), spec.get("tolerations", ())) and any(
        all(
            operators[item["operator"]](where.labels.get(item["key"]), item["values"])
            for item in term["matchExpressions"]
        )
        for term in affinity["nodeSelectorTerms"]
    )


def taken_by(labels: Mapping[str, str], accelerator: Accelerator = CARD) -> set[CapacityType]:
    """The capacity types whose pods a node with such labels takes."""
    return {kind for kind in CapacityType if schedules(pod(kind, accelerator), node(labels))}


@pytest.mark.parametrize("kind", LABELS)
def test_a_node_is_of_the_capacity_type_that_any_label_of_the_field_says(kind: CapacityType) -> None:
    for key, values in LABELS[kind]:
        for value in values:
            assert taken_by({key: value}) == {kind}, key


@pytest.mark.parametrize(
    "labels",
    [
        {},
        {"karpenter.sh/capacity-type": "on-demand"},
        {"eks.amazonaws.com/capacityType": "ON_DEMAND"},
        {"cloud.google.com/gke-provisioning": "standard"},
        {"kubernetes.azure.com/scalesetpriority": "regular"},
        {"node.kubernetes.io/lifecycle": "normal"},
    ],
)
def test_a_node_that_says_neither_spot_nor_reserved_is_on_demand(labels: dict[str, str]) -> None:
    assert taken_by(labels) == {ON_DEMAND}


def test_a_selector_of_the_accelerators_own_stands_in_the_place_of_the_table() -> None:
    cheap = {"pool": "cheap", "market": "spot"}
    assert taken_by(cheap, OWN) == {SPOT}
    assert taken_by({"pool": "cheap"}, OWN) == {ON_DEMAND}  # all of its labels, or it is another type's
    assert taken_by({"karpenter.sh/capacity-type": "spot"}, OWN) == {ON_DEMAND}
    assert taken_by({"karpenter.sh/capacity-type": "reserved"}, OWN) == {RESERVED}
    ours = replace(CARD, capacity_selectors={ON_DEMAND: {"pool": "ours"}})
    assert taken_by({}, ours) == set()
    assert taken_by({"pool": "ours"}, ours) == {ON_DEMAND}


def test_the_taint_of_spot_nodes_is_tolerated_by_spot_pods_alone() -> None:
    azure = node({AKS["key"]: "spot"}, AKS)
    assert [kind for kind in CapacityType if schedules(pod(kind), azure)] == [SPOT]
    (row,) = supply_of(take_stock({"l4": CARD}, [azure], []), MINE)["l4"].nodes
    assert (row.free, row.capacity_types) == (8, {SPOT})


def test_the_templates_selector_narrows_a_capacity_type_further() -> None:
    nodes = [node({"karpenter.sh/capacity-type": "spot", "zone": zone}) for zone in ("y", "z")]
    spec = pod(SPOT, podTemplate={"spec": {"nodeSelector": {"zone": "z"}}})
    assert [schedules(spec, item) for item in nodes] == [False, True]


def test_a_training_goes_where_its_capacity_type_is() -> None:
    begin = JobRequest(1, "w", chosen(SPOT), chosen(ON_DEMAND), None)
    trains = {
        "persistentVolumeClaim": {"claimName": "drafts"},
        "prompts": {"type": "ConfigMap", "configMap": {"name": "prompts"}},
    }
    job = training_job(
        td(SPOT, speculation={"training": trains}), begin, FACTS, Settings(runtime_image="r:1")
    )
    spec = job["spec"]["template"]["spec"]
    assert schedules(spec, node({AKS["key"]: "spot"}, AKS))
    assert not schedules(spec, node({}))


def test_the_hash_knows_a_selector_of_the_accelerators_own_and_no_table() -> None:
    def hash_of(kind: CapacityType, accelerator: Accelerator) -> str:
        return render.plan_hash(td(kind), chosen(kind, accelerator), FACTS)

    other = replace(CARD, capacity_selectors={SPOT: {"pool": "other"}})
    for kind in (SPOT, ON_DEMAND):  # on demand is where spot is not
        assert len({hash_of(kind, item) for item in (CARD, OWN, other)}) == 3
    assert hash_of(RESERVED, CARD) == hash_of(RESERVED, OWN)  # spot nodes are nothing to it
    # What runs without an affinity is not rolled for it; only for the runner for GPUs (docs/upgrade.md).
    earlier = {ON_DEMAND: "v272fb2e26", SPOT: "v2941d391d", RESERVED: "v22235ae03"}
    assert {kind: hash_of(kind, CARD) for kind in CapacityType} == earlier


TABLE = [(key, value) for rows in LABELS.values() for key, values in rows for value in values]
FURTHER = [
    ("pool", "cheap"),
    ("pool", "ours"),
    ("market", "spot"),
    ("karpenter.sh/capacity-type", "on-demand"),
]
label_sets = st.lists(st.sampled_from((*TABLE, *FURTHER)), max_size=3).map(dict)
own_labels = st.lists(st.sampled_from((*FURTHER, TABLE[0])), min_size=1, max_size=2).map(dict)
selector_sets = st.dictionaries(st.sampled_from(CapacityType), own_labels)
taint_sets = st.lists(
    st.sampled_from([{"key": key, "value": value, **TAINT} for key, value in (*TAINTS[SPOT], ("a", "b"))]),
    unique_by=lambda taint: taint["key"],
    max_size=2,
)
overlays = st.fixed_dictionaries(
    {},
    optional={
        "nodeSelector": st.just({"pool": "cheap"}),
        "tolerations": st.sampled_from(
            ([{"key": "a", "operator": "Exists"}], [{"operator": "Exists"}], [{"key": "b"}])
        ),
    },
)


@given(label_sets, taint_sets, selector_sets, st.sampled_from(CapacityType), overlays)
def test_the_stock_counts_a_node_for_a_capacity_type_where_its_pods_may_go(
    labels: dict[str, str],
    taints: list[dict[str, str]],
    selectors: dict[CapacityType, dict[str, str]],
    kind: CapacityType,
    overlay: dict[str, Any],
) -> None:
    card = replace(CARD, capacity_selectors=selectors)
    labeled = node(labels, *taints)
    stock = take_stock({"l4": card}, [labeled], [])
    supply = supply_of(stock, MINE, td(podTemplate={"spec": overlay}).spec.pod_template.spec)["l4"]
    goes = schedules(pod(kind, card, podTemplate={"spec": overlay}), labeled)
    event(f"{kind} goes there: {goes}")
    assert Footprint(card, kind, 1).room(supply, 0.0) == (8 if goes else 0)


@given(label_sets, selector_sets.filter(lambda own: ON_DEMAND not in own))
def test_every_node_is_of_some_capacity_type_and_on_demand_of_no_other(
    labels: dict[str, str], selectors: dict[CapacityType, dict[str, str]]
) -> None:
    card = replace(CARD, capacity_selectors=selectors)
    met = {kind for kind in CapacityType if build_constraint(card, kind).is_met_by(labels)}
    assert met
    assert ON_DEMAND not in met or met == {ON_DEMAND}


def test_pods_that_run_on_nodes_of_another_capacity_type_need_not_leave() -> None:
    """A node's labels may change under them, and those of an earlier version went anywhere."""
    spot = node({"karpenter.sh/capacity-type": "spot"})

    def room(kind: CapacityType, **more: Any) -> int | None:
        amounts = {GPU: 2000}
        mine = PodUsage(MINE, "n", amounts, amounts, accelerator="l4", **more)
        supply: Supply = supply_of(take_stock({"l4": CARD}, [spot], [mine]), MINE)["l4"]
        return Footprint(CARD, kind, 1).room(supply, 0.0)

    assert (room(ON_DEMAND), room(SPOT), room(RESERVED)) == (2, 8, 0)
    assert room(ON_DEMAND, leaving=True) == 0
    assert room(ON_DEMAND, capacity_type=SPOT) == 0
