"""Applies the TurboDraft of a training that is done."""

from __future__ import annotations

import logging

from turbo_operator.api import TURBODRAFT, TurboDeployment
from turbo_operator.controller.kube import Kube, RefusedError
from turbo_operator.drafts.training import FinishedDraft
from turbo_operator.drafts.training.manifests import turbo_draft
from turbo_operator.resources import TURBODRAFT as DRAFTS

log = logging.getLogger(__name__)


async def publish(api: Kube, td: TurboDeployment, made: FinishedDraft) -> None:
    """Make it known; RefusedError where the API server refuses it, or somebody else's bears its name."""
    training = td.spec.speculation.training
    if training is None:
        return
    wanted = turbo_draft(td, training, made)
    namespace, name = td.metadata.namespace, wanted["metadata"]["name"]
    there = await api.find(DRAFTS, namespace, name)
    if there is not None and there["spec"].get("deployment") != td.metadata.name:
        raise RefusedError(
            409,
            "AlreadyExists",
            f"{TURBODRAFT} {name} is there already and is no candidate of this TurboDeployment: delete it, "
            f"or write spec.deployment: {td.metadata.name} in it.",
        )
    await api.apply(DRAFTS, wanted)
    log.info("trained", extra={"object": f"{namespace}/{td.metadata.name}", "draft": name})
