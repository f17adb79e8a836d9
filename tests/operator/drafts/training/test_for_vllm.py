"""A draft for vLLM is an EAGLE-3 layer, and learns from the answers of the pods that serve."""

from __future__ import annotations

import os
import subprocess
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from turbo_dev.plan_examples import fast
from turbo_dev.trainings import CORES, FACTS, MADE, ROOM, message_of
from turbo_dev.trainings import look as look_at
from turbo_dev.vllm_canaries import FIRST, SETTINGS, TRAINING, hash_of, pod, td
from turbo_operator.api import TrainingReason, TurboDeployment
from turbo_operator.drafts import training
from turbo_operator.drafts.training import manifests
from turbo_operator.drafts.training.next_job import question
from turbo_operator.render import server
from turbo_operator.snapshot import DraftView, Snapshot

CARD = fast("card", 80, "1.00")
ACCELERATORS = {"card": CARD, "cpu": CORES}
ALLOWED = {"accelerators": {"allowed": ["card"]}}
READY = pod("a", "v2abc")


def seen(*pods: Any, **more: Any) -> Snapshot:
    """Room for both, and what serves."""
    supply = dict.fromkeys(ACCELERATORS, ROOM["cpu"])
    return Snapshot(ACCELERATORS, supply=supply, free=supply, model=FACTS, pods=pods, **more)


def job(it: TurboDeployment) -> dict[str, Any]:
    request = look_at(it, seen(READY)).job_request
    assert request is not None
    spec: dict[str, Any] = manifests.training_job(it, request, FACTS, SETTINGS)["spec"]["template"]["spec"]
    return spec


def test_one_is_trained_while_pods_answer_without_drafts_and_waits_for_pods_that_do() -> None:
    it = td(**ALLOWED)
    waits = look_at(it, seen())
    assert waits.condition is not None
    assert waits.condition.reason == TrainingReason.WAITING_FOR_PODS
    assert "learns from the answers of the pods that serve, and none is ready" in message_of(waits)
    assert look_at(it, seen(replace(READY, ready=False))).job_request is None
    begins = look_at(it, seen(READY))
    assert begins.job_request is not None
    assert begins.job_request.serving.method == "Off"


def test_the_job_runs_turbos_own_image_and_asks_the_service() -> None:
    it = td(engine={"type": "VLLM", "image": "v:2"}, **ALLOWED)
    (container,) = job(it)["containers"]
    assert container["image"] == "r:1"
    assert {"--method=eagle3", "--from=http://chat.team.svc/v1"} <= set(container["args"])
    assert "--no-speedup" not in container["args"]
    assert not any("secret" in volume for volume in job(it)["volumes"])


def test_another_image_of_vllm_is_the_same_work_and_heads_are_another() -> None:
    def work(it: TurboDeployment) -> str:
        asked = it.spec.speculation.training
        assert asked is not None
        return manifests.work_hash(it, asked, FACTS.digest, CARD, "bfloat16")

    vllm = [td(engine={"type": "VLLM", "image": image}, **ALLOWED) for image in ("v:1", "v:2")]
    heads = td(speculation={"training": TRAINING}, **ALLOWED)
    assert len({work(it) for it in vllm}) == 1
    assert work(heads) != work(vllm[0])


def test_what_is_made_is_a_draft_of_that_method_and_counts_for_vllm_alone() -> None:
    it, made = td(**ALLOWED), replace(MADE, method="eagle3")
    state = look_at(it, seen(READY)).state
    asked = it.spec.speculation.training
    assert state is not None
    assert asked is not None
    draft = manifests.turbo_draft(it, asked, state, made)
    assert draft["spec"]["method"] == "EAGLE3"
    heads = replace(FIRST, method="TurboHeads")
    drafts: tuple[DraftView, ...] = (FIRST, heads, replace(FIRST, target_digest="sha256:cd"))
    assert training.fitting(it, seen(drafts=drafts)) == [FIRST]
    turbo = td(speculation={"training": TRAINING}, **ALLOWED)
    assert training.fitting(turbo, seen(drafts=drafts)) == [heads]
    assert look_at(it, seen(READY, drafts=(FIRST,))).job_request is None


def test_its_accelerator_has_room_for_the_layer_beside_the_model() -> None:
    def usable(it: TurboDeployment) -> int:
        query = training.AcceleratorQuery("", "bfloat16")
        return question(it, seen(READY), FACTS.shape, query).catalog["card"].memory_bytes

    heads = td(speculation={"training": TRAINING}, **ALLOWED)
    layer = 16 * (3_000_000 + 3 * 576**2)  # at least: weights, gradients and moments
    assert usable(td(**ALLOWED)) < CARD.memory_bytes - layer
    assert usable(td(**ALLOWED)) < usable(heads)


KEYS = {
    "one": ("team:sk-1234567\n", "sk-1234567"),
    "first of several": ("# of us\n\n  a:first-key \nb:second-key\n", "first-key"),
    "without a name": ("plain-key\n", "plain-key"),
    "with a colon": ("a:key:with:colons\n", "key:with:colons"),
}


@pytest.mark.parametrize("case", KEYS)
def test_where_the_pods_require_keys_the_job_has_the_first_of_them(case: str, tmp_path: Path) -> None:
    text, key = KEYS[case]
    it = td(server={"apiKeysSecretRef": {"name": "keys"}}, **ALLOWED)
    made = job(it)
    (secret,) = [volume for volume in made["volumes"] if "secret" in volume]
    assert secret["secret"]["secretName"] == "keys"
    (container,) = made["containers"]
    shell, option, script, out = container["command"]
    (tmp_path / "keys").write_text(text)
    (tmp_path / "turbo").write_text('#!/bin/sh\nprintf "%s" "$OPENAI_API_KEY"\n')
    (tmp_path / "turbo").chmod(0o755)
    script = script.replace(server.KEYS_PATH, str(tmp_path / "keys"))
    path = {"PATH": f"{tmp_path}:{os.environ['PATH']}"}
    command = [shell, option, script, str(tmp_path / out.lstrip("/"))]
    run = subprocess.run(command, env=path, capture_output=True, text=True, check=True)
    assert (run.stdout, run.stderr) == (key, "")


def test_pods_that_answer_without_drafts_are_those_of_a_deployment_that_trains_nothing() -> None:
    plain = td(speculation={}, engine={"type": "VLLM"}, **ALLOWED)
    assert hash_of(td(**ALLOWED), None) == hash_of(plain, None)
