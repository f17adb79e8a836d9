"""Engine VLLM on a real node: planned, started, asked, scaled and rolled over, and no request fails."""

from __future__ import annotations

import shutil
from collections.abc import Iterator

import openai
import pytest
from peers import weights

from turbo_dev import model, release, served, sizes, vllm_image, volume
from turbo_dev.calls import Crowd
from turbo_dev.cluster import Cluster
from turbo_dev.served import Served

pytestmark = [
    pytest.mark.node,
    pytest.mark.model,
    pytest.mark.skipif(not sizes.IS_FULL, reason="3 GB of vLLM on a real node: make test-full"),
]
CLAIM = "smollm2-float32"
CLIENT_SECONDS = 300.0  # for one response, while another pod loads on the same cores
ROLLOUT = {"minReadySeconds": 0, "progressDeadline": "20m"}


def fill(cluster: Cluster) -> None:
    """The model as a folder of safetensors on a claim of its own: vLLM reads no GGUF file."""
    folder = volume.claim(cluster.access, cluster, CLAIM)
    for path in weights.float32_folder(model.ensure()).iterdir():
        if not (folder / path.name).exists():
            shutil.copyfile(path, folder / path.name)


@pytest.fixture(scope="module")
def chat(node_cluster: Cluster) -> Iterator[Served]:
    """One replica of vLLM, with drafts from the request's own text."""
    image = vllm_image.build()
    served.install(node_cluster)
    vllm_image.deliver(image, node_cluster)
    fill(node_cluster)
    chat = Served(node_cluster, "vllm")
    chat.create(
        model={"uri": f"pvc://{CLAIM}", "name": "chat", "maxModelLen": 2048},
        engine={"type": "VLLM", "image": image.name, "args": ["--enforce-eager"]},
        speculation={"mode": "Required", "method": "NGram", "maxDraftTokens": 4},
        rollout=ROLLOUT,
    )
    chat.until(chat.in_force, "it serves")
    yield chat
    chat.remove()
    release.uninstall(node_cluster.access)


def test_the_status_names_the_engine_and_how_it_drafts(chat: Served) -> None:
    plan = chat.status()["plan"]
    assert (plan["engine"], plan["method"], plan["maxDraftTokens"]) == ("VLLM", "NGram", 4)
    (pod,) = chat.pods()
    (container,) = pod["spec"]["containers"]
    assert container["image"].startswith("turbo-vllm-cpu:")
    assert container["securityContext"]["readOnlyRootFilesystem"] is True


def test_it_answers_through_the_service_and_the_status_tells_what_its_drafts_gain(chat: Served) -> None:
    target, texts = chat.target(CLIENT_SECONDS), set[str]()
    prompt = "The quick brown fox jumps over the lazy dog. " * 8

    def is_told() -> bool:
        answer = client.completions.create(
            model=target.model, prompt=prompt, temperature=0, max_tokens=60, timeout=CLIENT_SECONDS
        )
        texts.add(answer.choices[0].text)
        observed = chat.status().get("observed") or {}
        return float(observed.get("acceptanceLength", 0)) > 1.5 and float(observed.get("speedup", 0)) > 1.0

    with openai.OpenAI(base_url=target.url, api_key="none", max_retries=0) as client:
        chat.until(is_told, "the status tells acceptance length and speedup")
    (text,) = texts  # greedy, one request after the other
    assert "lazy dog" in text
    columns = chat.access.kubectl("get", "td", "vllm", "-n", served.NAMESPACE, "-o", "wide").splitlines()[0]
    assert {"SPEEDUP", "ACCEPTANCE"} <= set(columns.split())


def test_it_goes_to_two_replicas_to_other_drafts_and_back_to_one_and_no_request_fails(chat: Served) -> None:
    before = chat.status()["plan"]["hash"]
    with Crowd(chat.target(CLIENT_SECONDS), keeping=2, reconnecting=1) as crowd:
        chat.change(replicas=2)
        chat.until(lambda: chat.in_force() and chat.status()["readyReplicas"] == 2, "two replicas serve")
        chat.change(speculation={"method": "Suffix"})
        chat.until(lambda: chat.in_force() and chat.status()["plan"]["hash"] != before, "other drafts serve")
        assert chat.status()["plan"]["method"] == "Suffix"
        chat.change(replicas=1)
        chat.until(lambda: chat.in_force() and chat.status()["replicas"] == 1, "one replica is left")
    assert crowd.failures == []
    assert len(crowd.calls) > 10
