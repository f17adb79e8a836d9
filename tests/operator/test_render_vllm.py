"""What a pod of vLLM is started with: the plan, in vLLM's own words, and nothing that it would refuse."""

from __future__ import annotations

import json
from itertools import pairwise
from typing import Any

import pytest

from turbo_dev.plan_cases import plan
from turbo_dev.plan_examples import LARGE, MIDDLE, SMALL, accelerator, fast, named
from turbo_operator import render
from turbo_operator.api import TurboDeployment, parse
from turbo_operator.plan import Choice
from turbo_operator.render import pod, vllm
from turbo_operator.render.template import pod_template
from turbo_operator.settings import Settings
from turbo_runtime.contract.documents import ModelInfo, ModelShape

SETTINGS = Settings(runtime_image="registry.example/runtime:1", vllm_image="registry.example/vllm:1")
CARD = fast("card", 80, "1.00")


def td(**spec: Any) -> TurboDeployment:
    return parse(
        {
            "apiVersion": "serving.turbo.dev/v1alpha1",
            "kind": "TurboDeployment",
            "metadata": {"name": "chat", "namespace": "team", "uid": "u-1", "generation": 1},
            "spec": {"model": {"uri": "hf://acme/model", "maxModelLen": 4096}, **spec},
        }
    )


def chosen(it: TurboDeployment, shape: ModelShape = SMALL, card: Any = CARD) -> Choice:
    choice = plan(it.spec, shape, named(card)).choice
    assert choice is not None
    assert choice.engine == "VLLM"
    return choice


def template(it: TurboDeployment, shape: ModelShape = SMALL, card: Any = CARD) -> dict[str, Any]:
    facts = ModelInfo(shape, "sha256:ab", "c0ffee", 1)
    return pod_template(it, chosen(it, shape, card), facts, "v2abc", SETTINGS)


def container(it: TurboDeployment, shape: ModelShape = SMALL, card: Any = CARD) -> dict[str, Any]:
    (only,) = template(it, shape, card)["spec"]["containers"]
    return dict(only)


def flags(it: TurboDeployment, shape: ModelShape = SMALL, card: Any = CARD) -> dict[str, str]:
    """The arguments by name."""
    _, *arguments = container(it, shape, card)["args"]
    parts = (argument.removeprefix("--").partition("=") for argument in arguments)
    return {name: value for name, _, value in parts}


def test_vllm_serves_what_was_planned() -> None:
    it = td(drain={"timeout": "90s"})
    choice, told = chosen(it), flags(it)
    assert told == {
        "revision": "c0ffee",
        "served-model-name": "chat",
        "port": "8000",
        "dtype": choice.dtype,
        "max-model-len": "4096",
        "max-num-seqs": "256",
        "max-num-batched-tokens": "2048",
        "kv-cache-memory-bytes": str(choice.kv_cache_bytes),
        "middleware": "turbo_vllm.TurboMiddleware",
        "shutdown-timeout": "90",
    }
    assert container(it)["image"] == "registry.example/vllm:1"
    assert [*container(it)["command"], container(it)["args"][0]] == ["vllm", "serve", "acme/model"]


def test_a_model_on_several_accelerators_of_a_node_is_one_container_that_asks_for_all_of_them() -> None:
    it, card = td(), accelerator("mid", 40, "2.00")
    assert flags(it, LARGE, card)["tensor-parallel-size"] == "2"
    assert container(it, LARGE, card)["resources"]["limits"]["nvidia.com/gpu"] == "2"


def test_processes_of_one_pod_share_memory() -> None:
    spec = template(td())["spec"]
    (shared,) = (volume for volume in spec["volumes"] if volume["name"] == "shared-memory")
    assert shared["emptyDir"]["medium"] == "Memory"
    mounts = {mount["mountPath"] for mount in spec["containers"][0]["volumeMounts"]}
    assert {"/dev/shm", "/tmp", "/cache"} <= mounts


def test_a_pod_leaves_after_its_last_answer() -> None:
    it = td(drain={"timeout": "90s"})
    spec = template(it)["spec"]
    (only,) = spec["containers"]
    hook = only["lifecycle"]["preStop"]["exec"]["command"]
    assert hook == ["python3", "/etc/turbo-vllm/turbo_vllm.py", "http://127.0.0.1:8000/metrics", "5", "90"]
    assert spec["terminationGracePeriodSeconds"] >= 90 + 5
    (configmap,) = vllm.configmaps(it, chosen(it))
    assert "class TurboMiddleware" in configmap["data"]["turbo_vllm.py"]
    assert {"name": "drain", "configMap": {"name": configmap["metadata"]["name"]}} in spec["volumes"]
    assert {"name": "PYTHONPATH", "value": "/etc/turbo-vllm"} in only["env"]


@pytest.mark.parametrize(
    ("method", "draft", "config"),
    [
        ("Suffix", None, {"method": "suffix", "num_speculative_tokens": 6}),
        (
            "NGram",
            None,
            {"method": "ngram", "num_speculative_tokens": 6, "prompt_lookup_min": 2, "prompt_lookup_max": 4},
        ),
        ("EAGLE3", "hf://acme/eagle", {"method": "eagle3", "model": "acme/eagle"}),
        ("EAGLE3", "pvc://drafts/eagle/1", {"method": "eagle3", "model": "/draft-model/eagle/1"}),
    ],
)
def test_drafts_are_configured_by_method(method: str, draft: str | None, config: dict[str, Any]) -> None:
    drafts: dict[str, Any] = {"mode": "Required", "method": method, "maxDraftTokens": 6}
    if draft is not None:
        drafts["draftModel"] = {"uri": draft}
    it = td(speculation=drafts, engine={"type": "VLLM", "image": "mine/vllm:1"})
    told = json.loads(flags(it)["speculative-config"])
    assert config.items() <= told.items()


def test_vllm_is_told_how_many_tokens_to_draft_for_each_number_of_requests() -> None:
    drafts = {"mode": "Required", "method": "EAGLE3", "draftModel": {"uri": "hf://acme/eagle"}}
    it = td(speculation=drafts, workload={"requestsPerSecond": "2"})
    choice, told = chosen(it, MIDDLE), json.loads(flags(it, MIDDLE)["speculative-config"])
    schedule = told["num_speculative_tokens_per_batch_size"]
    assert [tuple(row) for row in schedule] == list(choice.draft_schedule)
    assert schedule[0][0] == 1
    assert all(before[1] + 1 == after[0] for before, after in pairwise(schedule))
    tokens = [row[2] for row in schedule]
    assert tokens == sorted(tokens, reverse=True), "the more requests, the fewer drafts"
    assert told["num_speculative_tokens"] == max(tokens) > 0


def test_a_draft_model_on_a_claim_is_mounted_and_one_of_the_hub_may_be_fetched() -> None:
    def drafting(uri: str) -> TurboDeployment:
        drafts = {"mode": "Required", "method": "EAGLE3", "draftModel": {"uri": uri}}
        return td(model={"uri": "pvc://models/chat", "maxModelLen": 4096}, speculation=drafts)

    on_claim = template(drafting("pvc://drafts/eagle"))["spec"]
    claims = {
        volume["persistentVolumeClaim"]["claimName"]
        for volume in on_claim["volumes"]
        if "persistentVolumeClaim" in volume
    }
    assert claims == {"models", "drafts"}
    offline = {"name": "HF_HUB_OFFLINE", "value": "1"}
    assert offline in on_claim["containers"][0]["env"]
    assert offline not in template(drafting("hf://acme/eagle"))["spec"]["containers"][0]["env"]


def test_the_users_arguments_come_first_so_that_none_wins_over_the_plan() -> None:
    it = td(engine={"type": "VLLM", "args": ["--enforce-eager", "--quantization=fp8"]})
    assert container(it)["args"][1:3] == ["--enforce-eager", "--quantization=fp8"]


def test_api_keys_are_mounted_and_stand_in_no_manifest() -> None:
    only = container(td(server={"apiKeysSecretRef": {"name": "keys"}}))
    assert {"name": "TURBO_API_KEY_FILE", "value": "/etc/turbo/api-keys"} in only["env"]
    assert {"name": "api-keys", "mountPath": "/etc/turbo", "readOnly": True} in only["volumeMounts"]


def test_no_variable_of_the_environment_stands_there_twice_and_the_users_wins() -> None:
    own = [{"name": "USER", "value": "me"}, {"name": "PYTHONPATH", "value": "/mine"}]
    it = td(podTemplate={"spec": {"env": [*own, {"name": "VLLM_LOGGING_LEVEL", "value": "DEBUG"}]}})
    variables = {variable["name"]: variable["value"] for variable in container(it)["env"]}
    assert len(variables) == len(container(it)["env"])
    assert (variables["USER"], variables["PYTHONPATH"]) == ("me", "/etc/turbo-vllm:/mine")


def test_another_draft_is_another_plan_and_another_estimate_none() -> None:
    def hashed(uri: str, mean: int = 256, args: tuple[str, ...] = ()) -> str:
        it = td(
            engine={"type": "VLLM", "args": [*args]},
            speculation={"mode": "Required", "method": "EAGLE3", "draftModel": {"uri": uri}},
            workload={"requestsPerSecond": "2", "outputTokens": {"mean": mean}},
        )
        return render.plan_hash(it, chosen(it, MIDDLE), ModelInfo(MIDDLE, "sha256:ab", "c0ffee", 1))

    first = hashed("pvc://drafts-a/eagle")
    assert first != hashed("pvc://drafts-b/eagle")
    assert first != hashed("pvc://drafts-a/eagle", args=("--enforce-eager",))
    assert first == hashed("pvc://drafts-a/eagle", mean=300)  # which moves the drafts by requests


def test_the_model_is_inspected_by_the_runtimes_image_whatever_serves_it() -> None:
    it = td(engine={"type": "VLLM", "image": "mine/vllm:2"})
    assert container(it)["image"] == "mine/vllm:2"
    (inspecting,) = render.inspect_job(it, SETTINGS)["spec"]["template"]["spec"]["containers"]
    assert inspecting["image"] == "registry.example/runtime:1"
    assert pod.runtime_image(td(engine={"type": "Turbo", "image": "mine:3"}), SETTINGS) == "mine:3"
