"""What must hold at every instant of every rollout, judged by the API server's audit log alone. Pure.

A client sees the cluster a moment late, so a write of the operator is right where it was right at some
instant of the last `lag_seconds`: what others have written since it may not have known. Its own it knows.
"""

from __future__ import annotations

from collections import defaultdict, deque
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from typing import Any

from turbo_dev.audit_timeline import Body, Key, State, Workload, Write, describe, read_writes, replay
from turbo_dev.rollout_bounds import (
    has_room,
    max_surge,
    rollout_of,
    stays_in_budget,
    stays_in_quota,
    stays_in_surge,
    stays_in_total,
    wanted,
)
from turbo_dev.status_coherence import contradictions

_CLOCK_STEP = 1.0  # Kubernetes writes when a pod became ready in whole seconds


@dataclass(frozen=True, slots=True)
class Violation:
    """A write that broke an invariant."""

    invariant: str
    owner: Key
    write: Write | None
    detail: str

    def __str__(self) -> str:
        at = f"; {self.write}" if self.write is not None else ""
        return f"[{self.invariant}] {'/'.join(self.owner)}: {self.detail}{at}"


@dataclass(slots=True)
class _Record:
    """What a variant has been."""

    last_available: float | None = None  # when any of its replicas was available
    last_full: float | None = None  # when all that were wanted were
    num_full: int = 0  # how many those were
    # When it had been so for long enough that nobody can have missed it.
    proven_available: float | None = None
    proven_full: float | None = None
    available_since: float | None = None
    full_since: float | None = None


class Judge:
    """Follows the writes of one log and collects violations of those by `operator`, a user's name."""

    def __init__(self, operator: str, lag_seconds: float = 2.0) -> None:
        self._operator = operator
        self._lag = lag_seconds
        self._past: deque[State] = deque()
        self._records: dict[Key, _Record] = {}  # by namespace and name of the Deployment
        self._stories: defaultdict[Key, list[str]] = defaultdict(list)
        self.state = State()
        self.violations: list[Violation] = []
        self.last_write = 0.0  # of the operator

    def follow(self, events: Iterable[Body]) -> list[Violation]:
        """All violations of the audit events of one log."""
        steps = list(replay(read_writes(events)))
        asked: dict[Key, str] = {}  # when the last write of each pod was asked for
        ends: list[tuple[int, Write]] = []
        for number, (before, write, after) in enumerate(steps):
            if write.resource == "pods":
                is_end = write.verb == "delete" and write.key in before.pods and write.key not in after.pods
                if is_end and asked.get(write.key, "") <= write.received:
                    ends.append((number, write))
                asked[write.key] = write.received
        for number, (before, write, after) in enumerate(steps):
            # A deletion without grace shows in a watch as the pod's end before it is done, and a busy API
            # server may take seconds and hundreds of writes until it is. A pod that is written of meanwhile
            # is still there.
            ended = {end.key for at, end in ends if number < at and end.received < write.received}
            pods = {key: pod for key, pod in after.pods.items() if key not in ended} if ended else after.pods
            self._step(before, write, replace(after, pods=pods))
            owner = _owner_of(write, before, after)
            if owner is not None:
                self._stories[owner].append(describe(write))
        return self.violations

    def story(self, owner: Key) -> str:
        """All writes about a TurboDeployment and what is its own, a line each."""
        return "\n".join(self._stories[owner])

    def _step(self, before: State, write: Write, after: State) -> None:
        self._past.append(before)
        while self._past[0].time < write.time - self._lag:
            self._past.popleft()
        owner = _owner_of(write, before, after)
        if owner is not None:
            self._remember(owner, before)
        if write.user == self._operator:
            self.last_write = max(self.last_write, write.time)
            if owner is not None and owner in before.deployments:
                self._judge(owner, before, write, after)
        self.state = after

    def _judge(self, owner: Key, before: State, write: Write, after: State) -> None:
        if write.resource == "controllerrevisions" and write.body is None:
            self._check(self._keeps_last, "keeps-last", owner, before, write, write.key[1])
        if write.resource == "turbodeployments":
            self._check(_stays_stalled, "stalled", owner, before, write, write.body)
        if write.resource not in ("deployments", "jobs"):
            return
        kind = write.resource.capitalize()[:-1]
        old, new = (state.workloads.get((kind, write.key)) for state in (before, after))
        asked, asks = (each.replicas if each is not None else 0 for each in (old, new))
        if kind == "Deployment" and old is not None and (asks < asked or new is None):
            self._check(_stays_available, "availability", owner, before, write, (old, asks))
        if kind == "Deployment" and old is not None and new is None:
            self._check(self._keeps_last, "keeps-last", owner, before, write, write.key[1])
            self._check(_is_empty, "drained", owner, after, write, old)
        if asks > asked:
            if kind == "Deployment" and new is not None and not new.is_canary:
                self._check(stays_in_surge, "surge", owner, after, write, None)
            self._check(stays_in_total, "max-total", owner, after, write, None)
            self._check(stays_in_budget, "budget", owner, after, write, None)
            self._check(stays_in_quota, "quota", owner, after, write, None)

    def _check(
        self,
        law: Callable[[State, State, Key, Any], str | None],
        name: str,
        owner: Key,
        now: State,
        write: Write,
        what: Any,
    ) -> None:
        """`law` says what is wrong with a write, by what others had made of the cluster at an instant."""
        wrong = law(now, now, owner, what)
        past = (seen for seen in reversed(self._past) if owner in seen.deployments)
        if wrong is None or any(law(now, seen, owner, what) is None for seen in past):
            return
        self.violations.append(Violation(name, owner, write, wrong))

    def _remember(self, owner: Key, state: State) -> None:
        replicas = wanted(state, owner)
        for name, variant in state.variants(owner).items():
            num_available = min(_num_available(state, owner, name, _CLOCK_STEP), variant.replicas)
            record = self._records.setdefault((owner[0], name), _Record())
            if variant.is_canary:
                continue
            if num_available == 0:
                record.available_since = record.full_since = None
                continue
            record.last_available = state.time
            record.available_since = state.time if record.available_since is None else record.available_since
            if state.time - record.available_since >= self._lag:
                record.proven_available = state.time
            # Where no more fit, those that do are all that it can have.
            fits = num_available < replicas and not has_room(state, owner, num_available + 1 - replicas)
            if not (num_available >= replicas > 0 or fits):
                record.full_since = None
                continue
            record.last_full, record.num_full = state.time, num_available
            record.full_since = state.time if record.full_since is None else record.full_since
            if state.time - record.full_since >= self._lag:
                record.proven_full = state.time

    def _keeps_last(self, now: State, seen: State, owner: Key, name: str) -> str | None:
        """Whether the last variant that served stays until another one has all its replicas available."""
        mine = self._records.get((owner[0], name))
        if mine is None or mine.proven_available is None or wanted(seen, owner) == 0:
            return None
        records = {
            other: self._records[owner[0], other]
            for other in now.variants(owner)
            if other != name and (owner[0], other) in self._records
        }
        others = list(records.values())
        recently = now.time - self._lag
        if mine.proven_full is not None:
            since = min(mine.proven_full, recently)
            # One that had all before, and of which as many answer now, is to go back to as well.
            had_all = [(other, record.last_full) for other, record in records.items() if record.last_full]
            as_many = max(1, min(mine.num_full, wanted(now, owner)))
            kept = not any(
                full >= since or _num_available(now, owner, other) >= as_many for other, full in had_all
            )
            what = "all its replicas"
        else:
            since = min(mine.proven_available, recently)
            # One that had all of them is the better one to go back to, however long ago.
            is_better = any(other.last_full is not None for other in others)
            kept = not is_better and all(
                other.last_available is None or other.last_available < since for other in others
            )
            what = "a replica"
        return f"{name} was the last variant with {what} available, and is removed." if kept else None


def max_unavailable(state: State, owner: Key) -> int:
    """Wanted replicas that may be missing: what is written, else one where there is no room for the surge."""
    rollout = rollout_of(state, owner)
    if rollout.get("maxUnavailable") is not None:
        return int(rollout["maxUnavailable"])
    if wanted(state, owner) <= 1:
        return 0
    return 0 if max_surge(state, owner) and has_room(state, owner, max_surge(state, owner)) else 1


def _owner_of(write: Write, before: State, after: State) -> Key | None:
    if write.resource == "turbodeployments":
        return write.key
    kind = write.resource.capitalize()[:-1]
    for state in (after, before):
        if write.resource == "pods" and write.key in state.pods:
            return state.pods[write.key].owner
        if write.resource == "controllerrevisions" and write.key in state.revisions:
            return state.revisions[write.key]
        if (kind, write.key) in state.workloads:
            return state.workloads[kind, write.key].owner
    return None


def _num_available(state: State, owner: Key, name: str, slack: float = 0.0) -> int:
    seconds = float(rollout_of(state, owner).get("minReadySeconds", 10)) - slack
    pods = state.pods_of(owner, name)
    return sum(pod.is_ready and state.time - (pod.ready_since or 0.0) >= seconds for pod in pods)


def _stays_available(now: State, seen: State, owner: Key, what: tuple[Workload, int]) -> str | None:
    """No pod that is available goes where fewer than wanted - maxUnavailable stay ready."""
    lowered, asks = what
    staying = 0
    for name, variant in now.variants(owner).items():
        ready = sum(pod.is_ready for pod in seen.pods_of(owner, name))
        staying += min(ready, asks if name == lowered.name else variant.replicas)
    least = wanted(seen, owner) - max_unavailable(seen, owner)
    num_available = _num_available(seen, owner, lowered.name)
    if staying >= least or num_available <= asks:
        return None
    return (
        f"{lowered.name} goes from {lowered.replicas} to {asks} replicas, {num_available} of which are "
        f"available: {staying} ready ones stay, and {least} must."
    )


def _stays_stalled(now: State, seen: State, owner: Key, body: Body | None) -> str | None:
    """What waits for a change of the spec does not go on without one."""
    old, new = now.deployments[owner].get("status") or {}, (body or {}).get("status") or {}
    spec_changed = seen.deployments[owner]["spec"] != now.deployments[owner]["spec"]
    before = next((each for each in old.get("conditions", ()) if each["type"] == "Stalled"), None)
    after = next((each for each in new.get("conditions", ()) if each["type"] == "Stalled"), None)
    if before is None or after is None or spec_changed:
        return None
    waited = (before["status"], before["reason"]) == ("True", "UserActionRequired")
    if not waited or after["status"] == "True" or old["observedGeneration"] != new["observedGeneration"]:
        return None
    return f"It said that only a change helps ('{before['message']}'), and went on without one."


def _is_empty(now: State, _: State, owner: Key, variant: Workload) -> str | None:
    """A Deployment goes once it asks for no pod and its pods are gone."""
    pods = [pod for pod in now.pods_of(owner, variant.name) if not pod.ended]
    if variant.replicas == 0 and not pods:
        return None
    names = ", ".join(pod.name for pod in pods) or "none"
    return f"{variant.name} is deleted with {variant.replicas} replicas asked for, and the pods {names}."


def unfinished(state: State) -> list[Violation]:
    """What is wrong with a cluster at rest, where every rollout has ended or says what it waits for."""
    return [
        Violation("end", owner, None, sentence)
        for owner, body in state.deployments.items()
        for sentence in _end_of(state, owner, body)
    ]


def _end_of(state: State, owner: Key, body: Body) -> Iterator[str]:
    yield from contradictions(body)
    status = body.get("status") or {}
    conditions = {each["type"]: each for each in status.get("conditions", ())}
    told = {kind: (each["status"], each["reason"]) for kind, each in conditions.items()}
    pods = [pod for pod in state.pods_of(owner) if pod.is_active and pod.workload[0] == "Deployment"]
    for field, number in (("replicas", len(pods)), ("readyReplicas", sum(pod.is_ready for pod in pods))):
        if status.get(field, 0) != number:
            yield f"{field} is {status.get(field, 0)}, and {number} are there."
    if status.get("observedGeneration") != body["metadata"]["generation"]:
        yield f"Its status is of generation {status.get('observedGeneration')}: {told}."
    problem = _is_not_alone(state, owner)
    in_force = told.get("Reconciling") == ("False", "UpToDate")
    waits = told.get("Reconciling", ("", ""))[0] == "True" or told.get("Stalled", ("", ""))[0] == "True"
    if problem and in_force:
        yield f"Reconciling is False for UpToDate, and {problem}."
    elif problem and not waits:
        yield f"It does not say what it waits for, and {problem}: {told}."
    if not problem and not waits and not in_force and not body["spec"].get("suspend"):
        yield f"All its replicas serve, and its status is {told}."


def _is_not_alone(state: State, owner: Key) -> str | None:
    """What is missing for one variant to be there alone with all the replicas that are wanted."""
    replicas = wanted(state, owner)
    variants = [each for each in state.variants(owner).values() if not each.is_canary]
    asked = {each.name: each.replicas for each in variants}
    if replicas == 0:
        return f"its variants ask for {asked} where none is wanted" if sum(asked.values()) else None
    if len(variants) != 1:
        return f"its variants are {asked}"
    (variant,) = variants
    ready = sum(pod.is_ready for pod in state.pods_of(owner, variant.name))
    if variant.replicas != replicas or ready != replicas:
        return f"{variant.name} asks for {variant.replicas}, {ready} are ready and {replicas} wanted"
    return None
