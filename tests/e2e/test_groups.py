"""Replicas on several nodes: the real LeaderWorkerSet controller and scheduler, on nodes of KWOK."""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import Any

import pytest

from turbo_dev import leader_worker_sets
from turbo_dev.audit_reader import AuditReader
from turbo_dev.binaries import GoMissingError
from turbo_dev.fakenodes import GPU
from turbo_dev.hall import Hall
from turbo_operator import resources

pytestmark = pytest.mark.cluster

R1 = {"uri": "hf://deepseek-ai/DeepSeek-R1", "maxModelLen": 8192}
GROUP, WORKER = "leaderworkerset.sigs.k8s.io/group-index", "leaderworkerset.sigs.k8s.io/worker-index"
BUDGETS = resources.CHILDREN["PodDisruptionBudget"]
LWS = resources.LEADERWORKERSET


def pods(hall: Hall) -> dict[str, dict[str, str]]:
    """By group: the uid of each of its pods by number, of those that are there to stay."""
    found: dict[str, dict[str, str]] = {}
    for pod in hall.cluster.api.list(resources.POD, hall.namespace):
        labels = pod["metadata"]["labels"]
        if GROUP in labels and "deletionTimestamp" not in pod["metadata"]:
            found.setdefault(labels[GROUP], {})[labels[WORKER]] = pod["metadata"]["uid"]
    return found


@pytest.fixture(scope="module")
def grouped(gpu_plane: Any) -> Iterator[Any]:
    try:
        with leader_worker_sets.installed(gpu_plane.access):
            yield gpu_plane
    except GoMissingError as missing:
        pytest.skip(f"no LeaderWorkerSet: {missing}")


def r1_hall(hall: Hall, nodes: int, **spec: Any) -> str:
    """H100 on so many nodes of 8, an operator, and R1 671B on them."""
    h100 = hall.accelerator("h100", "6.88", countPerNode=8)
    hall.nodes(h100, nodes, gpus=8)
    hall.cluster.start(hall.namespace)
    hall.deploy(h100, model=R1, engine={"type": "VLLM"}, **spec)
    return h100


def test_without_that_kind_the_plan_says_what_is_missing_and_with_it_is_made_anew(hall: Hall) -> None:
    r1_hall(hall, 2)
    said = hall.until_said("PlanFeasible", "False", "NotYetSupported")["message"]
    assert "needs LeaderWorkerSet in the cluster: install it as https://lws.sigs.k8s.io" in said
    with leader_worker_sets.installed(hall.cluster.access):
        body = hall.until_ready()
        plan = body["status"]["plan"]
        assert (plan["tensor"], plan["nodes"], plan["acceleratorsPerReplica"]) == (8, 2, 16)
        hall.cluster.access.kubectl("delete", "td", "chat", "-n", hall.namespace)
        hall.until(lambda: not pods(hall), "its pods have ended")
    hall.deploy(next(iter(body["spec"]["accelerators"]["allowed"])), model=R1, engine={"type": "VLLM"})
    hall.until_said("PlanFeasible", "False", "NotYetSupported")  # again, once it is seen to be gone


@pytest.mark.usefixtures("grouped")
def test_r1_lands_on_one_node_of_eight_h200_as_a_deployment(hall: Hall) -> None:
    h200 = hall.accelerator("h200", "7.912", memory="141Gi", countPerNode=8)
    hall.nodes(h200, 1, gpus=8)
    hall.cluster.start(hall.namespace)
    hall.deploy(h200, model=R1, engine={"type": "VLLM"})
    plan = hall.until_ready()["status"]["plan"]
    assert (plan["tensor"], plan.get("nodes", 1), plan["acceleratorsPerReplica"]) == (8, 1, 8)
    (pod,) = hall.serving()
    assert pod["spec"]["containers"][0]["resources"]["limits"][GPU] == "8"
    assert hall.cluster.api.list(LWS, hall.namespace) == []


@pytest.mark.usefixtures("grouped")
def test_r1_lands_on_two_nodes_of_eight_h100_rests_and_leaves_nothing(hall: Hall) -> None:
    h100 = r1_hall(hall, 2)
    body = hall.until_ready()
    hall.until(lambda: [len(group) for group in pods(hall).values()] == [2], "the group is whole")
    assert body["status"]["plan"]["predicted"]["costPerHour"] == body["status"]["observed"]["costPerHour"]
    found = [
        pod
        for pod in hall.cluster.api.list(resources.POD, hall.namespace)
        if GROUP in pod["metadata"]["labels"]
    ]
    assert {pod["spec"]["nodeName"] for pod in found} == {f"{h100}-0", f"{h100}-1"}
    for pod in found:
        labels, (container,) = pod["metadata"]["labels"], pod["spec"]["containers"]
        assert container["resources"]["limits"][GPU] == "8"
        own = {variable["name"]: variable.get("value") for variable in container["env"]}
        assert own["LWS_WORKER_INDEX"] == labels[WORKER]
        assert own["LWS_LEADER_ADDRESS"].endswith(hall.namespace)
        arguments = container["args"]
        assert "--nnodes=2" in arguments
        assert ("--headless" in arguments) == (labels[WORKER] != "0")
        assert labels["serving.turbo.dev/role"] == ("serving" if labels[WORKER] == "0" else "worker")
    held = {"nodes": 2, "allocatable": 16, "available": 0}
    hall.until(lambda: hall.counts(h100) == held, "all of it is held")

    written = len(hall.cluster.writes(hall.namespace))
    time.sleep(3)
    assert len(hall.cluster.writes(hall.namespace)) == written, "nothing is written at rest"

    hall.cluster.access.kubectl("delete", "td", "chat", "-n", hall.namespace)
    kinds = (LWS, resources.STATEFULSET, resources.POD, BUDGETS, resources.CHILDREN["Service"])
    hall.until(
        lambda: not any(hall.cluster.api.list(kind, hall.namespace) for kind in kinds), "nothing is left"
    )
    hall.until(lambda: hall.counts(h100)["available"] == 16, "and its accelerators are free again")


@pytest.mark.usefixtures("grouped")
def test_a_lost_worker_brings_its_whole_group_back_and_touches_no_other(hall: Hall) -> None:
    r1_hall(hall, 4, replicas=2)
    hall.until_ready(2)
    # A leader of vLLM is ready once its workers are; one of KWOK is at once.
    hall.until(lambda: [len(group) for group in pods(hall).values()] == [2, 2], "both groups are whole")
    before = pods(hall)
    name = next(
        pod["metadata"]["name"]
        for pod in hall.cluster.api.list(resources.POD, hall.namespace)
        if pod["metadata"]["uid"] == before["1"]["1"]
    )
    # LeaderWorkerSet notices a pod only while it ends: seconds on a node, perhaps not at all on one of KWOK.
    worker = ("pod", name, "-n", hall.namespace)
    kept = '["tests.turbo.dev/ending"]'
    hall.cluster.access.kubectl("patch", *worker, "-p", f'{{"metadata": {{"finalizers": {kept}}}}}')
    hall.cluster.access.kubectl("delete", *worker, "--wait=false")
    hall.until(lambda: before["1"]["0"] not in pods(hall).get("1", {}).values(), "its leader ends too")
    ended = f'{{"metadata": {{"$deleteFromPrimitiveList/finalizers": {kept}}}}}'
    hall.cluster.access.kubectl("patch", *worker, "-p", ended)

    def is_made_anew() -> bool:  # its StatefulSet may replace the worker once before the whole group goes
        group = pods(hall).get("1", {})
        return group.keys() == {"0", "1"} and not set(group.values()) & set(before["1"].values())

    hall.until(is_made_anew, "all of the group has been replaced")
    hall.until_ready(2)
    after = pods(hall)
    assert after["0"] == before["0"]
    assert not set(after["1"].values()) & set(before["1"].values())


@pytest.mark.usefixtures("grouped")
def test_a_budget_and_a_quota_are_kept_by_whole_groups(hall: Hall) -> None:
    quota = ("quota", "gpus", "-n", hall.namespace)
    hall.cluster.access.kubectl("create", *quota, f"--hard=requests.{GPU}=31")
    r1_hall(hall, 6, replicas=2, cost={"maxPerHour": "230"})  # of 110.08 each
    hall.until_said("PlanFeasible", "False", "InsufficientCapacity")
    hall.until(lambda: hall.body()["status"]["readyReplicas"] == 1, "31 accelerators hold one group of 16")
    more = f'{{"spec": {{"hard": {{"requests.{GPU}": "48"}}}}}}'
    hall.cluster.access.kubectl("patch", *quota, "--type=merge", "-p", more)
    hall.until_ready(2)
    budgets = {
        budget["metadata"]["name"]: budget["spec"]["minAvailable"]
        for budget in hall.cluster.api.list(BUDGETS, hall.namespace)
    }
    assert budgets == {"chat": 3}, "one pod of four, with its group"
    scale = ("scale", "td/chat", "-n", hall.namespace)
    hall.cluster.access.kubectl(*scale, "--replicas=3")
    hall.until_said("PlanFeasible", "False", "BudgetExceeded")
    assert pods(hall).keys() == {"0", "1"}, "a third is above the budget"
    hall.change(cost={"maxPerHour": "400"})
    hall.until_ready(3)
    hall.change(cost={"maxPerHour": "230"}, replicas=2)
    hall.until(lambda: pods(hall).keys() == {"0", "1"}, "what is above the budget has gone")
    hall.until_ready(2)
    events = AuditReader(hall.cluster.access, f'"namespace":"{hall.namespace}"').read()
    asked = [
        event["requestObject"]["spec"]["replicas"]
        for event in events
        if event["objectRef"]["resource"] == LWS.plural
        and event["user"]["username"] == hall.cluster.user
        and "spec" in (event.get("requestObject") or {})
    ]
    assert asked == [1, 2, 3, 2]
