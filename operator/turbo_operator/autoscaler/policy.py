"""Replicas by the policy of the spec. Pure.

The policy Metrics scales up at once, down after a window, and holds on silence. A load comes to a range: with
fewer replicas than `low` they are overloaded, with more than `high` one can go, between the two nothing
changes. Both depend on the demand alone, never on how many pods there are or have started: pods that start
are never requested twice, and a constant load moves the replicas in one direction at most. The demand counts
twice, in tokens of the KV cache and in requests, and the scarcer decides: short requests run out of slots
long before they run out of memory.

The replicas of the Deployment are never remembered but observed. What is lost with the process is lost
safely: the first reconcile after a start recommends what is there, so that its window begins anew.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

from turbo_operator import api
from turbo_operator.api.requirements import DEFAULT_OUTPUT_TOKENS
from turbo_operator.autoscaler import limits
from turbo_operator.autoscaler.idle import is_idle, is_wanted, would_notice
from turbo_operator.commitments import NO_BUDGET, Allowance
from turbo_operator.plan import Capacity, Choice, Plan
from turbo_operator.snapshot import PodView, Supply
from turbo_runtime.contract.documents import Load

NUM_MISSED = 3  # scrapes after which a load is too old to count
FRESH_SECONDS = 45.0  # the same at the default scrape period
MAX_NAMED = 3  # pods in a sentence
MAX_PERIOD_SECONDS = 1800.0  # of a rate policy, as the API bounds it
MIN_EVENTS_KEPT = 5  # for the status, however old
MAX_UTILIZATION = 0.85  # above which there are too few replicas
MIN_UTILIZATION = 0.70  # below which one may go, if those that stay are not above the maximum without it
# A hair of tolerance: what divides evenly must not need one more for the last bit of a float.
TOLERANCE = 1e-9
# A HorizontalPodAutoscaler's defaults: more replicas at once, fewer one by one and after a window.
UP, DOWN = 1, -1
WINDOWS = {UP: 0.0, DOWN: 300.0}  # seconds
POLICIES = {
    UP: (api.RatePolicy(type="Percent", value=100, period_seconds=60),),
    DOWN: (api.RatePolicy(type="Pods", value=1, period_seconds=60),),
}


@dataclass(frozen=True, slots=True)
class Recommendation:
    """Equal results in a row: at least `low` replicas are needed, at most `high` are of use."""

    last_time: float  # epoch seconds of the last of them
    low: int
    high: int


@dataclass(frozen=True, slots=True)
class Event:
    """A change of the Deployment's replicas: when it was observed (epoch seconds), and its reason."""

    at: float
    before: int
    after: int
    reason: str


@dataclass(frozen=True, slots=True)
class History:
    """What is remembered. Empty at a start, save for the events that the status has kept."""

    recommendations: tuple[Recommendation, ...] = ()
    events: tuple[Event, ...] = ()
    present: int | None = None  # replicas at the last reconcile
    reason: str = ""  # of the last decision
    since: float | None = None  # the first reconcile after a start

    @classmethod
    def restored(cls, events: Iterable[Event]) -> History:
        """Return the history after a start, from the status, the earliest event first."""
        restored = tuple(events)
        return cls(events=restored, present=restored[-1].after if restored else None)

    def observe(self, present: int | None, now: float) -> History:
        """Add the Deployment's replicas as they are now; None while there is no Deployment."""
        events = self.events
        if self.present is not None and present is not None and present != self.present:
            events = (*events, Event(now, self.present, present, self.reason))
        recent = sum(event.at > now - MAX_PERIOD_SECONDS for event in events)
        since = now if self.since is None else self.since
        return replace(self, events=events[-max(recent, MIN_EVENTS_KEPT) :], present=present, since=since)

    def recommend(self, low: int, high: int, present: int, now: float, max_age: float) -> History:
        """Add a recommendation. After a start, or a gap of more than `max_age` seconds, keeps `present`."""
        known = [row for row in self.recommendations if row.last_time > now - max_age]
        if not known:
            high = max(high, present)
        elif (known[-1].low, known[-1].high) == (low, high):
            return replace(self, recommendations=(*known[:-1], replace(known[-1], last_time=now)))
        return replace(self, recommendations=(*known, Recommendation(now, low, high)))

    def within(self, window: float, now: float) -> tuple[Recommendation, ...]:
        """Return the recommendations of the last `window` seconds, the latest one always."""
        recent = tuple(row for row in self.recommendations if row.last_time > now - window)
        return recent or self.recommendations[-1:]


@dataclass(frozen=True, slots=True)
class ScalingDecision:
    """Desired replicas, with the reason as an enum and a sentence, and the history to remember."""

    replicas: int
    reason: api.ScalingReason
    detail: str  # without figures that move with every reconcile: a status is written when it differs
    history: History


def scale(
    spec: api.TurboDeploymentSpec,
    plan: Plan | None = None,
    pods: Sequence[PodView] = (),
    history: History | None = None,
    now: float = 0.0,
    *,
    present: int | None = None,
    supply: Supply | None = None,
    allowance: Allowance = NO_BUDGET,
    routers: Sequence[PodView] = (),
    fresh_seconds: float = FRESH_SECONDS,
) -> ScalingDecision:
    """Return the replicas to request, by the spec's policy; none while it is suspended, or idle.

    `present` is what was requested last (None: nothing was), `supply` what the cluster has of the plan's
    accelerator (None: not known), `allowance` what TurboBudgets leave, `now` in epoch seconds. Loads older
    than `fresh_seconds` count as missing. `history` is that of the decision before; None after a start.
    `routers` are the pods that take requests while there is no replica.
    """
    history = (history or History()).observe(present, now)
    policy, choice = spec.scaling_mode, plan.served if plan is not None else None
    if spec.suspend:
        replicas, reason = 0, api.ScalingReason.SUSPENDED
        detail = "spec.suspend is true: no pod is wanted until it is false."
    elif policy == api.ScalingMode.EXTERNAL:
        replicas, reason = spec.replicas, api.ScalingReason.EXTERNALLY_MANAGED
        detail = f"spec.replicas asks for {spec.replicas}; kubectl scale or an autoscaler may change it."
    elif plan is None or choice is None:
        replicas = present or spec.scaling.min_replicas or 1
        reason = api.ScalingReason.PLANNED if policy == api.ScalingMode.PLANNED else api.ScalingReason.STABLE
        detail = "What runs is kept while no plan is feasible." if present else "No plan is feasible yet."
    elif policy == api.ScalingMode.PLANNED:
        replicas, reason = plan.replicas, api.ScalingReason.PLANNED
        by_spec = plan.replicas <= (spec.scaling.min_replicas or 0)
        why = ": the load needs no more." if by_spec else " for spec.workload and spec.targets."
        detail = f"{_floor(spec, plan.replicas)}{why}"
    else:
        replicas, reason, detail, history = _autoscale(
            spec, plan, choice, pods, present, history, now, supply, allowance, fresh_seconds
        )
    if spec.scaling.min_replicas == 0 and not spec.suspend:
        after = spec.scaling.idle_after or api.IDLE_AFTER
        if present == 0:
            # After a start of ours, routers are yet to be asked: that wakes nobody.
            starts = bool(routers) and history.since is not None and now - history.since <= fresh_seconds
            is_watched = starts or would_notice(routers, now, fresh_seconds)
            sleeps = is_watched and not is_wanted(routers, after.seconds, now, fresh_seconds)
        else:
            sleeps = choice is not None and is_idle(routers, pods, after.seconds, now, fresh_seconds)
        if sleeps:
            replicas, reason = 0, api.ScalingReason.IDLE
            detail = f"No request came for {after}, and spec.scaling.minReplicas is 0: the next one starts a "
            detail += "replica."
    # The reason of the event that follows when the replicas have changed.
    return ScalingDecision(replicas, reason, detail, replace(history, reason=reason))


def limit_rate(
    rules: api.ScalingRules, direction: int, events: Sequence[Event], present: int, now: float
) -> int:
    """Return how far one direction may go from `present` now, as a HorizontalPodAutoscaler counts.

    https://kubernetes.io/docs/tasks/run-application/horizontal-pod-autoscale/#configurable-scaling-behavior
    """
    if rules.select_policy == "Disabled":
        return present
    reached = []
    for policy in rules.policies or POLICIES[direction]:
        recent = (event for event in events if event.at > now - policy.period_seconds)
        start = present - sum(event.after - event.before for event in recent)
        if policy.type == "Pods":
            reached.append(start + direction * policy.value)
        else:
            reached.append(direction * math.ceil(direction * start * (100 + direction * policy.value) / 100))
    pick = max if (rules.select_policy == "Min") != (direction == UP) else min
    return max(present, pick(reached)) if direction == UP else min(present, max(0, pick(reached)))


def _autoscale(
    spec: api.TurboDeploymentSpec,
    plan: Plan,
    choice: Choice,
    pods: Sequence[PodView],
    present: int | None,
    history: History,
    now: float,
    supply: Supply | None,
    allowance: Allowance,
    fresh_seconds: float,
) -> tuple[int, api.ScalingReason, str, History]:
    """Return the replicas that the load needs within all bounds, with reason, sentence and new history."""
    min_replicas = max(spec.scaling.min_replicas or 1, plan.replicas)
    current = min_replicas if present is None else present
    signal = read_signal(spec, choice.capacity, pods, now, fresh_seconds)
    rules = {UP: spec.scaling.behavior.scale_up, DOWN: spec.scaling.behavior.scale_down}
    stated = {way: rules[way].stabilization_window_seconds for way in rules}
    windows = {way: WINDOWS[way] if window is None else window for way, window in stated.items()}
    high = signal.high if signal.complete else max(signal.high, current)
    history = history.recommend(signal.low, high, current, now, max(*windows.values(), fresh_seconds))

    needed = min(row.low for row in history.within(windows[UP], now))
    useful = max(row.high for row in history.within(windows[DOWN], now))
    steady = min(max(current, needed), useful)
    desired = max(min_replicas, steady)
    slowest, fastest = (limit_rate(rules[way], way, history.events, current, now) for way in (DOWN, UP))
    replicas = max(min_replicas, min(max(desired, slowest), fastest))
    limit = limits.max_replicas(spec, choice, supply, pods, current, now, allowance)
    if limit is not None:
        replicas = min(replicas, limit.replicas)

    reason, as_before = api.ScalingReason.STABLE, f"{_count(current)} as before"
    # Replicas that are added are added for the load, though it needs more than the bound allows.
    if limit is not None and replicas == limit.replicas < desired and replicas <= current:
        reason = api.ScalingReason.SCALING_LIMITED
        detail = f"{_count(desired)} would be asked for, but {limit.sentence}: {_count(replicas)} now."
    elif replicas != current or desired != current:
        reason = api.ScalingReason.SCALING
        is_planned = min_replicas > max(current, steady)
        cause = _floor(spec, min_replicas) if is_planned else f"The load asks for {_count(desired)}"
        detail = f"{cause}: from {current} to {replicas} now."
    elif signal.silent or (signal.need is None and not signal.starting):
        reason = api.ScalingReason.METRICS_UNAVAILABLE
        silence = "No pod that answers has said its load yet"
        if signal.silent:
            silence = f"The load of {_name_some(signal.silent)} is not known"
        detail = f"{silence}: {as_before}."
    elif signal.starting:
        detail = f"{as_before}: {_name_some(signal.starting)} became ready just now: its load is read next."
    elif high < min_replicas == current and (spec.scaling.min_replicas or 0) >= plan.replicas:
        detail = f"{_count(current)}: spec.scaling.minReplicas allows no fewer."
    elif high < min_replicas == current and plan.replicas > 1:
        detail = f"{_count(current)}: the plan needs no fewer for spec.workload and spec.targets."
    else:
        detail, enough = f"{_count(current)} for the load.", max(min_replicas, high)
        if enough < current:
            detail += f" {enough} would do now: one goes when that has held for {windows[DOWN]:.0f} s."
    return replicas, reason, detail, history


def _floor(spec: api.TurboDeploymentSpec, replicas: int) -> str:
    """Say who asks for at least so many replicas: the bound of the spec, or the plan."""
    by_spec = replicas <= (spec.scaling.min_replicas or 0)
    return f"{'spec.scaling.minReplicas asks for' if by_spec else 'The plan needs'} {_count(replicas)}"


def _count(replicas: int) -> str:
    return "1 replica" if replicas == 1 else f"{replicas} replicas"


def _name_some(pods: Sequence[str]) -> str:
    more = f" and {len(pods) - MAX_NAMED} more" if len(pods) > MAX_NAMED else ""
    return ", ".join(pods[:MAX_NAMED]) + more


@dataclass(frozen=True, slots=True)
class Signal:
    """The load of the pods, and which of them should have reported one and did not."""

    need: float | None  # demand over what one replica carries; None where either is unknown
    silent: tuple[str, ...]  # names of ready pods without a fresh load
    starting: tuple[str, ...] = ()  # those of them that became ready just now and have not been scraped yet

    @property
    def complete(self) -> bool:
        """Whether all is known that a decision for fewer replicas rests on."""
        return self.need is not None and not self.silent and not self.starting

    @property
    def low(self) -> int:
        """The minimum of replicas whose utilization is not above the maximum."""
        return 0 if self.need is None else math.ceil(self.need / MAX_UTILIZATION - TOLERANCE)

    @property
    def high(self) -> int:
        """The maximum of replicas of which none may go, by the minimum or for those that would stay."""
        return 0 if self.need is None else max(self.low, math.floor(self.need / MIN_UTILIZATION + TOLERANCE))


def read_signal(
    spec: api.TurboDeploymentSpec,
    capacity: Capacity | None,
    pods: Sequence[PodView],
    now: float,
    fresh_seconds: float,
) -> Signal:
    """Read the signal of a deployment's pods; loads older than `fresh_seconds` are unknown.

    The requests of any pod with a load are demand: one that drains or is not ready any more has work to do.
    Only a ready pod is missed when it is silent, and not before it could have been asked.
    """
    fresh = {pod.name: pod.load.load for pod in pods if pod.load and now - pod.load.at <= fresh_seconds}
    missing = [pod for pod in pods if pod.ready and not pod.terminating and pod.name not in fresh]
    starting = tuple(
        pod.name
        for pod in missing
        if pod.load is None and pod.ready_since is not None and now - pod.ready_since <= fresh_seconds
    )
    silent = tuple(pod.name for pod in missing if pod.name not in starting)
    loads = tuple(fresh.values())
    carried = _carried_by_one(capacity, loads)
    if not loads or carried is None:
        return Signal(None, silent, starting)
    # Requests that wait will hold an output as well.
    waiting = sum(load.waiting_requests for load in loads)
    requests = waiting + sum(load.running_requests for load in loads)
    tokens = sum(load.running_tokens + load.waiting_tokens for load in loads)
    tokens_held = tokens + waiting * _mean_output(spec, loads)
    return Signal(max(requests / carried[0], tokens_held / carried[1]), silent, starting)


def _carried_by_one(capacity: Capacity | None, loads: Sequence[Load]) -> tuple[float, float] | None:
    """Requests and tokens of one replica: the plan's, else the smallest of the pods'; None if unknown."""
    if capacity is not None:
        return max(capacity.concurrency, 1), max(capacity.tokens, 1)
    tokens = min((load.kv_cache_tokens for load in loads if load.kv_cache_tokens), default=None)
    if tokens is None:
        return None
    return min((load.max_num_seqs for load in loads if load.max_num_seqs), default=math.inf), tokens


def _mean_output(spec: api.TurboDeploymentSpec, loads: Sequence[Load]) -> float:
    """Tokens of an output: as the workload says, else as the pods' counters show, else the API's default."""
    output = (spec.workload or api.Workload()).output_tokens
    if output is not None:
        return float(output.mean)
    prompts = sum(load.prompts for load in loads if load.prompts)
    generated = sum(load.generated_tokens for load in loads if load.prompts)
    return generated / prompts if prompts else float(DEFAULT_OUTPUT_TOKENS)
