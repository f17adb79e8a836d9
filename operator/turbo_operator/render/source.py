"""Where a model comes from, as a serving or inspecting pod sees it: argument, volumes, environment. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from turbo_operator.api import TurboDeployment
from turbo_operator.render.metadata import short

MODELS_PATH = "/models"  # where a claim is mounted
CACHE_PATH = "/cache"  # where a hub's files are kept for the life of a pod
TMP_PATH = "/tmp"  # noqa: S108  the one writable folder that libraries expect; an emptyDir of the pod's own
TMP_LIMIT = "1Gi"

MountedVolume = tuple[dict[str, Any], dict[str, Any]]  # a volume of a pod, and its mount


def source_hash(td: TurboDeployment) -> str:
    """Hash what decides which model it is: the inspect Job's answer is good for one such hash."""
    model = td.spec.model
    token = model.token_secret_ref.dump() if model.token_secret_ref else None
    return short({"uri": model.uri, "revision": model.revision, "token": token})


def argument(td: TurboDeployment) -> str:
    """Return what the runtime gets as MODEL: a hub id, or a path below the mounted claim."""
    model = td.spec.model
    if model.on_hub:
        return model.hub_id
    return f"{MODELS_PATH}/{model.claim_path}".rstrip("/")


def mounted_volume(
    name: str, volume: Mapping[str, Any], path: str, *, read_only: bool = False
) -> MountedVolume:
    """Build a volume, and the mount by which a container has it at `path`."""
    mount: dict[str, Any] = {"name": name, "mountPath": path}
    return {"name": name, **volume}, mount | ({"readOnly": True} if read_only else {})


def volumes(td: TurboDeployment) -> list[MountedVolume]:
    """Build the volumes of a pod that reads the model."""
    model = td.spec.model
    temporary = mounted_volume("tmp", {"emptyDir": {"sizeLimit": TMP_LIMIT}}, TMP_PATH)
    if model.on_hub:
        return [temporary, mounted_volume("cache", {"emptyDir": {}}, CACHE_PATH)]
    claim = {"persistentVolumeClaim": {"claimName": model.claim, "readOnly": True}}
    return [temporary, mounted_volume("model", claim, MODELS_PATH, read_only=True)]


def environment(td: TurboDeployment) -> list[dict[str, Any]]:
    """Build its environment. The root is read-only, so homes and caches lie on the emptyDirs."""
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
