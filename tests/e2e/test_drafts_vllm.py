"""Drafts for vLLM on a real API server: the test is the kubelet of the pods, and answers in vLLM's place."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest

from turbo_dev import pod_reports
from turbo_operator import resources
from turbo_operator.api import (
    API_VERSION,
    LABEL_DRAFT_VERSION,
    LABEL_ROLE,
    ROLE_SERVING,
    ROLE_TRAIN,
    rfc3339,
)
from turbo_runtime.contract.documents import DomainEvaluation, DraftManifest
from turbo_runtime.contract.endpoints import METRICS_PATH, PORT

pytestmark = pytest.mark.cluster

GOOD, BAD = "chat-good", "chat-spoilt"
# Where the pods of each draft answer once they were moved there, and the seconds of a token there.
ADDRESSES = {None: ("127.0.0.4", 0.025), GOOD: ("127.0.0.5", 0.010), BAD: ("127.0.0.6", 0.040)}
SECONDS = 100.0  # of requests that a pod ends in a second: a canary of minutes within one
TOKENS, ACCEPTED = 4, 1.5  # drafted tokens of a step, and those that are right
DEPTH = 4
CANARY = {"minGenerationDuration": "2s", "minDuration": "1s"}
RATES = {"memoryBandwidthGBps": "100", "tflops": {"bf16": "2"}}


def page(seconds_per_token: float, since: float) -> str:
    """What vLLM tells of requests of a hundred tokens each, all of them ended."""
    busy = SECONDS * (time.monotonic() - since)
    requests = int(busy / (99 * seconds_per_token))
    steps = requests * 100 / (1 + ACCEPTED)
    counts = {
        "vllm:num_requests_running": 4,
        "vllm:num_requests_waiting": 0,
        "vllm:kv_cache_usage_perc": 0.1,
        "vllm:generation_tokens_total": requests * 100,
        "vllm:request_generation_tokens_count": requests,
        "vllm:request_generation_tokens_sum": requests * 100,
        "vllm:request_decode_time_seconds_sum": requests * 99 * seconds_per_token,
        "vllm:spec_decode_num_drafts_total": int(steps),
        "vllm:spec_decode_num_draft_tokens_total": int(steps * TOKENS),
        "vllm:spec_decode_num_accepted_tokens_total": int(steps * ACCEPTED),
    }
    lines = [f'{name}{{engine="0"}} {value}' for name, value in counts.items()]
    blocks = 'vllm:cache_config_info{num_gpu_blocks="100",block_size="16",engine="0"} 1'
    return "\n".join([*lines, blocks, ""])


@pytest.fixture
def pods() -> Iterator[None]:
    """An HTTP server on each of the addresses."""
    start = time.monotonic()

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            times = dict(ADDRESSES.values())
            body = page(times[self.connection.getsockname()[0]], start).encode()
            self.send_response(200 if self.path == METRICS_PATH else 404)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: object) -> None:
            """Nothing: a scrape twice a second is no news."""

    servers = [ThreadingHTTPServer((address, PORT), Handler) for address, _ in ADDRESSES.values()]
    threads = [threading.Thread(target=server.serve_forever) for server in servers]
    for thread in threads:
        thread.start()
    yield
    for server, thread in zip(servers, threads, strict=True):
        server.shutdown()
        thread.join()
        server.server_close()


def serving(cluster: Any, namespace: str) -> list[dict[str, Any]]:
    """Pods that serve and stay, each at the address of its draft."""
    found = []
    for pod in cluster.api.list(resources.POD, namespace):
        meta = pod["metadata"]
        if meta["labels"].get(LABEL_ROLE) != ROLE_SERVING or "deletionTimestamp" in meta:
            continue
        address, _ = ADDRESSES[meta["labels"].get(LABEL_DRAFT_VERSION)]
        if pod.get("status", {}).get("podIP") not in (None, address):
            moved = {"status": {"podIP": address, "podIPs": [{"ip": address}]}}
            cluster.api.patch(resources.POD, namespace, meta["name"], moved, "status")
        found.append(pod)
    return found


def versions(cluster: Any, namespace: str) -> list[str]:
    """Of the pods that serve, the drafts that they load; empty for none."""
    labels = (pod["metadata"]["labels"] for pod in serving(cluster, namespace))
    return sorted(each.get(LABEL_DRAFT_VERSION, "") for each in labels)


def names(cluster: Any, namespace: str) -> set[str]:
    """The pods that serve and stay."""
    return {pod["metadata"]["name"] for pod in serving(cluster, namespace)}


def change(cluster: Any, namespace: str, **spec: Any) -> None:
    patch = json.dumps({"spec": spec})
    cluster.access.kubectl("patch", "td", "chat", "-n", namespace, "--type=merge", "-p", patch)


def draft(namespace: str, name: str, version: str, **spec: Any) -> dict[str, Any]:
    rows = [{"domain": "chat", "acceptanceLength": "2.1", "acceptancePerPosition": ["0.7", "0.5", "0.4"]}]
    return {
        "apiVersion": API_VERSION,
        "kind": "TurboDraft",
        "metadata": {"name": name, "namespace": namespace},
        "spec": {
            "method": "EAGLE3",
            "location": {"claimName": "drafts", "path": f"chat/{name}"},
            "version": version,
            "digest": f"sha256:{'1' * 64}",
            "targetDigest": pod_reports.FACTS.digest,
            "evaluation": rows,
            **spec,
        },
    }


def create(cluster: Any, namespace: str, replicas: int, **speculation: Any) -> None:
    accelerator = {
        "apiVersion": API_VERSION,
        "kind": "TurboAccelerator",
        "metadata": {"name": namespace},
        "spec": {
            "resourceName": "cpu",
            "quantity": "1",
            "memory": "8Gi",
            "provisioning": "Elastic",
            "pricing": {"perAcceleratorHour": {"onDemand": "0.04"}, "source": "set by the test"},
            **RATES,
        },
    }
    cluster.access.apply(accelerator)
    cluster.create_deployment(
        namespace,
        model={"uri": "hf://HuggingFaceTB/SmolLM2-135M-Instruct", "maxModelLen": 2048},
        engine={"type": "VLLM", "image": "registry.test/vllm-cpu:1"},
        accelerators={"allowed": [namespace]},
        replicas=replicas,
        speculation={"maxDraftTokens": DEPTH, **speculation},
        rollout={"minReadySeconds": 0, "maxUnavailable": 0, "progressDeadline": "3s", "canary": CANARY},
    )


def status(cluster: Any, namespace: str) -> dict[str, Any]:
    serving(cluster, namespace)
    found: dict[str, Any] = cluster.deployment(namespace)["status"]
    return found


def columns(cluster: Any, namespace: str) -> dict[str, str]:
    """The row that `kubectl get td -o wide` prints, by the names of its columns."""
    header, row = cluster.access.kubectl("get", "td", "chat", "-n", namespace, "-o", "wide").splitlines()
    names = header.split()
    starts = [header.index(name) for name in names]
    cells = [row[start:end].strip() for start, end in zip(starts, [*starts[1:], None], strict=True)]
    return dict(zip(names, cells, strict=True))


def test_a_draft_is_tried_on_a_pod_promoted_by_a_rollout_and_a_bad_one_changes_nothing(
    cluster: Any, pods: None
) -> None:
    namespace = cluster.namespace("vllm-canary")
    operator = cluster.start(namespace, TURBO_SCRAPE_SECONDS="0.5")
    create(cluster, namespace, replicas=2)
    cluster.until_ready(namespace, replicas=2)
    plain = status(cluster, namespace)["plan"]
    assert (plain["engine"], plain["method"]) == ("VLLM", "Off")
    assert versions(cluster, namespace) == ["", ""]

    cluster.access.apply(draft(namespace, "good", GOOD, deploymentName="chat"))
    cluster.until(lambda: status(cluster, namespace).get("canary", {}).get("name") == "good", "it is tried")
    cluster.until(lambda: versions(cluster, namespace) == ["", GOOD], "one of the two pods tries it")
    operator.kill()
    cluster.start(namespace, TURBO_SCRAPE_SECONDS="0.5")
    cluster.until(lambda: status(cluster, namespace).get("draft", {}).get("name") == "good", "it is promoted")
    promoted = cluster.condition(cluster.deployment(namespace), "DraftPromoted")
    assert (promoted["status"], promoted["reason"]) == ("True", "Promoted")
    assert "10 ms on the pod with chat-good, and 25 ms on the others" in promoted["message"]
    assert "2.50 times as fast. From now on the planner counts on it." in promoted["message"]
    cluster.until(lambda: versions(cluster, namespace) == [GOOD, GOOD], "the rollout is over")
    body = cluster.until_ready(namespace, replicas=2)
    assert cluster.condition(body, "DraftReady")["reason"] == "Loaded"
    plan = body["status"]["plan"]
    assert (plan["method"], plan["maxDraftTokens"]) == ("EAGLE3", DEPTH)
    assert plan["hash"] == body["status"]["servingPlan"]["hash"] != plain["hash"]
    cluster.until(
        lambda: {"speedup", "acceptanceLength"} <= status(cluster, namespace)["observed"].keys(),
        "the status tells what drafts gain",
    )
    row = columns(cluster, namespace)
    assert (row["ENGINE"], row["METHOD"], row["ACCEPTANCE"]) == ("VLLM", "EAGLE3", "2.50")
    assert float(row["SPEEDUP"]) > 1.0

    time.sleep(1.1)  # what was created in the same second would be of the same age
    cluster.access.apply(draft(namespace, "spoilt", BAD, deploymentName="chat"))
    cluster.until(lambda: BAD in versions(cluster, namespace), "the bad one is tried")
    after = cluster.until(
        lambda: (found := status(cluster, namespace)).get("rejectedDrafts") and found, "it is rejected"
    )
    (rejected,) = after["rejectedDrafts"]
    assert (rejected["name"], rejected["reason"]) == ("spoilt", "NoImprovement")
    assert "0.25 times as fast, and it has to be at least 1.02." in rejected["message"]
    assert after["draft"]["name"] == "good"
    cluster.until(lambda: versions(cluster, namespace) == [GOOD, GOOD], "its pod is gone")
    assert cluster.until_ready(namespace, replicas=2)["status"]["plan"]["hash"] == plan["hash"]

    # Whose canary ends without a verdict.
    change(cluster, namespace, rollout={"canary": {"minDuration": "1h"}})
    kept = names(cluster, namespace)
    cluster.access.apply(draft(namespace, "brief", BAD, deploymentName="chat"))
    cluster.until(lambda: versions(cluster, namespace) == [GOOD, BAD], "a third one is tried")
    cluster.access.kubectl("delete", "turbodraft", "brief", "-n", namespace)
    cluster.until(lambda: versions(cluster, namespace) == [GOOD, GOOD], "it is deleted, and its pod is gone")
    assert names(cluster, namespace) & kept, "one of those that served has served on"
    assert cluster.until_ready(namespace, replicas=2)["status"]["servingPlan"]["hash"] == plan["hash"]

    cluster.access.apply(draft(namespace, "brief", BAD, deploymentName="chat"))
    cluster.until(lambda: versions(cluster, namespace) == [GOOD, BAD], "it is tried again")
    tried = names(cluster, namespace) - kept
    change(cluster, namespace, podTemplate={"metadata": {"labels": {"team": "a"}}})
    served = {plan["hash"]}

    def rolled() -> bool:
        now = status(cluster, namespace)
        served.add(now["servingPlan"]["hash"])
        return bool(now["servingPlan"]["hash"] == now["plan"]["hash"] != plan["hash"])

    cluster.until(rolled, "the change of the spec has taken over")
    assert len(served) == 2, "no pod that tried a draft was taken for what serves"
    cluster.until(lambda: not names(cluster, namespace) & (kept | tried), "the pods before it are gone")


def test_one_of_another_model_is_refused_and_one_that_vllm_cannot_load_is_rolled_back(cluster: Any) -> None:
    namespace = cluster.namespace("vllm-named")
    cluster.start(namespace)
    cluster.access.apply(draft(namespace, "mine", GOOD, targetDigest="sha256:other"))
    create(cluster, namespace, replicas=1, method="EAGLE3", draftRef={"name": "mine"})
    body = cluster.until_ready(namespace)
    assert body["status"]["plan"]["method"] == "Off"
    ready = cluster.condition(body, "DraftReady")
    assert (ready["status"], ready["reason"]) == ("False", "TargetModelMismatch")
    assert "was trained for the model sha256:other" in ready["message"]
    assert "name one that was trained for it" in ready["message"]

    cluster.access.apply(draft(namespace, "mine", GOOD))
    cluster.until(lambda: versions(cluster, namespace) == [GOOD], "a rollout brings it")
    good = cluster.until_ready(namespace)
    assert cluster.condition(good, "DraftReady")["reason"] == "Loaded"

    cluster.kubelet.refused.add("chat-")  # the test reports what comes now
    try:
        cluster.access.apply(draft(namespace, "bad", BAD))
        change(cluster, namespace, speculation={"draftRef": {"name": "bad"}})
        new = cluster.until(lambda: started(cluster, namespace, BAD), "a pod starts with it")
        for _ in range(2):  # as it does each time that the container ends
            report = pod_reports.waiting(new, time.time(), "CrashLoopBackOff", "KeyError: 'd2t'")
            report["phase"] = "Running"
            cluster.api.patch(resources.POD, namespace, new["metadata"]["name"], {"status": report}, "status")
        cluster.until(
            lambda: status(cluster, namespace).get("rollout", {}).get("reason") == "RolledBack",
            "it is rolled back",
        )
    finally:
        cluster.kubelet.refused.discard("chat-")
    cluster.until(lambda: versions(cluster, namespace) == [GOOD], "what served serves on")
    body = cluster.deployment(namespace)
    assert body["status"]["servingPlan"]["hash"] == good["status"]["plan"]["hash"]
    assert "0 of 1 pods that answer draft with" in cluster.condition(body, "DraftReady")["message"]


def started(cluster: Any, namespace: str, version: str) -> dict[str, Any] | None:
    """A pod that loads that draft."""
    pods = serving(cluster, namespace)
    return next((pod for pod in pods if pod["metadata"]["labels"].get(LABEL_DRAFT_VERSION) == version), None)


def test_one_that_is_trained_from_the_pods_own_answers_is_a_candidate(cluster: Any, pods: None) -> None:
    namespace = cluster.namespace("vllm-trained")
    cluster.start(namespace, TURBO_SCRAPE_SECONDS="0.5")
    training = {
        "persistentVolumeClaim": {"claimName": "drafts"},
        "prompts": {"type": "ConfigMap", "configMap": {"name": "prompts"}},
    }
    create(cluster, namespace, replicas=1, method="EAGLE3", training=training)

    def trains() -> dict[str, Any] | None:
        for pod in cluster.api.list(resources.POD, namespace):
            is_running = pod.get("status", {}).get("phase") == "Running"
            if pod["metadata"]["labels"][LABEL_ROLE] == ROLE_TRAIN and is_running:
                found: dict[str, Any] = pod
                return found
        return None

    pod = cluster.until(trains, "a pod trains")
    (container,) = pod["spec"]["containers"]
    assert container["image"] == "registry.test/turbo-runtime:1"
    assert f"--from=http://chat.{namespace}.svc/v1" in container["args"]
    worth = (DomainEvaluation("prompts", 2.1, (0.7, 0.5, 0.4)),)
    made = DraftManifest("eagle3", GOOD, f"sha256:{'1' * 64}", pod_reports.FACTS.digest, "chat", 0, worth)
    now = time.time()
    end = {"exitCode": 0, "reason": "Completed", "message": made.to_json(), "finishedAt": rfc3339(now)}
    report = pod_reports.report(
        pod, now, "Succeeded", {"terminated": {**end, "startedAt": rfc3339(now - 60)}}
    )
    cluster.api.patch(resources.POD, namespace, pod["metadata"]["name"], {"status": report}, "status")

    cluster.until(
        lambda: status(cluster, namespace).get("draft", {}).get("version") == GOOD, "it is promoted"
    )
    found = cluster.api.get(resources.TURBODRAFT, namespace, "chat-draft-1")["spec"]
    assert (found["method"], found["deploymentName"]) == ("EAGLE3", "chat")
    cluster.until(lambda: versions(cluster, namespace) == [GOOD], "its pod serves alone")
    body = cluster.until_ready(namespace)
    assert cluster.condition(body, "DraftTrained")["reason"] == "Trained"
    assert body["status"]["plan"]["method"] == "EAGLE3"
