"""Rendering: the same input gives the same bytes, and only what shapes a pod changes its hash."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from decimal import Decimal
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from turbo_dev.plan_cases import plan
from turbo_operator import render
from turbo_operator.api import ANNOTATION_APPLIED_HASH, MAX_NAME_LENGTH, CapacityType, TurboDeployment, parse
from turbo_operator.catalog import shapes
from turbo_operator.plan import Choice
from turbo_operator.render.template import resources
from turbo_operator.render.turbo import runtime_config
from turbo_operator.rollout import Variant
from turbo_operator.settings import Settings
from turbo_operator.snapshot import Accelerator, ChildView, Snapshot
from turbo_runtime.contract.config import RuntimeConfig
from turbo_runtime.contract.documents import ModelInfo
from turbo_runtime.contract.endpoints import HEALTH_PATH, READY_PATH

GIB = 1 << 30
SETTINGS = Settings(runtime_image="registry.example/runtime:1")
SHAPE = shapes.shipped("HuggingFaceTB/SmolLM2-135M")
assert SHAPE is not None
FACTS = ModelInfo(SHAPE, "sha256:ab", None, 270_000_000)
CPU = Accelerator("cpu", "cpu", Decimal(2), 6 * GIB, prices={CapacityType.ON_DEMAND: Decimal("0.04")})
CARD = Accelerator(
    "l4",
    "nvidia.com/gpu",
    Decimal(1),
    24 * GIB,
    prices={CapacityType.ON_DEMAND: Decimal("0.80")},
    node_selector={"gpu": "l4"},
    tolerations=({"key": "gpu", "operator": "Exists"},),
)


def td(name: str = "chat", **spec: Any) -> TurboDeployment:
    return parse(
        {
            "apiVersion": "serving.turbo.dev/v1alpha1",
            "kind": "TurboDeployment",
            "metadata": {"name": name, "namespace": "team", "uid": "u-1", "generation": 1},
            "spec": {"model": {"uri": "pvc://models/chat"}, **spec},
        }
    )


def chosen(it: TurboDeployment, accelerator: Accelerator = CPU) -> Choice:
    choice = plan(it.spec, FACTS.shape, {accelerator.name: accelerator}).choice
    assert choice is not None
    return choice


def rendered(
    it: TurboDeployment, accelerator: Accelerator = CPU, settings: Settings = SETTINGS, *children: ChildView
) -> dict[str, dict[str, Any]]:
    choice = chosen(it, accelerator)
    variant = Variant(render.plan_hash(it, choice, FACTS), it.spec.replicas)
    observed = Snapshot({}, children=children, model=FACTS)
    return {each["kind"]: each for each in render.children(it, observed, choice, [variant], settings)}


def pod(it: TurboDeployment, accelerator: Accelerator = CPU) -> dict[str, Any]:
    spec: dict[str, Any] = rendered(it, accelerator)["Deployment"]["spec"]["template"]["spec"]
    return spec


names = st.from_regex(r"[a-z]([-a-z0-9]{0,48}[a-z0-9])?", fullmatch=True)


@given(names, st.integers(0, 9), st.sampled_from((CPU, CARD)))
def test_the_same_input_gives_the_same_bytes_and_names_that_fit(
    name: str, replicas: int, accelerator: Accelerator
) -> None:
    it = td(name, replicas=replicas)
    once, again = rendered(it, accelerator), rendered(it, accelerator)
    assert json.dumps(once, sort_keys=True) == json.dumps(again, sort_keys=True)
    for child in (*once.values(), render.children(it, Snapshot({}), None, (), SETTINGS)[-1]):
        assert len(child["metadata"]["name"]) <= MAX_NAME_LENGTH + 13
        (owner,) = child["metadata"]["ownerReferences"]
        assert (owner["uid"], owner["controller"], owner["blockOwnerDeletion"]) == ("u-1", True, False)
        assert child["metadata"]["namespace"] == "team"
        assert child["metadata"]["labels"]["serving.turbo.dev/deployment"] == name


BASE = td()
UNSEEN_BY_PODS: dict[str, Callable[[], str]] = {
    "replicas": lambda: render.plan_hash(td(replicas=7), chosen(td(replicas=7)), FACTS),
    "the price": lambda: render.plan_hash(
        BASE, chosen(BASE, replace(CPU, prices={"OnDemand": Decimal(9)})), FACTS
    ),
    "a budget": lambda: render.plan_hash(
        td(cost={"maxPerHour": "1"}), chosen(td(cost={"maxPerHour": "1"})), FACTS
    ),
    "suspension": lambda: render.plan_hash(td(suspend=True), chosen(td(suspend=True)), FACTS),
    "a default spelt out": lambda: render.plan_hash(
        td(speculation={"mode": "Auto", "maxDraftTokens": 32}), chosen(BASE), FACTS
    ),
    "the predicted cost": lambda: render.plan_hash(
        BASE,
        replace(chosen(BASE), predicted=replace(chosen(BASE).predicted, cost_per_hour=Decimal(3))),
        FACTS,
    ),
}
SEEN_BY_PODS: dict[str, dict[str, Any]] = {
    "the model": {"model": {"uri": "pvc://models/other"}},
    "the claim": {"model": {"uri": "pvc://others/chat"}},
    "the length": {"model": {"uri": "pvc://models/chat", "maxModelLen": 512}},
    "the served name": {"model": {"uri": "pvc://models/chat", "name": "other"}},
    "speculation": {"speculation": {"mode": "Disabled"}},
    "the draft ceiling": {"speculation": {"maxDraftTokens": 4}},
    "the image": {"engine": {"type": "Turbo", "image": "mine:1"}},
    "the drain": {"drain": {"timeout": "10s"}},
    "keys": {"server": {"apiKeysSecretRef": {"name": "keys"}}},
    "kept prompts": {"capture": {"persistentVolumeClaim": {"claimName": "kept"}}},
    "a label": {"podTemplate": {"metadata": {"labels": {"team": "a"}}}},
    "a variable": {"podTemplate": {"spec": {"env": [{"name": "A", "value": "b"}]}}},
    "scratch space": {"podTemplate": {"spec": {"resources": {"limits": {"ephemeral-storage": "4Gi"}}}}},
}


@pytest.mark.parametrize("what", UNSEEN_BY_PODS)
def test_the_hash_is_blind_to(what: str) -> None:
    assert UNSEEN_BY_PODS[what]() == render.plan_hash(BASE, chosen(BASE), FACTS)


@pytest.mark.parametrize("what", SEEN_BY_PODS)
def test_the_hash_changes_with(what: str) -> None:
    it = td(**SEEN_BY_PODS[what])
    assert render.plan_hash(it, chosen(it), FACTS) != render.plan_hash(BASE, chosen(BASE), FACTS)


def test_the_hash_changes_with_the_accelerators_nodes() -> None:
    moved = replace(CARD, node_selector={"gpu": "other"})
    assert render.plan_hash(BASE, chosen(BASE, moved), FACTS) != render.plan_hash(
        BASE, chosen(BASE, CARD), FACTS
    )


def test_the_hash_stays_what_it_was_in_earlier_versions() -> None:
    # A change here rolls every pod of every cluster when the operator is upgraded: take a new HASH_VERSION,
    # or find another way.
    drafts = {"maxDraftTokens": 8}  # the API server wrote the default of earlier versions into the objects
    stored = td(speculation=drafts)
    assert render.plan_hash(stored, chosen(stored), FACTS) == "v2013f23ee"
    turbo = td(engine={"type": "Turbo"}, speculation=drafts)
    # another one before there was a runner for GPUs, whose cache is larger (docs/upgrade.md)
    assert render.plan_hash(turbo, chosen(turbo, CARD), FACTS) == "v2f6264a5a"


def test_another_default_image_leaves_a_frozen_template_alone() -> None:
    first = rendered(BASE)
    revision = first["ControllerRevision"]
    kept = ChildView(
        kind="ControllerRevision",
        name=revision["metadata"]["name"],
        uid="r-1",
        applied_hash=None,
        plan_hash=revision["metadata"]["labels"]["serving.turbo.dev/plan-hash"],
        data=json.loads(json.dumps(revision["data"])),
    )
    upgraded = Settings(runtime_image="registry.example/runtime:2", image_pull_policy="Always")
    assert rendered(BASE, CPU, upgraded, kept) == first
    assert rendered(BASE, CPU, upgraded) != first


def test_an_old_variant_is_rendered_from_its_revision() -> None:
    old = rendered(BASE)["ControllerRevision"]
    view = ChildView("ControllerRevision", "chat-v1old", "r", None, plan_hash="v1old", data=old["data"])
    observed = Snapshot({}, children=(view,), model=FACTS)
    it = td(drain={"timeout": "9s"})
    variants = [Variant(render.plan_hash(it, chosen(it), FACTS), 1), Variant("v1old", 2)]
    children = render.children(it, observed, chosen(it), variants, SETTINGS)
    deployments = {each["metadata"]["name"]: each for each in children if each["kind"] == "Deployment"}
    assert len(deployments) == 2
    assert deployments["chat-v1old"]["spec"]["template"] == old["data"]


def test_the_applied_hash_is_the_manifests_own() -> None:
    one, other = rendered(td(replicas=1)), rendered(td(replicas=2))
    hashes = [
        each["Deployment"]["metadata"]["annotations"][ANNOTATION_APPLIED_HASH]
        for each in (one, other, rendered(BASE))
    ]
    assert hashes[0] == hashes[2] != hashes[1]


def test_the_runtime_understands_what_it_is_told() -> None:
    it = td(speculation={"maxDraftTokens": 5}, drain={"timeout": "1m30s"})
    (container,) = pod(it)["containers"]
    config = RuntimeConfig.from_argv(container["args"])
    assert config == runtime_config(it, chosen(it), FACTS, resources(it, chosen(it)))
    assert (config.model, config.served_model_name, config.threads) == ("/models/chat", "chat", 2)
    assert (config.max_draft_tokens, config.drain_timeout_seconds, config.dtype) == (5, 90.0, "float32")
    assert config.kv_cache_gib is not None
    assert config.kv_cache_gib * GIB == chosen(it).kv_cache_bytes


def test_the_image_is_the_objects_own_or_the_installed_one() -> None:
    assert pod(BASE)["containers"][0]["image"] == "registry.example/runtime:1"
    assert pod(td(engine={"type": "Turbo", "image": "mine:2"}))["containers"][0]["image"] == "mine:2"


def test_speculation_off_is_told_to_the_runtime() -> None:
    it = td(speculation={"mode": "Disabled"})
    assert RuntimeConfig.from_argv(pod(it)["containers"][0]["args"]).speculation == "off"


def test_cores_are_requested_and_limited_and_one_thread_runs_on_each() -> None:
    container = pod(BASE)["containers"][0]
    assert container["resources"]["requests"] == {"cpu": "2", "memory": "6144Mi"}
    assert container["resources"]["limits"] == {"cpu": "2", "memory": "6144Mi"}
    container = pod(BASE, replace(CPU, quantity=Decimal("3.5")))["containers"][0]
    assert container["resources"]["limits"] == {"cpu": "3500m", "memory": "6144Mi"}
    assert "--threads=3" in container["args"]


def test_a_device_is_asked_for_where_it_is() -> None:
    spec = pod(td(engine={"type": "Turbo"}), CARD)
    assert spec["nodeSelector"] == {"gpu": "l4"}
    assert spec["tolerations"] == [{"key": "gpu", "operator": "Exists"}]
    resources = spec["containers"][0]["resources"]
    assert resources["requests"]["nvidia.com/gpu"] == resources["limits"]["nvidia.com/gpu"] == "1"
    assert "--device=cuda" in spec["containers"][0]["args"]


def test_every_pod_is_locked_down_and_can_write_only_where_it_must() -> None:
    job = render.children(BASE, Snapshot({}), None, (), SETTINGS)[-1]
    assert job["kind"] == "Job"
    for spec in (pod(BASE), job["spec"]["template"]["spec"]):
        assert spec["automountServiceAccountToken"] is False
        assert spec["securityContext"]["runAsNonRoot"] is True
        assert spec["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
        (container,) = spec["containers"]
        assert container["securityContext"]["readOnlyRootFilesystem"] is True
        assert container["securityContext"]["capabilities"] == {"drop": ["ALL"]}
        mounts = {each["mountPath"]: each.get("readOnly", False) for each in container["volumeMounts"]}
        assert mounts == {"/tmp": False, "/models": True}


def test_a_pod_outlives_its_drain() -> None:
    assert pod(td(drain={"timeout": "5m"}))["terminationGracePeriodSeconds"] > 300


def test_a_hub_model_is_pinned_to_its_commit_and_its_token_stays_a_reference() -> None:
    it = td(model={"uri": "hf://org/chat", "revision": "main", "tokenSecretRef": {"name": "hub", "key": "t"}})
    resolved = replace(FACTS, revision="0123abc")
    choice = chosen(it)
    variant = Variant(render.plan_hash(it, choice, resolved), 1)
    children = render.children(it, Snapshot({}, model=resolved), choice, [variant], SETTINGS)
    container = children[-1]["spec"]["template"]["spec"]["containers"][0]
    assert RuntimeConfig.from_argv(container["args"]).revision == "0123abc"
    token = {"name": "HF_TOKEN", "valueFrom": {"secretKeyRef": {"name": "hub", "key": "t"}}}
    assert token in container["env"]


def test_keys_are_a_mounted_folder_so_that_a_change_reaches_running_pods() -> None:
    spec = pod(td(server={"apiKeysSecretRef": {"name": "chat-keys", "key": "team.txt"}}))
    (container,) = spec["containers"]
    path = RuntimeConfig.from_argv(container["args"]).api_key_file
    assert path is not None
    (volume,) = [each for each in spec["volumes"] if "secret" in each]
    (item,) = volume["secret"]["items"]
    assert (volume["secret"]["secretName"], item["key"]) == ("chat-keys", "team.txt")
    (mount,) = [each for each in container["volumeMounts"] if each["name"] == volume["name"]]
    # the kubelet renews a volume by swapping its folder, and never a file that is mounted by subPath
    assert mount == {
        "name": volume["name"],
        "mountPath": path.removesuffix(f"/{item['path']}"),
        "readOnly": True,
    }
    assert "chat-keys" not in json.dumps(container)  # no key and no name of one reaches the environment
    hung = container["livenessProbe"]["terminationGracePeriodSeconds"]
    assert hung < 30, "a process that hangs drains nothing: with one replica, all of it is an outage"
    for probe in ("startupProbe", "readinessProbe", "livenessProbe"):
        assert container[probe]["httpGet"]["path"] in (HEALTH_PATH, READY_PATH)  # open without a key


def test_each_key_and_each_secret_has_pods_of_its_own_and_another_object_none() -> None:
    refs = ({"name": "a"}, {"name": "b"}, {"name": "a", "key": "other"})
    asked = [td(server={"apiKeysSecretRef": ref}) for ref in refs]
    assert len({render.plan_hash(it, chosen(it), FACTS) for it in (BASE, *asked)}) == 4
    nothing = td(server={})
    assert render.plan_hash(nothing, chosen(nothing), FACTS) == render.plan_hash(BASE, chosen(BASE), FACTS)
    job = render.children(asked[0], Snapshot({}), None, (), SETTINGS)[-1]
    assert job["kind"] == "Job"
    assert "secret" not in json.dumps(job)  # who reads the model's shape serves nobody


def test_the_overlay_reaches_the_pod_but_not_the_labels_that_select_it() -> None:
    it = td(
        podTemplate={
            "metadata": {"labels": {"team": "a"}, "annotations": {"note": "b"}},
            "spec": {
                "nodeSelector": {"zone": "z"},
                "tolerations": [{"key": "mine", "operator": "Exists"}],
                "env": [{"name": "LOG_LEVEL", "value": "DEBUG"}],
                "serviceAccountName": "sa",
                "imagePullSecrets": [{"name": "reg"}],
                "priorityClassName": "high",
                "runtimeClassName": "nvidia",
            },
        }
    )
    template = rendered(it, CARD)["Deployment"]["spec"]["template"]
    spec = template["spec"]
    assert template["metadata"]["labels"]["team"] == "a"
    assert template["metadata"]["annotations"] == {"note": "b"}
    assert spec["nodeSelector"] == {"gpu": "l4", "zone": "z"}
    assert [each["key"] for each in spec["tolerations"]] == ["gpu", "mine"]
    assert {"name": "LOG_LEVEL", "value": "DEBUG"} in spec["containers"][0]["env"]
    assert (spec["serviceAccountName"], spec["priorityClassName"], spec["runtimeClassName"]) == (
        "sa",
        "high",
        "nvidia",
    )
    assert spec["imagePullSecrets"] == [{"name": "reg"}]


def test_the_service_selects_serving_pods_of_all_variants_and_no_inspecting_one() -> None:
    children = rendered(BASE)
    selector = children["Service"]["spec"]["selector"]
    pod_labels = children["Deployment"]["spec"]["template"]["metadata"]["labels"]
    job = render.children(BASE, Snapshot({}), None, (), SETTINGS)[-1]
    assert selector.items() <= pod_labels.items()
    assert not selector.items() <= job["spec"]["template"]["metadata"]["labels"].items()
    assert "serving.turbo.dev/plan-hash" not in selector
    assert children["PodDisruptionBudget"]["spec"]["selector"]["matchLabels"] == selector


def test_traffic_goes_by_the_owners_uid_once_no_variant_is_left_that_was_made_without_it() -> None:
    label = "serving.turbo.dev/owner-uid"
    fresh = rendered(BASE)["ControllerRevision"]["data"]
    bare = {
        **fresh,
        "metadata": {"labels": {k: v for k, v in fresh["metadata"]["labels"].items() if k != label}},
    }
    others = {**fresh, "metadata": {"labels": {**fresh["metadata"]["labels"], label: "u-0"}}}
    views = {
        name: ChildView("ControllerRevision", f"chat-{name}", name, None, plan_hash=name, data=data)
        for name, data in (("fresh", fresh), ("bare", bare), ("others", others))
    }
    mixed = ((("bare",), False), (("fresh", "bare"), False), (("others",), False))
    for there, by_uid in (((), True), (("fresh",), True), *mixed):
        children = rendered(BASE, CPU, SETTINGS, *(views[name] for name in there))
        assert (children["Service"]["spec"]["selector"].get(label) == "u-1") == by_uid
        budget = children["PodDisruptionBudget"]["spec"]["selector"]["matchLabels"]
        assert budget == children["Service"]["spec"]["selector"]
        assert label not in children["Deployment"]["spec"]["selector"]["matchLabels"]


def test_the_inspect_job_goes_when_its_answer_is_kept() -> None:
    before = [each["kind"] for each in render.children(BASE, Snapshot({}), None, (), SETTINGS)]
    after = rendered(BASE)
    assert before == ["Service", "Job"]  # no drain can evict what there is not
    assert "Job" not in after
    kept = after["ConfigMap"]["data"]
    assert ModelInfo.from_json(kept[render.FACTS_KEY]) == FACTS
    assert kept[render.SOURCE_KEY] == render.source_hash(BASE)


def test_another_source_is_another_inspect_job() -> None:
    jobs = {
        render.job_name(td(model=model))
        for model in (
            {"uri": "pvc://models/a"},
            {"uri": "hf://a/b"},
            {"uri": "hf://a/b", "revision": "v2"},
        )
    }
    assert len(jobs) == 3
    assert render.job_name(td(replicas=3)) == render.job_name(BASE)


def test_the_inspecting_pod_bears_the_overlay_and_fails_at_once_where_trying_again_cannot_help() -> None:
    env = [{"name": "HTTPS_PROXY", "value": "http://proxy"}, {"name": "EMPTY", "value": ""}]
    metadata = {"labels": {"cost": "team-a"}, "annotations": {"sidecar.istio.io/inject": "false"}}
    overlay = {"metadata": metadata, "spec": {"env": env}}
    job = render.children(td(podTemplate=overlay), Snapshot({}), None, (), SETTINGS)[-1]
    pod = job["spec"]["template"]
    assert pod["metadata"]["annotations"] == metadata["annotations"]
    assert pod["metadata"]["labels"]["cost"] == "team-a"
    assert pod["metadata"]["labels"]["serving.turbo.dev/role"] == "inspect"
    (container,) = pod["spec"]["containers"]
    assert {"name": "HTTPS_PROXY", "value": "http://proxy"} in container["env"]
    assert {"name": "EMPTY"} in container["env"]
    (rule,) = job["spec"]["podFailurePolicy"]["rules"]
    assert rule["onExitCodes"]["containerName"] == container["name"]
    assert rule["onExitCodes"]["values"] == [3]
