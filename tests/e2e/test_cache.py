"""A model that is fetched to a claim, against a real API server with the test in the kubelet's place."""

from __future__ import annotations

import time
from typing import Any

import pytest

from turbo_dev import pod_reports
from turbo_operator import resources

pytestmark = pytest.mark.cluster
JOB = resources.CHILDREN["Job"]


def test_pods_come_once_the_job_is_complete_and_stay_when_it_is_gone(cluster: Any) -> None:
    namespace = cluster.namespace("cached")
    cluster.kubelet.refused.add("kept-fetch")
    cluster.start(namespace)
    cluster.create_deployment(
        namespace,
        "kept",
        model={"uri": "hf://HuggingFaceTB/SmolLM2-135M-Instruct"},
        cache={"persistentVolumeClaim": {"claimName": "weights"}},
    )

    def says(kind: str, status: str, reason: str) -> bool:
        condition = cluster.condition(cluster.deployment(namespace, "kept"), kind)
        return (condition["status"], condition["reason"]) == (status, reason)

    cluster.until(lambda: says("Ready", "False", "Fetching"), "it is fetched")
    kinds = {name.partition("/")[0] for name in cluster.children(namespace)}
    assert "Job" in kinds
    assert "Deployment" not in kinds
    cluster.kubelet.refused.discard("kept-fetch")
    ready = cluster.until_ready(namespace, "kept")
    assert says("ModelCached", "True", "Cached")
    assert ready["status"]["cache"] == {"claimName": "weights", "revision": "0" * 40}

    (first,) = jobs(cluster, namespace)
    cluster.access.kubectl("delete", "job", first["metadata"]["name"], "-n", namespace)
    cluster.until(
        lambda: (
            [each["metadata"]["uid"] for each in jobs(cluster, namespace)]
            not in ([], [first["metadata"]["uid"]])
        ),
        "the Job is made again",
    )
    cluster.until(lambda: says("ModelCached", "True", "Cached"), "it finds all of it there")
    assert cluster.is_ready(cluster.deployment(namespace, "kept"))
    statuses = [
        event["requestObject"]["status"]
        for event in cluster.writes(namespace)
        if event["objectRef"].get("subresource") == "status"
    ]
    ready_replicas = [status.get("readyReplicas", 0) for status in statuses]
    assert 0 not in ready_replicas[ready_replicas.index(1) :]


def test_what_a_pod_no_longer_finds_on_the_claim_is_fetched_again(cluster: Any) -> None:
    """Found in review: the files were gone, ModelCached stayed True, and pods failed for ever."""
    namespace = cluster.namespace("lost")
    cluster.start(namespace)
    cluster.create_deployment(
        namespace,
        "lost",
        model={"uri": "hf://HuggingFaceTB/SmolLM2-135M-Instruct"},
        cache={"persistentVolumeClaim": {"claimName": "weights"}},
    )
    cluster.until_ready(namespace, "lost")
    (first,) = jobs(cluster, namespace)
    pods = cluster.objects(resources.POD, namespace)
    (pod,) = [each for each in pods if each["spec"].get("initContainers")]
    (check,) = pod["spec"]["initContainers"]
    name = pod["metadata"]["name"]
    cluster.kubelet.refused.add(name)
    status = pod_reports.lacking(pod, time.time() + 1, check["args"][-1])
    cluster.api.patch(resources.POD, namespace, name, {"status": status}, "status")

    def is_cached_anew() -> bool:
        condition = cluster.condition(cluster.deployment(namespace, "lost"), "ModelCached")
        uids = [each["metadata"]["uid"] for each in jobs(cluster, namespace)]
        return bool(uids) and first["metadata"]["uid"] not in uids and condition["status"] == "True"

    cluster.until(is_cached_anew, "another Job has fetched it")
    cluster.kubelet.refused.discard(name)
    cluster.until_ready(namespace, "lost")


def jobs(cluster: Any, namespace: str) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = cluster.objects(JOB, namespace)
    return found
