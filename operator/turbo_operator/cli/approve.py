"""`turbo approve NAME`: let the plan take effect that waits for it."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from typing import Any

from turbo_operator import resources
from turbo_operator.api import ANNOTATION_APPROVED_PLAN
from turbo_operator.cli.manifests import BadInputError
from turbo_operator.controller import kube

FIELD_MANAGER = "turbo-approve"


def pending_plan(body: Mapping[str, Any]) -> Mapping[str, Any] | None:
    """Return the plan that waits, None where none does. Raises BadInputError where none is to be approved."""
    meta, spec, status = body["metadata"], body["spec"], body.get("status") or {}
    policy = (spec.get("planPolicy") or {}).get("apply", "Auto")
    if policy != "Manual":
        raise BadInputError(
            f"spec.planPolicy.apply of {meta['name']} is {policy}: its plans take effect by themselves."
        )
    if status.get("observedGeneration") != meta.get("generation"):
        raise BadInputError(f"{meta['name']} is not planned as it is now yet: try again in a moment.")
    pending: Mapping[str, Any] | None = status.get("pendingPlan")
    return pending


def describe(plan: Mapping[str, Any]) -> str:
    """Say in a line what a plan is."""
    predicted = plan.get("predicted") or {}
    parts = [
        f"{plan.get('replicas')} x {plan.get('acceleratorsPerReplica')} {plan.get('accelerator')}",
        str(plan.get("engine")),
        f"drafts {plan.get('method')}",
    ]
    parts += [f"{predicted['costPerHour']} $/h"] if "costPerHour" in predicted else []
    return f"plan {plan['hash']}: {', '.join(parts)}"


def approve(context: str | None, namespace: str | None, name: str, plan_hash: str | None) -> None:
    """Approve, and say what. Raises BadInputError."""
    try:
        print(asyncio.run(_approve(context, namespace, name, plan_hash)))
    except kube.KubeError as error:
        raise BadInputError(f"{error.message.rstrip('.')}.") from error


async def _approve(context: str | None, namespace: str | None, name: str, plan_hash: str | None) -> str:
    async with kube.connect(context) as server:
        if not await server.serves(resources.TURBODEPLOYMENT):
            raise BadInputError("the cluster does not know TurboDeployment: install the chart first.")
        place = namespace or server.namespace
        body = await server.find(resources.TURBODEPLOYMENT, place, name)
        if body is None:
            raise BadInputError(f"there is no TurboDeployment {name} in namespace {place}.")
        pending = pending_plan(body)
        if pending is None:
            serving = (body["status"].get("servingPlan") or {}).get("hash")
            return "Nothing waits for approval" + (f": plan {serving} serves." if serving else ".")
        if plan_hash not in (None, pending["hash"]):
            raise BadInputError(f"{describe(pending)} waits, and not {plan_hash}.")
        # With the version that was read: what came since was not seen.
        version = body["metadata"]["resourceVersion"]
        annotations = {ANNOTATION_APPROVED_PLAN: pending["hash"]}
        patch = {"metadata": {"resourceVersion": version, "annotations": annotations}}
        await server.merge(resources.TURBODEPLOYMENT, place, name, patch, FIELD_MANAGER)
        return f"Approved {describe(pending)}."
