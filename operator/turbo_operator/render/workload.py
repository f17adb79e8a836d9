"""The Service, the PodDisruptionBudget, and each variant's Deployment and ControllerRevision. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from turbo_operator.api import LABEL_PLAN_HASH, ROLE_SERVING, TurboDeployment
from turbo_operator.render.metadata import build_child, serving_selector
from turbo_operator.rollout import Variant
from turbo_runtime.contract.endpoints import PORT_NAME

SERVICE_PORT = 80
PROGRESS_SECONDS = 3600  # as long as a start may take
KEPT_REPLICA_SETS = 0  # a variant's template never changes, so there is nothing to go back to


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
