"""The Deployment of one variant, and the ControllerRevision that freezes its pod template. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from turbo_operator.api import LABEL_PLAN_HASH, ROLE_SERVING, TurboDeployment
from turbo_operator.render.metadata import labels, metadata, sealed, serving_selector
from turbo_operator.rollout import Variant

PROGRESS_SECONDS = 3600  # as long as a start may take
KEPT_REPLICA_SETS = 0  # a variant's template never changes, so there is nothing to go back to


def deployment(td: TurboDeployment, variant: Variant, template: Mapping[str, Any]) -> dict[str, Any]:
    """`NAME-HASH`: the pods of one plan."""
    own = labels(td, ROLE_SERVING, **{LABEL_PLAN_HASH: variant.plan_hash})
    return sealed(
        {
            "apiVersion": "apps/v1",
            "kind": "Deployment",
            "metadata": metadata(td, name(td, variant.plan_hash), own),
            "spec": {
                "replicas": variant.replicas,
                "selector": {"matchLabels": {**serving_selector(td), LABEL_PLAN_HASH: variant.plan_hash}},
                "template": template,
                "minReadySeconds": td.spec.rollout.min_ready_seconds,
                "progressDeadlineSeconds": PROGRESS_SECONDS + td.spec.rollout.min_ready_seconds,
                "revisionHistoryLimit": KEPT_REPLICA_SETS,
            },
        }
    )


def revision(td: TurboDeployment, plan_hash: str, template: Mapping[str, Any]) -> dict[str, Any]:
    """`NAME-HASH`: the variant's pod template, as it was rendered when the variant was made."""
    own = labels(td, ROLE_SERVING, **{LABEL_PLAN_HASH: plan_hash})
    return sealed(
        {
            "apiVersion": "apps/v1",
            "kind": "ControllerRevision",
            "metadata": metadata(td, name(td, plan_hash), own),
            "revision": 1,
            "data": template,
        }
    )


def name(td: TurboDeployment, plan_hash: str) -> str:
    """Name of a variant's Deployment and ControllerRevision."""
    return f"{td.metadata.name}-{plan_hash}"
