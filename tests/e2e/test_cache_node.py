"""A model of the hub on a real node: fetched to a claim once, and served from there with the hub away."""

from __future__ import annotations

import shutil
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import openai
import pytest
from peers import weights

from turbo_dev import hub, model, release, served, volume
from turbo_dev.cluster import Cluster
from turbo_dev.processes import ProcessGroup
from turbo_dev.served import Served
from turbo_operator import resources
from turbo_operator.api import LABEL_DEPLOYMENT, LABEL_ROLE, ROLE_FETCH

pytestmark = [pytest.mark.node, pytest.mark.model]
CLAIM, MODEL, PORT = "weights", "acme/smollm2", 8090
BYTES_PER_SECOND = 40e6  # slow enough to be seen on the way, and to be interrupted


class NodeHub:
    """A hub that pods reach, until it is stopped."""

    def __init__(self, cluster: Cluster, folder: Path) -> None:
        models, self.log = folder / "models", folder / "log"
        (models / "acme").mkdir(parents=True)
        (models / MODEL).symlink_to(weights.float32_folder(model.ensure()))
        self.commit = hub.commit(models / MODEL)
        self.url = f"http://{cluster.slot.address}:{PORT}"
        self.processes = ProcessGroup(folder / "logs")
        program = [sys.executable, "-m", "turbo_dev.hub", models, self.log, cluster.slot.address]
        command = [*cluster.enter("net"), *program, str(PORT), str(BYTES_PER_SECOND)]
        self.processes.start("hub", command, env={"PYTHONPATH": str(Path(hub.__file__).parents[1])})

    def answers(self) -> list[dict[str, Any]]:
        return hub.read_log(self.log)

    def downloaded(self) -> int:
        """Bytes of weights that went out."""
        return sum(each["bytes"] for each in self.answers() if each["path"].endswith(".safetensors"))


@pytest.fixture(scope="module")
def cluster(node_cluster: Cluster) -> Iterator[Cluster]:
    served.install(node_cluster)
    volume.claim(node_cluster.access, node_cluster, CLAIM)
    yield node_cluster
    release.uninstall(node_cluster.access)


@pytest.fixture(scope="module")
def node_hub(cluster: Cluster, tmp_path_factory: pytest.TempPathFactory) -> Iterator[NodeHub]:
    found = NodeHub(cluster, tmp_path_factory.mktemp("hub"))
    try:
        yield found
    finally:
        found.processes.stop()


def create(cluster: Cluster, name: str, url: str) -> Served:
    chat = Served(cluster, name)
    chat.create(
        model={"uri": f"hf://{MODEL}", "name": "chat", "maxModelLen": 2048},
        cache={"persistentVolumeClaim": {"claimName": CLAIM}},
        podTemplate={"spec": {"env": [{"name": "HF_ENDPOINT", "value": url}]}},
    )
    return chat


def fetching_pods(chat: Served) -> list[dict[str, Any]]:
    selector = f"{LABEL_DEPLOYMENT}={chat.name},{LABEL_ROLE}={ROLE_FETCH}"
    path = resources.POD.path(served.NAMESPACE)
    found: list[dict[str, Any]] = chat.api.send("GET", path, labelSelector=selector)["items"]
    return found


def answer(chat: Served) -> str:
    target = chat.target(120.0)
    with openai.OpenAI(base_url=target.url, api_key="none", max_retries=0) as client:
        said = client.completions.create(
            model=target.model, prompt="The capital of France is", max_tokens=8, temperature=0, timeout=120
        )
    return said.choices[0].text


def test_a_model_is_fetched_once_through_an_interruption_and_served_with_the_hub_away(
    cluster: Cluster, node_hub: NodeHub
) -> None:
    chat = create(cluster, "first", node_hub.url)
    chat.until(lambda: (chat.status().get("cache") or {}).get("progress"), "the status tells the progress")
    assert chat.condition("ModelCached")[:2] == ("Unknown", "Fetching")
    assert chat.condition("PlanFeasible")[0] == "True"
    assert chat.pods() == []
    parts = cluster.directory / "volumes" / CLAIM / "hub"
    (parts.parent / "token").write_text("of somebody else")
    chat.until(lambda: size(parts) > 60e6, "some of it is there")
    (pod,) = fetching_pods(chat)
    chat.access.kubectl("delete", "pod", pod["metadata"]["name"], "-n", served.NAMESPACE, "--wait=false")
    chat.until(lambda: chat.says("ModelCached", "True", "Cached"), "all of it is there")
    chat.until(chat.in_force, "it serves")
    text = answer(chat)
    weights_size = sum(path.stat().st_size for path in parts.rglob("blobs/*") if path.stat().st_size > 1e6)
    assert any(each["start"] > 10e6 for each in node_hub.answers()), "the second pod goes on"
    assert node_hub.downloaded() < 1.2 * weights_size
    assert chat.status()["model"]["resolvedRevision"] == node_hub.commit
    assert folders(chat) == ["hub"], "others who have the claim as HF_HOME keep their token beside it"

    shutil.rmtree(parts / "models--acme--smollm2")  # as `hf cache rm` does
    replace_pod(chat)
    assert answer(chat) == text
    assert chat.says("ModelCached", "True", "Cached")
    assert node_hub.downloaded() > 1.9 * weights_size, "it was fetched again"

    node_hub.processes.stop()
    asked = len(node_hub.answers())
    replace_pod(chat)
    assert answer(chat) == text
    chat.remove()

    other = create(cluster, "second", node_hub.url)
    other.until(other.in_force, "a second object serves from the claim")
    assert answer(other) == text
    assert other.status()["model"]["resolvedRevision"] == node_hub.commit
    assert len(node_hub.answers()) == asked
    other.remove()


def replace_pod(chat: Served) -> None:
    """Take the pod away, and wait until another one answers."""
    (before,) = chat.pods()
    chat.access.kubectl("delete", "pod", before["metadata"]["name"], "-n", served.NAMESPACE, "--wait=false")
    chat.until(
        lambda: (
            [served.uid(pod) for pod in chat.pods() if served.is_ready(pod)] not in ([], [served.uid(before)])
        ),
        "another pod answers",
    )


def folders(chat: Served) -> list[str]:
    """What the pod has of the claim."""
    (pod,) = chat.pods()
    command = ["exec", pod["metadata"]["name"], "-n", served.NAMESPACE, "--", "ls", "-A", "/cache"]
    return chat.access.kubectl(*command).split()


def size(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.rglob("*.incomplete")) if folder.exists() else 0
