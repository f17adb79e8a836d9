"""Service, disruption budget, the variants, and the Job that reads the model with its answer. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from turbo_operator.api import LABEL_PLAN_HASH, ROLE_INSPECT, ROLE_SERVING, TurboDeployment
from turbo_operator.render.metadata import build_child, configmap, digest, labels, serving_selector
from turbo_operator.render.pod import (
    build_container,
    failing_at_once,
    model_argument,
    pod_metadata,
    pod_spec,
    source_hash,
)
from turbo_operator.rollout import Variant
from turbo_operator.settings import Settings
from turbo_runtime.contract.endpoints import PORT_NAME
from turbo_runtime.contract.model import ModelInfo

SERVICE_PORT = 80
PROGRESS_SECONDS = 3600  # as long as a start may take
KEPT_REPLICA_SETS = 0  # a variant's template never changes, so there is nothing to go back to

INSPECT_CONTAINER = "inspect"
FACTS_KEY = "facts.json"  # ModelInfo as JSON
SOURCE_KEY = "source"  # the source hash that they are good for
SEAL_KEY = "seal"  # hash of both: what somebody edited is no answer of the Job's

TERMINATION_LOG = "/dev/termination-log"  # where the kubelet reads it
RETRIES = 6  # pauses of 10 s, doubled each time: about ten minutes for a claim or a hub to come back


def service(td: TurboDeployment, selector: Mapping[str, str]) -> dict[str, Any]:
    """Build `NAME`: port 80 of it is the OpenAI API."""
    port = {"name": PORT_NAME, "port": SERVICE_PORT, "targetPort": PORT_NAME, "protocol": "TCP"}
    spec = {"selector": dict(selector), "ports": [port]}
    return build_child(td, "Service", td.metadata.name, ROLE_SERVING, {"spec": spec})


def url(td: TurboDeployment) -> str:
    """Return the base URL of the OpenAI API, as pods of the cluster reach it; 80 is the port of http."""
    return f"http://{td.metadata.name}.{td.metadata.namespace}.svc/v1"


def pdb(td: TurboDeployment, selector: Mapping[str, str]) -> dict[str, Any]:
    """Build `NAME`: one pod at a time leaves for a node's sake; one that does not serve holds up no drain."""
    spec = {
        "maxUnavailable": 1,
        "selector": {"matchLabels": dict(selector)},
        "unhealthyPodEvictionPolicy": "AlwaysAllow",
    }
    return build_child(td, "PodDisruptionBudget", td.metadata.name, ROLE_SERVING, {"spec": spec})


def deployment(td: TurboDeployment, variant: Variant, template: Mapping[str, Any]) -> dict[str, Any]:
    """Build `NAME-HASH`: the pods of one plan."""
    own = {LABEL_PLAN_HASH: variant.plan_hash}
    spec = {
        "replicas": variant.replicas,
        "selector": {"matchLabels": {**serving_selector(td), **own}},
        "template": template,
        "minReadySeconds": td.spec.rollout.min_ready_seconds,
        "progressDeadlineSeconds": PROGRESS_SECONDS + td.spec.rollout.min_ready_seconds,
        "revisionHistoryLimit": KEPT_REPLICA_SETS,
    }
    name = variant_name(td, variant.plan_hash)
    return build_child(td, "Deployment", name, ROLE_SERVING, {"spec": spec}, own)


def revision(td: TurboDeployment, plan_hash: str, template: Mapping[str, Any]) -> dict[str, Any]:
    """Build `NAME-HASH`: the variant's pod template, as it was rendered when the variant was made."""
    body = {"revision": 1, "data": template}
    name = variant_name(td, plan_hash)
    return build_child(td, "ControllerRevision", name, ROLE_SERVING, body, {LABEL_PLAN_HASH: plan_hash})


def variant_name(td: TurboDeployment, plan_hash: str) -> str:
    """Return the name of a variant's Deployment and ControllerRevision."""
    return f"{td.metadata.name}-{plan_hash}"


def job_name(td: TurboDeployment) -> str:
    """`NAME-inspect-HASH`, by the model's source: another source is another Job."""
    return f"{td.metadata.name}-inspect-{source_hash(td)}"


def model_configmap_name(td: TurboDeployment) -> str:
    """`NAME-model`."""
    return f"{td.metadata.name}-model"


def inspect_job(td: TurboDeployment, settings: Settings) -> dict[str, Any]:
    """Build a Job of one pod that runs `turbo inspect` and leaves `ModelInfo` as its termination message."""
    revision = [f"--revision={td.spec.model.revision}"] if td.spec.model.revision else []
    arguments = [model_argument(td), *revision, f"--termination-message={TERMINATION_LOG}"]
    # Configuration and headers only are read; what weighs is the interpreter.
    resources = {"requests": {"cpu": "100m", "memory": "512Mi"}, "limits": {"memory": "2Gi"}}
    container = build_container(td, settings, INSPECT_CONTAINER, ["turbo", "inspect"], arguments, resources)
    spec = {
        "backoffLimit": RETRIES,
        "podFailurePolicy": {"rules": [failing_at_once(INSPECT_CONTAINER)]},
        "template": {
            "metadata": pod_metadata(td, labels(td, ROLE_INSPECT)),
            "spec": {**pod_spec(td, container), "restartPolicy": "Never"},
        },
    }
    return build_child(td, "Job", job_name(td), ROLE_INSPECT, {"spec": spec})


def facts_data(td: TurboDeployment, facts: ModelInfo) -> dict[str, str]:
    """Return what the ConfigMap holds."""
    data = {FACTS_KEY: facts.to_json(), SOURCE_KEY: source_hash(td)}
    return {**data, SEAL_KEY: digest(data)[:16]}


def model_configmap(td: TurboDeployment, facts: ModelInfo) -> dict[str, Any]:
    """Build `NAME-model`: what the inspect Job found, so that its answer outlives its pod."""
    return configmap(td, model_configmap_name(td), facts_data(td, facts), ROLE_INSPECT)
