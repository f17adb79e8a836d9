"""API keys and kept prompts as a serving pod sees them: mounted as whole folders, whose changes reach it as
it runs; the kubelet never renews a file that is mounted alone. Pure.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from turbo_operator.api import ApiKeysSecretRef, Capture, TurboDeployment, quantity
from turbo_operator.render.metadata import configmap
from turbo_operator.render.source import MountedVolume, mounted_volume

KEYS_FOLDER = "/etc/turbo"
KEYS_FILE = "api-keys"  # whatever the Secret calls it: a path of one's own needs no care about names
CAPTURE_FOLDER, CAPTURE_FILE = "/etc/turbo-capture", "capture.json"
CAPTURE_CLAIM_PATH = "/capture"
MIB = 1 << 20


def api_keys(td: TurboDeployment) -> ApiKeysSecretRef | None:
    """Return where the API keys are; None where none are required."""
    return td.spec.server.api_keys_secret_ref if td.spec.server else None


def api_keys_argument(td: TurboDeployment) -> str | None:
    """Return what the runtime gets as --api-key-file."""
    return f"{KEYS_FOLDER}/{KEYS_FILE}" if api_keys(td) else None


def capture(td: TurboDeployment) -> Capture | None:
    """Return how prompts are kept; None where they are not."""
    return td.spec.capture if td.spec.capture and not td.spec.capture.suspend else None


def capture_argument(td: TurboDeployment) -> str | None:
    """Return what the runtime gets as --capture."""
    return f"{CAPTURE_FOLDER}/{CAPTURE_FILE}" if capture(td) else None


def capture_configmap_name(td: TurboDeployment) -> str:
    """`NAME-capture`."""
    return f"{td.metadata.name}-capture"


def capture_configmaps(td: TurboDeployment) -> list[dict[str, Any]]:
    """Build the settings of the capture; none where nothing is to be kept."""
    kept = capture(td)
    if kept is None:
        return []
    settings = {
        "folder": f"{CAPTURE_CLAIM_PATH}/{td.metadata.name}",
        "sampleFraction": float(kept.sample_fraction),
        "maxMib": max(1, int(quantity(kept.max_size) // MIB)),
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


def server_volumes(td: TurboDeployment) -> list[MountedVolume]:
    """Build the volumes of a serving pod."""
    volumes = []
    if keys := api_keys(td):
        secret = {"secretName": keys.name, "items": [{"key": keys.key, "path": KEYS_FILE}]}
        volumes.append(mounted_volume("api-keys", {"secret": secret}, KEYS_FOLDER, read_only=True))
    if kept := capture(td):
        settings = {"configMap": {"name": capture_configmap_name(td)}}
        claim = {"persistentVolumeClaim": {"claimName": kept.persistent_volume_claim.claim_name}}
        volumes.append(mounted_volume("capture-settings", settings, CAPTURE_FOLDER, read_only=True))
        volumes.append(mounted_volume("capture", claim, CAPTURE_CLAIM_PATH))
    return volumes
