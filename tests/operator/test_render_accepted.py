"""Every kind of child is taken by a real API server, strictly validated, and keeps what we wrote."""

from __future__ import annotations

import copy
import json
import re
from dataclasses import replace
from decimal import Decimal
from typing import Any

import pytest

from turbo_dev.access import Access
from turbo_dev.plan_cases import plan
from turbo_dev.shell import CommandError
from turbo_operator import planner, render
from turbo_operator.api import CapacityType, TurboDeployment, parse, quantity
from turbo_operator.catalog import catalog, shapes
from turbo_operator.drafts import training
from turbo_operator.drafts.training.manifests import SCRIPT, training_job
from turbo_operator.render import fetch
from turbo_operator.rollout import Variant
from turbo_operator.settings import Settings
from turbo_operator.snapshot import Accelerator, LoadSample, PodView, Snapshot
from turbo_runtime.contract.documents import Load, ModelInfo

SETTINGS = Settings(runtime_image="registry.example/runtime:1", router_image="registry.example/router:1")
SHAPE = shapes.shipped("HuggingFaceTB/SmolLM2-135M")
assert SHAPE is not None
FACTS = ModelInfo(SHAPE, "sha256:ab", "0123abc", 270_000_000)
CPU = Accelerator("cpu", "cpu", Decimal("1.5"), 4 << 30, prices={CapacityType.ON_DEMAND: Decimal("0.04")})

SPECS: dict[str, dict[str, Any]] = {
    "claim-on-cores": {"model": {"uri": "pvc://models/chat"}, "accelerators": {"allowed": ["cpu"]}},
    "trained-on-a-configmap": {
        "model": {"uri": "pvc://models/chat"},
        "accelerators": {"allowed": ["cpu"]},
        "speculation": {
            "training": {
                "persistentVolumeClaim": {"claimName": "drafts"},
                "prompts": {"type": "ConfigMap", "configMap": {"name": "prompts", "key": "all.jsonl"}},
                "maxCost": "1.00",
            }
        },
    },
    "trained-on-traffic": {
        "model": {"uri": "hf://org/chat", "revision": "main"},
        "accelerators": {"allowed": ["l4"]},
        "capture": {"persistentVolumeClaim": {"claimName": "kept"}},
        "speculation": {
            "training": {
                "persistentVolumeClaim": {"claimName": "drafts"},
                "prompts": {"type": "Captured"},
                "domain": "support",
                "acceleratorName": "l40s",
            }
        },
        "podTemplate": {"metadata": {"labels": {"team": "a"}, "annotations": {"note": "b"}}},
    },
    "trained-on-its-own-claim": {
        "model": {"uri": "pvc://models/chat"},
        "accelerators": {"allowed": ["cpu"]},
        "speculation": {
            "training": {
                "persistentVolumeClaim": {"claimName": "both"},
                "prompts": {
                    "type": "PersistentVolumeClaim",
                    "persistentVolumeClaim": {"claimName": "both", "path": "prompts/all"},
                },
            }
        },
    },
    "fetched-to-a-claim": {
        "model": {"uri": "hf://org/chat", "revision": "main", "tokenSecretRef": {"name": "hub"}},
        "accelerators": {"allowed": ["l4"]},
        "cache": {"persistentVolumeClaim": {"claimName": "weights"}},
    },
    "fetched-by-each-pod": {
        "model": {"uri": "hf://org/chat"},
        "accelerators": {"allowed": ["cpu"]},
        "cache": {"emptyDir": {"sizeLimit": "2Gi"}},
    },
    "in-a-bucket": {
        "model": {
            "uri": "s3://models/chat",
            "s3": {"endpoint": "http://minio:9000", "region": "eu-1", "secretRef": {"name": "bucket"}},
        },
        "accelerators": {"allowed": ["cpu"]},
        "cache": {"persistentVolumeClaim": {"claimName": "weights"}},
    },
    "routed": {"model": {"uri": "hf://org/chat"}, "accelerators": {"allowed": ["l4"]}, "routing": "Router"},
    "hub-on-a-device": {
        "model": {"uri": "hf://org/chat", "revision": "main", "tokenSecretRef": {"name": "hub"}},
        "accelerators": {"allowed": ["l4"]},
        "server": {"apiKeysSecretRef": {"name": "keys"}},
        "capture": {"persistentVolumeClaim": {"claimName": "kept"}, "redact": [r"\d{16}"], "maxAge": "48h"},
        "drain": {"timeout": "1m30s"},
        "podTemplate": {
            "metadata": {"labels": {"team": "a"}, "annotations": {"note": "b"}},
            "spec": {
                "nodeSelector": {"zone": "z"},
                "tolerations": [{"key": "mine", "operator": "Exists"}],
                "resources": {"requests": {"cpu": "1"}, "limits": {"cpu": "3"}},
                "env": [
                    {"name": "LOG_LEVEL", "value": ""},
                    {"name": "SECRET", "valueFrom": {"secretKeyRef": {"name": "s", "key": "k"}}},
                ],
                "serviceAccountName": "sa",
                "imagePullSecrets": [{"name": "reg"}],
                "priorityClassName": "system-node-critical",
            },
        },
    },
}


def parsed(name: str) -> TurboDeployment:
    return parse(
        {
            "apiVersion": "serving.turbo.dev/v1alpha1",
            "kind": "TurboDeployment",
            "metadata": {"name": name, "namespace": "default", "uid": "0b0b", "generation": 1},
            "spec": SPECS[name],
        }
    )


@pytest.mark.cluster
@pytest.mark.parametrize("name", SPECS)
def test_every_child_is_taken_as_it_is(control_plane: Access, name: str) -> None:
    children = rendered(name)
    kinds = {child["kind"] for child in children}
    usual = {"Service", "PodDisruptionBudget", "Job", "ConfigMap", "ControllerRevision", "Deployment"}
    own = {"ServiceAccount", "RoleBinding"} if name == "routed" else set()
    assert kinds == usual | own
    for child in children:
        kept = json.loads(
            control_plane.kubectl(
                *("apply", "--server-side", "--dry-run=server", "--validate=strict", "-o", "json", "-f", "-"),
                input=json.dumps(child),
            )
        )
        assert_kept(child, kept, child["kind"])


@pytest.mark.parametrize("name", SPECS)
def test_variables_of_the_installation_reach_every_container_that_reads_a_model(name: str) -> None:
    """What Turbo sets itself and what the object says wins."""
    given = (
        ("EMPTY", ""),
        ("HF_ENDPOINT", "https://hub.test"),
        ("HOME", "/elsewhere"),
        ("LOG_LEVEL", "INFO"),
    )
    before, after = (rendered(name, replace(SETTINGS, model_env=each)) for each in ((), given))
    found = [containers_of(child) for child in after if child["kind"] in ("Deployment", "Job")]
    assert len(found) >= 2
    for container in (each for group in found for each in group):
        names = [variable["name"] for variable in container["env"]]
        assert len(names) == len(set(names)), "the API server takes each name once"
        is_of_router = container["name"] in ("router", "activator")
        assert ({"name": "HF_ENDPOINT", "value": "https://hub.test"} in container["env"]) != is_of_router
        assert {"name": "HOME", "value": "/tmp"} in container["env"]
        own = {"name": "LOG_LEVEL"} if name == "hub-on-a-device" else {"name": "LOG_LEVEL", "value": "INFO"}
        assert (own in container["env"]) != is_of_router
    names = [[child["metadata"]["name"] for child in children] for children in (before, after)]
    assert names[0] == names[1], "an installation with other variables replaces no pod"


def containers_of(child: Any) -> list[Any]:
    spec = child["spec"]["template"]["spec"]
    return [*spec.get("initContainers", ()), *spec["containers"]]


def rendered(name: str, settings: Settings = SETTINGS) -> list[Any]:
    """Every child that it has now and then: of the inspection, of the plan, of a training, of a fetch."""
    td = parsed(name)
    choice = plan(td.spec, FACTS.shape, {**catalog(), "cpu": CPU}).choice
    assert choice is not None
    variants = [Variant(render.plan_hash(td, choice, FACTS), 1)]
    observed = seen()
    begin = begun(td, observed)
    is_fetched = td.spec.cache and td.spec.cache.persistent_volume_claim
    return [
        *render.children(td, Snapshot({}), None, (), settings),
        *render.children(td, observed, choice, variants, settings),
        *([training_job(td, begin, FACTS, settings)] if begin else []),
        *([fetch.job(td, FACTS, settings)] if is_fetched else []),
    ]


@pytest.fixture(scope="module")
def restricted(control_plane: Access) -> str:
    """A namespace where Pod Security admits what is restricted, and nothing else."""
    namespace = "only-restricted"
    control_plane.kubectl("create", "namespace", namespace)
    label = "pod-security.kubernetes.io/enforce=restricted"
    control_plane.kubectl("label", "namespace", namespace, label)
    for account in ("default", "sa", "routed-router"):
        meta = {"name": account, "namespace": namespace}
        control_plane.apply({"apiVersion": "v1", "kind": "ServiceAccount", "metadata": meta})
    return namespace


def admit(control_plane: Access, namespace: str, template: Any) -> None:
    """Have a pod of a template admitted. CommandError where it is not."""
    meta = {"name": "p", "namespace": namespace, "labels": template["metadata"].get("labels", {})}
    pod = {"apiVersion": "v1", "kind": "Pod", "metadata": meta, "spec": template["spec"]}
    arguments = ("create", "--dry-run=server", "--validate=strict", "-f", "-")
    control_plane.kubectl(*arguments, input=json.dumps(pod))


@pytest.mark.cluster
@pytest.mark.parametrize("name", SPECS)
def test_every_pod_is_admitted_where_pod_security_is_restricted(
    control_plane: Access, restricted: str, name: str
) -> None:
    templates = [
        child["spec"]["template"] for child in rendered(name) if child["kind"] in ("Deployment", "Job")
    ]
    assert len(templates) >= 2
    for template in templates:
        admit(control_plane, restricted, template)
    (other, *_) = copy.deepcopy(templates)
    other["spec"]["containers"][0]["securityContext"]["allowPrivilegeEscalation"] = True
    with pytest.raises(CommandError, match="violates PodSecurity"):
        admit(control_plane, restricted, other)


def seen() -> Snapshot:
    """A model and a pod that has kept prompts enough."""
    load = Load(0, 0, 0, 0, 0.0, 1000, 0, 0, 0, 0, "bitwise", False, captured=300)
    pod = PodView("p", "v1", "Running", True, None, None, None, load=LoadSample(0.0, load))
    return Snapshot({**catalog(), "cpu": CPU}, model=FACTS, pods=(pod,))


def begun(td: TurboDeployment, observed: Snapshot) -> training.JobRequest | None:
    """The training that is due; None where none is asked for."""
    plan = planner.plan(planner.build_inputs(td, FACTS.shape, observed), 0.0)
    asks = training.decide(td, observed, plan, None, 0.0).query
    if asks is None:
        return None
    asked = training.question(td, observed, FACTS.shape, asks)
    begin = training.decide(td, observed, plan, planner.plan(asked, 0.0), 0.0).job_request
    assert begin is not None
    return begin


def training_of(name: str) -> dict[str, Any]:
    """The spec of the Job that trains."""
    td = parsed(name)
    begin = begun(td, seen())
    assert begin is not None
    return training_job(td, begin, FACTS, SETTINGS)["spec"]


def assert_kept(wanted: Any, kept: Any, path: str) -> None:
    """Whether all that was written is there; the API server adds defaults and nothing else."""
    if isinstance(wanted, dict):
        for key, value in wanted.items():
            assert key in kept, f"{path}.{key} was dropped"
            assert_kept(value, kept[key], f"{path}.{key}")
    elif isinstance(wanted, list):
        assert len(wanted) == len(kept), path
        for index, value in enumerate(wanted):
            assert_kept(value, kept[index], f"{path}[{index}]")
    elif ".resources." in path:
        assert quantity(wanted) == quantity(kept), path
    else:
        assert wanted == kept, path


def test_a_training_is_told_what_is_served_and_where_prompts_and_drafts_are() -> None:
    spec = training_of("trained-on-a-configmap")
    pod = spec["template"]["spec"]
    (container,) = pod["containers"]
    folder = container["command"][-1]
    assert re.fullmatch("/drafts/drafts/trained-on-a-configmap/1-[0-9a-f]{8}", folder)
    assert container["command"] == ["sh", "-c", SCRIPT, folder]
    assert container["args"] == [
        "/models/chat",
        "--prompts=/prompts/prompts.jsonl",
        f"--out={folder}",
        "--domain=trained-on-a-configmap",
        "--max-tokens=256",
        "--device=cpu",
        "--dtype=float32",
        "--threads=1",
        "--max-model-len=8192",
        "--progress-port=8000",
        "--termination-message=/dev/termination-log",
    ]
    assert spec["activeDeadlineSeconds"] == 90_000
    assert pod["restartPolicy"] == "Never"
    assert pod["securityContext"]["fsGroup"] == 65532
    role = spec["template"]["metadata"]["labels"]["serving.turbo.dev/role"]
    assert role == "train"
    assert role != render_role_of_service()


def render_role_of_service() -> str:
    """What the Service selects."""
    td = parsed("trained-on-a-configmap")
    (found,) = (
        each for each in render.children(td, Snapshot({}), None, (), SETTINGS) if each["kind"] == "Service"
    )
    role: str = found["spec"]["selector"]["serving.turbo.dev/role"]
    return role


def test_speeds_of_another_accelerator_than_the_one_that_serves_are_not_measured() -> None:
    spec = training_of("trained-on-traffic")
    (container,) = spec["template"]["spec"]["containers"]
    assert "--no-speedup" in container["args"]
    assert "--prompts=/prompts/trained-on-traffic" in container["args"]
    assert "--revision=0123abc" in container["args"]
    assert container["resources"]["limits"]["nvidia.com/gpu"] == "1"
    assert "activeDeadlineSeconds" not in spec
    assert (
        "--prompts=/prompts/prompts/all"
        in training_of("trained-on-its-own-claim")["template"]["spec"]["containers"][0]["args"]
    )
