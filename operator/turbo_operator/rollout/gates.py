"""The steps at which a rollout is compared with what serves, before more replicas follow. Pure.

A step lasts until all its replicas have been available for its time. What the pods of either plan have
reported since their start is compared at every look until then. So evidence against a plan ends it at once,
and a deployment without traffic still gets its plan.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from turbo_operator.api import Canary, Gates, RolloutReason, RolloutStatus, rfc3339
from turbo_operator.rollout.progress import seen_time
from turbo_operator.snapshot import PodView

# Chance of evidence as strong against a plan that fails no more requests than it may.
_CHANCE = 0.001
# Under `distribution` rounding decides near-ties: only a share of wrong answers is a fault.
LAW_SHARE = 0.02


@dataclass(frozen=True, slots=True)
class Reports:
    """What the pods of one plan have done since they started."""

    finished: int = 0  # requests, those that failed included
    failed: int = 0
    seconds: float = 0.0  # of steps that generated tokens
    plain_seconds: float = 0.0  # that as many tokens would have taken without drafts
    audits: int = 0
    mismatches: int = 0
    is_bitwise: bool = False  # whether any of them promises the same bytes

    @classmethod
    def of(cls, pods: Iterable[PodView]) -> Reports:
        """Sum what pods report; a runtime that does not know a figure adds nothing to it."""
        loads = [pod.load.load for pod in pods if pod.load is not None]
        return cls(
            sum(load.finished_requests or 0 for load in loads),
            sum(load.failed_requests or 0 for load in loads),
            sum(load.generation_seconds or 0.0 for load in loads),
            sum(load.baseline_generation_seconds or 0.0 for load in loads),
            sum(load.audits or 0 for load in loads),
            sum(load.audit_mismatches or 0 for load in loads),
            any(load.guarantee == "bitwise" for load in loads),
        )

    @property
    def failed_share(self) -> float:
        """The share of requests that failed."""
        return self.failed / self.finished if self.finished else 0.0


def step_replicas(canary: Canary, passed: int, replicas: int) -> int | None:
    """Return how many replicas of a new plan the step after `passed` steps has; None after the last one.

    One replica of several stays for the comparison; of a single one the step has one in addition.
    """
    steps = canary.steps or ()
    if passed >= len(steps):
        return None
    fraction = steps[passed].replicas_fraction
    return min(max(1, math.ceil(fraction * replicas)), max(1, replicas - 1))


def pass_gates(
    status: RolloutStatus,
    canary: Canary,
    pods: Sequence[PodView],
    serving: str,
    replicas: int,
    available: int,
    now: float,
) -> RolloutStatus:
    """Return the status of a rollout after a look at its step: passed, failed or still under way.

    `pods` are those of all plans, `available` counts the replicas of the new one. `now` is in epoch seconds.
    """
    passed = status.passed_steps or 0
    needed, steps = step_replicas(canary, passed, replicas), canary.steps
    if needed is None or not steps or status.reason is not None:
        return status
    new, old = (
        Reports.of(pod for pod in pods if pod.plan_hash == plan_hash)
        for plan_hash in (status.plan_hash, serving)
    )
    if failure := find_fault(new, old, canary.gates, canary.min_generation_duration.seconds):
        update = {"reason": RolloutReason.ROLLED_BACK, "message": failure, "failed_step": passed + 1}
        return status.model_copy(update=update)
    if available < needed:
        return status.model_copy(update={"step_time": None})
    since = seen_time(status.step_time, now)
    if since is None:
        return status.model_copy(update={"step_time": rfc3339(now)})
    if now - since < steps[passed].min_duration.seconds:
        return status
    return status.model_copy(update={"step_time": None, "passed_steps": passed + 1})


def describe_step(status: RolloutStatus, canary: Canary, replicas: int, available: int) -> str | None:
    """Say on which step a rollout is compared with what serves; None while it is not."""
    passed = status.passed_steps or 0
    needed, steps = step_replicas(canary, passed, replicas), canary.steps
    if needed is None or not steps or available < needed or status.reason is not None:
        return None
    which = f"Step {passed + 1} of {len(steps)}: {needed} of {replicas} replicas are of the new plan"
    return f"{which}, and compared with the earlier one for {steps[passed].min_duration}."


def find_fault(new: Reports, old: Reports, gates: Gates, warm_seconds: float) -> str | None:
    """Return what is wrong with a new plan, as a sentence; None where there is no evidence of that."""
    if new.mismatches and not is_by_rounding(new, old):
        return f"{new.mismatches} of {new.audits} audited answers differ without drafts."
    allowed = min(1.0, old.failed_share + float(gates.max_error_fraction))
    if is_above(new.failed, new.finished, allowed):
        counts = f"{new.failed} of {new.finished} requests failed"
        return f"{counts}, and {old.failed} of {old.finished} on the pods of the earlier plan."
    if min(new.seconds, old.seconds) < warm_seconds or not new.plain_seconds:
        return None
    speedup, before = new.plain_seconds / new.seconds, old.plain_seconds / old.seconds
    if speedup >= float(gates.min_speedup_ratio) * before:
        return None
    measured = f"Its answers come {speedup:.2f} times as fast as without drafts, those of the earlier plan"
    return f"{measured} {before:.2f} times: it has to be at least {gates.min_speedup_ratio} of that."


def is_above(count: int, total: int, share: float) -> bool:
    """Whether so many of `total` are more than a share and chance explain (Chernoff's bound)."""
    if not total or count / total <= share:
        return False
    if share <= 0.0:
        return True
    part = count / total
    information = part * math.log(part / share)
    if part < 1.0:
        information += (1.0 - part) * math.log((1.0 - part) / (1.0 - share))
    return total * information >= -math.log(_CHANCE)


def is_by_rounding(new: Reports, usual: Reports) -> bool:
    """Whether answers may differ for no fault of what is new, as one may under `distribution`."""
    if new.is_bitwise:
        return False
    share = max(LAW_SHARE, usual.mismatches / usual.audits if usual.audits else 0.0)
    return new.mismatches < 2 or new.mismatches <= share * new.audits
