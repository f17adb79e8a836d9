"""Conditions on drafts: whether pods use theirs, what became of a new one, and whether they pay. Pure."""

from __future__ import annotations

from collections.abc import Sequence

from turbo_operator import api
from turbo_operator.api import ConditionType, DraftReason, TurboDeployment
from turbo_operator.api.condition_state import ConditionState, false, sentence, true, unknown
from turbo_operator.drafts.canary import CanaryVerdict
from turbo_operator.plan import Plan
from turbo_operator.render.draft_volume import unusable
from turbo_operator.snapshot import PodView, Snapshot


def states(
    td: TurboDeployment,
    observed: Snapshot,
    plan: Plan | None,
    plan_hash: str | None,
    verdict: CanaryVerdict | None,
    training: ConditionState | None,
    speedup: str | None,
) -> dict[ConditionType, ConditionState]:
    """Return the conditions on drafts that have something to say; `speedup` is what the status shows."""
    is_vllm = td.spec.is_on_vllm
    # On vLLM every pod is asked: each draft has a plan of its own, and a pod that tries one is no other's.
    tried = verdict.variant if verdict is not None else None
    pods = [
        pod
        for pod in observed.pods
        if pod.is_serving and (pod.plan_hash != tried if is_vllm else plan_hash in (None, pod.plan_hash))
    ]
    planned = plan.choice.method if plan is not None and plan.choice is not None else None
    is_off = planned == api.OFF
    is_computed = any(pod.engine == api.EngineName.VLLM for pod in pods)
    states = {
        ConditionType.DRAFT_READY: _ready(td, observed, planned, pods),
        ConditionType.DRAFT_TRAINED: training,
        ConditionType.DRAFT_PROMOTED: _promoted(td, verdict),
        ConditionType.SPECULATION_EFFECTIVE: _effective(is_off, speedup, is_computed),
    }
    return {kind: state for kind, state in states.items() if state is not None}


def _promoted(td: TurboDeployment, verdict: CanaryVerdict | None) -> ConditionState | None:
    """Whether the newest draft was promoted; what was said last holds until there is news."""
    if verdict is not None:
        state = unknown
        if verdict.is_over:
            state = true if verdict.reason == api.CanaryReason.PROMOTED else false
        return state(verdict.reason, sentence(verdict.detail))
    last = td.status.condition(ConditionType.DRAFT_PROMOTED)
    if last is None or last.status == "Unknown" or td.spec.speculation.draft_ref is not None:
        return None
    return ConditionState(last.status, last.reason, last.message)


def _effective(is_off: bool, speedup: str | None, is_computed: bool) -> ConditionState:
    if is_off:
        return false(api.EffectReason.DISABLED, "The plan is one without speculation.")
    if speedup is None:
        message = "Too little was answered in the last ten minutes to tell how much faster drafts are."
        return unknown(api.EffectReason.INSUFFICIENT_SAMPLES, message)
    message = f"Pods answer {speedup} times as fast as they would without drafts"
    message += ", by the drafts that were right and the step-time model." if is_computed else "."
    return ConditionState("True" if float(speedup) >= 1 else "False", api.EffectReason.MEASURED, message)


def _ready(
    td: TurboDeployment, observed: Snapshot, planned: str | None, current: Sequence[PodView]
) -> ConditionState | None:
    """Whether pods draft with the draft that they should; None where there is none. `planned` is how."""
    ref, draft, model = td.spec.speculation.draft_ref, observed.draft, observed.model
    if draft is None and ref is None:
        return None
    named = f"TurboDraft {ref.name if ref is not None else draft.name if draft is not None else ''}"
    if draft is None or draft.gone:
        message = f"There is no {named} in this namespace that can be read: apply it, or name another."
        if draft is not None:
            message += f" Meanwhile pods draft on with {draft.version}."
        return false(DraftReason.NOT_FOUND, message)
    method = td.spec.draft_method
    if draft.method != method:
        how = " and engine.type: Turbo" if draft.method == api.Method.EAGLE3 else ""
        message = f"{named} drafts by {draft.method}: write speculation.method: {draft.method}{how}, or name "
        message += "another."
        if td.spec.is_on_vllm:
            message = f"{named} drafts by {draft.method}, which vLLM cannot yet: train {method}."
        return false(DraftReason.NOT_YET_SUPPORTED, message)
    if model is not None and draft.target_digest != model.digest:
        message = (
            f"{named} was trained for the model {draft.target_digest}, and {model.digest} is served: name "
            "one that was trained for it."
        )
        return false(DraftReason.TARGET_MODEL_MISMATCH, message)
    if planned == api.OFF or (td.spec.is_on_vllm and planned not in (None, method)):
        how = "without speculation" if planned == api.OFF else f"with {planned} drafts"
        message = f"{named} is not used: the plan is one {how}."
        return false(DraftReason.SPECULATION_DISABLED, message)
    if model is not None and (problem := _named_problem(observed, draft.claim_name, model.digest)):
        return false(DraftReason.NOT_FOUND, problem)
    ready = sorted((pod for pod in current if pod.ready), key=lambda pod: pod.name)
    loads = [(pod.name, pod.load.load) for pod in ready if pod.load]
    for name, load in loads:
        if load.draft_error:
            message = f"Pod {name}: {sentence(load.draft_error)} It serves on without it."
            return false(DraftReason.LOAD_FAILED, message)
    using = sum(pod.drafts_with(draft.version) for pod in ready)
    message = f"{using} of {len(ready)} pods that answer draft with {draft.version}."
    if ready and using == len(ready):
        return true(DraftReason.LOADED, message)
    if td.spec.is_on_vllm:
        message += " vLLM loads a draft as it starts: the rollout brings it to the others."
    return unknown(DraftReason.LOADING, message)


def _named_problem(observed: Snapshot, claim: str, target_digest: str) -> str | None:
    """Say what is wrong with the first of the further drafts that pods cannot use."""
    for name, draft in observed.named:
        if draft is None:
            missing = f"There is no TurboDraft for namedDrafts {name}"
            return f"{missing} that can be read: apply it or name another."
        if why := unusable(draft, target_digest, claim):
            return f"TurboDraft {draft.name}, for namedDrafts {name}, {why}: name another."
    return None
