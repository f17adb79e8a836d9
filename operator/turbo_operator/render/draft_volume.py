"""Trained drafts as a serving pod sees them: a claim, and a ConfigMap that names the one in use, so that
another one of the same claim is taken up as the pod runs. Pods on which a new draft is tried have a ConfigMap
of their own. Pods of vLLM mount the claim alone: their arguments name the draft. Pure.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from turbo_operator.api import EngineName, Method, TurboDeployment
from turbo_operator.plan import Choice
from turbo_operator.planner import OFF
from turbo_operator.render.metadata import configmap
from turbo_operator.render.pod import MountedVolume, mounted_volume
from turbo_operator.snapshot import DraftView, Snapshot

FOLDER, FILE = "/etc/turbo-drafts", "drafts.json"
CLAIM_PATH = "/drafts"
_VOLUME = "drafts"  # of the claim
_KEYS: Mapping[str, str] = {Method.TURBO_HEADS: "heads", Method.EAGLE3: "eagle3"}  # of the file, by method


def claim(td: TurboDeployment, draft: DraftView | None, choice: Choice | None = None) -> str | None:
    """Return the claim that pods of a plan mount: that of a draft which the engine can use, or before the
    first one that on which drafts are trained, so that the first one needs no rollout either.
    """
    if choice is not None and choice.engine == EngineName.VLLM:
        trained = loaded_by_vllm(td, draft, choice)
        return None if trained is None else trained.claim_name
    if td.spec.is_on_vllm or (choice is not None and choice.method == OFF):
        return None
    if draft is not None:
        return draft.claim_name if draft.method == td.spec.draft_method else None
    speculation = td.spec.speculation
    training = speculation.training
    awaited = training is not None and (not training.suspend or speculation.named_drafts)
    return training.persistent_volume_claim.claim_name if training and awaited else None


def loaded_by_vllm(td: TurboDeployment, draft: DraftView | None, choice: Choice) -> DraftView | None:
    """Return the draft, where pods of the plan load it as they start."""
    is_trained = choice.method == Method.EAGLE3 and td.spec.speculation.draft_model is None
    return draft if is_trained and choice.engine == EngineName.VLLM else None


def folder_of(draft: DraftView) -> str:
    """Return the draft's folder in pods that mount its claim."""
    return f"{claim_path(draft.claim_name)}/{draft.path}"


def configmap_name(td: TurboDeployment, canary: bool = False) -> str:
    """`NAME-drafts`, or `NAME-drafts-canary`."""
    return f"{td.metadata.name}-drafts{'-canary' if canary else ''}"


def configmaps(
    td: TurboDeployment, observed: Snapshot, draft: DraftView | None, canary: bool = False
) -> list[dict[str, Any]]:
    """Build the file of pods that are to use the draft; none where pods mount no claim."""
    mounted = claim(td, draft)
    if mounted is None:
        return []
    return [configmap(td, configmap_name(td, canary), _file(observed, draft, mounted))]


def after_canary(
    td: TurboDeployment, observed: Snapshot, templates: Sequence[Mapping[str, Any]]
) -> dict[str, str]:
    """Return the file of pods that another draft was tried on, for as long as they are there: it names what
    all use, or none where that is not on the claim that these mount.
    """
    name = configmap_name(td, canary=True)
    mounted = {
        mount["mountPath"].removeprefix(f"{CLAIM_PATH}/")
        for spec in (template["spec"] for template in templates)
        if any(volume.get("configMap", {}).get("name") == name for volume in spec.get("volumes", ()))
        for mount in spec["containers"][0]["volumeMounts"]
        if mount["mountPath"].startswith(f"{CLAIM_PATH}/")
    }
    return _file(observed, observed.draft, mounted.pop() if len(mounted) == 1 else "")


def _file(observed: Snapshot, draft: DraftView | None, claim: str) -> dict[str, str]:
    """Name the draft and further ones, of those that pods which mount the claim can use."""
    digest = observed.model.digest if observed.model is not None else ""

    def folder(view: DraftView | None) -> str | None:
        usable = view is not None and unusable(view, digest, claim) is None
        return folder_of(view) if view is not None and usable else None

    selection: dict[str, Any] = {}
    if draft is not None and (own := folder(draft)):
        selection |= {_KEYS[draft.method]: own, "version": draft.version}
    if further := {name: path for name, view in observed.named if (path := folder(view))}:
        selection["named"] = further
    return {FILE: json.dumps(selection) + "\n"}


def unusable(draft: DraftView, target_digest: str, claim: str) -> str | None:
    """Say in a few words why pods that mount a claim cannot use a further draft."""
    if draft.target_digest != target_digest:
        return f"was trained for the model {draft.target_digest}"
    return None if draft.claim_name == claim else f"lies on the claim {draft.claim_name}, not on {claim}"


def volumes(
    td: TurboDeployment, claim: str | None, engine: EngineName, canary: bool = False
) -> list[MountedVolume]:
    """Build the volumes of a serving pod. To vLLM its arguments name the draft."""
    if claim is None:
        return []
    settings = {"configMap": {"name": configmap_name(td, canary)}}
    drafts = {"persistentVolumeClaim": {"claimName": claim, "readOnly": True}}
    volume = mounted_volume(_VOLUME, drafts, claim_path(claim), read_only=True)
    if engine == EngineName.VLLM:
        return [volume]
    return [mounted_volume("drafts-in-use", settings, FOLDER, read_only=True), volume]


def claim_path(claim: str) -> str:
    """Return where a claim is mounted: by name, so that pods that mount another keep what they have."""
    return f"{CLAIM_PATH}/{claim}"
