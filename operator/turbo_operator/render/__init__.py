"""From an object, its plan and the settings to every child that shall exist. Pure: no client, no clock.

The same input gives the same manifests, byte for byte, each sealed with the hash of itself. What is not among
them shall not exist.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from turbo_operator.api import TurboDeployment
from turbo_operator.plan import Choice
from turbo_operator.render import draft_volume, metadata
from turbo_operator.render import template as pod_templates
from turbo_operator.render.pod import source_hash
from turbo_operator.render.template import plan_hash, pod_template
from turbo_operator.render.workload import (
    FACTS_KEY,
    SOURCE_KEY,
    deployment,
    facts_data,
    inspect_job,
    job_name,
    model_configmap,
    model_configmap_name,
    pdb,
    revision,
    service,
    url,
    variant_name,
)
from turbo_operator.rollout import Variant
from turbo_operator.settings import Settings
from turbo_operator.snapshot import DraftView, Snapshot

__all__ = [
    "FACTS_KEY",
    "SOURCE_KEY",
    "children",
    "facts_data",
    "job_name",
    "model_configmap_name",
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
    """Build all children wanted now, in the order in which they are to be applied.

    `choice` is the feasible plan's, and None while there is none; `variants` come from the rollout. A
    ControllerRevision stands before its Deployment: whatever is interrupted between the two goes on from the
    frozen template. The inspect Job exists only until its answer is kept in the ConfigMap. `trying` is a
    draft that a variant of its own is for.
    """
    model = observed.model
    drafts = [(observed.draft, False), *([(trying, True)] if trying is not None else [])]
    selector = metadata.traffic_selector(td, observed.children)
    wanted = [service(td, selector), pdb(td, selector)]
    wanted.append(inspect_job(td, settings) if model is None else model_configmap(td, model))
    wanted += pod_templates.capture_configmaps(td)
    if model is not None:
        for draft, trial in drafts:
            wanted += draft_volume.configmaps(td, draft, observed.named, model.digest, trial)
    # Pod templates by plan hash, as they were rendered when their variants were made.
    frozen = {
        child.plan_hash: child.data
        for child in observed.children
        if child.kind == "ControllerRevision" and child.plan_hash and child.data is not None
    }
    templates = [frozen[variant.plan_hash] for variant in variants if variant.plan_hash in frozen]
    wanted += _mounted_configmaps(td, observed, wanted, templates)
    for variant in variants:
        template: Mapping[str, Any] | None = frozen.get(variant.plan_hash)
        if template is None and choice is not None and model is not None:
            for draft, trial in drafts:  # the plan that `choice` leads to, or the one of the trial
                if variant.plan_hash == plan_hash(td, choice, model, draft, trial=trial):
                    template = pod_template(
                        td, choice, model, variant.plan_hash, settings, draft, trial=trial
                    )
                    break
        if template is not None:  # an old variant whose revision somebody deleted cannot be kept
            wanted += [revision(td, variant.plan_hash, template), deployment(td, variant, template)]
    return tuple(wanted)


def _mounted_configmaps(
    td: TurboDeployment,
    observed: Snapshot,
    wanted: Sequence[Mapping[str, Any]],
    templates: Sequence[Mapping[str, Any]],
) -> list[dict[str, Any]]:
    """Build unwanted ConfigMaps that pods of variants in force mount: else none of them could start."""
    names = {
        volume["configMap"]["name"]
        for template in templates
        for volume in template["spec"].get("volumes", ())
        if "configMap" in volume
    } - {manifest["metadata"]["name"] for manifest in wanted if manifest["kind"] == "ConfigMap"}
    digest = observed.model.digest if observed.model is not None else ""
    configmaps = []
    for child in observed.children:
        if child.kind == "ConfigMap" and child.name in names:
            data = child.data or {}
            if child.name == pod_templates.capture_configmap_name(td):
                data = pod_templates.stopped_capture(data)
            elif child.name == draft_volume.configmap_name(td, trial=True):
                data = draft_volume.after_trial(td, templates, observed.draft, observed.named, digest)
            configmaps.append(metadata.configmap(td, child.name, data))
    return configmaps


def names_of_trial(td: TurboDeployment, variant: str) -> frozenset[str]:
    """Return the names of the children that exist only for the variant that a draft is tried on."""
    return frozenset({variant_name(td, variant), draft_volume.configmap_name(td, trial=True)})
