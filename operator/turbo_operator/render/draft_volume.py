"""Trained drafts as a serving pod sees them: a claim, and a ConfigMap that names the one in use, so that
another one of the same claim is taken up as the pod runs. Pods on which a new draft is tried have a ConfigMap
of their own. Pure.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from turbo_operator.api import DraftMethod, TurboDeployment
from turbo_operator.plan import Choice
from turbo_operator.planner import OFF
from turbo_operator.render.metadata import configmap
from turbo_operator.snapshot import DraftView

FOLDER, FILE = "/etc/turbo-drafts", "drafts.json"
CLAIM_PATH = "/drafts"
_VOLUME = "drafts"  # of the claim


def usable(draft: DraftView | None, choice: Choice) -> DraftView | None:
    """The draft, where the plan is one that drafts and the engine can draft by its method."""
    drafts = choice.method != OFF
    return draft if drafts and draft is not None and draft.method == DraftMethod.TURBO_HEADS else None


def claim(td: TurboDeployment, draft: DraftView | None, choice: Choice) -> str | None:
    """The claim that pods mount: the draft's, or before the first one that on which drafts are trained, so
    that the first one needs no rollout either.
    """
    if found := usable(draft, choice):
        return found.claim_name
    return _awaited(td) if draft is None and choice.method != OFF else None


def _awaited(td: TurboDeployment) -> str | None:
    """On which drafts are trained, or further ones lie, while there is none of its own."""
    speculation = td.spec.speculation
    training = speculation.training
    return training.pvc.claim_name if training and (training.enabled or speculation.named_drafts) else None


def argument(claim: str | None) -> str | None:
    """What the runtime is told as --drafts."""
    return f"{FOLDER}/{FILE}" if claim else None


def configmap_name(td: TurboDeployment, trial: bool = False) -> str:
    """`NAME-drafts`, or `NAME-drafts-canary`."""
    return f"{td.metadata.name}-drafts{'-canary' if trial else ''}"


def configmaps(
    td: TurboDeployment,
    draft: DraftView | None,
    named: Sequence[tuple[str, DraftView | None]],
    target_digest: str,
    trial: bool = False,
) -> list[dict[str, Any]]:
    """The file of pods that are to use the draft; none where pods mount no claim."""
    claim = draft.claim_name if draft is not None else _awaited(td)
    if claim is None or (draft is not None and draft.method != DraftMethod.TURBO_HEADS):
        return []
    return [configmap(td, configmap_name(td, trial), _file(draft, named, target_digest, claim))]


def after_trial(
    td: TurboDeployment,
    templates: Sequence[Mapping[str, Any]],
    draft: DraftView | None,
    named: Sequence[tuple[str, DraftView | None]],
    target_digest: str,
) -> dict[str, str]:
    """The file of pods that another draft was tried on, for as long as they are there: it names what all use,
    or none where that is not on the claim that these mount.
    """
    volumes = [template["spec"].get("volumes", ()) for template in templates]
    mounted = {
        each["persistentVolumeClaim"]["claimName"]
        for of_pod in volumes
        if any(each.get("configMap", {}).get("name") == configmap_name(td, trial=True) for each in of_pod)
        for each in of_pod
        if each["name"] == _VOLUME
    }
    return _file(draft, named, target_digest, mounted.pop() if len(mounted) == 1 else "")


def _file(
    draft: DraftView | None,
    named: Sequence[tuple[str, DraftView | None]],
    target_digest: str,
    claim: str,
) -> dict[str, str]:
    """It names the draft and further ones, of those that pods which mount the claim can use."""
    selection: dict[str, Any] = {}
    if draft is not None and unusable(draft, target_digest, claim) is None:
        selection |= {"heads": _folder(draft), "version": draft.version}
    further = {
        name: _folder(each)
        for name, each in named
        if each is not None and unusable(each, target_digest, claim) is None
    }
    if further:
        selection["named"] = further
    return {FILE: json.dumps(selection) + "\n"}


def unusable(draft: DraftView, target_digest: str, claim: str) -> str | None:
    """Why pods that mount a claim cannot use a further draft, in a few words."""
    if draft.method != DraftMethod.TURBO_HEADS:
        return f"drafts by {draft.method}, which the engine Turbo cannot yet"
    if draft.target_digest != target_digest:
        return f"was trained for the model {draft.target_digest}"
    return None if draft.claim_name == claim else f"lies on the claim {draft.claim_name}, not on {claim}"


def _folder(draft: DraftView) -> str:
    return f"{_mount(draft.claim_name)}/{draft.path}"


def volumes(td: TurboDeployment, claim: str | None, trial: bool = False) -> list[dict[str, Any]]:
    """The volumes of a serving pod."""
    if claim is None:
        return []
    return [
        {"name": "drafts-in-use", "configMap": {"name": configmap_name(td, trial)}},
        {"name": _VOLUME, "persistentVolumeClaim": {"claimName": claim, "readOnly": True}},
    ]


def mounts(claim: str | None) -> list[dict[str, Any]]:
    """Where its container has them."""
    if claim is None:
        return []
    return [
        {"name": "drafts-in-use", "mountPath": FOLDER, "readOnly": True},
        {"name": _VOLUME, "mountPath": _mount(claim), "readOnly": True},
    ]


def _mount(claim: str) -> str:
    """By the claim's name: a pod that mounts another one does not find the draft, and keeps what it has."""
    return f"{CLAIM_PATH}/{claim}"
