"""Training on a real API server with the operator as a process; the test is the kubelet of its pods."""

from __future__ import annotations

import json
import time
from functools import partial
from typing import Any

import pytest

from turbo_operator import resources
from turbo_operator.api import rfc3339
from turbo_runtime.contract.documents import DomainEvaluation, DraftManifest, MeasuredSpeedup

pytestmark = pytest.mark.cluster

JOB = resources.CHILDREN["Job"]
MODEL = "sha256:" + "0" * 64  # of the facts that the test's kubelet reports
TRAINING = {
    "persistentVolumeClaim": {"claimName": "drafts"},
    "prompts": {"type": "ConfigMap", "configMap": {"name": "prompts"}},
    "maxCost": "5.00",
}
MADE = DraftManifest(
    "heads",
    "chat-4f21c9aa",
    "sha256:" + "1" * 64,
    MODEL,
    "chat",
    0,
    (DomainEvaluation("prompts", 2.5, (0.7, 0.5), (MeasuredSpeedup(1, 1.1, 1.8),)),),
)


def jobs(cluster: Any, namespace: str) -> dict[str, str]:
    """Uids of the Jobs that train, by name."""
    found = cluster.api.list(JOB, namespace)
    return {
        item["metadata"]["name"]: item["metadata"]["uid"]
        for item in found
        if item["metadata"]["labels"]["serving.turbo.dev/role"] == "train"
    }


def running_pod(cluster: Any, namespace: str) -> str:
    """The pod that trains, once it runs."""

    def runs() -> str | None:
        for pod in cluster.api.list(resources.POD, namespace):
            trains = pod["metadata"]["labels"].get("serving.turbo.dev/role") == "train"
            if trains and pod.get("status", {}).get("phase") == "Running":
                name: str = pod["metadata"]["name"]
                return name
        return None

    name: str = cluster.until(runs, "a pod trains")
    return name


def end(cluster: Any, namespace: str, pod: str, code: int, message: str) -> None:
    (container,) = cluster.api.get(resources.POD, namespace, pod)["status"]["containerStatuses"]
    terminated = {
        "exitCode": code,
        "message": message,
        "reason": "Completed" if code == 0 else "Error",
        "startedAt": container["state"]["running"]["startedAt"],
        "finishedAt": rfc3339(time.time()),
    }
    status = {
        "phase": "Failed" if code else "Succeeded",
        "conditions": [{"type": kind, "status": "False"} for kind in ("Ready", "ContainersReady")],
        "containerStatuses": [
            {
                "name": "train",
                "state": {"terminated": terminated},
                "ready": False,
                "restartCount": 0,
                "image": "x",
                "imageID": "x",
            }
        ],
    }
    cluster.api.patch(resources.POD, namespace, pod, {"status": status}, "status")


def trained(cluster: Any, namespace: str) -> tuple[str, str]:
    found = cluster.condition(cluster.deployment(namespace), "DraftTrained")
    return found["status"], found["reason"]


def state(cluster: Any, namespace: str) -> dict[str, Any]:
    found: dict[str, Any] = cluster.deployment(namespace)["status"].get("training") or {}
    return found


def change(cluster: Any, namespace: str, **training: Any) -> None:
    text = json.dumps({"spec": {"speculation": {"training": training}}})
    cluster.access.kubectl("patch", "td", "chat", "-n", namespace, "--type=merge", "-p", text)


def test_a_draft_is_trained_across_a_killed_operator_and_outlives_its_deployment(cluster: Any) -> None:
    namespace = cluster.namespace("training")
    operator = cluster.start(namespace)
    cluster.create_deployment(namespace, speculation={"training": TRAINING})
    pod = running_pod(cluster, namespace)
    cluster.until(lambda: trained(cluster, namespace) == ("False", "Training"), "the status says so")
    before, work = jobs(cluster, namespace), state(cluster, namespace)["inputHash"]
    assert list(before) == ["chat-train-1"]
    cluster.until_ready(namespace)  # a pod that trains counts for no replica

    operator.kill()
    end(cluster, namespace, pod, 0, MADE.to_json())
    cluster.start(namespace)
    made = cluster.until(
        lambda: cluster.api.get(resources.TURBODRAFT, namespace, "chat-draft-1"), "there is a TurboDraft"
    )
    assert made["spec"] == {
        "method": "TurboHeads",
        "location": {"claimName": "drafts", "path": f"chat/1-{work}"},
        "version": "chat-4f21c9aa",
        "digest": MADE.digest,
        "targetDigest": MODEL,
        "deploymentName": "chat",
        "domain": "chat",
        "evaluation": [
            {
                "domain": "prompts",
                "acceptanceLength": "2.500",
                "acceptancePerPosition": ["0.700", "0.500"],
                "speedups": [{"batchSize": 1, "suffixOnly": "1.100", "withDraft": "1.800"}],
            }
        ],
    }
    assert "ownerReferences" not in made["metadata"]
    cluster.until(lambda: trained(cluster, namespace) == ("True", "Trained"), "the status says so")
    cluster.until(lambda: not jobs(cluster, namespace), "the Job is gone")
    status = state(cluster, namespace)
    assert (status["number"], status["result"]) == (1, "Trained")
    accelerator = json.loads(cluster.access.kubectl("get", "ta", status["acceleratorName"], "-o", "json"))
    assert status["costPerHour"] == accelerator["spec"]["pricing"]["perAcceleratorHour"]["onDemand"]

    cluster.access.kubectl("delete", "td", "chat", "-n", namespace, "--timeout=100s")
    assert cluster.api.get(resources.TURBODRAFT, namespace, "chat-draft-1") is not None


def test_one_that_failed_waits_for_a_change_and_one_that_runs_goes_where_it_is_disabled(cluster: Any) -> None:
    namespace = cluster.namespace("failing")
    cluster.start(namespace)
    cluster.create_deployment(namespace, speculation={"training": TRAINING})
    end(cluster, namespace, running_pod(cluster, namespace), 3, "prompts.jsonl:3: write one object a line")
    cluster.until(lambda: trained(cluster, namespace) == ("False", "TrainingFailed"), "the status says so")
    message = cluster.condition(cluster.deployment(namespace), "DraftTrained")["message"]
    assert "prompts.jsonl:3: write one object a line" in message
    cluster.until_ready(namespace)
    assert list(jobs(cluster, namespace)) == ["chat-train-1"]  # with its logs

    change(cluster, namespace, maxOutputTokens=64)
    cluster.until(lambda: list(jobs(cluster, namespace)) == ["chat-train-2"], "another one is trained")
    cluster.until(lambda: "startTime" in state(cluster, namespace), "its pod is seen to run")
    uid = jobs(cluster, namespace)["chat-train-2"]
    change(cluster, namespace, maxOutputTokens=32)
    cluster.until(
        lambda: (
            cluster.deployment(namespace)["status"]["observedGeneration"]
            == cluster.deployment(namespace)["metadata"]["generation"]
        ),
        "the change was seen",
    )
    assert jobs(cluster, namespace) == {"chat-train-2": uid}  # it is frozen

    change(cluster, namespace, suspend=True)
    cluster.until(lambda: not jobs(cluster, namespace), "the Job is gone")
    cluster.until(lambda: trained(cluster, namespace) == ("False", "Suspended"), "the status says so")


def test_a_draft_of_somebody_elses_under_its_name_is_left_alone_and_serving_goes_on(cluster: Any) -> None:
    namespace = cluster.namespace("strange-draft")
    cluster.start(namespace)
    cluster.create_deployment(namespace, speculation={"training": TRAINING})
    pod = running_pod(cluster, namespace)
    mine = {
        "apiVersion": "serving.turbo.dev/v1alpha1",
        "kind": "TurboDraft",
        "metadata": {"name": "chat-draft-1", "namespace": namespace},
        "spec": {
            "method": "TurboHeads",
            "location": {"claimName": "mine", "path": "mine"},
            "version": "mine",
            "digest": MODEL,
            "targetDigest": MODEL,
        },
    }
    cluster.access.apply(mine)
    end(cluster, namespace, pod, 0, MADE.to_json())
    cluster.until(lambda: trained(cluster, namespace) == ("False", "ApplyRejected"), "the status says so")
    assert cluster.api.get(resources.TURBODRAFT, namespace, "chat-draft-1")["spec"] == mine["spec"]
    cluster.until_ready(namespace)
    cluster.access.kubectl("delete", "turbodraft", "chat-draft-1", "-n", namespace)
    cluster.until(lambda: trained(cluster, namespace) == ("True", "Trained"), "it is made then")


def made_anew(cluster: Any, namespace: str, before: dict[str, str]) -> bool:
    after = jobs(cluster, namespace)
    return list(after) == ["chat-train-1"] and after != before


def test_a_job_that_cannot_start_makes_room_once_the_spec_is_mended(cluster: Any) -> None:
    namespace = cluster.namespace("mended")
    cluster.kubelet.refused.add("chat-train-")
    try:
        cluster.start(namespace)
        cluster.create_deployment(namespace, speculation={"training": TRAINING})
        cluster.until(lambda: list(jobs(cluster, namespace)) == ["chat-train-1"], "there is a Job")
        for mended in (
            {"podTemplate": {"spec": {"imagePullSecrets": [{"name": "right"}]}}},
            {"speculation": {"training": {"prompts": {"type": "ConfigMap", "configMap": {"name": "right"}}}}},
        ):
            before = jobs(cluster, namespace)
            text = json.dumps({"spec": mended})
            cluster.access.kubectl("patch", "td", "chat", "-n", namespace, "--type=merge", "-p", text)
            is_another = partial(made_anew, cluster, namespace, before)
            cluster.until(is_another, "another Job of its name is there")
    finally:
        cluster.kubelet.refused.clear()
    running_pod(cluster, namespace)
