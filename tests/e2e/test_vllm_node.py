"""Engine VLLM on a real node: planned, started, asked by Service and router, scaled and rolled over, and no
request fails.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterator

import openai
import pytest
from peers import weights

from turbo_dev import lora, model, release, served, sizes, vllm_image, volume
from turbo_dev.calls import Crowd
from turbo_dev.cluster import Cluster
from turbo_dev.served import Served
from turbo_operator import resources

pytestmark = [
    pytest.mark.node,
    pytest.mark.model,
    pytest.mark.skipif(not sizes.IS_FULL, reason="3 GB of vLLM on a real node: make test-full"),
]
CLAIM = "smollm2-float32"
# Of SmolLM2-135M: hidden size 576, MLP width 1536, 30 layers.
CHANGED = {f"model.layers.{layer}.mlp.down_proj": (576, 1536) for layer in range(30)}
CLIENT_SECONDS = 300.0  # for one response, while another pod loads on the same cores
ROLLOUT = {"minReadySeconds": 0, "progressDeadline": "20m"}


def fill(cluster: Cluster) -> None:
    """The model as a folder of safetensors on a claim of its own: vLLM reads no GGUF file."""
    folder = volume.claim(cluster.access, cluster, CLAIM)
    for path in weights.float32_folder(model.ensure()).iterdir():
        if not (folder / path.name).exists():
            shutil.copyfile(path, folder / path.name)
    lora.write(folder / "sql", CHANGED, scale=0.02)
    lora.write(folder / "foreign", {"model.layers.0.mlp.down_proj": (512, 1536)})


@pytest.fixture(scope="module")
def chat(node_cluster: Cluster) -> Iterator[Served]:
    """One replica of vLLM, with drafts from the request's own text."""
    image = vllm_image.build()
    served.install(node_cluster)
    vllm_image.deliver(image, node_cluster)
    fill(node_cluster)
    chat = Served(node_cluster, "vllm")
    small = {"spec": {"quantity": "700m", "memory": "6Gi"}}  # two pods, two routers, the operator
    chat.api.patch(resources.TURBOACCELERATOR, "", "cpu", small)
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


def test_it_goes_to_two_replicas_to_a_router_to_other_drafts_and_back_to_one_and_no_request_fails(
    chat: Served,
) -> None:
    before = chat.status()["plan"]["hash"]
    # Pods keep the connections of their clients until they end: only those that connect anew meet the router.
    with Crowd(chat.target(CLIENT_SECONDS), keeping=1, reconnecting=2) as crowd:
        chat.change(replicas=2)
        chat.until(lambda: chat.in_force() and chat.status()["readyReplicas"] == 2, "two replicas serve")
        chat.change(routing="Router")
        chat.until(lambda: len(chat.routers()) == 2 and chat.is_routed(), "routers answer")
        chat.change(speculation={"method": "Suffix"})
        chat.until(lambda: chat.in_force() and chat.status()["plan"]["hash"] != before, "other drafts serve")
        assert chat.status()["plan"]["method"] == "Suffix"
        chat.change(replicas=1)
        chat.until(lambda: chat.in_force() and chat.status()["replicas"] == 1, "one replica is left")
        chat.change(routing="Service")
        chat.until(chat.serves_directly, "its Service selects the pod")
    assert crowd.failures == []
    assert len(crowd.calls) > 10


def completed(chat: Served, name: str) -> str:
    """What a model of the Service says, greedily."""
    with openai.OpenAI(base_url=chat.target(CLIENT_SECONDS).url, api_key="none", max_retries=0) as client:
        response = client.completions.create(
            model=name,
            prompt="The capital of France is",
            temperature=0,
            max_tokens=24,
            timeout=CLIENT_SECONDS,
        )
    assert response.model == name
    return response.choices[0].text


def test_an_adapter_answers_under_its_own_name_and_not_as_the_model_does(chat: Served) -> None:
    before = completed(chat, "chat")
    chat.change(adapters=[{"name": "sql", "uri": f"pvc://{CLAIM}/sql"}])
    chat.until(chat.in_force, "the adapter is served")
    with openai.OpenAI(base_url=chat.target(CLIENT_SECONDS).url, api_key="none", max_retries=0) as client:
        assert {each.id for each in client.models.list()} == {"chat", "sql"}
    assert "Adapters that fit it: sql (rank 4)." in chat.condition("ModelInspected")[2]
    assert completed(chat, "chat") == before
    assert completed(chat, "sql") not in ("", before)


def test_an_adapter_of_another_model_is_named_and_what_serves_stays(chat: Served) -> None:
    (pod,) = chat.pods()
    chat.change(adapters=[{"name": "law", "uri": f"pvc://{CLAIM}/foreign"}])
    chat.until(lambda: chat.says("ModelInspected", "False", "InspectFailed"), "it is refused")
    message = chat.condition("ModelInspected")[2]
    assert f"adapter law (/adapters/{CLAIM}/foreign): " in message
    assert "has 512 outputs and the model 576 there: it is of another model" in message
    assert "Correct spec.model or spec.adapters" in message
    assert [served.uid(each) for each in chat.pods()] == [served.uid(pod)]
    assert completed(chat, "sql")
