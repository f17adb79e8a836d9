"""The status of a TurboDeployment that recommends a plan for what a Deployment does. Pure."""

from __future__ import annotations

from collections import Counter
from decimal import Decimal

from turbo_operator import api
from turbo_operator.api.condition_state import ConditionState, false, true, unknown
from turbo_operator.autoscaler import History, ScalingDecision
from turbo_operator.budget import cost_of
from turbo_operator.plan import Choice, Plan
from turbo_operator.planner import OFF, money
from turbo_operator.planner.explanation import messages
from turbo_operator.reference import Reference
from turbo_operator.snapshot import Snapshot
from turbo_operator.status import fields
from turbo_operator.status.conditions import Conditions, Outcome
from turbo_operator.status.timestamps import stamp

_NO_PODS = ScalingDecision(0, api.ScalingReason.PLANNED, "It makes no pods.", History())


def describe_reference(
    td: api.TurboDeployment, seen: Reference | None, observed: Snapshot
) -> api.ReferenceStatus | None:
    """Describe the Deployment as it was seen; until it is looked at, as the status has it."""
    ref, old = td.spec.plan_policy.deployment_ref, td.status.reference
    known = old if old is not None and ref is not None and old.name == ref.name else None
    if seen is None or ref is None or seen.name != ref.name:
        return known
    known = known or api.ReferenceStatus(name=seen.name)
    if seen.error is not None:
        return api.ReferenceStatus(name=seen.name)
    if seen.load is not None:
        rate, prompt, output, end = seen.load
        figures = (
            (known.requests_per_second, rate),
            (known.input_tokens, prompt),
            (known.output_tokens, output),
        )
        if any(fields.has_moved(old_figure, figure) for old_figure, figure in figures):
            known = known.model_copy(
                update={
                    "requests_per_second": messages.rate(rate),
                    "input_tokens": max(1, round(prompt)),
                    "output_tokens": max(1, round(output)),
                    "busiest_time": api.rfc3339(end),
                }
            )
    names = Counter(pod.accelerator for pod in seen.placed)
    cost = None if seen.unidentified is not None else cost_of(seen.placed, observed.accelerators)
    return known.model_copy(
        update={
            "replicas": seen.replicas,
            "ready_replicas": seen.ready,
            "accelerator": names.most_common(1)[0][0] if names else None,
            "accelerators": sum(pod.accelerators * pod.nodes for pod in seen.placed),
            "cost_per_hour": fields.shown(cost, money),
        }
    )


def recommend(
    td: api.TurboDeployment,
    seen: Reference | None,
    observed: Snapshot,
    plan: Plan | None,
    plan_hash: str | None,
    undrafted: Plan | None,
    now: float,
    refused: str | None = None,
    *,
    passes: bool = False,
) -> api.TurboDeploymentStatus:
    """Compute the whole status. `td` has the latest `status.reference`; `undrafted` is the plan of the same
    targets without speculation; `refused` says why the Job that inspects was not taken, and `passes` that it
    may be later. `now` is in seconds since the epoch.
    """
    known = Conditions(td, observed, Outcome(_NO_PODS, plan, plan_hash), now, refused, passes)
    feasible, reference = known.feasible, td.status.reference
    if plan is None and observed.model is not None:
        message = "It is planned once its load is known: Ready says why."
        feasible = unknown(api.PlanReason.LOAD_UNKNOWN, message)
    ready, recommended = _blocked(td, seen, known, refused), None
    if ready is None and plan is not None and plan.choice is not None and reference is not None:
        recommended = plan.choice
        message = _describe(reference, plan, recommended, plan_hash, undrafted, seen)
        ready = true(api.ReadyReason.RECOMMENDED, message)
    elif ready is None:
        ready = false(feasible.reason, feasible.message)
    stalled = known.stalled
    if td.spec.suspend:
        reconciling = false(api.ReadyReason.SUSPENDED, ready.message)
    elif stalled.status == "True":
        reconciling = false(stalled.reason, "It is stalled: Stalled says why.")
    elif ready.status == "True":
        reconciling = false(api.ReconcilingReason.UP_TO_DATE, "The plan is for the load as it was seen.")
    else:
        reconciling = true(ready.reason, ready.message)
    states = {
        api.ConditionType.READY: ready,
        api.ConditionType.PLAN_FEASIBLE: feasible,
        api.ConditionType.MODEL_INSPECTED: known.inspected,
        api.ConditionType.RECONCILING: reconciling,
        api.ConditionType.STALLED: stalled,
    }
    return api.TurboDeploymentStatus(
        observed_generation=td.metadata.generation,
        desired_replicas=0,
        model=fields.model(observed),
        pending_plan=fields.pending_plan(plan, plan_hash) if recommended is not None else None,
        reference=reference,
        saving=_saving(reference, recommended, plan),
        conditions=stamp(states, td.status.conditions, td.metadata.generation, now),
    )


def _blocked(
    td: api.TurboDeployment, seen: Reference | None, known: Conditions, refused: str | None
) -> ConditionState | None:
    """Say what is missing before there can be a recommendation; None where nothing is."""
    ref, reference = td.spec.plan_policy.deployment_ref, td.status.reference
    name = ref.name if ref is not None else ""
    if refused:
        return false(api.ReadyReason.APPLY_REJECTED, known.stalled.message)
    if td.spec.suspend:
        return false(
            api.ReadyReason.SUSPENDED, "It rests, as the spec asks: write spec.suspend: false to go on."
        )
    if seen is not None and seen.error is not None:
        return false(api.ReadyReason.DEPLOYMENT_NOT_FOUND, seen.error)
    if known.inspected.status != "True":
        return ConditionState("False", known.inspected.reason, known.inspected.message)
    if td.spec.has_load or (reference is not None and reference.requests_per_second is not None):
        return None
    if seen is not None and not seen.answering:
        port = ref.port if ref is not None else 0
        return false(
            api.ReadyReason.METRICS_MISSING,
            f"No pod of Deployment {name} shows vLLM's metrics at port {port}, and {seen.ready} of "
            f"{seen.replicas} are ready: if it is another port, write spec.planPolicy.deploymentRef.port.",
        )
    return false(
        api.ReadyReason.WAITING_FOR_TRAFFIC,
        f"Deployment {name} has ended too few requests yet to tell its load; or write spec.workload.",
    )


def _saving(
    reference: api.ReferenceStatus | None, choice: Choice | None, plan: Plan | None
) -> api.Saving | None:
    """Return what a recommended plan saves of what the Deployment costs; None where that is not known, or it
    saves nothing.
    """
    if reference is None or choice is None or plan is None or reference.cost_per_hour is None:
        return None
    cost, runs = choice.predicted.cost_per_hour, Decimal(reference.cost_per_hour)
    if cost is None or runs <= cost:
        return None
    fewer = reference.accelerators - plan.replicas * choice.accelerators_per_replica
    return api.Saving(accelerators=fewer, per_hour=money(runs - cost))


def _describe(
    reference: api.ReferenceStatus,
    plan: Plan,
    choice: Choice,
    plan_hash: str | None,
    undrafted: Plan | None,
    seen: Reference | None,
) -> str:
    """Say what is recommended and what it saves, in sentences."""
    count = plan.replicas * choice.accelerators_per_replica
    drafts = "no drafts" if choice.method == OFF else f"drafts {choice.method}"
    cost, runs = choice.predicted.cost_per_hour, reference.cost_per_hour
    message = f"Plan {plan_hash}: {count} x {choice.accelerator.name}, engine {choice.engine}, {drafts}"
    message += "." if cost is None else f", {money(cost)} $/h."
    if seen is not None and seen.unidentified is not None:
        message += (
            f" What Deployment {reference.name} costs is not known: node {seen.unidentified} of its pods "
            "is of no TurboAccelerator."
        )
    elif runs is None:
        message += f" What Deployment {reference.name} costs is not known: its TurboAccelerator has no price."
    elif cost is not None:
        held = f"{reference.accelerators} x {reference.accelerator}" if reference.accelerator else "no pod"
        saved = Decimal(runs) - cost
        verdict = f"saves {money(saved)} $/h" if saved > 0 else "saves nothing"
        message += f" It {verdict}: Deployment {reference.name} has {held} for {runs} $/h."
    without = undrafted.choice if undrafted is not None else None
    if without is not None and without.predicted.cost_per_hour is not None:
        message += (
            f" Without speculation the same load would take {money(without.predicted.cost_per_hour)} $/h."
        )
    return message
