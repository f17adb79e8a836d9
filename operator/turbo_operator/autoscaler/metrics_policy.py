"""The policy Metrics: replicas from the load of the pods. Pure.

Scales up at once, down after a window, and holds on silence. A load comes to a range: with fewer replicas
than `low` they are overloaded, with more than `high` one can go, between the two nothing changes. Both depend
on the demand alone, never on how many pods there are or have started: pods that start are never requested
twice, and a constant load moves the replicas in one direction at most.
"""

from __future__ import annotations

from collections.abc import Sequence

from turbo_operator.api import ScalingReason, TurboDeploymentSpec
from turbo_operator.autoscaler import behavior, limits
from turbo_operator.autoscaler.decision import History, ScalingDecision, count_replicas
from turbo_operator.autoscaler.load_signal import read_signal
from turbo_operator.plan import Choice, Plan
from turbo_operator.snapshot import PodView, Supply

MAX_NAMED = 3  # pods in a sentence


def autoscale(
    spec: TurboDeploymentSpec,
    plan: Plan,
    choice: Choice,
    pods: Sequence[PodView],
    present: int | None,
    history: History,
    now: float,
    *,
    supply: Supply | None,
    fresh_seconds: float,
) -> ScalingDecision:
    """Return the replicas that the load needs within all bounds."""
    fewest = limits.min_replicas(spec, plan)
    current = fewest if present is None else present
    signal = read_signal(spec, choice.capacity, pods, now, fresh_seconds)
    up, down = spec.scaling.behavior.scale_up, spec.scaling.behavior.scale_down
    up_window = behavior.stabilization_window(up, behavior.UP_WINDOW)
    down_window = behavior.stabilization_window(down, behavior.DOWN_WINDOW)
    high = signal.high if signal.complete else max(signal.high, current)
    max_age = max(up_window, down_window, fresh_seconds)
    history = history.recommend(signal.low, high, current, now, max_age)

    needed = min(row.low for row in history.within(up_window, now))
    useful = max(row.high for row in history.within(down_window, now))
    steady = min(max(current, needed), useful)
    wanted = max(fewest, steady)
    slowest = behavior.min_replicas(down, history.events, current, now)
    fastest = behavior.max_replicas(up, history.events, current, now)
    replicas = max(fewest, min(max(wanted, slowest), fastest))
    limit = limits.max_replicas(spec, choice, supply, pods, current, now)
    if limit is not None:
        replicas = min(replicas, limit.replicas)

    reason, as_before = ScalingReason.STABLE, f"{count_replicas(current)} as before"
    # Replicas that are added are added for the load, though it needs more than the bound allows.
    if limit is not None and replicas == limit.replicas < wanted and replicas <= current:
        reason = ScalingReason.SCALING_LIMITED
        detail = f"{count_replicas(wanted)} would be asked for, but {limit.sentence}: "
        detail += f"{count_replicas(replicas)} now."
    elif replicas != current or wanted != current:
        reason = ScalingReason.SCALING
        cause = f"The load asks for {count_replicas(wanted)}"
        if fewest > max(current, steady):
            cause = f"The plan needs {count_replicas(fewest)}"
        detail = f"{cause}: from {current} to {replicas} now."
    elif signal.silent or (signal.need is None and not signal.starting):
        reason = ScalingReason.METRICS_UNAVAILABLE
        silence = "No pod that answers has said its load yet"
        if signal.silent:
            silence = f"The load of {_name_some(signal.silent)} is not known"
        detail = f"{silence}: {as_before}."
    elif signal.starting:
        detail = f"{as_before}: {_name_some(signal.starting)} became ready just now and is asked next."
    elif high < fewest == current and (bound := limits.explain_min_replicas(spec, plan)):
        detail = f"{count_replicas(current)}: {bound}."
    else:
        detail, enough = f"{count_replicas(current)} for the load.", max(fewest, high)
        if enough < current:
            detail += f" {enough} would do now: one goes when that has held for {down_window:.0f} s."
    return ScalingDecision(replicas, reason, detail, history)


def _name_some(pods: Sequence[str]) -> str:
    more = f" and {len(pods) - MAX_NAMED} more" if len(pods) > MAX_NAMED else ""
    return ", ".join(pods[:MAX_NAMED]) + more
