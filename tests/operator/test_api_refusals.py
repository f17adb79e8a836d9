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
NO_PODS = {"type": "Pods", "value": 0, "periodSeconds": 60}
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
        'supported values: "Auto", "Turbo", "VLLM"',
        {"model": HUB, "engine": {"type": "SGLang"}},
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
    "no-capacity-type": Wrong(
        "spec.accelerators.capacityTypes",
        "name OnDemand, Spot or Reserved",
        {"model": HUB, "accelerators": {"capacityTypes": []}},
    ),
    "capacity-type-twice": Wrong(
        "spec.accelerators.capacityTypes",
        "name each capacity type once",
        {"model": HUB, "accelerators": {"capacityTypes": ["Spot", "OnDemand", "Spot"]}},
    ),
    "capacity-type": Wrong(
        "spec.accelerators.capacityTypes[0]",
        'supported values: "OnDemand", "Spot", "Reserved"',
        {"model": HUB, "accelerators": {"capacityTypes": ["Preemptible"]}},
        rule=False,
    ),
    "too-many-per-replica": Wrong(
        "spec.accelerators.maxPerReplica",
        "less than or equal to 64",
        {"model": HUB, "accelerators": {"maxPerReplica": 65}},
        rule=False,
    ),
    "none-in-total": Wrong(
        "spec.accelerators.maxTotal",
        "greater than or equal to 1",
        {"model": HUB, "accelerators": {"maxTotal": 0}},
        rule=False,
    ),
    "pending-without-unit": Wrong(
        "spec.accelerators.pendingTimeout",
        "write a duration like",
        {"model": HUB, "accelerators": {"pendingTimeout": "10"}},
    ),
    "tensor": Wrong(
        "spec.parallelism.tensor",
        "greater than or equal to 1",
        {"model": HUB, "parallelism": {"tensor": 0}},
        rule=False,
    ),
    "pipeline": Wrong(
        "spec.parallelism.pipeline",
        "less than or equal to 64",
        {"model": HUB, "parallelism": {"pipeline": 100}},
        rule=False,
    ),
    "input-tail-below-mean": Wrong(
        "spec.workload.inputTokens.p95",
        "write a p95 that is not below the mean",
        {"model": HUB, "workload": {"inputTokens": {"mean": 600, "p95": 599}}},
    ),
    "output-tail-below-mean": Wrong(
        "spec.workload.outputTokens.p95",
        "write a p95 that is not below the mean",
        {"model": HUB, "workload": {"outputTokens": {"mean": 2, "p95": 1}}},
    ),
    "length-without-mean": Wrong(
        "spec.workload.inputTokens.mean",
        "Required value",
        {"model": HUB, "workload": {"inputTokens": {"p95": 1500}}},
        rule=False,
    ),
    "rate-and-concurrency": Wrong(
        "spec.workload.concurrency",
        "write requestsPerSecond or concurrency, not both",
        {"model": HUB, "workload": {"requestsPerSecond": "4", "concurrency": 32}},
    ),
    "rate-zero": Wrong(
        "spec.workload.requestsPerSecond",
        "write a number above 0 as a string",
        {"model": HUB, "workload": {"requestsPerSecond": "0"}},
    ),
    "no-concurrency": Wrong(
        "spec.workload.concurrency",
        "greater than or equal to 1",
        {"model": HUB, "workload": {"concurrency": 0}},
        rule=False,
    ),
    "first-token-at-once": Wrong(
        "spec.targets.timeToFirstToken.max",
        "write a time above 0",
        {"model": HUB, "targets": {"timeToFirstToken": {"max": "0ms"}}},
    ),
    "token-without-unit": Wrong(
        "spec.targets.timePerOutputToken.max",
        "write a duration like",
        {"model": HUB, "targets": {"timePerOutputToken": {"max": "25"}}},
    ),
    "percentile": Wrong(
        "spec.targets.timePerOutputToken.percentile",
        'supported values: "50", "90", "95", "99"',
        {"model": HUB, "targets": {"timePerOutputToken": {"max": "25ms", "percentile": 97}}},
        rule=False,
    ),
    "target-without-bound": Wrong(
        "spec.targets.timeToFirstToken.max",
        "Required value",
        {"model": HUB, "targets": {"timeToFirstToken": {}}},
        rule=False,
    ),
    "throughput-as-words": Wrong(
        "spec.targets.tokensPerSecond",
        "write a number above 0 as a string",
        {"model": HUB, "targets": {"tokensPerSecond": "2.5k"}},
    ),
    "money-per-token-zero": Wrong(
        "spec.cost.maxPerMillionTokens",
        "write US dollars above 0",
        {"model": HUB, "cost": {"maxPerMillionTokens": "0"}},
    ),
    "objective": Wrong(
        "spec.cost.objective",
        'supported values: "Cost", "Latency", "Throughput"',
        {"model": HUB, "cost": {"objective": "Speed"}},
        rule=False,
    ),
    "speed-without-bound": Wrong(
        "spec.cost.objective",
        "write cost.maxPerHour or accelerators.maxTotal",
        {"model": HUB, "cost": {"objective": "Latency"}, "accelerators": {"maxPerReplica": 8}},
    ),
    "tokens-without-bound": Wrong(
        "spec.cost.objective",
        "write cost.maxPerHour or accelerators.maxTotal",
        {"model": HUB, "cost": {"objective": "Throughput"}},
    ),
    "scaling-policy": Wrong(
        "spec.scaling.policy",
        'supported values: "Planned", "Metrics", "External"',
        {"model": HUB, "scaling": {"policy": "Auto"}},
        rule=False,
    ),
    "scaling-bounds-crossed": Wrong(
        "spec.scaling.minReplicas",
        "write a minReplicas that is not above maxReplicas",
        {"model": HUB, "scaling": {"minReplicas": 4, "maxReplicas": 3}},
    ),
    "scaling-to-zero": Wrong(
        "spec.scaling.minReplicas",
        "greater than or equal to 1",
        {"model": HUB, "scaling": {"minReplicas": 0}},
        rule=False,
    ),
    "scaling-window": Wrong(
        "spec.scaling.behavior.scaleDown.stabilizationWindowSeconds",
        "less than or equal to 3600",
        {"model": HUB, "scaling": {"behavior": {"scaleDown": {"stabilizationWindowSeconds": 3601}}}},
        rule=False,
    ),
    "scaling-without-a-policy": Wrong(
        "spec.scaling.behavior.scaleUp.policies",
        "write a policy with type, value and periodSeconds",
        {"model": HUB, "scaling": {"behavior": {"scaleUp": {"policies": []}}}},
    ),
    "scaling-policy-of-nothing": Wrong(
        "spec.scaling.behavior.scaleUp.policies[0].value",
        "greater than or equal to 1",
        {"model": HUB, "scaling": {"behavior": {"scaleUp": {"policies": [NO_PODS]}}}},
        rule=False,
    ),
    "saving-above-one": Wrong(
        "spec.planPolicy.minSavingFraction",
        'write a fraction from "0" to "1" as a string',
        {"model": HUB, "planPolicy": {"minSavingFraction": "1.01"}},
    ),
    "saving-in-per-cent": Wrong(
        "spec.planPolicy.minSavingFraction",
        'write a fraction from "0" to "1" as a string',
        {"model": HUB, "planPolicy": {"minSavingFraction": "10%"}},
    ),
    "method": Wrong(
        "spec.speculation.method",
        'supported values: "Auto", "Suffix", "TurboHeads", "EAGLE3", "DraftModel", "MTP"',
        {"model": HUB, "speculation": {"method": "Medusa"}},
        rule=False,
    ),
    "draft-of-another-method": Wrong(
        "spec.speculation.draftModel",
        "leave draftModel out, or write method: DraftModel",
        {"model": HUB, "speculation": {"method": "Suffix", "draftModel": HUB}},
    ),
    "draft-while-disabled": Wrong(
        "spec.speculation.draftModel",
        "leave draftModel out, or write method: DraftModel",
        {"model": HUB, "speculation": {"mode": "Disabled", "draftModel": HUB}},
    ),
    "draft-not-named": Wrong(
        "spec.speculation.method",
        "name the draft model in draftModel.uri",
        {"model": HUB, "speculation": {"method": "DraftModel"}},
    ),
    "draft-uri": Wrong(
        "spec.speculation.draftModel.uri",
        "write hf://ORGANISATION/NAME",
        {"model": HUB, "speculation": {"method": "DraftModel", "draftModel": {"uri": "tiny"}}},
    ),
    "nothing-to-place": Wrong(
        "spec.speculation.placement",
        "leave placement out, or name a draftModel",
        {"model": HUB, "speculation": {"placement": "Separate"}},
    ),
    "heads-of-vllm": Wrong(
        "spec.speculation.method",
        "choose another method, or engine.type Turbo",
        {"model": HUB, "engine": {"type": "VLLM"}, "speculation": {"method": "TurboHeads"}},
    ),
    "mtp-of-turbo": Wrong(
        "spec.speculation.method",
        "choose another method, or engine.type VLLM",
        {"model": HUB, "engine": {"type": "Turbo"}, "speculation": {"method": "MTP"}},
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
    "spot-price": (
        "spec.pricing.perAcceleratorHour.spot",
        "write dollars per accelerator and hour",
        {"resourceName": "cpu", "memoryGiB": 4, "pricing": {"perAcceleratorHour": {"spot": "-1"}}},
    ),
    "bandwidth": (
        "spec.memoryBandwidthGBps",
        "write a number above 0 as a string",
        {"resourceName": "cpu", "memoryGiB": 4, "memoryBandwidthGBps": "0"},
    ),
    "operations-without-bf16": (
        "spec.tflops.bf16",
        "Required value",
        {"resourceName": "cpu", "memoryGiB": 4, "tflops": {"fp8": "1"}},
    ),
    "operations": (
        "spec.tflops.int8",
        "write a number above 0 as a string",
        {"resourceName": "cpu", "memoryGiB": 4, "tflops": {"bf16": "1", "int8": "2k"}},
    ),
    "link": (
        "spec.interconnectGBps",
        "write a number above 0 as a string",
        {"resourceName": "cpu", "memoryGiB": 4, "interconnectGBps": "fast"},
    ),
    "network": (
        "spec.networkGBps",
        "write a number above 0 as a string",
        {"resourceName": "cpu", "memoryGiB": 4, "networkGBps": "0.0"},
    ),
    "none-on-a-node": (
        "spec.perNode",
        "greater than or equal to 1",
        {"resourceName": "cpu", "memoryGiB": 4, "perNode": 0},
    ),
    "provisioning": (
        "spec.provisioning",
        'supported values: "Fixed", "Elastic"',
        {"resourceName": "cpu", "memoryGiB": 4, "provisioning": "Cloud"},
    ),
    "fixed-with-a-maximum": (
        "spec.max",
        "leave max out, or write provisioning: Elastic",
        {"resourceName": "cpu", "memoryGiB": 4, "max": 8},
    ),
    "efficiency": (
        "spec.efficiency.bandwidth",
        "write a share of the peak above 0",
        {"resourceName": "cpu", "memoryGiB": 4, "efficiency": {"bandwidth": "85%"}},
    ),
    "layer-seconds": (
        "spec.efficiency.layerSeconds",
        "write seconds above 0",
        {"resourceName": "cpu", "memoryGiB": 4, "efficiency": {"layerSeconds": "0"}},
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
