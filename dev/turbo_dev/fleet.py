"""A fleet for tests of the autoscaler: plans, specs and pods, and a Deployment that does what it is told."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from decimal import Decimal
from typing import Any

from turbo_operator.api import CapacityType, EngineName, PlanReason, Provenance, TurboDeploymentSpec
from turbo_operator.autoscaler import History, ScalingDecision, scale
from turbo_operator.plan import Capacity, Choice, Plan, Predicted
from turbo_operator.snapshot import Accelerator, LoadSample, PodView
from turbo_runtime.contract.documents import Load

H100 = Accelerator(
    "h100", "nvidia.com/gpu", Decimal(1), 80 << 30, prices={CapacityType.ON_DEMAND: Decimal("2.00")}
)
CAPACITY = Capacity(requests_per_second=1.0, concurrency=10, tokens=10_000, tokens_per_second=100.0)
START = 1_700_000_000.0
PERIOD = 15.0
FRESH = 45.0
IDLE = Load(0, 0, 0, 0, 0.0, 20_000, 0, 0, 0, 0, "bitwise", draining=False)


def chosen(accelerator: Accelerator = H100, capacity: Capacity | None = CAPACITY) -> Choice:
    """A replica on one accelerator."""
    return Choice(
        engine=EngineName.TURBO,
        accelerator=accelerator,
        capacity_type=CapacityType.ON_DEMAND,
        tensor=1,
        nodes=1,
        accelerators_per_replica=1,
        method="Off",
        placement=None,
        max_draft_tokens=0,
        dtype="bfloat16",
        memory_bytes=1 << 30,
        max_model_len=4096,
        kv_cache_bytes=1 << 30,
        host_memory_bytes=1 << 30,
        capacity=capacity,
        predicted=Predicted(None, None, None, None, None, None, Provenance.ROOFLINE),
    )


def planned(floor: int = 1, capacity: Capacity | None = CAPACITY) -> Plan:
    """A feasible plan of one H100 a replica."""
    return Plan(chosen(capacity=capacity), floor, PlanReason.FEASIBLE, "Fits.")


def written(**spec: Any) -> TurboDeploymentSpec:
    """A spec of policy Metrics; `scaling` adds to it."""
    scaling = {"mode": "Metrics", **spec.pop("scaling", {})}
    return TurboDeploymentSpec.model_validate({"model": {"uri": "hf://a/b"}, "scaling": scaling, **spec})


def loaded(tokens: float, requests: float = 0, waiting: int = 0, prompt: int = 0) -> Load:
    """The load of a pod with so much under way."""
    return replace(
        IDLE,
        running_tokens=int(tokens),
        running_requests=int(requests),
        waiting_requests=waiting,
        waiting_tokens=waiting * prompt,
    )


def pod(name: str, load: Load | None = IDLE, at: float = START, ready: bool = True, **more: Any) -> PodView:
    """A pod whose load was read at some time, or never."""
    sample = None if load is None else LoadSample(at, load)
    return PodView(name, "hash", "Running", ready, "10.0.0.1", None, None, load=sample, **more)


def spread(demand: float, ready: int, now: float) -> tuple[PodView, ...]:
    """Pods that share a demand in tokens evenly."""
    return tuple(pod(f"p{number}", loaded(demand / ready), now) for number in range(ready))


@dataclass
class Fleet:
    """A Deployment that does what it is told: a new pod is ready `startup` seconds after it is asked for.

    A look that changes it is followed by another: its controller reports, and that wakes the operator.
    """

    spec: TurboDeploymentSpec
    plan: Plan = field(default_factory=planned)
    present: int = 1
    startup: float = 30.0
    now: float = START
    history: History = field(default_factory=History)
    ready_at: list[float] = field(default_factory=list)
    answers: list[ScalingDecision] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.ready_at = self.ready_at or [self.now] * self.present

    def look(self, demand: float, silent: bool = False) -> ScalingDecision:
        """One look of the autoscaler at pods that share a demand in tokens; time goes on by a period."""
        ready = [at for at in self.ready_at if at <= self.now]
        pods = list(spread(demand, len(ready), self.now)) if ready else []
        pods += [
            pod(f"q{n}", None, ready=False, pending_since=None) for n in range(self.present - len(ready))
        ]
        if silent:
            pods = [replace(each, load=None) for each in pods]
        answer = scale(self.spec, self.plan, pods, self.history, self.now, present=self.present)
        self.history = answer.history
        if answer.replicas != self.present:
            again = scale(self.spec, self.plan, pods, self.history, self.now, present=answer.replicas)
            assert again.replicas == answer.replicas
            self.history = again.history
        self.answers.append(answer)
        wanted = answer.replicas
        self.ready_at = sorted(self.ready_at)[:wanted]
        self.ready_at += [self.now + self.startup] * (wanted - len(self.ready_at))
        self.present = wanted
        self.now += PERIOD
        return answer

    def run(self, demand: float | Callable[[float], float], seconds: float) -> list[int]:
        """Replicas after each look."""
        end, replicas = self.now + seconds, []
        while self.now < end:
            wanted = demand(self.now - START) if callable(demand) else demand
            replicas.append(self.look(wanted).replicas)
        return replicas


def changes(replicas: Sequence[int]) -> Iterator[int]:
    """1 for each rise, -1 for each fall."""
    for before, after in itertools.pairwise(replicas):
        if before != after:
            yield 1 if after > before else -1
