"""What the pods of a model on a claim, or in an image, do not find of it, and what comes of that."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import time
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
from turbo_dev.server_process import PATIENCE
from turbo_operator import render
from turbo_operator.api import TurboDeploymentStatus, rfc3339
from turbo_operator.render.fetch import LACKS
from turbo_operator.render.metadata import digest
from turbo_operator.render.template import pod_template
from turbo_operator.snapshot import ChildView, MissingFile, TrainPod
from turbo_operator.status.model_cache import RETRY_SECONDS


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
        done = subprocess.run([*check["command"], *arguments], capture_output=True, text=True, timeout=60)
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
    for name in ("pytorch_model.bin", "consolidated.safetensors", "model.gguf", "model.ckpt"):
        (snapshot / name).symlink_to(tmp_path / "nowhere")
    assert checks() == (0, ""), "what no fetch brings"
    blob.unlink()
    assert checks() == (3, f"{LACKS}{snapshot}/model.safetensors")
    (snapshot / "model.safetensors").unlink()
    assert checks() == (3, f"{LACKS}{snapshot}/consolidated.safetensors"), "where there are no others"
    (snapshot / "consolidated.safetensors").unlink()
    assert checks() == (3, f"{LACKS}{snapshot}/pytorch_model.bin")
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


def test_pods_of_a_group_wait_for_what_is_fetched_before_they_end(tmp_path: Path) -> None:
    """Found in review: each restart of a container makes all pods of a LeaderWorkerSet's group anew."""
    it = td(engine={"type": "VLLM"}, accelerators=None, model={"uri": "hf://acme/tiny", "maxModelLen": 4096})
    choice = plan_of(it.spec, SMALL, named(fast("card", 80, "1.00"))).choice
    assert choice is not None
    template = pod_template(it, replace(choice, nodes=2), FACTS, "v2abc", SETTINGS)
    of_leader, of_worker = (each["spec"]["initContainers"] for each in (template, template["worker"]))
    assert of_leader == of_worker
    (check,), (alone,) = (
        of_leader,
        pod_template(it, choice, FACTS, "v2abc", SETTINGS)["spec"]["initContainers"],
    )
    (tmp_path / "config.json").symlink_to(tmp_path / "blob")
    sleep = tmp_path / "bin" / "sleep"
    sleep.parent.mkdir()
    sleep.write_text(
        f'#!/bin/sh\necho "$1" >> {tmp_path}/slept\n[ ! -e {tmp_path}/comes ] || : > {tmp_path}/blob'
    )
    sleep.chmod(0o755)
    environment = os.environ | {"PATH": f"{sleep.parent}:{os.environ['PATH']}"}

    def ends(container: dict[str, Any]) -> tuple[int, str, int]:
        command = [*container["command"], *container["args"][:3], str(tmp_path / "config.json")]
        (tmp_path / "slept").write_text("")
        done = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=60)
        seconds = sum(map(int, (tmp_path / "slept").read_text().split()))
        return done.returncode, done.stdout, seconds

    lost = f"{LACKS}{tmp_path}/config.json\n"
    assert ends(alone) == (3, lost, 0)
    assert ends(check) == (3, lost, 300), "the termination message is one line"
    (tmp_path / "comes").touch()
    assert ends(check) == (0, "", 10)


def test_a_check_that_waits_ends_when_it_is_told_to(tmp_path: Path) -> None:
    """Found in review: a pod of a group held its accelerators for minutes after it was deleted."""
    it = td(engine={"type": "VLLM"}, accelerators=None, model={"uri": "hf://acme/tiny", "maxModelLen": 4096})
    choice = plan_of(it.spec, SMALL, named(fast("card", 80, "1.00"))).choice
    assert choice is not None
    template = pod_template(it, replace(choice, nodes=2), FACTS, "v2abc", SETTINGS)
    (check,) = template["spec"]["initContainers"]
    sleep = tmp_path / "bin" / "sleep"
    sleep.parent.mkdir()
    sleep.write_text(f'#!/bin/sh\n: > {tmp_path}/sleeps\nexec {shutil.which("sleep")} "$1"')
    sleep.chmod(0o755)
    (tmp_path / "config.json").symlink_to(tmp_path / "nowhere")
    command = [*check["command"], *check["args"][:3], str(tmp_path / "config.json")]
    environment = os.environ | {"PATH": f"{sleep.parent}:{os.environ['PATH']}"}
    with subprocess.Popen(command, env=environment, start_new_session=True) as process:
        give_up = time.monotonic() + PATIENCE
        while not (tmp_path / "sleeps").exists():
            assert time.monotonic() < give_up
            time.sleep(0.05)
        process.terminate()
        assert process.wait(PATIENCE) == 143, "a signal that it handles, as the first of a container must"
        os.killpg(process.pid, signal.SIGKILL)  # its sleep, which ends with the container


def test_what_a_pod_lacks_after_it_was_fetched_again_is_told_and_fetched_later() -> None:
    """Found in review: a claim with another content on each node had its Job deleted and made without end."""
    it, path = td(), f"{SNAPSHOT}/tokenizer.json"
    children, pod = serving(plan_hash(it))

    def decided(
        fetch_job: ChildView | None, at: float | None, now: float, started: float | None = None
    ) -> tuple[bool, dict[str, Any]]:
        """Whether there shall be a Job."""
        lacks = None if at is None else MissingFile(path, at)
        seen = replace(pod, ready=False, reason="CrashLoopBackOff", lacks=lacks, started=started)
        jobs = [] if fetch_job is None else [fetch_job]
        nonlocal it
        decision, status = look(it, *children, *jobs, pods=(seen,), now=now)
        it = it.model_copy(update={"status": TurboDeploymentStatus.model_validate(status)})
        return bool(names(decision, "Job")), status

    first = job(it, complete=True, ended=NOW - 60)
    for later in (0.0, 5.0):  # the deletion may take a while
        wants, status = decided(first, NOW - 30, NOW + later)
        assert (wants, conditions(status)["ModelCached"][:2]) == (False, ("Unknown", "Fetching"))
        assert status["cache"]["lostTime"] == rfc3339(NOW)
    wants, status = decided(None, NOW - 30, NOW + 10)
    assert (wants, status["cache"]["lostTime"]) == (True, rfc3339(NOW))
    second = replace(first, ended=NOW + 60)
    assert conditions(decided(second, NOW - 30, NOW + 61)[1])["ModelCached"][:2] == ("True", "Cached")
    for later in (90.0, 60.0 + RETRY_SECONDS - 1):
        wants, status = decided(second, NOW + 80, NOW + later)
        state, reason, message = conditions(status)["ModelCached"]
        assert (wants, state, reason) == (True, "False", "FetchFailed")
        assert f"Pod p does not find {path} on claim weights, though it was fetched again" in message
    for later in (RETRY_SECONDS, RETRY_SECONDS + 5):
        wants, status = decided(second, NOW + 80, NOW + 60 + later)
        assert (wants, conditions(status)["ModelCached"][:2]) == (False, ("Unknown", "Fetching"))
    third = replace(first, ended=NOW + 1000)
    assert "lostTime" in decided(third, None, NOW + 1001)[1]["cache"]
    late = NOW + 1000 + RETRY_SECONDS
    for looked in (None, NOW + 990, NOW + 1010):
        assert "lostTime" in decided(third, None, late, looked)[1]["cache"], "no pod has looked for so long"
    assert "lostTime" not in decided(third, None, late + 10, NOW + 1010)[1]["cache"]


def test_a_rollout_has_no_deadline_while_the_model_is_fetched_again() -> None:
    """Found in review: a good plan was rolled back, since its pods had waited for a large model."""
    it = td()
    own, old = plan_hash(it), serving("v1old00000")
    spec_hash = digest(it.spec.model_dump(mode="json", exclude={"replicas"}, exclude_defaults=True))[:16]
    begun = {"planHash": own, "specHash": spec_hash, "lastProgressTime": rfc3339(NOW - 86400)}
    told = {
        "rollout": {**begun, "availableReplicas": 0},
        "servingPlan": {"hash": "v1old00000", "replicas": 1},
    }
    it = it.model_copy(update={"status": TurboDeploymentStatus.model_validate(told)})
    (deployment, revision), pod = serving(own)
    starts = replace(pod, name="n", ready=False, reason="CrashLoopBackOff")
    children = (*old[0], replace(deployment, available_replicas=0), revision)
    for complete, reason, since in ((True, "RolledBack", rfc3339(NOW - 86400)), (False, None, None)):
        _, status = look(it, *children, job(it, complete=complete), pods=(old[1], starts))
        assert (status["rollout"].get("reason"), status["rollout"].get("lastProgressTime")) == (reason, since)
    # Found in review: once it was there again, the kubelet started the pod minutes later, and that was late.
    lacks = replace(starts, lacks=MissingFile(f"{SNAPSHOT}/config.json", NOW - 90))
    _, status = look(it, *children, job(it, complete=True, ended=NOW - 60), pods=(old[1], lacks))
    assert (status["rollout"].get("reason"), status["rollout"].get("lastProgressTime")) == (None, None)


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
