"""Where a model comes from, as a serving or inspecting pod sees it: argument, volumes, environment. Pure."""

from __future__ import annotations

from typing import Any

from turbo_operator.api import TurboDeployment
from turbo_operator.render.metadata import short

MODELS_PATH = "/models"  # where a claim is mounted
CACHE_PATH = "/cache"  # where a hub's files are kept for the life of a pod
TMP_PATH = "/tmp"  # noqa: S108  the one writable folder that libraries expect; an emptyDir of the pod's own
TMP_LIMIT = "1Gi"


def source_hash(td: TurboDeployment) -> str:
    """Short hash of what decides which model it is: the inspect Job's answer is good for one such hash."""
    model = td.spec.model
    token = model.token_secret_ref.dump() if model.token_secret_ref else None
    return short({"uri": model.uri, "revision": model.revision, "token": token})


def argument(td: TurboDeployment) -> str:
    """What the runtime is told as MODEL: a hub id, or a path below the mounted claim."""
    model = td.spec.model
    if model.on_hub:
        return model.hub_id
    return f"{MODELS_PATH}/{model.claim_path}".rstrip("/")


def volumes(td: TurboDeployment) -> list[dict[str, Any]]:
    """Volumes of a pod that reads the model."""
    model = td.spec.model
    temporary = {"name": "tmp", "emptyDir": {"sizeLimit": TMP_LIMIT}}
    if model.on_hub:
        return [temporary, {"name": "cache", "emptyDir": {}}]
    claim = {"claimName": model.claim, "readOnly": True}
    return [temporary, {"name": "model", "persistentVolumeClaim": claim}]


def mounts(td: TurboDeployment) -> list[dict[str, Any]]:
    """Where its container has them."""
    temporary = {"name": "tmp", "mountPath": TMP_PATH}
    if td.spec.model.on_hub:
        return [temporary, {"name": "cache", "mountPath": CACHE_PATH}]
    return [temporary, {"name": "model", "mountPath": MODELS_PATH, "readOnly": True}]


def environment(td: TurboDeployment) -> list[dict[str, Any]]:
    """Its container's environment. The root is read-only, so homes and caches lie on the emptyDirs."""
    model = td.spec.model
    variables: list[dict[str, Any]] = [{"name": "HOME", "value": TMP_PATH}]
    if not model.on_hub:
        # A model on a claim is complete there: nothing of it may be fetched from elsewhere.
        return [*variables, {"name": "HF_HUB_OFFLINE", "value": "1"}]
    variables.append({"name": "HF_HOME", "value": CACHE_PATH})
    if model.token_secret_ref:
        key = {"name": model.token_secret_ref.name, "key": model.token_secret_ref.key}
        variables.append({"name": "HF_TOKEN", "valueFrom": {"secretKeyRef": key}})
    return variables
