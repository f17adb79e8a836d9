"""Trained drafts as a serving pod sees them: a claim, and a ConfigMap that names the one in use, so that
another one of the same claim is taken up as the pod runs. Pure.
"""

from __future__ import annotations

import json
from typing import Any

from turbo_operator.api import DraftMethod, TurboDeployment
from turbo_operator.observed import DraftView
from turbo_operator.planned import Choice
from turbo_operator.planner import OFF
from turbo_operator.render.identity import configmap

FOLDER, FILE = "/etc/turbo-drafts", "drafts.json"
CLAIM_PATH = "/drafts"


def usable(draft: DraftView | None, choice: Choice) -> DraftView | None:
    """The draft, where the plan is one that drafts and the engine can draft by its method."""
    drafts = choice.method != OFF
    return draft if drafts and draft is not None and draft.method == DraftMethod.TURBO_HEADS else None


def argument(draft: DraftView | None) -> str | None:
    """What the runtime is told as --drafts."""
    return f"{FOLDER}/{FILE}" if draft else None


def configmap_name(td: TurboDeployment) -> str:
    """`NAME-drafts`."""
    return f"{td.metadata.name}-drafts"


def configmaps(td: TurboDeployment, draft: DraftView | None, target_digest: str) -> list[dict[str, Any]]:
    """The file that names the draft, or none if it was trained for another model; no file without a draft."""
    if draft is None or draft.method != DraftMethod.TURBO_HEADS:
        return []
    fits = draft.target_digest == target_digest
    folder = f"{_mount(draft)}/{draft.path}"
    return [configmap(td, configmap_name(td), {FILE: json.dumps({"heads": folder} if fits else {}) + "\n"})]


def volumes(td: TurboDeployment, draft: DraftView | None) -> list[dict[str, Any]]:
    """The volumes of a serving pod."""
    if draft is None:
        return []
    claim = {"claimName": draft.claim_name, "readOnly": True}
    return [
        {"name": "drafts-in-use", "configMap": {"name": configmap_name(td)}},
        {"name": "drafts", "persistentVolumeClaim": claim},
    ]


def mounts(draft: DraftView | None) -> list[dict[str, Any]]:
    """Where its container has them."""
    if draft is None:
        return []
    return [
        {"name": "drafts-in-use", "mountPath": FOLDER, "readOnly": True},
        {"name": "drafts", "mountPath": _mount(draft), "readOnly": True},
    ]


def _mount(draft: DraftView) -> str:
    """By its claim's name: a pod that mounts another one does not find the draft, and keeps what it has."""
    return f"{CLAIM_PATH}/{draft.claim_name}"
