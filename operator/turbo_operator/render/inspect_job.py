"""The Job that reads a model's shape where the model lies, and the ConfigMap of its answer. Pure."""

from __future__ import annotations

from typing import Any

from turbo_operator.api import ROLE_INSPECT, TurboDeployment
from turbo_operator.render import metadata, source
from turbo_operator.render.metadata import build_child, digest, labels
from turbo_operator.render.pod import build_container, failing_at_once, pod_metadata, pod_spec
from turbo_operator.settings import Settings
from turbo_runtime.contract.model import ModelInfo

CONTAINER = "inspect"
FACTS_KEY = "facts.json"  # ModelInfo as JSON
SOURCE_KEY = "source"  # the source hash that they are good for
SEAL_KEY = "seal"  # hash of both: what somebody edited is no answer of the Job's

TERMINATION_LOG = "/dev/termination-log"  # where the kubelet reads it
RETRIES = 6  # pauses of 10 s, doubled each time: about ten minutes for a claim or a hub to come back


def job_name(td: TurboDeployment) -> str:
    """`NAME-inspect-HASH`, by the model's source: another source is another Job."""
    return f"{td.metadata.name}-inspect-{source.source_hash(td)}"


def configmap_name(td: TurboDeployment) -> str:
    """`NAME-model`."""
    return f"{td.metadata.name}-model"


def inspect_job(td: TurboDeployment, settings: Settings) -> dict[str, Any]:
    """Build a Job of one pod that runs `turbo inspect` and leaves `ModelInfo` as its termination message."""
    revision = [f"--revision={td.spec.model.revision}"] if td.spec.model.revision else []
    arguments = [source.argument(td), *revision, f"--termination-message={TERMINATION_LOG}"]
    # Configuration and headers only are read; what weighs is the interpreter.
    resources = {"requests": {"cpu": "100m", "memory": "512Mi"}, "limits": {"memory": "2Gi"}}
    container = build_container(td, settings, CONTAINER, ["turbo", "inspect"], arguments, resources)
    spec = {
        "backoffLimit": RETRIES,
        "podFailurePolicy": {"rules": [failing_at_once(CONTAINER)]},
        "template": {
            "metadata": pod_metadata(td, labels(td, ROLE_INSPECT)),
            "spec": {**pod_spec(td, container), "restartPolicy": "Never"},
        },
    }
    return build_child(td, "Job", job_name(td), ROLE_INSPECT, {"spec": spec})


def facts_data(td: TurboDeployment, facts: ModelInfo) -> dict[str, str]:
    """Return what the ConfigMap holds."""
    data = {FACTS_KEY: facts.to_json(), SOURCE_KEY: source.source_hash(td)}
    return {**data, SEAL_KEY: digest(data)[:16]}


def configmap(td: TurboDeployment, facts: ModelInfo) -> dict[str, Any]:
    """Build `NAME-model`: what the inspect Job found, so that its answer outlives its pod."""
    return metadata.configmap(td, configmap_name(td), facts_data(td, facts), ROLE_INSPECT)
