"""A pod of engine Turbo whose model is shared by several devices, or that has a draft model."""

from __future__ import annotations

from dataclasses import replace
from decimal import Decimal
from typing import Any

import pytest

from turbo_dev.plan_cases import plan
from turbo_dev.plan_examples import GIB, LARGE, MIDDLE, accelerator, fast, named, shape
from turbo_operator.api import TurboDeployment, parse
from turbo_operator.plan import Choice
from turbo_operator.render import plan_hash
from turbo_operator.render.template import pod_template
from turbo_operator.settings import Settings
from turbo_operator.snapshot import Accelerator
from turbo_runtime.contract.config import RuntimeConfig
from turbo_runtime.contract.documents import ModelInfo, ModelShape

SETTINGS = Settings(runtime_image="registry.example/runtime:1")
CARD = fast("card", 80, "1.00")
CORES = Accelerator("cores", "cpu", Decimal(16), 64 * GIB, memory_bandwidth=1e11, flops={"bf16": 2e12})
DRAFT = replace(shape("Qwen/Qwen3-0.6B"), vocab_size=MIDDLE.vocab_size)


def td(speculation: dict[str, Any] | None = None, **spec: Any) -> TurboDeployment:
    model = {"uri": "hf://acme/model", "maxModelLen": 4096}
    drafts = {"speculation": speculation} if speculation else {}
    return parse(
        {
            "apiVersion": "serving.turbo.dev/v1alpha1",
            "kind": "TurboDeployment",
            "metadata": {"name": "chat", "namespace": "team", "uid": "u-1", "generation": 1},
            "spec": {"model": model, "engine": {"type": "Turbo"}, **drafts, **spec},
        }
    )


def drafting(uri: str = "pvc://small/qwen", method: str = "DraftModel", **more: Any) -> dict[str, Any]:
    return {"mode": "Required", "method": method, "draftModel": {"uri": uri}, **more}


def chosen(it: TurboDeployment, model: ModelShape = MIDDLE, card: Accelerator = CARD) -> Choice:
    allowed = it.spec.model_copy(
        update={"accelerators": td(accelerators={"allowed": [card.name]}).spec.accelerators}
    )
    draft = DRAFT if it.spec.speculation.draft_model else None
    choice = plan(allowed, model, named(card, CORES), draft=draft).choice
    assert choice is not None
    return choice


def pod_of(it: TurboDeployment, model: ModelShape = MIDDLE, card: Accelerator = CARD) -> dict[str, Any]:
    facts = ModelInfo(model, "sha256:ab", "c0ffee", 1)
    template = pod_template(it, chosen(it, model, card), facts, "v2abc", SETTINGS)
    return dict(template["spec"])


def told(spec: dict[str, Any]) -> RuntimeConfig:
    """What `turbo serve` reads of its arguments; it refuses what does not go together."""
    (container,) = spec["containers"]
    return RuntimeConfig.from_argv(container["args"])


def test_a_model_on_two_devices_is_one_container_of_two_ranks_that_share_memory() -> None:
    spec = pod_of(td(), LARGE, accelerator("mid", 48, "2.00"))
    assert told(spec).tensor_parallel_size == 2
    (container,) = spec["containers"]
    assert container["resources"]["limits"]["nvidia.com/gpu"] == "2"
    assert container["resources"]["requests"]["cpu"] == "3", "the server's and one of each rank"
    (shared,) = (volume for volume in spec["volumes"] if volume["name"] == "shared-memory")
    assert shared["emptyDir"]["medium"] == "Memory"
    assert "/dev/shm" in {mount["mountPath"] for mount in container["volumeMounts"]}
    alone = pod_of(td())
    assert told(alone).tensor_parallel_size == 1
    assert "shared-memory" not in {volume["name"] for volume in alone["volumes"]}


@pytest.mark.parametrize(
    ("placement", "device", "cards", "cores", "threads"),
    [
        ("Colocated", None, "1", "2", None),
        ("Separate", "cuda:1", "2", "2", None),
        ("CPU", "cpu", "1", "10", 8),
    ],
)
def test_a_draft_model_is_where_the_plan_has_it(
    placement: str, device: str | None, cards: str, cores: str, threads: int | None
) -> None:
    it = td(drafting(placement=placement))
    spec, choice = pod_of(it), chosen(it)
    config, (container,) = told(spec), spec["containers"]
    assert (config.draft_model, config.draft_device) == ("/draft-model/qwen", device)
    assert (config.speculation, config.draft_config, config.threads) == ("auto", None, threads)
    assert config.device == "cuda"
    assert container["resources"]["requests"]["cpu"] == cores
    assert container["resources"]["limits"]["nvidia.com/gpu"] == cards
    mebibytes = -(-choice.host_memory_bytes // (1 << 20))
    assert container["resources"]["limits"]["memory"] == f"{mebibytes}Mi"
    claim = {"claimName": "small", "readOnly": True}
    assert {"name": "draft-model", "persistentVolumeClaim": claim} in spec["volumes"]
    (mount,) = (each for each in container["volumeMounts"] if each["name"] == "draft-model")
    assert mount == {"name": "draft-model", "mountPath": "/draft-model", "readOnly": True}


@pytest.mark.parametrize("placement", ["Colocated", "Separate", "CPU"])
def test_adapters_go_with_a_draft_model_wherever_it_is(placement: str) -> None:
    adapters = [{"name": "sql", "uri": "pvc://tuned/sql"}]
    config = told(pod_of(td(drafting(placement=placement), adapters=adapters)))
    assert config.adapters == {"sql": "/adapters/tuned/sql"}
    assert config.draft_model == "/draft-model/qwen"


def test_a_draft_on_cores_beside_a_model_on_cores_shares_its_threads() -> None:
    cores = replace(CORES, prices=CARD.prices)
    small = replace(DRAFT, layers=4, parameters=40 * 10**6)
    config = told(pod_of(td(drafting(placement="CPU")), small, cores))
    assert (config.device, config.draft_device, config.threads) == ("cpu", "cpu", 16)
    config = told(pod_of(td(drafting(placement="Colocated")), small, cores))
    assert (config.draft_model, config.draft_device) == ("/draft-model/qwen", None)


@pytest.mark.parametrize("method", ["DraftModel", "EAGLE3"])
def test_a_draft_of_the_hub_is_read_from_there_or_from_the_cache(method: str) -> None:
    spec = pod_of(td(drafting("hf://acme/small", method)))
    assert told(spec).draft_model == "acme/small"
    assert "draft-model" not in {volume["name"] for volume in spec["volumes"]}
    it = td(drafting("hf://acme/small", method), cache={"persistentVolumeClaim": {"claimName": "kept"}})
    spec = pod_of(it)
    assert told(spec).draft_model == "acme/small"
    assert {"name": "HF_HUB_OFFLINE", "value": "1"} in spec["containers"][0]["env"]
    (check,) = spec["initContainers"]
    assert any(argument.endswith("models--acme--small/refs/main") for argument in check["args"])


def test_another_draft_model_is_another_variant_and_what_has_none_keeps_its_name() -> None:
    facts = ModelInfo(MIDDLE, "sha256:ab", "c0ffee", 1)
    one, other = (td(drafting(uri)) for uri in ("pvc://small/qwen", "pvc://tiny/qwen"))
    hashes = {plan_hash(it, chosen(it), facts) for it in (one, other)}
    assert len(hashes) == 2
    # Whose plan has no drafts does not roll when a draft is named.
    off = replace(chosen(td({"mode": "Disabled"})), method="Off")
    named_, plain = (plan_hash(it, off, facts) for it in (td({"draftModel": {"uri": "hf://a/b"}}), td()))
    assert named_ == plain
