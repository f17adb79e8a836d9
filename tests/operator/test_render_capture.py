"""Kept prompts as the runtime sees them: settings that it accepts, a claim that it may write to."""

from __future__ import annotations

import json
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest

from turbo_dev.held import held
from turbo_dev.plan_cases import plan
from turbo_operator import render
from turbo_operator.api import CapacityType, InvalidObject, TurboDeployment, parse
from turbo_operator.catalog import shapes
from turbo_operator.plan import Choice
from turbo_operator.rollout import Variant
from turbo_operator.settings import Settings
from turbo_operator.snapshot import Accelerator, Snapshot
from turbo_runtime.capture.recorder import CaptureSettings, read_settings
from turbo_runtime.contract.config import RuntimeConfig
from turbo_runtime.contract.documents import ModelInfo

SHAPE = shapes.shipped("HuggingFaceTB/SmolLM2-135M")
assert SHAPE is not None
FACTS = ModelInfo(SHAPE, "sha256:ab", None, 270_000_000)
CPU = Accelerator("cpu", "cpu", Decimal(2), 6 << 30, prices={CapacityType.ON_DEMAND: Decimal("0.04")})
WHOLE = {
    "persistentVolumeClaim": {"claimName": "kept"},
    "sampleFraction": "0.25",
    "maxSize": "2Gi",
    "maxAge": "48h",
}


def td(**capture: Any) -> TurboDeployment:
    return parse(
        {
            "apiVersion": "serving.turbo.dev/v1alpha1",
            "kind": "TurboDeployment",
            "metadata": {"name": "chat", "namespace": "team", "uid": "u-1", "generation": 1},
            "spec": {"model": {"uri": "pvc://models/chat"}, **({"capture": capture} if capture else {})},
        }
    )


def chosen(it: TurboDeployment) -> Choice:
    choice = plan(it.spec, FACTS.shape, {CPU.name: CPU}).choice
    assert choice is not None
    return choice


def children(it: TurboDeployment) -> dict[str, dict[str, Any]]:
    variant = Variant(render.plan_hash(it, chosen(it), FACTS), 1)
    observed = Snapshot({}, model=FACTS)
    made = render.children(it, observed, chosen(it), (variant,), Settings(runtime_image="r:1"))
    return {f"{each['kind']} {each['metadata']['name']}": each for each in made}


def pod(it: TurboDeployment) -> dict[str, Any]:
    (deployment,) = [each for each in children(it).values() if each["kind"] == "Deployment"]
    spec: dict[str, Any] = deployment["spec"]["template"]["spec"]
    return spec


def test_the_runtime_reads_the_settings_that_are_mounted(tmp_path: Path) -> None:
    it = td(**WHOLE, redact=[r"\d{16}"])
    spec = pod(it)
    (container,) = spec["containers"]
    path = Path(RuntimeConfig.from_argv(container["args"]).capture_config or "")
    (volume,) = [each for each in spec["volumes"] if each["name"] == "capture-settings"]
    (mount,) = [each for each in container["volumeMounts"] if each["name"] == "capture-settings"]
    assert mount["mountPath"] == str(path.parent)
    data = children(it)[f"ConfigMap {volume['configMap']['name']}"]["data"]
    (tmp_path / path.name).write_text(data[path.name])
    assert read_settings(tmp_path / path.name) == CaptureSettings(
        "/capture/chat", 0.25, 2048, 48.0, (r"\d{16}",)
    )


def test_the_claim_is_mounted_where_the_settings_say_and_the_runtime_may_write_to_it() -> None:
    spec = pod(td(**WHOLE))
    (volume,) = [each for each in spec["volumes"] if each["name"] == "capture"]
    (mount,) = [each for each in spec["containers"][0]["volumeMounts"] if each["name"] == "capture"]
    assert volume["persistentVolumeClaim"] == {"claimName": "kept"}
    assert mount == {"name": "capture", "mountPath": "/capture"}
    assert spec["securityContext"]["fsGroup"] == spec["securityContext"]["runAsUser"]
    assert spec["securityContext"]["fsGroupChangePolicy"] == "OnRootMismatch"


def test_what_is_kept_of_traffic_changes_without_a_restart_and_where_it_is_kept_with_one() -> None:
    first = td(**WHOLE)
    hashes = {
        name: render.plan_hash(it, chosen(it), FACTS)
        for name, it in (
            ("first", first),
            ("settings", td(**{**WHOLE, "sampleFraction": "1", "redact": ["x"], "maxSize": "1Mi"})),
            ("claim", td(**{**WHOLE, "persistentVolumeClaim": {"claimName": "other"}})),
            ("none", td()),
            ("disabled", td(**WHOLE, suspend=True)),
        )
    }
    assert hashes["settings"] == hashes["first"]
    assert len({hashes["first"], hashes["claim"], hashes["none"]}) == 3
    assert hashes["disabled"] == hashes["none"]


@pytest.mark.parametrize("capture", [{}, {**WHOLE, "suspend": True}])
def test_where_nothing_is_to_be_kept_nothing_of_it_is_there(capture: dict[str, Any]) -> None:
    assert "capture" not in json.dumps(list(children(td(**capture)).values()))


def test_a_pattern_that_is_none_is_refused_by_name() -> None:
    with pytest.raises(InvalidObject, match=r"spec\.capture\.redact.*write a regular expression"):
        td(**WHOLE, redact=["("])


def test_pods_that_go_keep_nothing_more_while_they_are_there() -> None:
    before = children(td(**WHOLE))
    old = render.plan_hash(td(**WHOLE), chosen(td(**WHOLE)), FACTS)
    off = td(**WHOLE, suspend=True)
    variants = (Variant(render.plan_hash(off, chosen(off), FACTS), 1), Variant(old, 1))
    observed = Snapshot({}, children=held(before.values()), model=FACTS)
    made = render.children(off, observed, chosen(off), variants, Settings(runtime_image="r:1"))
    (kept,) = [each for each in made if each["metadata"]["name"] == "chat-capture"]
    settings = json.loads(kept["data"]["capture.json"])
    assert settings == {
        **json.loads(before["ConfigMap chat-capture"]["data"]["capture.json"]),
        "sampleFraction": 0,
    }
