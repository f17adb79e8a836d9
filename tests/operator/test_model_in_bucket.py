"""A model in a bucket: which pods read it with which credentials, and which read its copy alone."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from turbo_dev.plan_cases import plan as plan_of
from turbo_dev.plan_examples import SMALL, fast, named
from turbo_operator import render
from turbo_operator.api import TurboDeployment, parse
from turbo_operator.plan import Choice
from turbo_operator.render import fetch
from turbo_operator.render.template import pod_template
from turbo_operator.settings import Settings
from turbo_operator.status.failures import remedy_of
from turbo_runtime.contract.documents import ModelInfo

REVISION = "c0ffee" + "0" * 34
FACTS = ModelInfo(SMALL, "sha256:ab", REVISION, 270_000_000)
SETTINGS = Settings(runtime_image="runtime:1", vllm_image="vllm:1")
URI = "s3://models/acme/tiny/"
STORE = {"endpoint": "https://minio.example:9000", "region": "eu-central-1", "secretRef": {"name": "bucket"}}
COPY = f"/cache/s3/models/acme/tiny/{REVISION}"
CLAIM = {"persistentVolumeClaim": {"claimName": "weights"}}


def td(store: dict[str, Any] | None = STORE, **spec: Any) -> TurboDeployment:
    model = {"uri": URI, "maxModelLen": 2048} | ({"s3": store} if store else {})
    return parse(
        {
            "apiVersion": "serving.turbo.dev/v1alpha1",
            "kind": "TurboDeployment",
            "metadata": {"name": "chat", "namespace": "team", "uid": "u", "generation": 1},
            "spec": {"model": model, "cache": CLAIM, **spec},
        }
    )


def choice_of(it: TurboDeployment) -> Choice:
    choice = plan_of(it.spec, SMALL, named(fast("card", 80, "1.00"))).choice
    assert choice is not None
    return choice


def serving(it: TurboDeployment) -> dict[str, Any]:
    spec: dict[str, Any] = pod_template(it, choice_of(it), FACTS, "v2abc", SETTINGS)["spec"]
    return spec


def pod_of(job: dict[str, Any]) -> tuple[dict[str, Any], dict[str, Any], dict[str, str | None]]:
    """The pod of a Job, its container, and the values of that one's variables."""
    spec = job["spec"]["template"]["spec"]
    (container,) = spec["containers"]
    return spec, container, {each["name"]: each.get("value") for each in container["env"]}


def test_the_jobs_that_inspect_and_fetch_read_the_bucket_with_the_secret() -> None:
    it = td()
    for job in (render.inspect_job(it, SETTINGS), fetch.job(it, FACTS, SETTINGS)):
        spec, container, environment = pod_of(job)
        assert container["args"][0] == URI
        assert container["envFrom"] == [{"secretRef": {"name": "bucket"}}]
        assert environment["AWS_ENDPOINT_URL_S3"] == STORE["endpoint"]
        assert environment["AWS_REGION"] == STORE["region"]
        assert environment["TURBO_S3_CACHE"] == "/cache/s3"
        assert [each["name"] for each in spec["volumes"]] == ["tmp", "cache"]
    assert f"--commit={REVISION}" in container["args"]
    assert {"name": "cache", "mountPath": "/cache"} in container["volumeMounts"]


def test_without_a_secret_the_service_account_of_the_pods_is_who_reads_it() -> None:
    it = td(store=None, podTemplate={"spec": {"serviceAccountName": "reader"}})
    for job in (render.inspect_job(it, SETTINGS), fetch.job(it, FACTS, SETTINGS)):
        spec, container, environment = pod_of(job)
        assert spec["serviceAccountName"] == "reader"
        assert "envFrom" not in container
        assert not [name for name in environment if name.startswith("AWS_")]


def test_fields_of_the_bucket_come_before_variables_of_the_pod_template() -> None:
    other = "https://other.example"
    values = {"AWS_REGION": "us-west-2", "AWS_ENDPOINT_URL_S3": other, "AWS_ENDPOINT_URL": other}
    variables = [{"name": name, "value": value} for name, value in values.items()]
    for store, region, endpoint in (
        (STORE, STORE["region"], STORE["endpoint"]),
        (None, "us-west-2", other),
    ):
        it = td(store=store, podTemplate={"spec": {"env": variables}})
        _, container, environment = pod_of(render.inspect_job(it, SETTINGS))
        # botocore reads that of the service first
        assert (environment["AWS_REGION"], environment["AWS_ENDPOINT_URL_S3"]) == (region, endpoint)
        assert len({each["name"] for each in container["env"]}) == len(container["env"])


@pytest.mark.parametrize("engine", ["Turbo", "VLLM"])
def test_engines_read_the_copy_on_the_claim_without_credentials(engine: str) -> None:
    spec = serving(td(engine={"type": engine}))
    (container,) = spec["containers"]
    assert container["args"][0] == COPY
    assert not [each for each in container["args"] if each.startswith("--revision")]
    environment = {each["name"]: each.get("value") for each in container["env"]}
    assert environment["HF_HUB_OFFLINE"] == "1"
    assert not [name for name in environment if name.startswith("AWS_")]
    assert "envFrom" not in container
    folder = {"name": "cache", "mountPath": "/cache/s3", "subPath": "s3", "readOnly": True}
    assert [mount for mount in container["volumeMounts"] if mount["name"] == "cache"] == [folder]
    (check,) = spec["initContainers"]
    assert check["args"][3:] == [f"{COPY}/config.json"]
    assert "envFrom" not in check
    assert "model" not in {each["name"] for each in spec["volumes"]}


def test_with_a_folder_of_the_pods_own_the_container_before_the_engine_alone_has_the_secret() -> None:
    spec = serving(td(cache={"emptyDir": {"sizeLimit": "2Gi"}}))
    (before,), (engine,) = spec["initContainers"], spec["containers"]
    assert (before["args"][0], engine["args"][0]) == (URI, COPY)
    assert before["envFrom"] == [{"secretRef": {"name": "bucket"}}]
    assert "envFrom" not in engine
    assert {"name": "cache", "emptyDir": {"sizeLimit": "2Gi"}} in spec["volumes"]


def test_a_draft_model_of_the_hub_comes_along_from_the_hub() -> None:
    drafts = {"mode": "Required", "method": "EAGLE3", "draftModel": {"uri": "hf://acme/eagle"}}
    it = td(engine={"type": "VLLM"}, speculation=drafts)
    _, container, environment = pod_of(fetch.job(it, FACTS, SETTINGS))
    assert container["args"][:2] == [URI, "acme/eagle"]
    assert "HF_HUB_OFFLINE" not in environment
    assert environment["HF_HUB_CACHE"] == "/cache/hub"


def test_another_secret_is_another_inspection_and_fetch_and_rolls_only_pods_that_have_it() -> None:
    other = {**STORE, "secretRef": {"name": "other"}}
    for cache in (CLAIM, {"emptyDir": {}}):
        both = [td(cache=cache), td(store=other, cache=cache)]
        assert len({render.job_name(it) for it in both}) == 2
        assert len({fetch.job_name(it, FACTS) for it in both}) == 2
        hashes = {render.plan_hash(it, choice_of(it), FACTS) for it in both}
        assert len(hashes) == (1 if cache is CLAIM else 2)


def test_another_revision_is_another_fetch_and_plan() -> None:
    it, later = td(), replace(FACTS, revision="d" * 40)
    assert fetch.job_name(it, FACTS) != fetch.job_name(it, later)
    assert render.plan_hash(it, choice_of(it), FACTS) != render.plan_hash(it, choice_of(it), later)


@pytest.mark.parametrize(
    ("said", "remedy"),
    [
        ("the store denies access (AccessDenied): set AWS_ACCESS_KEY_ID and", "spec.model.s3.secretRef"),
        ("the store cannot be reached: AWS_ENDPOINT_URL is where it is", "spec.model.s3.endpoint"),
        ("it has changed: its revision was c0ffee, and is deadbeef", "Delete ConfigMap NAME-model"),
    ],
)
def test_what_a_store_says_has_a_remedy(said: str, remedy: str) -> None:
    assert remedy in remedy_of("Error", said)
