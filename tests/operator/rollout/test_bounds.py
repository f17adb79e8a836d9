"""What all variants and trainings may hold together."""

from __future__ import annotations

from dataclasses import replace
from decimal import Decimal
from typing import Any

from turbo_dev.simulated_variants import footprint
from turbo_operator.api import CapacityType, TurboDeployment, parse
from turbo_operator.budget import Footprint, labeled_footprint
from turbo_operator.rollout import Bounds, bounds_of
from turbo_operator.snapshot import (
    Accelerator,
    ChildView,
    Host,
    NodeSupply,
    PodView,
    Snapshot,
    Supply,
    TrainPod,
)

NOW = 1_700_000_000.0
CPU = Accelerator("cpu", "cpu", Decimal(1), 1 << 30, prices={CapacityType.ON_DEMAND: Decimal("0.04")})
ONE = Footprint(CPU, CapacityType.ON_DEMAND, 1)
JOB = ChildView("Job", "chat-train-1", "j", None, accelerator="cpu")


def td(status: dict[str, Any] | None = None, **spec: Any) -> TurboDeployment:
    return parse(
        {
            "apiVersion": "serving.turbo.dev/v1alpha1",
            "kind": "TurboDeployment",
            "metadata": {"name": "chat"},
            "spec": {"model": {"uri": "pvc://models/chat"}, **spec},
            "status": status or {},
        }
    )


def test_accelerators_dollars_and_stock_bound_what_variants_hold_together() -> None:
    a100, l40s = footprint("a100"), footprint("l40s")  # 2 $ for 1 accelerator, 1 $ each for 2
    bounds = Bounds(max_total=4, max_per_hour=Decimal(6), stock={"a100": 2})
    assert bounds.exceeded([(a100, 2), (l40s, 1)]) is None
    assert bounds.exceeded([(a100, 1), (l40s, 2)]) == "spec.accelerators.maxTotal is 4"
    assert Bounds(max_per_hour=Decimal(5)).exceeded([(a100, 3)]) == "spec.cost.maxPerHour is 5"
    assert Bounds(stock={"a100": 2}).exceeded([(a100, 3)]) == "the cluster and its quotas hold 2 of a100"
    assert bounds.exceeded([(None, 9)]) is None, "nobody can tell what it holds"
    assert (bounds.most(a100, 5), bounds.most(l40s, 5), bounds.most(None, 5)) == (2, 2, 5)


def test_stock_is_what_nodes_and_quotas_leave() -> None:
    supply = {"cpu": Supply((NodeSupply("n", 4, 3), NodeSupply("m", 4, 1)), quota=2)}
    actual = bounds_of(td(), Snapshot({"cpu": CPU}, supply), (ONE, None), NOW)
    assert actual.stock == {"cpu": 2}
    assert actual.by_type == {("cpu", CapacityType.ON_DEMAND): 2}
    assert bounds_of(td(), Snapshot({"cpu": CPU}), (ONE,), NOW) == Bounds()


def test_room_of_one_capacity_type_is_none_of_another() -> None:
    spot = replace(ONE, capacity_type=CapacityType.SPOT)
    nodes = (
        NodeSupply("n", 4, 4, capacity_types=frozenset({CapacityType.ON_DEMAND})),
        NodeSupply("m", 4, 1, capacity_types=frozenset({CapacityType.SPOT})),
    )
    actual = bounds_of(td(), Snapshot({"cpu": CPU}, {"cpu": Supply(nodes)}), (ONE, spot), NOW)
    assert actual.exceeded([(ONE, 4), (spot, 1)]) is None
    assert actual.exceeded([(spot, 2)]) == "the cluster and its quotas hold 1 of cpu (Spot)"
    assert actual.most(spot, 4) == 1


def test_what_a_node_has_beside_its_accelerators_bounds_pods_whose_labels_do_not_tell() -> None:
    gpu = replace(CPU, name="gpu", resource_name="nvidia.com/gpu")
    planned = Footprint(gpu, CapacityType.ON_DEMAND, 1, host=Host(2000, 10 << 30))
    nodes = (NodeSupply("n", 8, 8, host=Host(64_000, 20 << 30)),)
    observed = Snapshot({"gpu": gpu}, {"gpu": Supply(nodes)})
    labeled = replace(planned, host=None)
    assert bounds_of(td(), observed, (planned, labeled), NOW).most(planned, 8) == 2


def test_a_training_is_reserved_from_its_beginning_to_its_end() -> None:
    def reserved(job: ChildView | None, *pods: TrainPod) -> int:
        observed = Snapshot({"cpu": CPU}, children=(job,) if job else (), trainings=pods)
        return len(bounds_of(td(), observed, (), NOW).reserved)

    pod = TrainPod("t", "chat-train-1", "Running", accelerator="cpu")
    assert reserved(JOB) == 1
    assert reserved(JOB, pod) == 1
    assert reserved(JOB, replace(pod, exit_code=1)) == 1, "the next one comes"
    assert reserved(replace(JOB, failed=True)) == reserved(replace(JOB, complete=True)) == 0
    assert reserved(None, pod) == 1, "its pod is still there"
    inspects = replace(JOB, name="chat-inspect", accelerator=None)
    assert reserved(inspects) == 0, "it holds no accelerator"


def test_a_training_that_has_no_pod_yet_takes_its_place_in_the_stock() -> None:
    """Found in review: between its Job and its pod, replicas were raised into the place of a training."""
    supply = {"cpu": Supply((NodeSupply("n", 4, 3), NodeSupply("m", 4, 1)), quota=3)}
    runs = TrainPod("t", "chat-train-1", "Running", accelerator="cpu", scheduled_since=NOW - 60)
    waits = replace(runs, phase="Pending", scheduled_since=None, pending_since=NOW - 1)
    for pods, room in (
        ((), 2),
        ((runs,), 3),
        ((replace(runs, exit_code=1),), 2),
        ((replace(runs, scheduled_since=NOW - 2),), 2),  # the count is of about then
        ((waits,), 2),
        ((replace(waits, pending_since=NOW - 3600),), 3),  # it may never come
    ):
        observed = Snapshot({"cpu": CPU}, supply, children=(JOB,), trainings=pods, counted_time=NOW)
        assert bounds_of(td(), observed, (ONE,), NOW).most(ONE, 4) == room
    for job in ((), (replace(JOB, complete=True),), (replace(JOB, failed=True),)):
        observed = Snapshot({"cpu": CPU}, supply, children=job)
        assert bounds_of(td(), observed, (ONE,), NOW).most(ONE, 4) == 3, "suspended, removed or waiting"


def test_pods_whose_accelerator_was_deleted_count_still() -> None:
    """Found in review: what ran on a deleted TurboAccelerator was within any maxTotal."""
    pod = PodView("p", "old", "Running", True, None, None, None, accelerator="gone", accelerators=2)
    lost = labeled_footprint(pod, {"cpu": CPU})
    assert Bounds(max_total=4).exceeded([(lost, 2), (ONE, 1)]) == "spec.accelerators.maxTotal is 4"
    assert lost.cost_per_hour(1) is None


def test_what_is_reserved_counts_for_dollars_and_accelerators_and_is_no_stock() -> None:
    held = ((footprint("a100"), 1),)
    broken = Bounds(max_total=2, reserved=held).exceeded([(footprint("a100"), 2)])
    assert broken == "with the training that runs, accelerators.maxTotal is 2 of the spec"
    assert Bounds(max_per_hour=Decimal(5), reserved=held).exceeded([(footprint("a100"), 2)]) is not None
    assert Bounds(stock={"a100": 2}, reserved=held).exceeded([(footprint("a100"), 2)]) is None
