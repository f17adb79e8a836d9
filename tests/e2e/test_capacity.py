"""Plans meet the cluster: nodes of KWOK, the real scheduler, and the operator under the chart's role."""

from __future__ import annotations

import threading
from typing import Any

import httpx
import pytest

from turbo_dev.fakenodes import GPU
from turbo_dev.hall import MODEL, Hall
from turbo_operator import resources

pytestmark = pytest.mark.cluster

NODE = resources.NODE


def test_eight_gpus_are_planned_counted_paid_and_told(hall: Hall) -> None:
    h100 = hall.accelerator("h100", "2.50")
    hall.nodes(h100, 1, gpus=8)
    operator = hall.cluster.start(hall.namespace)
    hall.until(
        lambda: hall.counts(h100) == {"nodes": 1, "allocatable": 8, "available": 8}, "nothing is held yet"
    )
    hall.deploy(h100, replicas=8, cost={"maxPerHour": "20.00"})
    body = hall.until_ready(8)
    assert {pod["spec"]["nodeName"] for pod in hall.serving()} == {f"{h100}-0"}
    assert body["status"]["plan"]["accelerator"] == h100
    assert body["status"]["plan"]["predicted"]["costPerHour"] == "20.00"
    hall.until(lambda: hall.body()["status"]["observed"]["costPerHour"] == "20.00", "what runs is paid")
    hall.until_said("WithinBudget", "True", "WithinBudget")
    hall.until(lambda: hall.counts(h100) == {"nodes": 1, "allocatable": 8, "available": 0}, "all are held")
    told = httpx.get(operator.metrics).text
    where = f'name="chat",namespace="{hall.namespace}"'
    assert f'turbo_deployment_cost_per_hour{{load="planned",{where}}} 20.0' in told
    assert f'turbo_deployment_cost_per_hour{{load="present",{where}}} 20.0' in told
    assert f"turbo_deployment_desired_replicas{{{where}}} 8.0" in told
    assert f'node_gpu_hourly_cost{{accelerator="{h100}",node="{h100}-0"}} 2.5' in told
    hall.cluster.access.kubectl("delete", "td", "chat", "-n", hall.namespace)
    hall.cluster.until(lambda: where not in httpx.get(operator.metrics).text, "its figures are gone with it")


def owner_of(pod: dict[str, Any]) -> dict[str, Any]:
    """The reference of what controls a pod; empty where nothing does."""
    return next(iter(pod["metadata"].get("ownerReferences", ())), {})


def test_a_deployment_that_is_deleted_on_a_full_cluster_is_made_again_with_all_replicas(hall: Hall) -> None:
    h100 = hall.accelerator("h100", "2.50")
    hall.nodes(h100, 2)
    hall.cluster.start(hall.namespace)
    hall.deploy(h100, replicas=2, rollout={"minReadySeconds": 0})
    variant = f"chat-{hall.until_ready(2)['status']['plan']['hash']}"
    for how in ("orphan", "orphan", "orphan both", "orphan both", "background"):
        pods = {pod["metadata"]["uid"] for pod in hall.serving()}
        (controller,) = {(owner_of(pod)["name"], owner_of(pod)["uid"]) for pod in hall.serving()}
        before = hall.child_uid(variant)
        orphaned = f"--cascade={how.split()[0]}", "--wait=false", "-n", hall.namespace
        hall.cluster.access.kubectl("delete", "deploy", variant, *orphaned)
        if how == "orphan both":
            hall.cluster.access.kubectl("delete", "replicaset", controller[0], *orphaned)
        hall.until(lambda uid=before: hall.child_uid(variant) not in (None, uid), "it is made again")
        hall.until_ready(2)
        if how != "background":
            hall.cluster.until(lambda: hall.counts(h100)["available"] == 0, "they are counted")
            # A ReplicaSet that is deleted without its pods owns them until the garbage collector comes.
            gone = {controller[1]} if how == "orphan both" else set()
            hall.cluster.until(
                lambda gone=gone: not {owner_of(pod).get("uid") for pod in hall.serving()} & {None, *gone},
                "they have a ReplicaSet again",
            )
            hall.cluster.until(lambda: len(hall.serving()) == 2, "nothing else is left")
            assert {pod["metadata"]["uid"] for pod in hall.serving()} == pods


def test_a_fourth_replica_waits_and_the_status_says_why(hall: Hall) -> None:
    h100 = hall.accelerator("h100", "2.50", provisioning="Elastic")
    hall.nodes(h100, 3)
    hall.cluster.start(hall.namespace)
    hall.deploy(h100, replicas=3)
    hall.until_ready(3)
    hall.change(replicas=4)
    hall.until(lambda: "Insufficient nvidia.com/gpu" in hall.condition("Available")["message"], "it waits")
    assert "3 of 4 replicas serve" in hall.condition("Ready")["message"]
    assert "Insufficient nvidia.com/gpu" in hall.condition("Ready")["message"]
    assert len([pod for pod in hall.serving() if "nodeName" not in pod["spec"]]) == 1
    hall.nodes(h100, 4)
    hall.until_ready(4)


def test_a_cut_of_the_budget_moves_it_without_a_gap(hall: Hall) -> None:
    fast = {"memoryBandwidthGBps": "3350", "tflops": {"bf16": "989"}}
    slow = {"memoryBandwidthGBps": "864", "tflops": {"bf16": "362"}, "memory": "48Gi"}
    h100 = hall.accelerator("h100", "6.00", **fast)
    l40s = hall.accelerator("l40s", "1.80", **slow)
    hall.nodes(h100, 2)
    hall.nodes(l40s, 2)
    hall.cluster.start(hall.namespace)
    hall.deploy(h100, l40s, replicas=2, cost={"maxPerHour": "20.00"}, planPolicy={"objective": "Latency"})
    assert hall.until_ready(2)["status"]["plan"]["accelerator"] == h100
    least, stop = [2], threading.Event()

    def watch() -> None:
        while not stop.is_set():
            ready = [
                pod for pod in hall.serving() if is_ready(pod) and "deletionTimestamp" not in pod["metadata"]
            ]
            least.append(len(ready))

    watcher = threading.Thread(target=watch)
    watcher.start()
    try:
        hall.change(cost={"maxPerHour": "5.00"})
        hall.until(
            lambda: hall.body()["status"]["plan"]["accelerator"] == l40s, "the cheaper class is planned"
        )
        hall.until_ready(2)
        hall.until(
            lambda: {pod["spec"].get("nodeName", "")[: len(l40s)] for pod in hall.serving()} == {l40s},
            "nothing is left on the dearer one",
        )
    finally:
        stop.set()
        watcher.join()
    assert min(least) == 2
    hall.until_said("WithinBudget", "True", "WithinBudget")
    hall.until(lambda: hall.counts(h100)["available"] == 2, "what it held is free")


def is_ready(pod: dict[str, Any]) -> bool:
    conditions = pod.get("status", {}).get("conditions", ())
    return any(each["type"] == "Ready" and each["status"] == "True" for each in conditions)


def test_no_capacity_until_a_node_is_added(hall: Hall) -> None:
    h100 = hall.accelerator("h100", "2.50")
    hall.cluster.start(hall.namespace)
    hall.deploy(h100)
    said = hall.until_said("PlanFeasible", "False", "InsufficientCapacity")
    assert h100 in said["message"]
    hall.until_said("Stalled", "False", "NotStalled")
    assert hall.serving() == []
    hall.nodes(h100, 1)
    hall.until_ready(1)


SPOT_PRICE = {
    "pricing": {"perAcceleratorHour": {"onDemand": "2.50", "spot": "1.00"}, "source": "set by the test"}
}


def test_a_spot_replica_waits_for_a_spot_node_beside_one_on_demand(hall: Hall) -> None:
    h100 = hall.accelerator("h100", "2.50", **SPOT_PRICE)
    hall.node_with(h100, "plain", {})
    hall.cluster.start(hall.namespace)
    hall.deploy(h100, accelerators={"capacityTypes": ["Spot"]})
    said = hall.until_said("PlanFeasible", "False", "InsufficientCapacity")["message"]
    assert f"no free {h100} (Spot), and 1 node of another capacity type" in said
    assert hall.serving() == []
    azure = {"key": "kubernetes.azure.com/scalesetpriority", "value": "spot", "effect": "NoSchedule"}
    spot = hall.node_with(h100, "spot", {azure["key"]: "spot"}, azure)
    body = hall.until_ready(1)
    assert [pod["spec"]["nodeName"] for pod in hall.serving()] == [spot]
    assert body["status"]["plan"]["capacityType"] == "Spot"
    hall.until(lambda: hall.counts(h100)["nodes"] == 2, "nodes of both capacity types are counted")


def test_elastic_replicas_go_only_where_their_capacity_type_is(hall: Hall) -> None:
    """Nothing but the scheduler holds them off: of an elastic class no node is counted."""
    cheap = {"capacityTypes": {"spot": {"nodeSelector": {"pool": "cheap"}}}}
    h100 = hall.accelerator("h100", "2.50", provisioning="Elastic", **SPOT_PRICE, **cheap)
    plain = hall.node_with(h100, "plain", {"karpenter.sh/capacity-type": "spot"})
    spot = hall.node_with(h100, "cheap", {"pool": "cheap"})
    hall.cluster.start(hall.namespace)
    hall.deploy(h100, replicas=2, accelerators={"capacityTypes": ["Spot"]})
    hall.until(lambda: "didn't match" in hall.condition("Available")["message"], "the second one waits")
    assert {pod["spec"].get("nodeName") for pod in hall.serving()} == {spot, None}
    hall.cluster.create_deployment(hall.namespace, "other", model=MODEL, accelerators={"allowed": [h100]})
    hall.cluster.until_ready(hall.namespace, "other")
    others = [
        pod for pod in hall.serving() if pod["metadata"]["labels"]["serving.turbo.dev/deployment"] == "other"
    ]
    assert [pod["spec"]["nodeName"] for pod in others] == [plain]


def test_what_others_hold_is_not_planned_with(hall: Hall) -> None:
    h100 = hall.accelerator("h100", "2.50")
    hall.nodes(h100, 1, gpus=2)
    hall.cluster.start(hall.namespace)
    hall.deploy(h100, replicas=2)
    hall.until_ready(2)
    hall.cluster.create_deployment(hall.namespace, "other", model=MODEL, accelerators={"allowed": [h100]})
    hall.until(
        lambda: (
            hall.cluster.condition(hall.cluster.deployment(hall.namespace, "other"), "PlanFeasible")["reason"]
            == "InsufficientCapacity"
        ),
        "the other has nothing left",
    )
    hall.change(replicas=1)
    hall.cluster.until_ready(hall.namespace, "other")


def test_a_quota_bounds_the_plan_until_it_grows(hall: Hall) -> None:
    h100 = hall.accelerator("h100", "2.50")
    hall.nodes(h100, 1, gpus=4)
    quota = {
        "apiVersion": "v1",
        "kind": "ResourceQuota",
        "metadata": {"name": "gpus", "namespace": hall.namespace},
        "spec": {"hard": {f"requests.{GPU}": "1"}},
    }
    hall.cluster.api.create(resources.QUOTA, quota)
    hall.cluster.start(hall.namespace)
    hall.deploy(h100, replicas=2)
    assert "quota" in hall.until_said("PlanFeasible", "False", "InsufficientCapacity")["message"]
    hall.cluster.api.patch(
        resources.QUOTA, hall.namespace, "gpus", {"spec": {"hard": {f"requests.{GPU}": "2"}}}
    )
    hall.until_ready(2)


def test_a_pod_that_waits_too_long_makes_way_for_the_next_class(hall: Hall) -> None:
    l40s = hall.accelerator("l40s", "1.00", provisioning="Elastic")
    h100 = hall.accelerator("h100", "2.50")
    hall.nodes(h100, 1)
    operator = hall.cluster.start(hall.namespace)
    hall.deploy(l40s, h100, engine={"type": "Turbo"}, accelerators={"pendingTimeout": "10s"})
    hall.until_said("Available", "False", "WaitingForAccelerator")
    assert hall.body()["status"]["plan"]["accelerator"] == l40s
    assert hall.until_ready(1)["status"]["plan"]["accelerator"] == h100
    (passed,) = hall.body()["status"]["unavailableAccelerators"]
    assert passed["accelerator"] == l40s
    operator.stop()
    hall.cluster.start(hall.namespace)  # knows it from the status
    hall.change(speculation={"maxDraftTokens": 4})
    hall.until(lambda: hall.body()["status"]["plan"].get("maxDraftTokens") == 4, "planned anew")
    assert hall.body()["status"]["plan"]["accelerator"] == h100
