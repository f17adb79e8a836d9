"""What the server of every serving pod gets beside the engine's own: API keys and captured prompts. Pure."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from turbo_operator import api
from turbo_operator.render import pod
from turbo_operator.render.metadata import configmap

KEYS_FOLDER = "/etc/turbo"
KEYS_FILE = "api-keys"  # whatever the Secret calls it: a path of one's own needs no care about names
KEYS_PATH = f"{KEYS_FOLDER}/{KEYS_FILE}"
CAPTURE_FOLDER, CAPTURE_FILE = "/etc/turbo-capture", "capture.json"
CAPTURE_CLAIM_PATH = "/capture"
SHARED_MEMORY_PATH, SHARED_MEMORY_LIMIT = "/dev/shm", "2Gi"  # noqa: S108  NCCL's, and of an engine's processes
MIB = 1 << 20

Amounts = Mapping[str, Mapping[str, str]]  # requests and limits of a container


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineServer:
    """What of a serving pod is its engine's own."""

    image: str
    command: Sequence[str]
    arguments: Sequence[str]
    ready_path: str  # answers with 200 once the model is loaded
    grace_seconds: float  # after SIGTERM, what comes before it included
    environment: Sequence[Mapping[str, Any]] = ()  # before that of the user's overlay
    lifecycle: Mapping[str, Any] = field(default_factory=dict)
    volumes: Sequence[pod.MountedVolume] = ()
    draft: api.ModelSource | None = None  # a draft model that it reads
    downloads: Mapping[str, Sequence[str]] = field(default_factory=dict)  # commands before it, by container
    # Of a replica on several nodes: the arguments and lifecycle of the servers that do not answer.
    worker_arguments: Sequence[str] = ()
    worker_lifecycle: Mapping[str, Any] = field(default_factory=dict)


def shared_memory() -> pod.MountedVolume:
    """Build what the processes of one engine exchange their data by; a container has 64 MiB otherwise."""
    volume = {"emptyDir": {"medium": "Memory", "sizeLimit": SHARED_MEMORY_LIMIT}}
    return pod.mounted_volume("shared-memory", volume, SHARED_MEMORY_PATH)


def api_keys(td: api.TurboDeployment) -> api.ApiKeysSecretRef | None:
    """Return where the API keys are; None where none are required."""
    return td.spec.server.api_keys_secret_ref if td.spec.server else None


def capture(td: api.TurboDeployment) -> api.Capture | None:
    """Return how prompts are kept; None where they are not."""
    return td.spec.capture if td.spec.capture and not td.spec.capture.suspend else None


def capture_configmap_name(td: api.TurboDeployment) -> str:
    """`NAME-capture`."""
    return f"{td.metadata.name}-capture"


def capture_configmaps(td: api.TurboDeployment) -> list[dict[str, Any]]:
    """Build the settings of the capture; none where nothing is to be kept."""
    kept = capture(td)
    if kept is None:
        return []
    settings = {
        "folder": f"{CAPTURE_CLAIM_PATH}/{td.metadata.name}",
        "sampleFraction": float(kept.sample_fraction),
        "maxMib": max(1, int(api.quantity(kept.max_size) // MIB)),
        "maxAgeHours": kept.max_age.seconds / 3600,
        "redact": list(kept.redact or ()),
    }
    return [configmap(td, capture_configmap_name(td), _capture_file(settings))]


def stopped_capture(data: Mapping[str, str]) -> dict[str, str]:
    """Return the same settings, by which nothing more is kept: of pods that go, while they are there."""
    try:
        settings = json.loads(data.get(CAPTURE_FILE, "{}"))
    except ValueError:  # edited by hand: the runtime holds to what it read before
        return dict(data)
    return _capture_file({**settings, "sampleFraction": 0.0})


def _capture_file(settings: Mapping[str, Any]) -> dict[str, str]:
    return {CAPTURE_FILE: json.dumps(settings, indent=2, sort_keys=True) + "\n"}


def volumes_of(td: api.TurboDeployment) -> list[pod.MountedVolume]:
    """Build the volumes of a serving pod."""
    mounted = []
    if keys := api_keys(td):
        secret = {"secretName": keys.name, "items": [{"key": keys.key, "path": KEYS_FILE}]}
        mounted.append(pod.mounted_volume("api-keys", {"secret": secret}, KEYS_FOLDER, read_only=True))
    if kept := capture(td):
        settings = {"configMap": {"name": capture_configmap_name(td)}}
        claim = {"persistentVolumeClaim": {"claimName": kept.persistent_volume_claim.claim_name}}
        mounted.append(pod.mounted_volume("capture-settings", settings, CAPTURE_FOLDER, read_only=True))
        mounted.append(pod.mounted_volume("capture", claim, CAPTURE_CLAIM_PATH))
    return mounted
