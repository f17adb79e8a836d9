"""A model that is fetched to a claim: what the status says, and that no pod starts before it is there."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest

from turbo_dev.access import Access
from turbo_dev.fetched_models import (
    CLAIM,
    COMMIT,
    FACTS,
    NOW,
    SETTINGS,
    SNAPSHOT,
    conditions,
    document,
    job,
    look,
    names,
    plan_hash,
    runs,
    serving,
    td,
)
from turbo_dev.plan_cases import plan as plan_of
from turbo_dev.plan_examples import SMALL, fast, named
from turbo_operator import render
from turbo_operator.controller.cache.projection import job_pod
from turbo_operator.render import fetch
from turbo_operator.render.template import pod_template
from turbo_operator.snapshot import (
    ChildView,
    FetchPod,
)
from turbo_operator.status.model_cache import RETRY_SECONDS
from turbo_runtime.contract.config import RuntimeConfig
from turbo_runtime.contract.documents import JobProgress


def test_the_job_writes_to_the_claim_and_asks_the_hub_for_one_commit() -> None:
    spec = fetch.job(td(), FACTS, SETTINGS)["spec"]["template"]["spec"]
    (container,) = spec["containers"]
    assert container["command"] == ["turbo", "fetch"]
    assert container["args"][:2] == ["acme/tiny", f"--commit={COMMIT}"]
    assert {"name": "HF_HUB_CACHE", "value": "/cache/hub"} in container["env"]
    assert "HF_HUB_OFFLINE" not in {each["name"] for each in container["env"]}
    assert "HF_TOKEN" in {each["name"] for each in container["env"]}
    assert {"name": "cache", "mountPath": "/cache"} in container["volumeMounts"]
    assert {"name": "cache", "persistentVolumeClaim": {"claimName": "weights"}} in spec["volumes"]
    assert spec["securityContext"]["fsGroup"] == 65532
    assert spec["securityContext"]["fsGroupChangePolicy"] == "OnRootMismatch"


@pytest.mark.cluster
def test_who_applies_another_cache_replaces_the_one_before(api_server: Access) -> None:
    for cache in (CLAIM, {"emptyDir": {"sizeLimit": "2Gi"}}):
        body = document(cache=cache)
        body["metadata"] = {"name": "cached", "namespace": "default"}
        own = f"--field-manager={next(iter(cache)).lower()}"
        api_server.kubectl(
            "apply", "--server-side", "--force-conflicts", own, "-f", "-", input=json.dumps(body)
        )
        assert api_server.get("td", "cached", "-n", "default")["spec"]["cache"] == cache
    api_server.kubectl("delete", "td", "cached", "-n", "default")


@pytest.mark.parametrize("engine", ["Turbo", "VLLM"])
def test_engines_read_the_snapshot_on_the_claim_and_need_neither_hub_nor_token(engine: str) -> None:
    it = td(engine={"type": engine}, accelerators=None, model={"uri": "hf://acme/tiny", "maxModelLen": 2048})
    choice = plan_of(it.spec, SMALL, named(fast("card", 80, "1.00"))).choice
    assert choice is not None
    spec = pod_template(it, choice, replace(FACTS, shape=SMALL), "v2abc", SETTINGS)["spec"]
    (container,) = spec["containers"]
    assert container["args"][0] == SNAPSHOT
    assert not [each for each in container["args"] if each.startswith("--revision")]
    environment = {each["name"]: each.get("value") for each in container["env"]}
    assert environment["HF_HUB_OFFLINE"] == "1"
    assert "HF_TOKEN" not in environment
    hub = {"name": "cache", "mountPath": "/cache/hub", "subPath": "hub", "readOnly": True}
    assert hub in container["volumeMounts"], "others may have the claim as HF_HOME, which has their token"
    claim = {"claimName": "weights", "readOnly": True}
    assert {"name": "cache", "persistentVolumeClaim": claim} in spec["volumes"]
    assert "fsGroup" not in spec["securityContext"], "nobody's files change their group for pods that read"
    (check,) = spec["initContainers"]
    assert check["image"] == container["image"]
    assert [mount for mount in check["volumeMounts"] if mount["name"] == "cache"] == [hub]
    assert "HF_TOKEN" not in {each["name"] for each in check["env"]}


def test_with_a_folder_of_the_pods_own_a_container_fetches_the_model_before_the_engine() -> None:
    it = td(cache={"emptyDir": {"sizeLimit": "2Gi"}})
    decision, status = look(it)
    (deployment,) = [child for child in decision.children if child["kind"] == "Deployment"]
    spec = deployment["spec"]["template"]["spec"]
    (before,) = spec["initContainers"]
    assert before["command"] == ["turbo", "fetch"]
    assert before["securityContext"]["readOnlyRootFilesystem"] is True
    assert {"name": "cache", "emptyDir": {"sizeLimit": "2Gi"}} in spec["volumes"]
    assert RuntimeConfig.from_argv(spec["containers"][0]["args"]).model == SNAPSHOT
    assert names(decision, "Job") == []
    assert "ModelCached" not in conditions(status)


def test_another_cache_is_another_plan() -> None:
    assert len({plan_hash(td(cache=cache)) for cache in (None, CLAIM, {"emptyDir": {}})}) == 3


def test_no_pod_starts_before_the_model_is_on_the_claim() -> None:
    it = td()
    decision, status = look(it)
    assert names(decision, "Job") == [fetch.job_name(it, FACTS)]
    assert names(decision, "Deployment") == []
    states = conditions(status)
    assert states["ModelCached"][:2] == ("Unknown", "Fetching")
    assert states["PlanFeasible"][0] == "True"
    for kind in ("Ready", "Available"):
        assert states[kind][:2] == ("False", "Fetching")
    decision, status = look(it, job(it, complete=True))
    assert names(decision, "Deployment") == [f"chat-{plan_hash(it)}"]
    assert conditions(status)["ModelCached"][:2] == ("True", "Cached")
    assert status["cache"] == {"claimName": "weights", "revision": COMMIT}


def test_the_status_tells_how_much_is_there_in_tenths() -> None:
    it = td()
    progress = JobProgress("download", 430, 1000, "bytes", 130.0)
    _, status = look(it, job(it), fetching=(runs(it, progress=progress),))
    assert status["cache"]["progress"] == "download 40 %"
    assert status["cache"]["estimatedRemaining"] == "3m"
    message = conditions(status)["Ready"][2]
    assert message == "The model is fetched to claim weights: download 40 %."


def test_an_earlier_plan_serves_on_while_the_model_of_the_new_one_is_fetched() -> None:
    it, (children, pod) = td(), serving("v1old00000")
    decision, status = look(it, *children, job(it), pods=(pod,))
    assert decision.rollout.target == "v1old00000"
    states = conditions(status)
    assert states["Ready"][:2] == ("False", "Fetching")
    assert states["Ready"][2].startswith("The earlier plan serves on. The model is fetched")
    assert states["Available"][0] == "True"


def test_a_plan_that_has_pods_keeps_and_gets_them_though_its_job_is_gone() -> None:
    it = td(replicas=2)
    children, pod = serving(plan_hash(it))
    decision, status = look(it, *children, pods=(pod,))
    (deployment,) = [child for child in decision.children if child["kind"] == "Deployment"]
    assert deployment["spec"]["replicas"] == 2
    assert names(decision, "Job") == [fetch.job_name(it, FACTS)]
    assert conditions(status)["Ready"][1] != "Fetching"


def test_a_fetch_that_failed_is_told_with_the_remedy_and_tried_again() -> None:
    it = td()
    failed = job(it, failed=True, reason="BackoffLimitExceeded", message="limit", ended=NOW)
    why = "Cannot fetch acme/tiny: the hub refused it: 403: a gated model needs a token (HF_TOKEN)"
    last = runs(it, phase="Failed", exit_code=3, reason="Error", message=why, ended=NOW)
    decision, status = look(it, failed, fetching=(last,), now=NOW + RETRY_SECONDS - 1)
    assert names(decision, "Job") == [failed.name]
    state, reason, message = conditions(status)["ModelCached"]
    assert (state, reason) == ("False", "FetchFailed")
    assert why in message
    assert "spec.model.tokenSecretRef names the Secret" in message
    assert conditions(status)["Stalled"][:2] == ("True", "UserActionRequired")
    decision, _ = look(it, failed, fetching=(last,), now=NOW + RETRY_SECONDS)
    assert names(decision, "Job") == [], "it gives way to another one"


@pytest.mark.parametrize(
    ("said", "remedy"),
    [
        ('persistentvolumeclaim "weights" not found', "Correct the name of the claim"),
        ("0/2 nodes: 2 node(s) had volume node affinity conflict", "ReadWriteMany or ReadOnlyMany"),
        (
            "1 node has pod using PersistentVolumeClaim with the same name and ReadWriteOncePod access mode",
            "ReadWriteMany or ReadOnlyMany",
        ),
    ],
)
def test_what_holds_up_its_pod_is_told_with_the_remedy(said: str, remedy: str) -> None:
    it = td()
    waits = runs(it, phase="Pending", reason="Unschedulable", message=said)
    _, status = look(it, job(it), fetching=(waits,))
    state, reason, message = conditions(status)["ModelCached"]
    assert (state, reason) == ("Unknown", "FetchRetrying")
    assert said in message
    assert remedy in message


def test_a_job_that_makes_no_pod_is_told() -> None:
    it = td()
    message = conditions(look(it, job(it))[1])["ModelCached"][2]
    assert f"kubectl describe job {fetch.job_name(it, FACTS)}" in message
    assert "kubectl" not in conditions(look(it, job(it), fetching=(runs(it),))[1])["ModelCached"][2]


def test_a_job_of_another_spec_gives_way_until_it_is_complete() -> None:
    it = td()
    stale = replace(job(it), applied_hash="another")
    assert names(look(it, stale)[0], "Job") == []
    assert names(look(it, replace(stale, complete=True))[0], "Job") == [stale.name]
    failed = replace(job(it), failed=True, ended=NOW - 1)
    assert names(look(it, failed)[0], "Job") == [failed.name]
    assert names(look(it, replace(failed, applied_hash="another"))[0], "Job") == []


def test_nothing_is_fetched_while_it_is_suspended() -> None:
    it = td(suspend=True)
    decision, status = look(it)
    assert names(decision, "Job") == []
    assert conditions(status)["ModelCached"][:2] == ("False", "Suspended")
    assert conditions(status)["Stalled"][0] == "False"


def test_before_the_model_is_inspected_the_status_says_so() -> None:
    it = td()
    decision, status = look(it, model=None)
    assert names(decision, "Job") == [render.job_name(it)]
    assert conditions(status)["ModelCached"][:2] == ("Unknown", "WaitingForModel")
    assert conditions(status)["Ready"][1] == "Inspecting"


def test_a_draft_model_of_the_hub_comes_along_and_vllm_finds_it_there() -> None:
    drafts = {"mode": "Required", "method": "EAGLE3", "draftModel": {"uri": "hf://acme/eagle"}}
    model = {"uri": "hf://acme/tiny", "maxModelLen": 4096}
    it = td(engine={"type": "VLLM"}, accelerators=None, speculation=drafts, model=model)
    (container,) = fetch.job(it, FACTS, SETTINGS)["spec"]["template"]["spec"]["containers"]
    assert container["args"][:2] == ["acme/tiny", "acme/eagle"]
    choice = plan_of(it.spec, SMALL, named(fast("card", 80, "1.00"))).choice
    assert choice is not None
    (server,) = pod_template(it, choice, FACTS, "v2abc", SETTINGS)["spec"]["containers"]
    assert {"name": "HF_HUB_CACHE", "value": "/cache/hub"} in server["env"]
    assert {"name": "HF_HUB_OFFLINE", "value": "1"} in server["env"]


def test_a_model_in_an_image_is_an_image_volume_of_all_that_read_it() -> None:
    it = td(model={"uri": "oci://ghcr.io/acme/tiny:1/models"}, cache=None)
    decision, _ = look(it)
    (deployment,) = [child for child in decision.children if child["kind"] == "Deployment"]
    for owner in (deployment, render.inspect_job(it, SETTINGS)):
        spec = owner["spec"]["template"]["spec"]
        (container,) = spec["containers"]
        assert container["args"][0] == "/models/models"
        image = {"reference": "ghcr.io/acme/tiny:1", "pullPolicy": "IfNotPresent"}
        assert {"name": "model", "image": image} in spec["volumes"]
        assert {"name": "model", "mountPath": "/models", "readOnly": True} in container["volumeMounts"]
        assert {"name": "HF_HUB_OFFLINE", "value": "1"} in container["env"]


def test_where_the_api_server_dropped_the_image_the_status_says_what_to_switch_on() -> None:
    it = td(model={"uri": "oci://ghcr.io/acme/tiny:1"}, cache=None)
    manifest = render.inspect_job(it, SETTINGS)["metadata"]
    applied = manifest["annotations"]["serving.turbo.dev/applied-hash"]
    for mounts, reason in ((True, "Inspecting"), (False, "InspectFailed")):
        inspects = ChildView("Job", manifest["name"], "j", applied, has_image=mounts)
        _, status = look(it, inspects, model=None, inspecting=())
        assert conditions(status)["ModelInspected"][1] == reason
    assert "feature gate ImageVolume" in conditions(status)["Ready"][2]


def test_another_claim_another_commit_and_another_token_are_another_job() -> None:
    other = td(cache={"persistentVolumeClaim": {"claimName": "others"}})
    found = {
        fetch.job_name(td(), FACTS),
        fetch.job_name(td(), replace(FACTS, revision="d" * 40)),
        fetch.job_name(other, FACTS),
        fetch.job_name(td(model={"uri": "hf://acme/tiny"}), FACTS),
    }
    assert len(found) == 4


def test_a_pod_is_known_as_one_that_fetches_by_the_name_of_its_job() -> None:
    owner = {"kind": "Job", "name": fetch.job_name(td(), FACTS), "uid": "j", "controller": True}
    seen = job_pod({"metadata": {"name": "p", "ownerReferences": [owner]}, "status": {"phase": "Running"}})
    assert isinstance(seen, FetchPod)
    for name in ("chat-inspect-abcd", "chat-train-1", "chat-fetch-toolong"):
        owner = {**owner, "name": name}
        assert not isinstance(job_pod({"metadata": {"name": "p", "ownerReferences": [owner]}}), FetchPod)
