"""The Job that reads a model's shape where the model lies, and the ConfigMap of its answer. Pure."""

from __future__ import annotations

from typing import Any

from turbo_operator.api import ROLE_INSPECT, Template, TurboDeployment
from turbo_operator.render import source
from turbo_operator.render.metadata import digest, labels, metadata, sealed
from turbo_operator.render.pod import pod_spec, variables
from turbo_operator.settings import Settings
from turbo_runtime.contract.endpoints import PERMANENT_ERROR
from turbo_runtime.contract.model import ModelInfo

FACTS_KEY = "facts.json"  # ModelFacts as JSON
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
    """One pod that runs `turbo inspect` and leaves `ModelFacts` as its termination message."""
    model = td.spec.model
    revision = [f"--revision={model.revision}"] if model.revision else []
    container = {
        "name": "inspect",
        "image": td.spec.engine.image or settings.runtime_image,
        "imagePullPolicy": settings.image_pull_policy,
        "command": ["turbo", "inspect"],
        "args": [source.argument(td), *revision, f"--termination-message={TERMINATION_LOG}"],
        "env": [*source.environment(td), *variables(td)],
        # Configuration and headers only are read; what weighs is the interpreter.
        "resources": {"requests": {"cpu": "100m", "memory": "512Mi"}, "limits": {"memory": "2Gi"}},
    }
    own = labels(td, ROLE_INSPECT)
    spec = {**pod_spec(td, container, (), {}), "restartPolicy": "Never"}
    overlay = td.spec.template or Template()
    meta: dict[str, Any] = {"labels": {**(overlay.labels or {}), **own}}
    if overlay.annotations:
        meta["annotations"] = dict(overlay.annotations)
    return sealed(
        {
            "apiVersion": "batch/v1",
            "kind": "Job",
            "metadata": metadata(td, job_name(td), own),
            "spec": {
                "backoffLimit": RETRIES,
                # What no other attempt can mend, like a path where nothing is, fails at once.
                "podFailurePolicy": {
                    "rules": [
                        {
                            "action": "FailJob",
                            "onExitCodes": {
                                "containerName": "inspect",
                                "operator": "In",
                                "values": [PERMANENT_ERROR],
                            },
                        }
                    ]
                },
                "template": {"metadata": meta, "spec": spec},
            },
        }
    )


def facts_data(td: TurboDeployment, facts: ModelInfo) -> dict[str, str]:
    """What the ConfigMap holds."""
    data = {FACTS_KEY: facts.to_json(), SOURCE_KEY: source.source_hash(td)}
    return {**data, SEAL_KEY: digest(data)[:16]}


def configmap(td: TurboDeployment, facts: ModelInfo) -> dict[str, Any]:
    """`NAME-model`: what the inspect Job found, so that its answer outlives its pod."""
    return sealed(
        {
            "apiVersion": "v1",
            "kind": "ConfigMap",
            "metadata": metadata(td, configmap_name(td), labels(td, ROLE_INSPECT)),
            "data": facts_data(td, facts),
        }
    )
