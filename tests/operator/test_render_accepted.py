"""Every kind of child is taken by a real API server, strictly validated, and keeps what we wrote."""

from __future__ import annotations

import json
from decimal import Decimal
from typing import Any

import pytest

from turbo_dev.access import Access
from turbo_operator import planner, render
from turbo_operator.api import CapacityType, parse, quantity
from turbo_operator.catalog import catalogue, shapes
from turbo_operator.observed import Accelerator, Observed
from turbo_operator.rollout import Variant
from turbo_operator.settings import Settings
from turbo_runtime.contract import ModelFacts

SETTINGS = Settings(runtime_image="registry.example/runtime:1")
SHAPE = shapes.shipped("HuggingFaceTB/SmolLM2-135M")
assert SHAPE is not None
FACTS = ModelFacts(SHAPE, "sha256:ab", "0123abc", 270_000_000)
CPU = Accelerator("cpu", "cpu", Decimal("1.5"), 4 << 30, prices={CapacityType.ON_DEMAND: Decimal("0.04")})

SPECS: dict[str, dict[str, Any]] = {
    "claim-on-cores": {"model": {"uri": "pvc://models/chat"}, "accelerators": {"allowed": ["cpu"]}},
    "hub-on-a-device": {
        "model": {"uri": "hf://org/chat", "revision": "main", "tokenSecretRef": {"name": "hub"}},
        "accelerators": {"allowed": ["l4"]},
        "server": {"apiKeysSecretRef": {"name": "keys"}},
        "capture": {"pvc": {"claimName": "kept"}, "redact": [r"\d{16}"], "maxAge": "48h"},
        "drain": {"timeout": "1m30s"},
        "template": {
            "labels": {"team": "a"},
            "annotations": {"note": "b"},
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
}


@pytest.mark.cluster
@pytest.mark.parametrize("name", SPECS)
def test_every_child_is_taken_as_it_is(control_plane: Access, name: str) -> None:
    td = parse(
        {
            "apiVersion": "serving.turbo.dev/v1alpha1",
            "kind": "TurboDeployment",
            "metadata": {"name": name, "namespace": "default", "uid": "0b0b", "generation": 1},
            "spec": SPECS[name],
        }
    )
    choice = planner.plan(td.spec, FACTS.shape, {**catalogue(), "cpu": CPU}).choice
    assert choice is not None
    variants = [Variant(render.plan_hash(td, choice, FACTS), 1)]
    children = [
        *render.children(td, Observed({}), None, (), SETTINGS),
        *render.children(td, Observed({}, model=FACTS), choice, variants, SETTINGS),
    ]
    kinds = {child["kind"] for child in children}
    assert kinds == {"Service", "PodDisruptionBudget", "Job", "ConfigMap", "ControllerRevision", "Deployment"}
    for child in children:
        kept = json.loads(
            control_plane.kubectl(
                *("apply", "--server-side", "--dry-run=server", "--validate=strict", "-o", "json", "-f", "-"),
                input=json.dumps(child),
            )
        )
        assert_kept(child, kept, child["kind"])


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
