"""The PodDisruptionBudget over the pods of all variants. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from turbo_operator.api import ROLE_SERVING, TurboDeployment
from turbo_operator.render.metadata import labels, metadata, sealed


def pdb(td: TurboDeployment, selector: Mapping[str, str]) -> dict[str, Any]:
    """`NAME`: one pod at a time leaves for a node's sake; one that does not serve holds up no drain."""
    return sealed(
        {
            "apiVersion": "policy/v1",
            "kind": "PodDisruptionBudget",
            "metadata": metadata(td, td.metadata.name, labels(td, ROLE_SERVING)),
            "spec": {
                "maxUnavailable": 1,
                "selector": {"matchLabels": dict(selector)},
                "unhealthyPodEvictionPolicy": "AlwaysAllow",
            },
        }
    )
