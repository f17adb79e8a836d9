"""Wrong objects are refused with a sentence that helps: by the API server, and by `parse` in its words."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import yaml

from turbo_dev.access import Access
from turbo_dev.shell import CommandError
from turbo_operator import api

HUB = {"uri": "hf://acme/tiny"}
CLAIM = {"uri": "pvc://models/tiny.gguf"}
NAMESPACE = "api-refusals"


class Wrong(NamedTuple):
    path: str  # of the field that the refusal must name
    message: str  # part of what the API server says
    spec: dict[str, Any]
    name: str = "wrong"
    rule: bool = True  # a rule of ours, so that `parse` says the same; False: the schema's own words


WRONG = {
    "no-model": Wrong("spec.model", "Required value", {}, rule=False),
    "model-without-uri": Wrong("spec.model.uri", "Required value", {"model": {}}, rule=False),
    "uri-of-the-web": Wrong(
        "spec.model.uri", "write hf://ORGANISATION/NAME", {"model": {"uri": "https://hf.co/a/b"}}
    ),
    "uri-without-scheme": Wrong(
        "spec.model.uri", "write hf://ORGANISATION/NAME", {"model": {"uri": "acme/tiny"}}
    ),
    "uri-with-revision": Wrong(
        "spec.model.uri", "its commit in revision", {"model": {"uri": "hf://acme/tiny@v1"}}
    ),
    "uri-climbs": Wrong("spec.model.uri", "without '..'", {"model": {"uri": "pvc://models/../other"}}),
    "uri-empty": Wrong("spec.model.uri", "at least 1 chars", {"model": {"uri": ""}}, rule=False),
    "revision-on-a-claim": Wrong(
        "spec.model.revision", "leave revision out", {"model": {**CLAIM, "revision": "main"}}
    ),
    "token-on-a-claim": Wrong(
        "spec.model.tokenSecretRef",
        "leave tokenSecretRef out",
        {"model": {**CLAIM, "tokenSecretRef": {"name": "hf"}}},
    ),
    "token-without-name": Wrong(
        "spec.model.tokenSecretRef.name",
        "Required value",
        {"model": {**HUB, "tokenSecretRef": {}}},
        rule=False,
    ),
    "secret-name": Wrong(
        "spec.model.tokenSecretRef.name",
        "write the name of a Kubernetes object",
        {"model": {**HUB, "tokenSecretRef": {"name": "My_Secret"}}},
    ),
    "dtype": Wrong(
        "spec.model.dtype",
        'supported values: "Auto", "Float32", "BFloat16"',
        {"model": {**HUB, "dtype": "fp16"}},
        rule=False,
    ),
    "max-model-len": Wrong(
        "spec.model.maxModelLen",
        "greater than or equal to 16",
        {"model": {**HUB, "maxModelLen": 0}},
        rule=False,
    ),
    "served-name": Wrong(
        "spec.model.servedName", "write a name of letters", {"model": {**HUB, "servedName": "my model"}}
    ),
    "engine": Wrong(
        "spec.engine.type",
        'supported values: "Auto", "Turbo"',
        {"model": HUB, "engine": {"type": "VLLM"}},
        rule=False,
    ),
    "image": Wrong("spec.engine.image", "write an image", {"model": HUB, "engine": {"image": "my image:1"}}),
    "mode": Wrong(
        "spec.speculation.mode",
        "supported values",
        {"model": HUB, "speculation": {"mode": "off"}},
        rule=False,
    ),
    "disabled-with-method": Wrong(
        "spec.speculation.method",
        "leave method out, or write mode: Auto",
        {"model": HUB, "speculation": {"mode": "Disabled", "method": "Suffix"}},
    ),
    "required-without-drafts": Wrong(
        "spec.speculation.maxDraftTokens",
        "write maxDraftTokens of at least 1",
        {"model": HUB, "speculation": {"mode": "Required", "maxDraftTokens": 0}},
    ),
    "too-many-drafts": Wrong(
        "spec.speculation.maxDraftTokens",
        "less than or equal to 64",
        {"model": HUB, "speculation": {"maxDraftTokens": 65}},
        rule=False,
    ),
    "no-accelerator": Wrong(
        "spec.accelerators.allowed",
        "name a TurboAccelerator",
        {"model": HUB, "accelerators": {"allowed": []}},
    ),
    "accelerator-twice": Wrong(
        "spec.accelerators.allowed",
        "name each TurboAccelerator once",
        {"model": HUB, "accelerators": {"allowed": ["cpu", "l4", "cpu"]}},
    ),
    "accelerator-name": Wrong(
        "spec.accelerators.allowed[0]",
        "write the name of a Kubernetes object",
        {"model": HUB, "accelerators": {"allowed": ["NVIDIA L4"]}},
    ),
    "money-as-words": Wrong(
        "spec.cost.maxPerHour", "write US dollars per hour", {"model": HUB, "cost": {"maxPerHour": "$24"}}
    ),
    "money-zero": Wrong(
        "spec.cost.maxPerHour",
        "write US dollars per hour above 0",
        {"model": HUB, "cost": {"maxPerHour": "0.00"}},
    ),
    "money-as-number": Wrong(
        "spec.cost.maxPerHour",
        "must be of type string",
        {"model": HUB, "cost": {"maxPerHour": 24.5}},
        rule=False,
    ),
    "negative-replicas": Wrong(
        "spec.replicas", "greater than or equal to 0", {"model": HUB, "replicas": -1}, rule=False
    ),
    "too-many-replicas": Wrong(
        "spec.replicas", "less than or equal to 1000", {"model": HUB, "replicas": 1001}, rule=False
    ),
    "drain-without-unit": Wrong(
        "spec.drain.timeout", "write a duration like", {"model": HUB, "drain": {"timeout": "120"}}
    ),
    "drain-too-long": Wrong(
        "spec.drain.timeout", "write at most 1h", {"model": HUB, "drain": {"timeout": "1h1s"}}
    ),
    "suspend-as-word": Wrong(
        "spec.suspend", "must be of type boolean", {"model": HUB, "suspend": "yes"}, rule=False
    ),
    "env-without-value": Wrong(
        "spec.template.env[0]",
        "write exactly one of value and valueFrom",
        {"model": HUB, "template": {"env": [{"name": "LOG"}]}},
    ),
    "env-from-two": Wrong(
        "spec.template.env[0].valueFrom",
        "write exactly one of secretKeyRef and configMapKeyRef",
        {
            "model": HUB,
            "template": {
                "env": [
                    {
                        "name": "LOG",
                        "valueFrom": {
                            "secretKeyRef": {"name": "a", "key": "b"},
                            "configMapKeyRef": {"name": "a", "key": "b"},
                        },
                    }
                ]
            },
        },
    ),
    "env-of-the-operator": Wrong(
        "spec.template.env[0].name",
        "write spec.model.tokenSecretRef",
        {"model": HUB, "template": {"env": [{"name": "HF_TOKEN", "value": "secret"}]}},
    ),
    "env-name": Wrong(
        "spec.template.env[0].name",
        "write a variable's name",
        {"model": HUB, "template": {"env": [{"name": "LOG-LEVEL", "value": "1"}]}},
    ),
    "resource-of-the-plan": Wrong(
        "spec.template.resources.limits",
        "accelerators come from the plan",
        {"model": HUB, "template": {"resources": {"limits": {"nvidia.com/gpu": 1}}}},
    ),
    "quantity": Wrong(
        "spec.template.resources.requests",
        "write a Kubernetes quantity",
        {"model": HUB, "template": {"resources": {"requests": {"memory": "16 GB"}}}},
    ),
    "label-of-the-operator": Wrong(
        "spec.template.labels",
        "choose labels without the prefix",
        {"model": HUB, "template": {"labels": {"serving.turbo.dev/role": "mine"}}},
    ),
    "toleration": Wrong(
        "spec.template.tolerations[0].effect",
        "supported values",
        {"model": HUB, "template": {"tolerations": [{"operator": "Exists", "effect": "Never"}]}},
        rule=False,
    ),
    "unknown-field": Wrong("spec.modle", "unknown field", {"model": HUB, "modle": {}}, rule=False),
    "name-too-long": Wrong(
        "", "choose a metadata.name of at most 50 characters", {"model": HUB}, name="n" * 51
    ),
    "name-no-service": Wrong("", "choose a metadata.name", {"model": HUB}, name="1-model"),
}


def deployment(spec: dict[str, Any], name: str = "good") -> dict[str, Any]:
    return {
        "apiVersion": api.API_VERSION,
        "kind": "TurboDeployment",
        "metadata": {"name": name},
        "spec": spec,
    }


@pytest.fixture(scope="module")
def cluster(api_server: Access) -> Access:
    api_server.apply({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": NAMESPACE}})
    return api_server


@pytest.mark.cluster
@pytest.mark.parametrize("case", WRONG)
def test_api_server_refuses_and_says_what_to_write(cluster: Access, case: str) -> None:
    wrong = WRONG[case]
    with pytest.raises(CommandError) as refusal:
        cluster.kubectl(
            "create", "-n", NAMESPACE, "-f", "-", input=json.dumps(deployment(wrong.spec, wrong.name))
        )
    assert wrong.message in str(refusal.value)
    assert wrong.path in str(refusal.value)


@pytest.mark.parametrize("case", WRONG)
def test_parse_refuses_and_names_the_field(case: str) -> None:
    wrong = WRONG[case]
    with pytest.raises(api.InvalidObject) as refusal:
        api.parse(deployment(wrong.spec, wrong.name))
    assert refusal.value.problems[0].startswith(wrong.path)
    if wrong.rule:
        assert wrong.message in refusal.value.problems[0]


def test_parse_names_every_wrong_field_at_once() -> None:
    with pytest.raises(api.InvalidObject) as refusal:
        api.parse(deployment({"model": {"uri": "x"}, "replicas": -1, "drain": {"timeout": "soon"}}))
    assert [problem.partition(":")[0] for problem in refusal.value.problems] == [
        "spec.model.uri",
        "spec.replicas",
        "spec.drain.timeout",
    ]


@pytest.mark.parametrize(
    "document", [None, [], "x", {"kind": "Pod"}, {"apiVersion": "v1", "kind": "TurboDeployment"}]
)
def test_parse_refuses_what_is_no_turbodeployment(document: object) -> None:
    with pytest.raises(api.InvalidObject):
        api.parse(document)


WRONG_ACCELERATORS: dict[str, tuple[str, str, dict[str, Any]]] = {
    "no-memory": ("spec.memoryGiB", "Required value", {"resourceName": "cpu"}),
    "memory-unit": ("spec.memoryGiB", "write GiB above 0", {"resourceName": "cpu", "memoryGiB": "80Gi"}),
    "memory-zero": ("spec.memoryGiB", "write GiB above 0", {"resourceName": "cpu", "memoryGiB": 0}),
    "resource": (
        "spec.resourceName",
        "write a resource that nodes have",
        {"resourceName": "NVIDIA L4", "memoryGiB": 24},
    ),
    "quantity": (
        "spec.quantity",
        "write a Kubernetes quantity above 0",
        {"resourceName": "cpu", "quantity": "0", "memoryGiB": 24},
    ),
    "price": (
        "spec.pricing.perAcceleratorHour.onDemand",
        "write dollars per accelerator and hour",
        {"resourceName": "cpu", "memoryGiB": 4, "pricing": {"perAcceleratorHour": {"onDemand": "cheap"}}},
    ),
    "currency": (
        "spec.pricing.currency",
        'supported values: "USD"',
        {"resourceName": "cpu", "memoryGiB": 4, "pricing": {"perAcceleratorHour": {}, "currency": "EUR"}},
    ),
    "day": (
        "spec.pricing.asOf",
        "write a day",
        {"resourceName": "cpu", "memoryGiB": 4, "pricing": {"perAcceleratorHour": {}, "asOf": "yesterday"}},
    ),
}


def accelerator(spec: dict[str, Any], name: str = "some") -> dict[str, Any]:
    return {
        "apiVersion": api.API_VERSION,
        "kind": "TurboAccelerator",
        "metadata": {"name": name},
        "spec": spec,
    }


@pytest.mark.cluster
@pytest.mark.parametrize("case", WRONG_ACCELERATORS)
def test_api_server_refuses_wrong_accelerators(cluster: Access, case: str) -> None:
    path, message, spec = WRONG_ACCELERATORS[case]
    with pytest.raises(CommandError) as refusal:
        cluster.kubectl("create", "-f", "-", input=json.dumps(accelerator(spec)))
    assert message in str(refusal.value)
    assert path in str(refusal.value)


@pytest.mark.parametrize("case", WRONG_ACCELERATORS)
def test_parse_refuses_wrong_accelerators(case: str) -> None:
    path, _, spec = WRONG_ACCELERATORS[case]
    with pytest.raises(api.InvalidObject) as refusal:
        api.parse_accelerator(accelerator(spec))
    assert refusal.value.problems[0].startswith(path)


def test_example_manifests_are_of_the_api() -> None:
    examples = sorted((Path(__file__).parents[2] / "examples").glob("*.yaml"))
    assert examples
    for path in examples:
        for document in yaml.safe_load_all(path.read_text(encoding="utf-8")):
            if document["kind"] == "TurboDeployment":
                api.parse(document)
            elif document["kind"] == "TurboAccelerator":
                api.parse_accelerator(document)
