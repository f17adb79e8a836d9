"""The CustomResourceDefinitions as a user meets them on a real API server."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from turbo_dev.access import Access
from turbo_dev.shell import CommandError
from turbo_operator import api

NAMESPACE = "crd"
ROOT = Path(__file__).parents[2]
SMALLEST = {"model": {"uri": "hf://acme/tiny"}}


@pytest.fixture(scope="module")
def cluster(api_server: Access) -> Access:
    api_server.apply({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": NAMESPACE}})
    return api_server


def deployment(name: str, spec: Mapping[str, Any]) -> dict[str, Any]:
    metadata = {"name": name, "namespace": NAMESPACE}
    return {"apiVersion": api.API_VERSION, "kind": "TurboDeployment", "metadata": metadata, "spec": spec}


@pytest.mark.cluster
def test_smallest_object_gets_all_defaults(cluster: Access) -> None:
    cluster.apply(deployment("smallest", SMALLEST))
    stored = cluster.get("td", "smallest", "-n", NAMESPACE)
    assert stored["spec"] == api.parse(deployment("smallest", SMALLEST)).spec.dump()
    assert "finalizers" not in stored["metadata"]


@pytest.mark.cluster
def test_full_object_survives_the_round_trip(cluster: Access) -> None:
    spec = {
        "model": {
            "uri": "hf://acme/tiny",
            "revision": "v1.0",
            "dtype": "Float32",
            "maxModelLen": 4096,
            "name": "tiny",
            "tokenSecretRef": {"name": "hub", "key": "token"},
        },
        "engine": {"type": "Turbo", "image": "registry.example/turbo:1@sha256:abc"},
        "speculation": {
            "mode": "Required",
            "method": "Suffix",
            "placement": "Auto",
            "maxDraftTokens": 4,
        },
        "accelerators": {
            "allowed": ["l4", "cpu"],
            "capacityTypes": ["Reserved", "Spot", "OnDemand"],
            "maxPerReplica": 8,
            "maxTotal": 64,
            "pendingTimeout": "5m",
        },
        "parallelism": {"tensor": 1, "pipeline": 1},
        "workload": {
            "inputTokens": {"mean": 600, "p95": 1500},
            "outputTokens": {"mean": 1800, "p95": 6000},
            "requestsPerSecond": "4",
        },
        "targets": {
            "timeToFirstToken": {"max": "1500ms", "percentile": 99},
            "timePerOutputToken": {"max": "25ms", "percentile": 50},
            "tokensPerSecond": "2500.5",
        },
        "cost": {"maxPerHour": "24.00", "maxPerMillionTokens": "0.60", "currency": "USD"},
        "replicas": 3,
        "server": {"apiKeysSecretRef": {"name": "keys", "key": "api-keys.txt"}},
        "cache": {"persistentVolumeClaim": {"claimName": "weights"}},
        "scaling": {
            "mode": "Metrics",
            "minReplicas": 2,
            "maxReplicas": 9,
            "behavior": {
                "scaleUp": {
                    "stabilizationWindowSeconds": 0,
                    "policies": [{"type": "Percent", "value": 50, "periodSeconds": 30}],
                    "selectPolicy": "Min",
                },
                "scaleDown": {"stabilizationWindowSeconds": 600, "selectPolicy": "Disabled"},
            },
        },
        "planPolicy": {"objective": "Throughput", "minSavingFraction": "0.25", "apply": "Manual"},
        "rollout": {
            "maxSurge": 0,
            "maxUnavailable": 2,
            "minReadySeconds": 5,
            "progressDeadline": "20m",
            "canary": {
                "steps": [{"replicasFraction": "0.25", "minDuration": "1m"}],
                "gates": {"maxErrorFraction": "0", "minSpeedupRatio": "0.9"},
                "minGenerationDuration": "90s",
                "minDuration": "5m",
                "minSpeedupRatio": "1.05",
            },
        },
        "drain": {"timeout": "1m30s"},
        "routing": "Gateway",
        "gateway": {"endpointPicker": {"name": "mine", "port": 9003, "failureMode": "FailOpen"}},
        "suspend": False,
        "podTemplate": {
            "metadata": {"labels": {"team": "a"}, "annotations": {"note": "x"}},
            "spec": {
                "nodeSelector": {"zone": "b"},
                "tolerations": [{"key": "gpu", "operator": "Exists", "effect": "NoSchedule"}],
                "resources": {"requests": {"cpu": 2, "memory": "16Gi"}, "limits": {"memory": "16Gi"}},
                "env": [
                    {"name": "LOG_LEVEL", "value": ""},
                    {"name": "KEY", "valueFrom": {"secretKeyRef": {"name": "s", "key": "k"}}},
                ],
                "serviceAccountName": "serving",
                "imagePullSecrets": [{"name": "registry"}],
                "priorityClassName": "high",
                "runtimeClassName": "nvidia",
            },
        },
    }
    cluster.apply(deployment("full", spec))
    stored = cluster.get("td", "full", "-n", NAMESPACE)
    assert stored["spec"] == spec
    kept = api.parse(stored).spec.dump()
    spec["podTemplate"]["spec"]["resources"]["requests"]["cpu"] = "2"  # type: ignore[index]  # one spelling, the same amount
    assert kept == spec


@pytest.mark.cluster
def test_another_model_is_a_rollout_not_an_error(cluster: Access) -> None:
    cluster.apply(deployment("changing", SMALLEST))
    cluster.apply(deployment("changing", {"model": {"uri": "pvc://models/other.gguf"}}))
    assert cluster.get("td", "changing", "-n", NAMESPACE)["metadata"]["generation"] == 2


@pytest.mark.cluster
def test_kubectl_scale_writes_replicas(cluster: Access) -> None:
    cluster.apply(deployment("scaled", SMALLEST))
    cluster.kubectl("scale", "td/scaled", "-n", NAMESPACE, "--replicas=3")
    stored = cluster.get("td", "scaled", "-n", NAMESPACE)
    assert stored["spec"]["replicas"] == 3
    with pytest.raises(CommandError, match="should be less than or equal to 1000"):
        cluster.kubectl("scale", "td/scaled", "-n", NAMESPACE, "--replicas=1001")


@pytest.mark.cluster
def test_scale_subresource_answers_for_autoscalers(cluster: Access) -> None:
    cluster.apply(deployment("observed", SMALLEST))
    status = api.TurboDeploymentStatus(replicas=2, selector="serving.turbo.dev/deployment=observed")
    write_status(cluster, "observed", status)
    path = f"/apis/{api.API_VERSION}/namespaces/{NAMESPACE}/turbodeployments/observed/scale"
    scale = json.loads(cluster.kubectl("get", "--raw", path))
    assert scale["spec"] == {"replicas": 1}
    assert scale["status"] == {"replicas": 2, "selector": "serving.turbo.dev/deployment=observed"}


def write_status(cluster: Access, name: str, status: api.TurboDeploymentStatus) -> None:
    patch = json.dumps({"status": status.dump()})
    cluster.kubectl(
        "patch", "td", name, "-n", NAMESPACE, "--subresource=status", "--type=merge", f"--patch={patch}"
    )


@pytest.mark.cluster
def test_status_keeps_every_field_of_the_record_and_fills_the_columns(cluster: Access) -> None:
    cluster.apply(deployment("shown", SMALLEST))
    status = api.TurboDeploymentStatus(
        observed_generation=1,
        url="http://shown.crd.svc/v1",
        replicas=3,
        desired_replicas=3,
        ready_replicas=2,
        selector="a=b",
        model=api.ModelStatus(
            resolved_revision="abc",
            digest="sha256:1",
            shape=api.ShapeStatus(
                architecture="LlamaForCausalLM",
                parameters=70_000_000_000,
                layers=80,
                hidden_size=8192,
                heads=64,
                kv_heads=8,
                head_dim=128,
                vocab_size=128256,
                max_position=131072,
                dtype="bfloat16",
                quantization="fp8",
                quantized_parameters=68_000_000_000,
                embedding_parameters=1_050_673_152,
                experts=128,
                experts_per_token=8,
                expert_parameters=60_000_000_000,
                kv_latent=576,
                sliding_window=4096,
                sliding_layers=40,
                mtp_layers=1,
                mlp_width=28_672,
            ),
        ),
        cache=api.CacheStatus(claim_name="weights", revision="abc", progress="download 40 %"),
        plan=api.PlanStatus(
            hash="12345678",
            engine="Turbo",
            accelerator="h100",
            tensor=1,
            accelerators_per_replica=1,
            method="Suffix",
            max_draft_tokens=8,
            replicas=3,
            predicted=api.Predicted(cost_per_hour="12.00"),
            reason="Feasible",
            message="It fits and costs least.",
            rejected=(
                api.RejectedPlan(
                    accelerator="l4", tensor=1, method="Off", reason="HigherCost", message="It is."
                ),
            ),
        ),
        observed=api.ObservedMetrics(cost_per_hour="8.00"),
        conditions=(
            api.Condition(
                type="Ready",
                status="False",
                reason="ModelLoading",
                message="Pods load the model.",
                last_transition_time="2026-01-01T00:00:00Z",
                observed_generation=1,
            ),
        ),
    )
    write_status(cluster, "shown", status)
    stored = cluster.get("td", "shown", "-n", NAMESPACE)
    assert stored["status"] == status.dump()
    assert api.parse(stored).status == status
    header, row = cluster.kubectl("get", "td", "shown", "-n", NAMESPACE).splitlines()
    columns = "NAME MODEL ENGINE ACCELERATOR DESIRED READY REASON METHOD DRAFT SPEEDUP $/1M AGE"
    assert " ".join(header.split()) == columns
    assert row.split()[1:8] == ["hf://acme/tiny", "Turbo", "h100", "3", "2", "ModelLoading", "Suffix"]
    _, wide = cluster.kubectl("get", "td", "shown", "-n", NAMESPACE, "-o", "wide").splitlines()
    assert wide.split()[-4:-1] == ["8.00", "12345678", "http://shown.crd.svc/v1"]


@pytest.mark.cluster
def test_a_row_without_a_plan_says_why(cluster: Access) -> None:
    cluster.apply(deployment("broken", SMALLEST))
    conditions = tuple(
        api.Condition(
            type=kind,
            status="False",
            reason=reason,
            message="It cannot be read.",
            last_transition_time="2026-01-01T00:00:00Z",
            observed_generation=1,
        )
        for kind, reason in (("ModelInspected", "InspectionFailed"), ("Ready", "InvalidSpec"))
    )
    write_status(cluster, "broken", api.TurboDeploymentStatus(conditions=conditions))
    header, row = cluster.kubectl("get", "td", "broken", "-n", NAMESPACE).splitlines()
    start = header.index("REASON")
    assert row[start:].split()[0] == "InvalidSpec"
    assert row[:start].split() == ["broken", "hf://acme/tiny", "0"]


@pytest.mark.cluster
def test_a_load_that_is_added_takes_the_replicas_from_no_autoscaler_unless_that_is_written(
    cluster: Access,
) -> None:
    cluster.apply(deployment("scaled", SMALLEST))
    load = {"workload": {"requestsPerSecond": "4"}}
    with pytest.raises(CommandError, match=r"write scaling\.mode too"):
        cluster.apply(deployment("scaled", {**SMALLEST, **load}))
    cluster.apply(deployment("scaled", {**SMALLEST, **load, "scaling": {"mode": "External"}}))
    cluster.apply(deployment("planned-at-once", {**SMALLEST, **load}))


@pytest.mark.cluster
def test_two_managers_own_their_own_variables_of_the_environment(cluster: Access) -> None:
    def apply(manager: str, template: Mapping[str, Any]) -> None:
        document = deployment("shared", {**SMALLEST, "podTemplate": {"spec": template}})
        cluster.kubectl(
            "apply", "--server-side", f"--field-manager={manager}", "-f", "-", input=json.dumps(document)
        )

    apply("first", {"env": [{"name": "A", "value": "1"}]})
    apply("second", {"env": [{"name": "B", "value": "2"}]})
    env = cluster.get("td", "shared", "-n", NAMESPACE)["spec"]["podTemplate"]["spec"]["env"]
    assert sorted(variable["name"] for variable in env) == ["A", "B"]
    apply("first", {"tolerations": [{"operator": "Exists"}]})
    template = cluster.get("td", "shared", "-n", NAMESPACE)["spec"]["podTemplate"]["spec"]
    assert [variable["name"] for variable in template["env"]] == ["B"]
    with pytest.raises(CommandError, match="conflict"):
        apply("second", {"tolerations": [{"key": "mine", "operator": "Exists"}]})


@pytest.mark.cluster
def test_accelerator_takes_memory_in_whole_and_in_parts(cluster: Access) -> None:
    for name, memory in (("whole", "80Gi"), ("part", "22.5Gi")):
        document = {
            "apiVersion": api.API_VERSION,
            "kind": "TurboAccelerator",
            "metadata": {"name": f"crd-{name}"},
            "spec": {
                "resourceName": "nvidia.com/gpu",
                "memory": memory,
                "nodeSelector": {"nvidia.com/gpu.product": "NVIDIA-L4"},
                "tolerations": [{"key": "nvidia.com/gpu", "operator": "Exists"}],
                "pricing": {
                    "perAcceleratorHour": {"onDemand": "0.80"},
                    "source": "aws us-east-1",
                    "asOf": "2026-01-19",
                },
            },
        }
        cluster.apply(document)
        stored = api.parse_accelerator(cluster.get("ta", f"crd-{name}"))
        assert stored.spec.memory == memory
        assert stored.spec.quantity == "1"
        cluster.kubectl("delete", "ta", f"crd-{name}")


@pytest.mark.cluster
def test_accelerators_show_what_nodes_have_and_what_they_cost(cluster: Access) -> None:
    spec = {
        "resourceName": "nvidia.com/gpu",
        "memory": "80Gi",
        "pricing": {"perAcceleratorHour": {"onDemand": "6.88"}, "source": "AWS"},
    }
    document = {"apiVersion": api.API_VERSION, "kind": "TurboAccelerator", "metadata": {"name": "crd-shown"}}
    cluster.apply({**document, "spec": spec, "status": {"nodes": 9}})
    stored = cluster.get("ta", "crd-shown")
    assert "status" not in stored, "only the status subresource writes it"
    status = api.TurboAcceleratorStatus(nodes=2, allocatable=16, available=3)
    patch = json.dumps({"status": status.dump()})
    cluster.kubectl("patch", "ta", "crd-shown", "--subresource=status", "--type=merge", f"--patch={patch}")
    assert api.parse_accelerator(cluster.get("ta", "crd-shown")).status == status
    header, row = cluster.kubectl("get", "ta", "crd-shown").splitlines()
    assert " ".join(header.split()) == "NAME RESOURCE MEMORY NODES AVAILABLE $/H PRICE FROM AGE"
    assert row.split()[1:-1] == ["nvidia.com/gpu", "80Gi", "2", "3", "6.88", "AWS"]
    cluster.kubectl("delete", "ta", "crd-shown")


@pytest.mark.cluster
def test_a_user_sees_td_among_all(cluster: Access) -> None:
    cluster.apply(deployment("listed", SMALLEST))
    assert "turbodeployment.serving.turbo.dev/listed" in cluster.kubectl("get", "all", "-n", NAMESPACE)


@pytest.mark.cluster
def test_explain_tells_what_a_field_means(cluster: Access) -> None:
    said = cluster.kubectl("explain", "td.spec.model.uri")
    assert "pvc://CLAIM/PATH" in said
