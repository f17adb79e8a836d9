"""Keeping prompts, as a serving pod sees it: the claim, and a ConfigMap whose changes reach it as it runs.
Pure.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from turbo_operator.api import Capture, TurboDeployment
from turbo_operator.render.metadata import configmap

FOLDER, FILE = "/etc/turbo-capture", "capture.json"
CLAIM_PATH = "/capture"


def wanted(td: TurboDeployment) -> Capture | None:
    """None where nothing is to be kept."""
    capture = td.spec.capture
    return capture if capture and capture.enabled else None


def argument(td: TurboDeployment) -> str | None:
    """What the runtime is told as --capture."""
    return f"{FOLDER}/{FILE}" if wanted(td) else None


def configmap_name(td: TurboDeployment) -> str:
    """`NAME-capture`."""
    return f"{td.metadata.name}-capture"


def configmaps(td: TurboDeployment) -> list[dict[str, Any]]:
    """The settings; none where nothing is to be kept."""
    capture = wanted(td)
    if capture is None:
        return []
    settings = {
        "folder": f"{CLAIM_PATH}/{td.metadata.name}",
        "sampleFraction": float(capture.sample_fraction),
        "maxMib": capture.max_mib,
        "maxAgeHours": capture.max_age_hours,
        "redact": list(capture.redact or ()),
    }
    text = json.dumps(settings, indent=2, sort_keys=True) + "\n"
    return [configmap(td, configmap_name(td), {FILE: text})]


def stopped(data: Mapping[str, str]) -> dict[str, str]:
    """The same settings, by which nothing more is kept: of pods that go, while they are there."""
    try:
        settings = json.loads(data.get(FILE, "{}"))
    except ValueError:  # edited by hand: the runtime holds to what it read before
        return dict(data)
    return {FILE: json.dumps({**settings, "sampleFraction": 0.0}, indent=2, sort_keys=True) + "\n"}


def volumes(td: TurboDeployment) -> list[dict[str, Any]]:
    """The volumes of a serving pod."""
    capture = wanted(td)
    if capture is None:
        return []
    return [
        {"name": "capture-settings", "configMap": {"name": configmap_name(td)}},
        {"name": "capture", "persistentVolumeClaim": {"claimName": capture.pvc.claim_name}},
    ]


def mounts(td: TurboDeployment) -> list[dict[str, Any]]:
    """Where its container has them."""
    if wanted(td) is None:
        return []
    return [
        {"name": "capture-settings", "mountPath": FOLDER, "readOnly": True},
        {"name": "capture", "mountPath": CLAIM_PATH},
    ]
