"""What brings a model of the hub or in a bucket to where pods read it: a Job to a claim, or a container that
runs before the engine's to a folder of the pod's own. Pure.
"""

from __future__ import annotations

import base64
from typing import Any

from turbo_operator import api
from turbo_operator.render import metadata, pod
from turbo_operator.settings import Settings
from turbo_runtime.contract.documents import ModelInfo
from turbo_runtime.contract.endpoints import PORT, PORT_NAME

CONTAINER = "fetch"
RETRIES = 6  # pauses of 10 s, doubled each time: about ten minutes for a hub to come back
_RESOURCES = {"requests": {"cpu": "100m", "memory": "512Mi"}, "limits": {"memory": "2Gi"}}


def job_name(td: api.TurboDeployment, facts: ModelInfo) -> str:
    """`NAME-fetch-HASH`, by what is fetched, and where to."""
    token = td.spec.model.token_secret_ref
    material = [pod.fetched_claim(td), facts.revision, *_models(td), token.dump() if token else None]
    material += [td.spec.model.s3.dump()] if td.spec.model.s3 else []
    digest = metadata.digest(material)
    return f"{td.metadata.name}-fetch-{base64.b32encode(bytes.fromhex(digest)).decode().lower()[:4]}"


def job(td: api.TurboDeployment, facts: ModelInfo, settings: Settings) -> dict[str, Any]:
    """Build a Job of one pod that downloads what of the model is missing on the claim."""
    container = _container(td, facts, settings, f"--progress-port={PORT}")
    container["ports"] = [{"name": PORT_NAME, "containerPort": PORT, "protocol": "TCP"}]
    pod_spec = pod.pod_spec(td, container, writes_claim=True)
    pod_spec["securityContext"] |= pod.OWN_GROUP
    spec = {
        "backoffLimit": RETRIES,
        "podFailurePolicy": {"rules": [pod.failing_at_once(CONTAINER)]},
        "template": {
            "metadata": pod.pod_metadata(td, metadata.labels(td, api.ROLE_FETCH)),
            "spec": {**pod_spec, "restartPolicy": "Never"},
        },
    }
    return metadata.build_child(td, "Job", job_name(td, facts), api.ROLE_FETCH, {"spec": spec})


def init_containers(td: api.TurboDeployment, facts: ModelInfo, settings: Settings) -> list[dict[str, Any]]:
    """Build what runs in a serving pod before its engine; nothing where the model is there by then."""
    if not pod.is_fetched(td) or pod.fetched_claim(td) is not None:
        return []
    mounts = [{"name": "tmp", "mountPath": pod.TMP_PATH}, {"name": "cache", "mountPath": pod.CACHE_PATH}]
    return [pod.secured(_container(td, facts, settings), mounts)]


def _container(td: api.TurboDeployment, facts: ModelInfo, settings: Settings, *more: str) -> dict[str, Any]:
    revision = td.spec.model.revision
    arguments = [
        *_models(td),
        *([f"--revision={revision}"] if revision else []),
        f"--commit={facts.revision}",
        f"--termination-message={pod.TERMINATION_LOG}",
        *more,
    ]
    image, command = pod.runtime_image(td, settings), ["turbo", "fetch"]
    draft = td.spec.speculation.draft_model
    container = pod.build_container(
        td, settings, image, CONTAINER, command, arguments, _RESOURCES, draft, asks_hub=True
    )
    return pod.reading_bucket(td, container)


def _models(td: api.TurboDeployment) -> list[str]:
    """Return the model, and the hub id of a draft model of the hub."""
    draft = td.spec.speculation.draft_model
    return [
        pod.model_argument(td.spec.model),
        *([draft.hub_id] if draft is not None and draft.on_hub else []),
    ]
