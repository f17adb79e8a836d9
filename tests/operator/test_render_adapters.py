"""LoRA adapters in pods of both engines: arguments, where files come from, and what makes another plan."""

from __future__ import annotations

import json
from dataclasses import replace
from decimal import Decimal
from typing import Any

import pytest

from turbo_dev.plan_cases import plan
from turbo_dev.plan_examples import MIDDLE, fast, named, shape
from turbo_operator import render
from turbo_operator.api import CapacityType, TurboDeployment, parse
from turbo_operator.planner import PlannerInputs
from turbo_operator.planner import plan as planned
from turbo_operator.planner.inputs import build_inputs
from turbo_operator.planner.performance.memory import KV_GRAIN
from turbo_operator.render import fetch, vllm
from turbo_operator.render.template import pod_template
from turbo_operator.settings import Settings
from turbo_operator.snapshot import Accelerator, ChildView, Snapshot
from turbo_runtime.contract.config import RuntimeConfig
from turbo_runtime.contract.documents import AdapterInfo, ModelInfo

SETTINGS = Settings(runtime_image="registry.example/runtime:1", vllm_image="registry.example/vllm:1")
CARD = named(fast("card", 80, "1.00"))
CORES = named(Accelerator("cores", "cpu", Decimal(8), 64 << 30, prices={CapacityType.ON_DEMAND: Decimal(1)}))
SQL = {"name": "sql", "uri": "pvc://tuned/sql/v3/"}
CHAT = {"name": "chat/v2", "uri": "hf://acme/chat-lora", "revision": "main"}
FACTS = ModelInfo(
    MIDDLE, "sha256:ab", "c0ffee", 1, (AdapterInfo("chat/v2", 12, "beef01"), AdapterInfo("sql", 8))
)
MODEL = {"uri": "pvc://models/llama", "maxModelLen": 4096}


def td(*adapters: dict[str, Any], **spec: Any) -> TurboDeployment:
    return parse(
        {
            "apiVersion": "serving.turbo.dev/v1alpha1",
            "kind": "TurboDeployment",
            "metadata": {"name": "chat", "namespace": "team", "uid": "u-1", "generation": 1},
            "spec": {"model": MODEL, **spec, **({"adapters": list(adapters)} if adapters else {})},
        }
    )


def template(it: TurboDeployment, facts: ModelInfo = FACTS) -> dict[str, Any]:
    choice = plan(it.spec, MIDDLE, CARD).choice
    assert choice is not None
    return pod_template(it, choice, facts, "v2abc", SETTINGS)


def plan_hash(it: TurboDeployment, facts: ModelInfo = FACTS) -> str:
    choice = plan(it.spec, MIDDLE, CARD).choice
    assert choice is not None
    return render.plan_hash(it, choice, facts)


def test_every_adapter_has_a_slot_of_a_rank_that_vllm_knows() -> None:
    (container,) = template(td(SQL, CHAT))["spec"]["containers"]
    at = container["args"].index("--enable-lora")
    flags, modules = container["args"][at : at + 4], container["args"][at + 4 :]
    assert flags == ["--enable-lora", "--max-loras=2", "--max-lora-rank=16", "--lora-modules"]
    assert [json.loads(module) for module in modules] == [
        {"name": "chat/v2", "path": "/adapter-cache/acme/chat-lora/beef01"},
        {"name": "sql", "path": "/adapters/tuned/sql/v3"},
    ]


def test_of_a_mixture_of_experts_only_what_adapters_change_has_slots() -> None:
    mixture = ModelInfo(
        shape("Qwen/Qwen3-30B-A3B"), "sha256:ab", None, 1, FACTS.adapters, ("k_proj", "q_proj")
    )
    (container,) = template(td(SQL, CHAT), mixture)["spec"]["containers"]
    at = container["args"].index("--lora-target-modules")
    assert container["args"][at + 1 : at + 4] == ["k_proj", "q_proj", "--lora-modules"]


def test_an_adapter_of_the_hub_is_fetched_at_its_commit_before_the_server_starts() -> None:
    spec = template(td(SQL, CHAT))["spec"]
    (fetching,) = spec["initContainers"]
    assert fetching["image"] == "registry.example/vllm:1"
    assert [*fetching["command"], *fetching["args"]] == [
        *("hf", "download", "acme/chat-lora", "--revision=beef01"),
        "--local-dir=/adapter-cache/acme/chat-lora/beef01",
    ]
    assert {"/adapter-cache", "/tmp"} <= {mount["mountPath"] for mount in fetching["volumeMounts"]}
    assert fetching["securityContext"] == spec["containers"][0]["securityContext"]
    assert "HF_HUB_OFFLINE" not in {variable["name"] for variable in fetching["env"]}


@pytest.mark.parametrize("cache", [{"persistentVolumeClaim": {"claimName": "weights"}}, {"emptyDir": {}}])
def test_an_adapter_of_the_hub_is_fetched_with_the_model_and_served_offline(cache: dict[str, Any]) -> None:
    it = td(CHAT, SQL, model={"uri": "hf://acme/llama", "maxModelLen": 4096}, cache=cache)
    spec = template(it)["spec"]
    (server,) = spec["containers"]
    assert {"name": "HF_HUB_OFFLINE", "value": "1"} in server["env"]
    folder = "/cache/hub/models--acme--chat-lora/snapshots/beef01"
    assert json.dumps({"name": "chat/v2", "path": folder}) in server["args"]
    assert json.dumps({"name": "sql", "path": "/adapters/tuned/sql/v3"}) in server["args"]
    assert "adapter-cache" not in {volume["name"] for volume in spec["volumes"]}
    (before,) = spec["initContainers"]
    if "emptyDir" in cache:
        fetching = before
    else:
        assert f"{folder}/adapter_config.json" in before["args"], "it is seen whether it is there"
        (fetching,) = fetch.job(it, FACTS, SETTINGS)["spec"]["template"]["spec"]["containers"]
    assert fetching["args"][:2] == ["acme/llama", "acme/chat-lora@beef01"]


def test_another_commit_of_an_adapter_is_another_job() -> None:
    cache = {"persistentVolumeClaim": {"claimName": "weights"}}
    spec: dict[str, Any] = {"model": {"uri": "hf://acme/llama", "maxModelLen": 4096}, "cache": cache}
    later = replace(FACTS, adapters=(AdapterInfo("chat/v2", 12, "beef02"),))
    found = {fetch.job_name(td(**spec), FACTS), fetch.job_name(td(CHAT, **spec), later)}
    assert len({*found, fetch.job_name(td(CHAT, **spec), FACTS)}) == 3


def test_whatever_flags_a_version_writes_a_plan_with_adapters_keeps_its_name(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    before = plan_hash(td(SQL, CHAT))
    monkeypatch.setattr(vllm, "_lora", lambda *_: ["--of-another-version"])
    assert plan_hash(td(SQL, CHAT)) == before
    wider = replace(FACTS, adapters=(replace(FACTS.adapters[0], rank=64), FACTS.adapters[1]))
    assert plan_hash(td(SQL, CHAT), wider) != before


def test_claims_of_adapters_are_mounted_once_and_read_only() -> None:
    other = {"name": "law", "uri": "pvc://tuned/law"}
    spec = template(td(SQL, other))["spec"]
    assert "initContainers" not in spec
    mounts = [it for it in spec["containers"][0]["volumeMounts"] if it["mountPath"].startswith("/adapters")]
    assert mounts == [{"name": "adapters-0", "mountPath": "/adapters/tuned", "readOnly": True}]
    assert {"name": "HF_HUB_OFFLINE", "value": "1"} in spec["containers"][0]["env"]


def test_a_claim_of_the_model_the_adapters_and_the_draft_is_one_volume_with_several_mounts() -> None:
    """A pod with two volumes of one claim never starts."""
    drafts = {"mode": "Required", "method": "EAGLE3", "draftModel": {"uri": "pvc://models/eagle"}}
    it = td({"name": "sql", "uri": "pvc://models/sql"}, speculation=drafts)
    for spec in (template(it)["spec"], render.inspect_job(it, SETTINGS)["spec"]["template"]["spec"]):
        claims = [volume for volume in spec["volumes"] if "persistentVolumeClaim" in volume]
        assert claims == [
            {"name": "model", "persistentVolumeClaim": {"claimName": "models", "readOnly": True}}
        ]
        mounts = [mount for mount in spec["containers"][0]["volumeMounts"] if mount["name"] == "model"]
        assert {"/models", "/adapters/models"} <= {mount["mountPath"] for mount in mounts}


def test_the_inspect_job_reads_the_adapters_beside_the_model() -> None:
    job = render.inspect_job(td(SQL, CHAT), SETTINGS)["spec"]["template"]["spec"]
    (container,) = job["containers"]
    assert container["args"][:3] == [
        "/models/llama",
        "--adapter=chat/v2=acme/chat-lora@main",
        "--adapter=sql=/adapters/tuned/sql/v3",
    ]
    assert {"adapters-0", "cache", "model"} <= {volume["name"] for volume in job["volumes"]}


HUB_MODEL = {"uri": "hf://acme/llama", "revision": "main", "maxModelLen": 4096}
LAW = {"name": "law", "uri": "hf://acme/law"}


def inspected(before: TurboDeployment, after: TurboDeployment) -> tuple[list[str], list[dict[str, Any]]]:
    """Arguments of the inspection of `after`, while what `before` was is kept, and the ConfigMaps then."""
    name = render.model_configmap_name(before)
    kept = ChildView("ConfigMap", name, "c", None, data=render.facts_data(before, FACTS))
    children = render.children(after, Snapshot({}, children=(kept,)), None, (), SETTINGS)
    (job,) = [child for child in children if child["kind"] == "Job"]
    maps = [child for child in children if child["kind"] == "ConfigMap"]
    return job["spec"]["template"]["spec"]["containers"][0]["args"], maps


def test_a_model_and_adapters_that_stay_keep_their_commits_where_others_come_and_go() -> None:
    """Found in review: an adapter more, and the model was the next commit of its branch."""
    plain, one, two = (td(*adapters, model=HUB_MODEL) for adapters in ((), (CHAT,), (CHAT, LAW)))
    arguments, maps = inspected(plain, one)
    assert arguments[:3] == ["acme/llama", "--revision=c0ffee", "--adapter=chat/v2=acme/chat-lora@main"]
    assert maps == [render.model_configmap(plain, FACTS)], "which has them, until the Job has answered"
    arguments, _ = inspected(one, two)
    assert "--revision=c0ffee" in arguments
    assert "--adapter=chat/v2=acme/chat-lora@beef01" in arguments
    assert "--adapter=law=acme/law" in arguments
    assert "--revision=c0ffee" in inspected(two, plain)[0]
    moved = td({**CHAT, "revision": "v2"}, model={**HUB_MODEL, "revision": "v2"})
    arguments, maps = inspected(one, moved)
    assert arguments[1:3] == ["--revision=v2", "--adapter=chat/v2=acme/chat-lora@v2"]
    assert maps == []


def test_another_adapter_is_another_plan_and_another_source_and_another_order_is_not() -> None:
    both, turned = td(SQL, CHAT), td(CHAT, SQL)
    assert (plan_hash(both), render.source_hash(both)) == (plan_hash(turned), render.source_hash(turned))
    others = [
        td(SQL),
        td(CHAT),
        td({**SQL, "uri": "pvc://tuned/sql/v4"}, CHAT),
        td({**SQL, "name": "b"}, CHAT),
    ]
    assert len({plan_hash(it) for it in (both, *others)}) == len(others) + 1
    assert len({render.source_hash(it) for it in (both, *others)}) == len(others) + 1
    later = ModelInfo(MIDDLE, "sha256:ab", "c0ffee", 1, (AdapterInfo("chat/v2", 12, "beef02"),))
    assert plan_hash(both, later) != plan_hash(both)


def test_a_plan_says_for_which_adapters_its_memory_has_room() -> None:
    made = planned(PlannerInputs(td(SQL).spec, MIDDLE, CARD, None, None, {}, None), 0.0)
    assert made.choice is not None
    assert "Memory has room for 1 adapter taken to be of rank 64" in made.detail
    known = PlannerInputs(td(SQL, engine={"type": "VLLM"}).spec, MIDDLE, CARD, None, None, {}, None)
    known = replace(known, adapter_rank=12)
    assert "1 adapter of rank 12 at most; the time" in planned(known, 0.0).detail


def test_auto_with_adapters_means_vllm_on_gpus_and_turbo_on_cores() -> None:
    engines = {
        name: plan(td(SQL).spec, MIDDLE, pool).choice for name, pool in (("gpu", CARD), ("cpu", CORES))
    }
    assert {name: made and made.engine for name, made in engines.items()} == {"gpu": "VLLM", "cpu": "Turbo"}


def test_what_only_turbo_has_makes_adapters_those_of_turbo() -> None:
    kept = {"persistentVolumeClaim": {"claimName": "prompts"}}
    assert td(SQL, capture=kept).spec.engines == ("Turbo",)


def turbo_modules(it: TurboDeployment, facts: ModelInfo = FACTS) -> list[str]:
    spec = template(it, facts)["spec"]
    assert "initContainers" not in spec, "it downloads them itself"
    (container,) = spec["containers"]
    config = RuntimeConfig.from_argv(container["args"])
    assert config.problem() is None
    return list(config.lora_modules)


def test_engine_turbo_gets_adapters_by_name_at_the_commit_that_was_inspected() -> None:
    turbo = {"engine": {"type": "Turbo"}}
    assert turbo_modules(td(SQL, CHAT, **turbo)) == [
        "chat/v2=acme/chat-lora@beef01",
        "sql=/adapters/tuned/sql/v3",
    ]
    later = replace(FACTS, adapters=(AdapterInfo("chat/v2", 12, "beef02"),))
    plain, one, other = td(**turbo), td(CHAT, **turbo), plan_hash(td(CHAT, **turbo), later)
    assert len({plan_hash(plain), plan_hash(one), other}) == 3


def test_engine_turbo_reads_adapters_that_are_fetched_with_the_model_from_the_cache() -> None:
    cache = {"persistentVolumeClaim": {"claimName": "weights"}}
    it = td(
        CHAT, engine={"type": "Turbo"}, model={"uri": "hf://acme/llama", "maxModelLen": 4096}, cache=cache
    )
    (container,) = template(it)["spec"]["containers"]
    folder = "/cache/hub/models--acme--chat-lora/snapshots/beef01"
    assert f"--lora-modules=chat/v2={folder}" in container["args"]


def test_engine_turbo_has_no_adapters_of_latent_attention_and_says_what_has() -> None:
    made = plan(td(SQL, engine={"type": "Turbo"}).spec, shape("deepseek-ai/DeepSeek-V2-Lite"), CARD)
    assert (made.choice, made.reason) == (None, "NotYetSupported")
    assert "engine Turbo has no adapters of latent attention: write engine.type: VLLM" in made.detail


def test_engine_turbo_has_no_adapters_of_routers_and_says_what_has() -> None:
    it, model = td(SQL, engine={"type": "Turbo"}), shape("Qwen/Qwen3-30B-A3B")
    for modules, is_served in ((("o_proj", "q_proj"), True), (("gate", "q_proj"), False)):
        facts = replace(FACTS, shape=model, adapter_modules=modules)
        made = planned(build_inputs(it, model, Snapshot(accelerators=CARD, model=facts)), 0.0)
        assert (made.choice is not None) == is_served, made.detail
    assert "engine Turbo has no adapters of routers: write engine.type: VLLM" in made.detail


def test_a_plan_with_drafts_says_that_adapters_accept_fewer() -> None:
    drafts = {"method": "EAGLE3", "draftModel": {"uri": "hf://acme/eagle"}}
    made = plan(td(SQL, speculation=drafts, workload={"requestsPerSecond": "1"}).spec, MIDDLE, CARD)
    assert made.choice is not None
    assert made.choice.method == "EAGLE3"
    assert "Drafts are of the base model: requests for an adapter accept fewer." in made.detail


def test_a_vocabulary_that_vllm_takes_no_adapters_of_is_said() -> None:
    made = plan(td(SQL).spec, shape("google/gemma-3-1b-it"), CARD)
    assert (made.choice, made.reason) == (None, "NotYetSupported")
    assert "vLLM serves adapters of vocabularies of up to 258048 tokens" in made.detail


def test_adapters_take_memory_of_the_cache() -> None:
    tight = named(fast("card", 20, "1.00"))
    before, after = (plan(it.spec, MIDDLE, tight).choice for it in (td(), td(SQL, CHAT)))
    assert before is not None
    assert after is not None
    # Rank 64, 2 bytes, two adapters: 2,621,440 elements in all layers, 264,704 of embedding and head.
    slots = 2 * 64 * 2 * (2_621_440 + 264_704)
    assert abs(before.kv_cache_bytes - after.kv_cache_bytes - slots) < KV_GRAIN
    assert after.host_memory_bytes - before.host_memory_bytes == slots
