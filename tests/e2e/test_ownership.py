"""What others do to our children, by mistake or not, is put right, and what is not ours does not count."""

from __future__ import annotations

import json
import time
from typing import Any

import pytest

from turbo_dev import pod_reports
from turbo_dev.api import ApiRefusalError
from turbo_dev.serving_object import DEPLOYMENT, LABEL, POD, REVISION, ServingObject
from turbo_operator import resources

pytestmark = pytest.mark.cluster

OTHER_PLAN = {"speculation": {"maxDraftTokens": 4}}


def test_a_child_whose_label_is_overwritten_is_brought_back_and_followed_on(cluster: Any) -> None:
    served = ServingObject(cluster, "overwritten")
    served.kubectl("label", "--overwrite", "deployment", served.variant, f"{LABEL}=other")
    served.kubectl("scale", "deployment", served.variant, "--replicas=0")
    served.soon(lambda: served.label(DEPLOYMENT) == "chat", "the label is ours again")
    served.soon(lambda: len(served.pods()) == 1, "there is a pod again")
    served.until_ready()


@pytest.mark.parametrize("is_down", [False, True])
def test_a_child_that_lost_its_label_is_rolled_out_like_any_other(cluster: Any, is_down: bool) -> None:
    served = ServingObject(cluster, f"unlabelled-{is_down}".lower())
    if is_down:
        served.operator.stop()
    served.kubectl("label", "deployment", served.variant, f"{LABEL}-")
    if is_down:
        served.write(**OTHER_PLAN)
        size = served.operator.log.stat().st_size
        served.operator = cluster.start(served.namespace)
        cluster.until(lambda: "watching" in served.operator.log.read_bytes()[size:].decode(), "it has listed")
    else:
        served.soon(lambda: served.label(DEPLOYMENT) == "chat", "the label is back")
        served.write(**OTHER_PLAN)
    cluster.until(  # in force for longer than minReadySeconds
        lambda: len(served.variants()) == 1 and served.variant not in served.variants(), "the old one is gone"
    )
    served.until_ready()


@pytest.mark.parametrize("kind", ["Service", "PodDisruptionBudget", "ConfigMap"])
def test_a_child_that_left_its_watch_for_lack_of_a_label_gets_it_back(cluster: Any, kind: str) -> None:
    served = ServingObject(cluster, f"unwatched-{kind}".lower())
    resource, name = resources.CHILDREN[kind], "chat-model" if kind == "ConfigMap" else "chat"
    for _ in range(2):
        served.kubectl("label", kind, name, f"{LABEL}-")
        served.soon(lambda: served.label(resource, name) == "chat", "the label is back")


def test_a_pod_whose_label_goes_and_comes_is_counted_again(cluster: Any) -> None:
    served = ServingObject(cluster, "traffic-label")
    (pod,) = served.pods()
    name = pod["metadata"]["name"]
    served.kubectl("label", "pod", name, f"{LABEL}-")
    served.soon(lambda: len(served.pods()) == 2, "another one is in its place")
    served.kubectl("label", "pod", name, f"{LABEL}=chat")
    served.soon(lambda: len(served.pods()) == 1, "one pod is left")
    served.until_ready()


def test_a_strangers_pod_with_our_labels_is_no_replica(cluster: Any) -> None:
    served = ServingObject(cluster, "strangers-pod", replicas=2)
    labels = served.pods()[0]["metadata"]["labels"]
    del labels["pod-template-hash"]
    container = {"name": "c", "image": "theirs"}
    theirs = {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": "theirs", "namespace": served.namespace, "labels": labels},
        "spec": {"containers": [container]},
    }
    cluster.api.create(POD, theirs)
    # a controller owns it, so that no ReplicaSet takes it for its own
    owner = {"apiVersion": "v1", "kind": "Node", "name": "n", "uid": "u", "controller": True}
    cluster.api.patch(POD, served.namespace, "theirs", {"metadata": {"ownerReferences": [owner]}})
    served.write(replicas=1)
    served.until_ready(1)
    assert served.status()["replicas"] == 1


def test_a_deployment_that_a_finalizer_of_somebodys_holds_is_not_forgotten(cluster: Any) -> None:
    served = ServingObject(cluster, "finalizer")
    hold = {"metadata": {"finalizers": ["example.com/hold"]}}
    cluster.api.patch(DEPLOYMENT, served.namespace, served.variant, hold)
    served.write(**OTHER_PLAN)

    def is_leaving() -> bool:
        there = served.child(DEPLOYMENT)
        return there is not None and "deletionTimestamp" in there["metadata"]

    served.cluster.until(is_leaving, "its removal is requested")
    time.sleep(1)
    log = served.operator.log.read_text()
    said = [line for line in log.splitlines() if f"child={served.variant}" in line]
    assert [line for line in said if "removal requested" in line]
    assert not [line for line in said if "removed" in line and "kind=Deployment" in line]
    deletes = [
        event
        for event in cluster.writes(served.namespace)
        if event["verb"] == "delete" and event["objectRef"]["resource"] == "deployments"
    ]
    assert len(deletes) == 1
    cluster.api.patch(DEPLOYMENT, served.namespace, served.variant, {"metadata": {"finalizers": None}})
    served.soon(lambda: served.child(DEPLOYMENT) is None, "it is gone")
    served.soon(
        lambda: any(
            "removed" in line and "kind=Deployment" in line and f"child={served.variant}" in line
            for line in served.operator.log.read_text().splitlines()
        ),
        "the log says so",
    )


@pytest.mark.parametrize("is_down", [False, True])
def test_what_serves_and_loses_its_label_in_the_middle_of_a_rollout_serves_on(
    cluster: Any, is_down: bool
) -> None:
    in_place = {"maxSurge": 0, "maxUnavailable": 1, "minReadySeconds": 0}
    served = ServingObject(cluster, f"amid-rollout-{is_down}".lower(), replicas=3, rollout=in_place)
    old = served.pod_names()
    cluster.kubelet.refused.add("chat-")
    try:
        served.write(**OTHER_PLAN)
        served.soon(lambda: len(served.pod_names() - old) == 1, "the first pod of the next one is there")
        (first,) = (pod for pod in served.pods() if pod["metadata"]["name"] not in old)
        report = {"status": pod_reports.running(first, time.time())}
        cluster.api.patch(POD, served.namespace, first["metadata"]["name"], report, "status")
        served.soon(lambda: len(old & served.pod_names()) == 1, "another one goes for the next")
        served.soon(lambda: len(served.pod_names() - old) == 2, "and its second one is to come")
        if is_down:
            served.operator.stop()
        served.kubectl("label", "deployment", served.variant, f"{LABEL}-")
        if is_down:
            served.operator = cluster.start(served.namespace)
        cluster.until(lambda: served.label(DEPLOYMENT) == "chat", "the label is back")
        cluster.until(served.rested, "nothing more is written")
        now = served.child(DEPLOYMENT)
        assert now is not None
        assert now["spec"]["replicas"] == 1
        assert len(old & served.pod_names()) == 1
    finally:
        cluster.kubelet.refused.discard("chat-")
    served.cluster.until_ready(served.namespace, replicas=3)


@pytest.mark.parametrize("how", ["unlabelled", "deleted"])
def test_a_variant_whose_revision_goes_serves_on_while_the_next_one_starts(cluster: Any, how: str) -> None:
    served = ServingObject(cluster, f"revision-{how}", replicas=2)
    before, replica_sets = served.child(DEPLOYMENT), served.replica_sets()
    names = served.pod_names()
    cluster.kubelet.refused.add("chat-")
    try:
        served.write(**OTHER_PLAN)
        served.soon(lambda: len(served.variants()) == 2, "the next one is there")
        if how == "deleted":
            served.kubectl("delete", "controllerrevision", served.variant)
        else:
            served.kubectl("label", "controllerrevision", served.variant, f"{LABEL}-")
        served.soon(
            lambda: (
                (there := served.child(REVISION)) is not None
                and served.label(REVISION) == "chat"
                and "deletionTimestamp" not in there["metadata"]
            ),
            "the revision is back",
        )
        time.sleep(1)
        after = served.child(DEPLOYMENT)
        assert before is not None
        assert after is not None
        assert after["spec"] == before["spec"]
        assert served.replica_sets() >= replica_sets
        assert names <= served.pod_names()
    finally:
        cluster.kubelet.refused.discard("chat-")
    served.cluster.until_ready(served.namespace, replicas=2)


def test_a_revision_that_belongs_to_another_is_told_of_and_its_variant_serves_on(cluster: Any) -> None:
    served = ServingObject(cluster, "revision-disowned")
    (pod,) = served.pods()  # the garbage collector removes what has an owner that does not exist
    name, uid = pod["metadata"]["name"], pod["metadata"]["uid"]
    owner = {"apiVersion": "v1", "kind": "Pod", "name": name, "uid": uid, "controller": True}
    cluster.kubelet.refused.add("chat-")
    try:
        served.write(**OTHER_PLAN)
        served.soon(lambda: len(served.variants()) == 2, "the next one is there")
        cluster.api.patch(
            REVISION, served.namespace, served.variant, {"metadata": {"ownerReferences": [owner]}}
        )

        def is_told() -> bool:
            ready = cluster.condition(cluster.deployment(served.namespace), "Ready")
            return f"ControllerRevision {served.variant} is there already" in ready["message"]

        served.soon(is_told, "the status reports it")
        assert served.child(DEPLOYMENT) is not None
        num_statuses = len(served.written_statuses())
        served.write(speculation={"maxDraftTokens": 6})  # a new plan is announced before anything is made
        served.soon(lambda: len(served.written_statuses()) > num_statuses + 1, "the new plan is told")
        for status in served.written_statuses()[num_statuses:]:
            assert "is there already" in cluster.condition({"status": status}, "Ready")["message"]
        served.kubectl("delete", "controllerrevision", served.variant)
        served.soon(lambda: served.label(REVISION) == "chat", "it is made again")
    finally:
        cluster.kubelet.refused.discard("chat-")
    served.cluster.until_ready(served.namespace)


def test_a_revision_that_is_refused_is_told_of_and_its_variant_serves_on(cluster: Any) -> None:
    served = ServingObject(cluster, "revision-refused")
    cluster.kubelet.refused.add("chat-")
    counted = "count/controllerrevisions.apps"
    quota = {
        "apiVersion": "v1",
        "kind": "ResourceQuota",
        "metadata": {"name": "revisions", "namespace": served.namespace},
        "spec": {"hard": {counted: "1"}},
    }
    try:
        served.write(**OTHER_PLAN)
        served.soon(lambda: len(served.variants()) == 2, "the next one is there")
        cluster.api.create(resources.QUOTA, quota)

        def counts() -> bool:
            stored = cluster.api.get(resources.QUOTA, served.namespace, "revisions")
            return (stored.get("status", {}).get("used") or {}).get(counted) == "2"

        served.soon(counts, "the quota counts them")
        served.kubectl("delete", "controllerrevision", served.variant)

        def is_told() -> bool:
            ready = cluster.condition(cluster.deployment(served.namespace), "Ready")
            return ready["reason"] == "ApplyRejected" and counted in ready["message"]

        served.soon(is_told, "the status reports it")
        assert served.child(DEPLOYMENT) is not None
        served.kubectl("delete", "resourcequota", "revisions")
    finally:
        cluster.kubelet.refused.discard("chat-")


@pytest.mark.parametrize("kind", ["Service", "Deployment"])
def test_a_list_item_that_somebody_edits_in_place_is_put_back(cluster: Any, kind: str) -> None:
    """The API server merges ports by number: ours would stand beside the edited one, of the same name."""
    served = ServingObject(cluster, f"edited-port-{kind}".lower())
    path = "/spec/ports/0/port"
    if kind == "Deployment":
        path = "/spec/template/spec/containers/0/ports/0/containerPort"
    resource, name = resources.CHILDREN[kind], "chat" if kind == "Service" else served.variant
    before = served.child(resource, name)
    assert before is not None
    patch = json.dumps([{"op": "replace", "path": path, "value": 9000}])
    served.kubectl("patch", kind, name, "--type=json", "-p", patch)

    def is_back() -> bool:
        now = served.child(resource, name)
        assert now is not None
        return bool(now["spec"] == before["spec"])

    served.soon(is_back, "it is as before")
    served.until_ready()
    cluster.until(served.rested, "nobody fights for it")


@pytest.mark.parametrize(
    ("kind", "theirs"),
    [
        ("Deployment", {"template": {"spec": {"nodeSelector": {"theirs": "yes"}}}}),
        ("Deployment", {"paused": True}),
        ("Deployment", {"strategy": {"type": "Recreate", "rollingUpdate": None}}),
        ("Service", {"selector": {"theirs": "yes"}}),
        ("Service", {"ports": [{"name": "theirs", "port": 81}]}),
    ],
    ids=json.dumps,
)
def test_a_field_that_somebody_adds_to_a_child_is_taken_out_again(
    cluster: Any, kind: str, theirs: dict[str, Any]
) -> None:
    served = ServingObject(cluster, f"added-{kind}-{next(iter(theirs))}".lower())
    resource, name = resources.CHILDREN[kind], served.variant if kind == "Deployment" else "chat"
    before = served.child(resource, name)
    assert before is not None
    cluster.api.patch(resource, served.namespace, name, {"spec": theirs})

    def is_back() -> bool:
        now = served.child(resource, name)
        assert now is not None
        return bool(now["spec"] == before["spec"])

    served.soon(is_back, f"it is as before: {served.child(resource, name)}")
    cluster.until(served.rested, "nobody fights for it")
    served.until_ready()


def test_a_pod_that_loses_the_label_by_which_traffic_finds_it_gets_it_back(cluster: Any) -> None:
    """Found on the real node: its ReplicaSet kept it, the Service did not, and nothing answered any more."""
    served = ServingObject(cluster, "label-of-a-pod")
    (pod,) = served.pods()
    label, name = "serving.turbo.dev/owner-uid", pod["metadata"]["name"]
    for edit in (f"{label}-", f"{label}=foo"):
        served.kubectl("label", "pod", name, edit, "--overwrite")
        served.soon(
            lambda: served.pods()[0]["metadata"]["labels"].get(label) == pod["metadata"]["labels"][label],
            "the label is back",
        )
    assert served.pod_names() == {name}


def test_no_drain_takes_the_last_replica_while_a_rollout_has_one_go_first(cluster: Any) -> None:
    """Found on the real node: the budget counted what Deployments asked for, and let the last one go."""
    in_place = {"maxSurge": 0, "maxUnavailable": 1, "minReadySeconds": 0}
    served = ServingObject(cluster, "drained", replicas=2, rollout=in_place)
    old = served.pod_names()
    cluster.kubelet.refused.add("chat-")
    try:
        served.write(**OTHER_PLAN)
        served.soon(lambda: len(old & served.pod_names()) == 1, "one goes for the next")
        (last,) = old & served.pod_names()
        eviction = {
            "apiVersion": "policy/v1",
            "kind": "Eviction",
            "metadata": {"name": last, "namespace": served.namespace},
        }
        budget = resources.CHILDREN["PodDisruptionBudget"]
        served.soon(lambda: served.child(budget, "chat")["status"]["currentHealthy"] == 1, "it was counted")
        path = f"/api/v1/namespaces/{served.namespace}/pods/{last}/eviction"
        with pytest.raises(ApiRefusalError, match="disruption budget"):
            cluster.api.send("POST", path, eviction)
        assert last in served.pod_names()
    finally:
        cluster.kubelet.refused.discard("chat-")
    cluster.until_ready(served.namespace, replicas=2)
