"""Training on a real node: a draft whose pod was killed again and again has the bits of one left in peace."""

from __future__ import annotations

import random
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from turbo_dev import images, release, volume
from turbo_dev.access import Access
from turbo_dev.cluster import Cluster
from turbo_dev.cores import accelerator
from turbo_dev.model import FILE
from turbo_dev.shell import CommandError
from turbo_dev.sizes import IS_FULL
from turbo_operator.api import API_VERSION
from turbo_runtime.contract.documents import PROGRESS_PATH, JobProgress
from turbo_runtime.contract.endpoints import PORT

pytestmark = [pytest.mark.node, pytest.mark.model]

PROMPTS = Path(__file__).parents[2] / "benchmarks" / "data" / "distill" / "support.jsonl"
NUM_PROMPTS, ANSWER_TOKENS = 40, 24  # more than are answered at a time
CALM, STORMY = "calm", "stormy"
STAGES = ("start", "model", "answers", "states", "training", "evaluation", "speedup")
PATIENCE = 900.0
MINE = ("-n", "default")


@pytest.fixture(scope="module")
def node(node_cluster: Cluster) -> Iterator[Cluster]:
    """The chart, the model, prompts, a claim for drafts and an accelerator that trains."""
    made = images.build()
    images.deliver(made, node_cluster)
    access = node_cluster.access
    volume.fill(access, node_cluster, made.model.name)
    release.install(access, made, None)
    volume.claim(access, node_cluster, "drafts")
    # two pods fit on two cores; of another name than what serves, so that no speedup is measured
    access.apply(*(accelerator(name, "900m", 6) for name in ("server", "trainer")), prompts())
    yield node_cluster
    for name in (CALM, STORMY):
        access.kubectl("delete", "td", name, *MINE, "--ignore-not-found", "--timeout=100s")
    access.kubectl("delete", "turbodrafts", "--all", *MINE, "--timeout=100s")
    access.kubectl("delete", "turboaccelerator", "trainer", "server", "--ignore-not-found", "--timeout=100s")
    release.uninstall(access)


def prompts() -> dict[str, Any]:
    lines = PROMPTS.read_text(encoding="utf-8").splitlines(keepends=True)[:NUM_PROMPTS]
    return {
        "apiVersion": "v1",
        "kind": "ConfigMap",
        "metadata": {"name": "prompts", "namespace": "default"},
        "data": {"prompts.jsonl": "".join(lines)},
    }


def deployment(name: str) -> dict[str, Any]:
    training = {
        "persistentVolumeClaim": {"claimName": "drafts"},
        "prompts": {"type": "ConfigMap", "configMap": {"name": "prompts"}},
        "acceleratorName": "trainer",
        "domain": "support",
        "maxOutputTokens": ANSWER_TOKENS,
        "maxCost": "1.00",
    }
    return {
        "apiVersion": API_VERSION,
        "kind": "TurboDeployment",
        "metadata": {"name": name, "namespace": "default"},
        "spec": {
            "model": {"uri": f"pvc://models/{FILE}", "maxModelLen": 2048},
            "accelerators": {"allowed": ["server"]},
            "replicas": 0,
            "speculation": {"training": training},
        },
    }


def pod_of(access: Access, name: str) -> dict[str, Any] | None:
    """The pod of `name` that trains and runs."""
    found = access.get(
        "pods", *MINE, "-l", f"serving.turbo.dev/deployment={name},serving.turbo.dev/role=train"
    )
    for pod in found["items"]:
        (status,) = pod["status"].get("containerStatuses") or ({},)
        if "running" in status.get("state", {}) and "deletionTimestamp" not in pod["metadata"]:
            running: dict[str, Any] = pod
            return running
    return None


def place(access: Access, pod: dict[str, Any]) -> float:
    """How far it says to be: the number of its stage, and the share of that; -1 while it says nothing."""
    name = pod["metadata"]["name"]
    try:
        text = access.kubectl(
            "get", "--raw", f"/api/v1/namespaces/default/pods/{name}:{PORT}/proxy{PROGRESS_PATH}"
        )
    except CommandError:  # not listening yet, or over
        return -1.0
    progress = JobProgress.from_json(text)
    return STAGES.index(progress.stage) + min(0.999, progress.done / max(1, progress.total))


def draft_of(access: Access, name: str) -> dict[str, Any] | None:
    drafts = access.get("turbodrafts", *MINE)["items"]
    found = [draft for draft in drafts if draft["spec"]["deploymentName"] == name]
    return found[0]["spec"] if found else None


def until_at(access: Access, name: str, point: float) -> dict[str, Any]:
    """The pod of `name` that trains, once it is at `point` or beyond."""
    give_up = time.monotonic() + PATIENCE
    while time.monotonic() < give_up:
        pod = pod_of(access, name)
        if pod is not None and place(access, pod) >= point:
            return pod
        assert draft_of(access, name) is None, f"it was done before {point:.2f} was seen"
        time.sleep(0.1)
    raise AssertionError(f"{name} did not come to {point:.2f}: {access.get('td', name, *MINE)['status']}")


def kill(cluster: Cluster, pod: dict[str, Any]) -> None:
    (status,) = pod["status"]["containerStatuses"]
    container = status["containerID"].removeprefix("containerd://")
    cluster.ctr("tasks", "kill", "--signal", "SIGKILL", container)


def test_a_draft_whose_pod_was_killed_again_and_again_is_that_of_one_left_in_peace(node: Cluster) -> None:
    seed = random.SystemRandom().randrange(1 << 32)
    print(f"seed {seed}")
    chance = random.Random(seed)
    access = node.access
    access.apply(deployment(STORMY), deployment(CALM))

    points = [  # seconds after, and whether with its Job: the operator makes another one
        (2.0, chance.uniform(0.0, 1.5), True),  # among the answers
        (0.0, chance.uniform(0.0, 5.0), False),  # while the model loads
    ]
    if IS_FULL:  # each takes a pod as long as it takes to start
        points += [
            (2.0, chance.uniform(0.0, 1.5), False),
            (3.0, chance.uniform(0.0, 1.0), False),  # hidden states
            (4.0 + chance.uniform(0.0, 0.3), 0.0, False),  # the training proper
        ]
    for point, seconds, is_deleted in points:
        pod = until_at(access, STORMY, point)
        time.sleep(seconds)
        at = place(access, pod)
        if is_deleted:
            access.kubectl("delete", "job", f"{STORMY}-train-1", *MINE, "--timeout=100s")
        else:
            kill(node, pod)
        print(f"killed {pod['metadata']['name']} at {at:.2f}, {seconds:.1f} s after {point:.2f}")

    give_up = time.monotonic() + PATIENCE
    while time.monotonic() < give_up and not (draft_of(access, STORMY) and draft_of(access, CALM)):
        time.sleep(0.5)
    stormy, calm = draft_of(access, STORMY), draft_of(access, CALM)
    assert stormy is not None, access.get("td", STORMY, *MINE)["status"]
    assert calm is not None, access.get("td", CALM, *MINE)["status"]
    assert stormy["digest"] == calm["digest"]
    assert stormy["version"] == calm["version"]
    assert stormy["evaluation"] == calm["evaluation"]
    for name, spec in ((STORMY, stormy), (CALM, calm)):
        work = access.get("td", name, *MINE)["status"]["training"]["inputHash"]
        assert spec["location"]["path"] == f"{name}/1-{work}"
