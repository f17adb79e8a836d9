"""A new draft comes to a part of the traffic first: tried on a variant of its own, then taken by all pods or
turned down. Pure and stateless but for what is counted: a process that dies begins the trial's count anew.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass

from turbo_operator import render
from turbo_operator.api import OFF, Canary, CanaryReason, DraftMethod, ScalingPolicy, TurboDeployment
from turbo_operator.api.status import MAX_TURNED_DOWN
from turbo_operator.autoscaler import limits
from turbo_operator.drafts.speedup import LEAST_SECONDS, CanaryRun, GenerationStats, SpeedupTracker
from turbo_operator.plan import Choice
from turbo_operator.snapshot import ENDED_PHASES, ChildView, DraftView, PodView, Snapshot, identity

# What ends a trial whatever was measured: pods of the same template but for the draft do not fail so.
_FAILING = frozenset({"CrashLoopBackOff", "OOMKilled"})
_REFUSING_SECONDS = 60.0  # that a pod must refuse a draft for: it tries again by itself
_UNDER_WAY = frozenset(
    {CanaryReason.STARTING, CanaryReason.TRYING, CanaryReason.WAITING_FOR_BUDGET, CanaryReason.REFUSED}
)
GIVE_UP_SECONDS = 24 * 3600.0  # of a pod that a node has, after which a trial without a verdict is over
# Under `law` rounding decides near-ties: a share of wrong answers is a fault, as of the alert on them.
LAW_SHARE = 0.02


@dataclass(frozen=True, slots=True)
class CanaryVerdict:
    """What a trial has come to."""

    draft: DraftView
    variant: str  # plan hash of the pods that try it
    reason: CanaryReason
    detail: str  # a sentence

    @property
    def over(self) -> bool:
        """Whether there is nothing more to measure."""
        return self.reason not in _UNDER_WAY

    def refused(self, message: str) -> CanaryVerdict:
        """The same where what it is tried on was not taken, for what `message` says: all else goes on."""
        return dataclasses.replace(self, reason=CanaryReason.REFUSED, detail=message)


def candidate(td: TurboDeployment, observed: Snapshot) -> DraftView | None:
    """The draft to try: the newest of the deployment's that fits, is not in use nor older than what is, and
    was not turned down.

    None where a draft is named by hand: that one is taken by all pods at once.
    """
    if td.spec.speculation.draft_ref is not None or observed.model is None:
        return None
    digest = observed.model.digest
    fitting = [
        draft
        for draft in observed.drafts
        if draft.method == DraftMethod.TURBO_HEADS and draft.target_digest == digest
    ]
    used = td.status.draft
    known = {identity(each) for each in (*td.status.turned_down, used) if each is not None}
    first = next((at for at, each in enumerate(fitting) if used is not None and each.name == used.name), 0)
    # more of them than are remembered would be tried in turn, again and again
    latest = fitting[first:][-MAX_TURNED_DOWN:]
    return next((each for each in reversed(latest) if identity(each) not in known), None)


def update_canary(
    td: TurboDeployment, observed: Snapshot, choice: Choice | None, gains: SpeedupTracker, now: float
) -> tuple[SpeedupTracker, CanaryVerdict | None]:
    """What pods have gained, and what has become of the draft that is tried; None while none is.

    The gains hold a trial for as long as its variant shall exist.
    """
    settings, trial = td.spec.rollout.canary, None
    draft = candidate(td, observed) if choice is not None and choice.method != OFF and _serves(td) else None
    judgement = None
    if draft is not None and choice is not None and observed.model is not None:
        variant = render.plan_hash(td, choice, observed.model, draft, trial=True)
        judgement = _unaffordable(td, choice, draft, variant)
        trial = gains.trial
        if trial is None or trial.variant != variant:
            trial = CanaryRun(variant, now)
    trial = trial if judgement is None else None
    gains = gains.trying(trial).heard(observed.pods, now, settings.answering_seconds)
    if draft is None or gains.trial is None:
        return gains, judgement
    pods = _pods(observed, gains.trial.variant)
    trial = _timed(gains.trial, draft, pods, now)
    made = _deployment(observed, trial.variant)
    others = [pod for pod in observed.pods if pod.plan_hash != trial.variant]
    unmade = made.message if made is not None else None
    judgement = evaluate_canary(settings, draft, trial, pods, now, others, unmade)
    return gains.trying(None if judgement.over else trial), judgement


def makes_room(
    td: TurboDeployment,
    observed: Snapshot,
    choice: Choice | None,
    trial: CanaryRun | None,
    replicas: int,
    now: float,
) -> bool:
    """Whether one of several replicas goes before the pod that tries answers: where money, a quota or the
    nodes have no place for one more. Where one has gone, the pod that tries is one of them.
    """
    if trial is None or choice is None or replicas < 2:
        return False
    pods = [pod for pod in _pods(observed, trial.variant) if pod.phase not in ENDED_PHASES]
    if not pods:
        made = _deployment(observed, trial.variant)
        return made is not None and made.is_over_quota
    limit = limits.bought(td.spec, choice)
    others = [child for child in observed.children if child.plan_hash not in (None, trial.variant)]
    has_gone = sum(child.replicas or 0 for child in others) < replicas
    is_dear = limit is not None and limit.replicas <= replicas
    return has_gone or is_dear or bool(limits.stuck_pods(td.spec, pods, now))


def _pods(observed: Snapshot, variant: str) -> list[PodView]:
    """Those that try, but for those that go."""
    return [pod for pod in observed.pods if pod.plan_hash == variant and not pod.terminating]


def _deployment(observed: Snapshot, variant: str) -> ChildView | None:
    """Whose pods those are; None while there is none."""
    of_variant = (child for child in observed.children if child.plan_hash == variant)
    return next((child for child in of_variant if child.kind == "Deployment"), None)


def _serves(td: TurboDeployment) -> bool:
    """Whether any pod is wanted."""
    none = td.spec.scaling_policy == ScalingPolicy.EXTERNAL and td.spec.replicas == 0
    return not td.spec.suspend and not none


def _unaffordable(
    td: TurboDeployment, choice: Choice, draft: DraftView, variant: str
) -> CanaryVerdict | None:
    """Why a single replica gets no pod beside it; of several, one makes room."""
    limit = limits.bought(td.spec, choice)
    if (td.status.desired_replicas or 1) > 1 or limit is None or limit.replicas > 1:
        return None
    said = f"{draft.version} is tried on a pod beside the only one, and {limit.sentence}: raise it."
    return CanaryVerdict(draft, variant, CanaryReason.WAITING_FOR_BUDGET, said)


def _timed(trial: CanaryRun, draft: DraftView, pods: Sequence[PodView], now: float) -> CanaryRun:
    """The day begins when a node has its pod: what waits for room costs nobody anything. The window begins
    when a pod first uses the draft.
    """
    if trial.began is not None:
        return trial
    placed = any(pod.pending_since is None and pod.phase not in ENDED_PHASES for pod in pods)
    began = now if _using(draft, pods) else None
    return dataclasses.replace(trial, since=trial.since if placed else now, began=began)


def _using(draft: DraftView, pods: Sequence[PodView]) -> bool:
    return any(pod.ready and pod.load and pod.load.load.draft_version == draft.version for pod in pods)


def with_judged(observed: Snapshot, gains: SpeedupTracker, judgement: CanaryVerdict | None) -> Snapshot:
    """What was seen, with the gain of all pods, and the draft that they are to use from now on."""
    promoted = judgement is not None and judgement.reason == CanaryReason.PROMOTED
    draft = judgement.draft if promoted and judgement is not None else observed.draft
    return dataclasses.replace(observed, draft=draft, gain=gains.overall)


def evaluate_canary(
    settings: Canary,
    draft: DraftView,
    trial: CanaryRun,
    pods: Sequence[PodView],
    now: float,
    others: Sequence[PodView],
    unmade: str | None,
) -> CanaryVerdict:
    """What becomes of a draft, from its trial, the pods that try it and the `others`; `unmade` says why there
    is none that tries, `now` is in epoch seconds.
    """

    def judged(reason: CanaryReason, detail: str) -> CanaryVerdict:
        return CanaryVerdict(draft, trial.variant, reason, detail)

    for pod in pods:
        if pod.reason in _FAILING and pod.phase not in ENDED_PHASES:
            return judged(CanaryReason.POD_FAILED, f"Pod {pod.name} with {draft.version}: {pod.reason}.")
        problem = pod.load.load.draft_problem if pod.load else None
        ready = now - pod.ready_since if pod.ready_since is not None else 0.0
        if problem and not _using(draft, [pod]) and ready >= _REFUSING_SECONDS:
            return judged(CanaryReason.REFUSED_BY_ENGINE, f"Pod {pod.name}: {problem.rstrip('.')}.")
    counted = trial.warm + trial.tried
    if counted.mismatches and not _by_rounding(counted, pods, others):
        said = f"{counted.mismatches} of {counted.audits} answers with {draft.version} differ without drafts."
        return judged(CanaryReason.AUDIT_MISMATCH, said)
    using = _using(draft, pods)
    reason, said = _compared(settings, draft, trial, now) if using else _starting(draft, pods, unmade)
    if reason in _UNDER_WAY and now - trial.since >= GIVE_UP_SECONDS:
        return judged(CanaryReason.INCONCLUSIVE, f"After a day there is no verdict. {said}")
    return judged(reason, said)


def _by_rounding(tried: GenerationStats, pods: Sequence[PodView], others: Sequence[PodView]) -> bool:
    """Whether answers may differ for no fault of the draft: under `law` one may, or as many as of others."""
    if any(pod.load is not None and pod.load.load.guarantee == "bytes" for pod in pods):
        return False
    told = [GenerationStats.of(pod.load.load) for pod in others if pod.load is not None]
    usual = sum((each for each in told if each is not None), GenerationStats())
    share = max(LAW_SHARE, usual.mismatches / usual.audits if usual.audits else 0.0)
    return tried.mismatches < 2 or tried.mismatches <= share * tried.audits


def _starting(draft: DraftView, pods: Sequence[PodView], unmade: str | None) -> tuple[CanaryReason, str]:
    held_up = next((f" {pod.reason}: {pod.message or ''}".rstrip() for pod in pods if pod.reason), "")
    if unmade and not pods:
        held_up = f" No pod can be made: {unmade}"
    return CanaryReason.STARTING, f"A pod with {draft.version} starts beside the others.{held_up}"


def _compared(settings: Canary, draft: DraftView, trial: CanaryRun, now: float) -> tuple[CanaryReason, str]:
    needed, version = settings.answering_seconds, draft.version
    tried, stable = trial.tried, trial.stable
    new, old = tried.gain, stable.gain
    counted = trial.warm + tried
    if min(tried.seconds, stable.seconds) < needed or new is None or old is None:
        if trial.warm.seconds < needed:
            return CanaryReason.TRYING, f"The pod that tries {version} warms up on live traffic."
        done = 10 * int(10 * min(tried.seconds, stable.seconds) / max(needed, LEAST_SECONDS))
        said = (
            f"{version} is compared with what the other pods use: {done} % of the answers needed are there."
        )
        return CanaryReason.TRYING, said
    if trial.began is None or now - trial.began < settings.window_seconds:
        said = f"{version} is tried for at least {settings.window}."
        return CanaryReason.TRYING, said
    if not counted.audits:
        said = f"None of the answers with {version} was audited yet: pods do that while they are idle."
        return CanaryReason.TRYING, said
    told = f"{version} makes answers {new:.2f} times as fast as no drafts, and what was there {old:.2f}"
    if new >= old * float(settings.min_gain):
        differ = f"{counted.mismatches} of them differ" if counted.mismatches else "none differs"
        return CanaryReason.PROMOTED, f"{told}; {counted.audits} answers audited, {differ}."
    said = f"{told}: it has to be at least {settings.min_gain} of that."
    return CanaryReason.NO_GAIN, said
