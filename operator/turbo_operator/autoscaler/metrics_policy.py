"""The policy Metrics: replicas from the load of the pods. Pure.

More at once, fewer after a window, held on silence. One look comes to a range: with fewer replicas than `low`
they are overloaded, with more than `high` one can go, between the two nothing changes. Both depend on the
demand alone, never on how many pods there are or have started: pods that start are never asked for twice, and
a constant load moves the replicas in one direction at most.
"""

from __future__ import annotations

from collections.abc import Sequence

from turbo_operator.api import ScalingReason, TurboDeploymentSpec
from turbo_operator.autoscaler import behavior, limits, load_signal
from turbo_operator.autoscaler.decision import ScalingDecision, counted
from turbo_operator.autoscaler.history import History
from turbo_operator.plan import Plan
from turbo_operator.snapshot import PodView, Supply

MAX_NAMED = 3  # pods in a sentence


def autoscale(
    spec: TurboDeploymentSpec,
    plan: Plan | None,
    pods: Sequence[PodView],
    present: int | None,
    history: History,
    now: float,
    *,
    supply: Supply | None,
    fresh_seconds: float,
) -> ScalingDecision:
    """The replicas that the load asks for within all bounds; what runs while no plan is feasible."""
    choice = plan.served if plan is not None else None
    if plan is None or choice is None:
        kept = present or spec.scaling.min_replicas or 1
        return ScalingDecision(
            kept, ScalingReason.STABLE, "What runs is kept while no plan is feasible.", history
        )
    least = limits.min_replicas(spec, plan)
    at = least if present is None else present
    signal = load_signal.read(spec, choice.capacity, pods, now, fresh_seconds)
    up, down = spec.scaling.behavior.scale_up, spec.scaling.behavior.scale_down
    up_window, down_window = (
        behavior.window(up, behavior.UP_WINDOW),
        behavior.window(down, behavior.DOWN_WINDOW),
    )
    high = signal.high if signal.complete else max(signal.high, at)
    history = history.recommended(signal.low, high, at, now, max(up_window, down_window, fresh_seconds))

    steady = min(max(at, history.least(up_window, now)), history.most(down_window, now))
    wanted = max(least, steady)
    slowest = behavior.floor(down, history.events, at, now)
    fastest = behavior.ceiling(up, history.events, at, now)
    asked = max(least, min(max(wanted, slowest), fastest))
    limit = limits.tightest(
        limits.max_replicas(spec, choice), limits.growth(spec, choice, supply, pods, at, now)
    )
    replicas = asked if limit is None else min(asked, limit.replicas)

    # Replicas that are added are added for the load, though it asked for more than the bound allows.
    if limit is not None and replicas == limit.replicas < wanted and replicas <= at:
        detail = f"{counted(wanted)} would be asked for, but {limit.sentence}: {counted(replicas)} now."
        return ScalingDecision(replicas, ScalingReason.BUDGET_LIMIT, detail, history)
    if replicas != at or wanted != at:
        why = (
            f"The plan needs {counted(least)}"
            if least > max(at, steady)
            else f"The load asks for {counted(wanted)}"
        )
        return ScalingDecision(
            replicas, ScalingReason.SCALING, f"{why}: from {at} to {replicas} now.", history
        )
    if signal.silent or (signal.need is None and not signal.starting):
        detail = f"{_silence(signal.silent)}: {counted(at)} as before."
        return ScalingDecision(replicas, ScalingReason.HOLDING_NO_METRICS, detail, history)
    if signal.starting:
        detail = (
            f"{counted(at)} as before: {_named(signal.starting)} became ready just now and is asked next."
        )
        return ScalingDecision(replicas, ScalingReason.STABLE, detail, history)
    if high < least == at and (bound := limits.least_by(spec, plan)):
        return ScalingDecision(replicas, ScalingReason.STABLE, f"{counted(at)}: {bound}.", history)
    detail = f"{counted(at)} for the load."
    if max(least, high) < at:
        detail += f" {max(least, high)} would do now: one goes when that has held for {down_window:.0f} s."
    return ScalingDecision(replicas, ScalingReason.STABLE, detail, history)


def _silence(silent: Sequence[str]) -> str:
    if not silent:
        return "No pod that answers has said its load yet"
    return f"The load of {_named(silent)} is not known"


def _named(pods: Sequence[str]) -> str:
    more = f" and {len(pods) - MAX_NAMED} more" if len(pods) > MAX_NAMED else ""
    return ", ".join(pods[:MAX_NAMED]) + more
