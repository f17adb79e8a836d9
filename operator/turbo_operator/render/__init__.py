"""From an object, its plan and the settings to every child that shall exist. Pure: no client, no clock.

The same input gives the same manifests, byte for byte, each sealed with the hash of itself. What is not among
them shall not exist.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from turbo_operator.api import TurboDeployment
from turbo_operator.plan import Choice
from turbo_operator.render import capture, draft_volume
from turbo_operator.render.deployment import deployment, revision
from turbo_operator.render.deployment import name as variant_name
from turbo_operator.render.inspect_job import (
    FACTS_KEY,
    SOURCE_KEY,
    configmap,
    configmap_name,
    facts_data,
    inspect_job,
    job_name,
)
from turbo_operator.render.metadata import configmap as configmap_of
from turbo_operator.render.metadata import traffic_selector
from turbo_operator.render.pdb import pdb
from turbo_operator.render.service import service, url
from turbo_operator.render.source import source_hash
from turbo_operator.render.template import plan_hash, pod_template
from turbo_operator.rollout import Variant
from turbo_operator.settings import Settings
from turbo_operator.snapshot import DraftView, Snapshot

__all__ = [
    "FACTS_KEY",
    "SOURCE_KEY",
    "children",
    "configmap_name",
    "facts_data",
    "job_name",
    "names_of_trial",
    "plan_hash",
    "revision",
    "source_hash",
    "url",
    "variant_name",
]


def children(
    td: TurboDeployment,
    observed: Snapshot,
    choice: Choice | None,
    variants: Sequence[Variant],
    settings: Settings,
    trying: DraftView | None = None,
) -> tuple[dict[str, Any], ...]:
    """All children wanted now, in the order in which they are to be applied.

    `choice` is the feasible plan's, and None while there is none; `variants` come from the rollout. A
    ControllerRevision stands before its Deployment: whatever is interrupted between the two goes on from the
    frozen template. The inspect Job exists only until its answer is kept in the ConfigMap. `trying` is a
    draft that a variant of its own is for.
    """
    selector = traffic_selector(td, observed.children)
    wanted: list[dict[str, Any]] = [service(td, selector), pdb(td, selector)]
    if observed.model is None:
        wanted.append(inspect_job(td, settings))
    else:
        wanted.append(configmap(td, observed.model))
    wanted += capture.configmaps(td)
    if observed.model is not None:
        wanted += draft_volume.configmaps(td, observed.draft, observed.named, observed.model.digest)
        if trying is not None:
            wanted += draft_volume.configmaps(td, trying, observed.named, observed.model.digest, trial=True)
    frozen = _frozen_templates(observed)
    wanted += _mounted_yet(
        td, observed, wanted, [frozen[v.plan_hash] for v in variants if v.plan_hash in frozen]
    )
    for variant in variants:
        template = frozen.get(variant.plan_hash)
        if template is None and choice is not None:
            template = _fresh_template(td, choice, observed, variant.plan_hash, settings, trying)
        if template is not None:  # an old variant whose revision somebody deleted cannot be kept
            wanted.append(revision(td, variant.plan_hash, template))
            wanted.append(deployment(td, variant, template))
    return tuple(wanted)


def _mounted_yet(
    td: TurboDeployment,
    observed: Snapshot,
    wanted: Sequence[Mapping[str, Any]],
    templates: Sequence[Mapping[str, Any]],
) -> list[dict[str, Any]]:
    """ConfigMaps that are not wanted any more and that pods of variants in force mount: without them no pod
    of such a variant could start again.
    """
    there = {each["metadata"]["name"] for each in wanted if each["kind"] == "ConfigMap"}
    digest = observed.model.digest if observed.model is not None else ""
    mounted = {
        volume["configMap"]["name"]
        for template in templates
        for volume in template["spec"].get("volumes", ())
        if "configMap" in volume
    }
    kept = []
    for child in observed.children:
        if child.kind == "ConfigMap" and child.name in mounted - there:
            data = child.data or {}
            if child.name == capture.configmap_name(td):
                data = capture.stopped(data)
            elif child.name == draft_volume.configmap_name(td, trial=True):
                data = draft_volume.after_trial(td, templates, observed.draft, observed.named, digest)
            kept.append(configmap_of(td, child.name, data))
    return kept


def names_of_trial(td: TurboDeployment, variant: str) -> frozenset[str]:
    """Of the children that are there for nothing but the variant that a draft is tried on."""
    return frozenset({variant_name(td, variant), draft_volume.configmap_name(td, trial=True)})


def _fresh_template(
    td: TurboDeployment,
    choice: Choice,
    observed: Snapshot,
    variant: str,
    settings: Settings,
    trying: DraftView | None,
) -> dict[str, Any] | None:
    """The template of `variant` if it is the one that `choice` asks for, or the one of the trial."""
    facts = observed.model
    if facts is None:
        return None
    if variant == plan_hash(td, choice, facts, observed.draft):
        return pod_template(td, choice, facts, variant, settings, observed.draft)
    if trying is not None and variant == plan_hash(td, choice, facts, trying, trial=True):
        return pod_template(td, choice, facts, variant, settings, trying, trial=True)
    return None


def _frozen_templates(observed: Snapshot) -> dict[str, Mapping[str, Any]]:
    """Pod templates by plan hash, as they were rendered when their variants were made."""
    return {
        child.plan_hash: child.data
        for child in observed.children
        if child.kind == "ControllerRevision" and child.plan_hash and child.data is not None
    }
