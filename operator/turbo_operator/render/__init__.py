"""From an object, its plan and the settings to every child that shall exist. Pure: no client, no clock.

The same input gives the same manifests, byte for byte, each sealed with the hash of itself. What is not among
them shall not exist.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from turbo_operator.api import TurboDeployment
from turbo_operator.plan import Choice
from turbo_operator.render import draft_volume, metadata, server_volumes
from turbo_operator.render.inspect_job import (
    FACTS_KEY,
    SOURCE_KEY,
    configmap,
    configmap_name,
    facts_data,
    inspect_job,
    job_name,
)
from turbo_operator.render.source import source_hash
from turbo_operator.render.template import plan_hash, pod_template
from turbo_operator.render.workload import deployment, pdb, revision, service, url, variant_name
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
    """Build all children wanted now, in the order in which they are to be applied.

    `choice` is the feasible plan's, and None while there is none; `variants` come from the rollout. A
    ControllerRevision stands before its Deployment: whatever is interrupted between the two goes on from the
    frozen template. The inspect Job exists only until its answer is kept in the ConfigMap. `trying` is a
    draft that a variant of its own is for.
    """
    model = observed.model
    selector = metadata.traffic_selector(td, observed.children)
    wanted = [service(td, selector), pdb(td, selector)]
    wanted.append(inspect_job(td, settings) if model is None else configmap(td, model))
    wanted += server_volumes.capture_configmaps(td)
    if model is not None:
        wanted += draft_volume.configmaps(td, observed.draft, observed.named, model.digest)
        if trying is not None:
            wanted += draft_volume.configmaps(td, trying, observed.named, model.digest, trial=True)
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
        if template is None and choice is not None:
            template = _fresh_template(td, choice, observed, variant.plan_hash, settings, trying)
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
            if child.name == server_volumes.capture_configmap_name(td):
                data = server_volumes.stopped_capture(data)
            elif child.name == draft_volume.configmap_name(td, trial=True):
                data = draft_volume.after_trial(td, templates, observed.draft, observed.named, digest)
            configmaps.append(metadata.configmap(td, child.name, data))
    return configmaps


def names_of_trial(td: TurboDeployment, variant: str) -> frozenset[str]:
    """Return the names of the children that exist only for the variant that a draft is tried on."""
    return frozenset({variant_name(td, variant), draft_volume.configmap_name(td, trial=True)})


def _fresh_template(
    td: TurboDeployment,
    choice: Choice,
    observed: Snapshot,
    variant: str,
    settings: Settings,
    trying: DraftView | None,
) -> dict[str, Any] | None:
    """Build the template of `variant` if it is the one that `choice` leads to, or the one of the trial."""
    facts = observed.model
    if facts is None:
        return None
    for draft, trial in ((observed.draft, False), *([(trying, True)] if trying is not None else [])):
        if variant == plan_hash(td, choice, facts, draft, trial=trial):
            return pod_template(td, choice, facts, variant, settings, draft, trial=trial)
    return None
