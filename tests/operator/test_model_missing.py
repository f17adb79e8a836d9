"""What the pods of a model on a claim, or in an image, do not find of it, and what comes of that."""

from __future__ import annotations

import shutil
import subprocess
from dataclasses import replace
from pathlib import Path
from typing import Any

from turbo_dev.fetched_models import (
    FACTS,
    NOW,
    SETTINGS,
    SNAPSHOT,
    conditions,
    job,
    look,
    names,
    plan_hash,
    serving,
    td,
)
from turbo_dev.plan_cases import plan as plan_of
from turbo_dev.plan_examples import SMALL, fast, named
from turbo_operator import render
from turbo_operator.render.fetch import LACKS
from turbo_operator.render.template import pod_template
from turbo_operator.snapshot import ChildView, MissingFile, TrainPod


def test_the_inspection_reads_the_claim_before_there_is_a_folder_of_the_hub() -> None:
    spec = render.inspect_job(td(), SETTINGS)["spec"]["template"]["spec"]
    mount = {"name": "cache", "mountPath": "/cache", "readOnly": True}
    assert mount in spec["containers"][0]["volumeMounts"]


def test_a_pod_sees_whether_all_of_the_model_is_on_the_claim_before_its_engine_starts(tmp_path: Path) -> None:
    drafts = {"mode": "Required", "method": "EAGLE3", "draftModel": {"uri": "hf://acme/eagle"}}
    model = {"uri": "hf://acme/tiny", "maxModelLen": 4096}
    it = td(engine={"type": "VLLM"}, accelerators=None, speculation=drafts, model=model)
    choice = plan_of(it.spec, SMALL, named(fast("card", 80, "1.00"))).choice
    assert choice is not None
    (check,) = pod_template(it, choice, FACTS, "v2abc", SETTINGS)["spec"]["initContainers"]
    arguments = [each.replace("/cache/hub", str(tmp_path / "hub")) for each in check["args"]]

    def checks() -> tuple[int, str]:
        done = subprocess.run([*check["command"], *arguments], capture_output=True, text=True)
        return done.returncode, done.stdout.strip()

    snapshot = Path(SNAPSHOT.replace("/cache", str(tmp_path)))
    refs = tmp_path / "hub/models--acme--eagle/refs"
    assert checks() == (3, f"{LACKS}{snapshot}/config.json")
    snapshot.mkdir(parents=True)
    blob = tmp_path / "blob"
    for file in (blob, snapshot / "config.json"):
        file.touch()
    (snapshot / "model.safetensors").symlink_to(blob)
    assert checks() == (3, f"{LACKS}{refs}/main"), "of the draft model"
    refs.mkdir(parents=True)
    (refs / "main").touch()
    assert checks() == (0, "")
    blob.unlink()
    assert checks() == (3, f"{LACKS}{snapshot}/model.safetensors")
    shutil.rmtree(snapshot)
    assert checks()[0] == 3


def test_what_pods_no_longer_find_on_the_claim_is_fetched_again() -> None:
    it = td()
    children, pod = serving(plan_hash(it))
    complete = job(it, complete=True, ended=NOW - 60)

    def decided(path: str, at: float, fetch_job: ChildView = complete) -> tuple[list[str], dict[str, Any]]:
        lacking = replace(pod, ready=False, reason="CrashLoopBackOff", lacks=MissingFile(path, at))
        decision, status = look(it, *children, fetch_job, pods=(lacking,))
        assert names(decision, "Deployment") == [f"chat-{plan_hash(it)}"], "what serves stays"
        return names(decision, "Job"), conditions(status)

    for path in (f"{SNAPSHOT}/config.json", f"{SNAPSHOT}/model.safetensors", ""):
        jobs, states = decided(path, NOW - 30)
        assert jobs == [], "it gives way to another one"
        assert states["ModelCached"][:2] == ("Unknown", "Fetching")
        assert "Pod p no longer finds all of the model on claim weights" in states["ModelCached"][2]
    again = replace(complete, ended=NOW - 20)
    assert decided(f"{SNAPSHOT}/config.json", NOW - 30, again)[1]["ModelCached"][:2] == ("True", "Cached")
    jobs, states = decided("/cache/hub/models--acme--other/snapshots/1/config.json", NOW - 30)
    assert (jobs, states["ModelCached"][0]) == ([complete.name], "True"), "it is of an earlier plan"


def test_what_a_training_does_not_find_on_the_claim_is_fetched_again() -> None:
    it = td()
    lacks = MissingFile(f"{SNAPSHOT}/config.json", NOW)
    trains = TrainPod("t", "chat-train-1", "Pending", lacks=lacks)
    decision, _ = look(it, job(it, complete=True, ended=NOW - 60), trainings=(trains,))
    assert names(decision, "Job") == []


def test_where_the_api_server_dropped_the_image_of_a_draft_model_the_status_says_what_to_switch_on() -> None:
    """Found in review: vLLM crashed on a folder that was not there, and nothing said why."""
    it = td(model={"uri": "pvc://models/tiny"}, cache=None, suspend=False)
    (deployment, revision), pod = serving(plan_hash(it))
    image = {"name": "draft-model", "image": {"reference": "ghcr.io/acme/eagle:1"}}
    frozen = replace(revision, data={"spec": {"volumes": [image]}})
    crashes = replace(pod, ready=False, reason="CrashLoopBackOff", message="no such folder")
    states = conditions(look(it, deployment, frozen, pods=(crashes,))[1])
    message = states["Available"][2]
    assert states["Available"][:2] == ("False", "FailedCreate")
    assert "The API server has no image volumes, and dropped those of ghcr.io/acme/eagle:1" in message
    assert f"delete Deployment {deployment.name}" in message
    assert states["Stalled"][:2] == ("True", "UserActionRequired")
    mounts = replace(crashes, has_image=True)
    states = conditions(look(it, deployment, frozen, pods=(mounts,))[1])
    assert states["Available"][:2] == ("False", "CrashLoopBackOff")
