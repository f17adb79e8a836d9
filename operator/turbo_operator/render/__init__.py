"""From an object, its plan and the settings to every child that shall exist. Pure: no client, no clock.

The same input gives the same manifests, byte for byte, each sealed with the hash of itself. What is not among
them shall not exist.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from turbo_operator.api import TurboDeployment
from turbo_operator.observed import Observed
from turbo_operator.planned import Choice
from turbo_operator.render.deployment import deployment, revision
from turbo_operator.render.inspection import (
    FACTS_KEY,
    SOURCE_KEY,
    configmap,
    configmap_name,
    facts_data,
    inspect_job,
    job_name,
)
from turbo_operator.render.pdb import pdb
from turbo_operator.render.service import service, url
from turbo_operator.render.source import source_hash
from turbo_operator.render.template import plan_hash, pod_template
from turbo_operator.rollout import Variant
from turbo_operator.settings import Settings
from turbo_runtime.contract import ModelFacts

__all__ = [
    "FACTS_KEY",
    "SOURCE_KEY",
    "children",
    "configmap_name",
    "facts_data",
    "job_name",
    "plan_hash",
    "source_hash",
    "url",
]


def children(
    td: TurboDeployment,
    observed: Observed,
    choice: Choice | None,
    variants: Sequence[Variant],
    settings: Settings,
) -> tuple[dict[str, Any], ...]:
    """All children wanted now, in the order in which they are to be applied.

    `choice` is the feasible plan's, and None while there is none; `variants` come from the rollout. A
    ControllerRevision stands before its Deployment: whatever is interrupted between the two goes on from the
    frozen template. The inspect Job exists only until its answer is kept in the ConfigMap.
    """
    wanted: list[dict[str, Any]] = [service(td), pdb(td)]
    if observed.model is None:
        wanted.append(inspect_job(td, settings))
    else:
        wanted.append(configmap(td, observed.model))
    frozen = _frozen_templates(observed)
    for variant in variants:
        template = frozen.get(variant.plan_hash)
        if template is None and choice is not None and observed.model is not None:
            template = _fresh_template(td, choice, observed.model, variant.plan_hash, settings)
        if template is not None:  # an old variant whose revision somebody deleted cannot be kept
            wanted.append(revision(td, variant.plan_hash, template))
            wanted.append(deployment(td, variant, template))
    return tuple(wanted)


def _fresh_template(
    td: TurboDeployment, choice: Choice, facts: ModelFacts, variant: str, settings: Settings
) -> dict[str, Any] | None:
    """The template of `variant` if it is the one that `choice` asks for."""
    wanted = plan_hash(td, choice, facts)
    return pod_template(td, choice, facts, variant, settings) if variant == wanted else None


def _frozen_templates(observed: Observed) -> dict[str, Mapping[str, Any]]:
    """Pod templates by plan hash, as they were rendered when their variants were made."""
    return {
        child.plan_hash: child.data
        for child in observed.children
        if child.kind == "ControllerRevision" and child.plan_hash and child.data is not None
    }
