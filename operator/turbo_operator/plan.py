"""Decisions as plain, frozen records that cross between packages: candidates and the `Plan`. Pure.

Money is in US dollars as `Decimal`, memory in bytes, times in seconds.
"""

from __future__ import annotations

from dataclasses import dataclass
from decimal import Decimal

from turbo_operator.api.constants import CapacityType, EngineName, Placement, Provenance
from turbo_operator.snapshot import Accelerator
from turbo_runtime.contract.config import DType


@dataclass(frozen=True, slots=True)
class Predicted:
    """What a plan does at its load; without one, a request alone and as many tokens as it can yield."""

    time_to_first_token: float | None  # at the target's percentile; None where the accelerator has no profile
    time_per_output_token: float | None  # at the target's percentile
    tokens_per_second: float | None  # output tokens of all replicas at the planned load; None of no replicas
    capacity_tokens_per_second: float | None  # of all replicas while the targets hold
    cost_per_hour: Decimal | None  # of all replicas, whole nodes where those are bought
    cost_per_million_tokens: Decimal | None  # output tokens, at the planned load
    provenance: Provenance
    load: float | None = None  # share of the replicas' capacity that the planned load takes; None without one


@dataclass(frozen=True, slots=True)
class Capacity:
    """What one replica does while the targets hold."""

    requests_per_second: float
    concurrency: int  # requests decoded together then
    tokens: int  # held in the KV cache by those, prompt and answer: the autoscaler's supply
    tokens_per_second: float  # output tokens


@dataclass(frozen=True, slots=True)
class Candidate:
    """One way to serve: what tells it from any other in the status, its placement apart."""

    accelerator: str
    tensor: int
    method: str
    engine: str = EngineName.TURBO
    capacity_type: str = CapacityType.ON_DEMAND
    nodes: int = 1  # of one replica, each with `tensor` accelerators
    data: int = 1  # groups of `tensor` accelerators in one replica, each with requests of its own


@dataclass(frozen=True, slots=True)
class Running(Candidate):
    """Which candidate runs now: a better one must be worth the move."""

    placement: Placement | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class EvaluatedCandidate(Candidate):
    """A candidate with what its replicas do, and the reason why it is taken or rejected."""

    reason: str  # a PlanReason: Feasible where it may be chosen
    detail: str = ""  # the reason in a sentence; `planner.frontier` leaves it out
    replicas: int | None = None
    predicted: Predicted | None = None  # None where it was rejected before any prediction
    placement: Placement | None = None  # of its drafts


@dataclass(frozen=True, slots=True)
class Choice:
    """The chosen candidate of a feasible plan. All but the last fields are of one replica."""

    engine: EngineName
    accelerator: Accelerator
    capacity_type: CapacityType
    tensor: int
    nodes: int  # of one replica; pipeline stages where it is more than one
    accelerators_per_replica: int  # draft's own included
    method: str  # Suffix, TurboHeads, EAGLE3, DraftModel, MTP or Off
    placement: Placement | None  # None without a draft that takes memory
    max_draft_tokens: int
    dtype: DType  # float32 or bfloat16: what the runtime computes in
    memory_bytes: int  # estimated need per accelerator, KV pool and reserve included
    max_model_len: int
    kv_cache_bytes: int  # of memory_bytes: the pool that the runtime is told to make, per accelerator
    host_memory_bytes: int  # memory of one replica's container; on cpu the accelerator's own
    capacity: Capacity | None  # None where the accelerator has no profile
    predicted: Predicted  # of all replicas
    # Draft tokens of each request by batch size: first, last, tokens. For VLLM, which takes a schedule, with
    # data-parallel groups one of a single number; Turbo chooses at each step. Empty where the acceptance of
    # the method is unknown.
    draft_schedule: tuple[tuple[int, int, int], ...] = ()
    data: int = 1  # groups that share routed experts, each with requests and a cache of its own
    draft_cores: int = 0  # of the host, in addition to the accelerators, for a draft that runs on them


@dataclass(frozen=True, slots=True)
class Plan:
    """The planner's result. `choice` is None when nothing is feasible; `reason` and `detail` say why."""

    choice: Choice | None
    replicas: int
    reason: str  # a PlanReason
    detail: str  # a full sentence for the condition
    rejected: tuple[EvaluatedCandidate, ...] = ()
    # The cheapest that misses by little, or without a plan the one that misses by least; `detail` says what.
    nearest: EvaluatedCandidate | None = None
    # Without a choice: the candidate that lacks nothing but capacity, of which as many replicas run as fit.
    partial: Choice | None = None

    @property
    def served(self) -> Choice | None:
        """What pods are made of: the choice, or as much of it as fits."""
        return self.choice or self.partial
