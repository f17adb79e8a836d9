"""A model that is fetched to a claim, against a real API server with the test in the kubelet's place."""

from __future__ import annotations

from typing import Any

import pytest

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
        told = cluster.condition(cluster.deployment(namespace, "kept"), kind)
        return (told["status"], told["reason"]) == (status, reason)

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


def jobs(cluster: Any, namespace: str) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = cluster.objects(JOB, namespace)
    return found
