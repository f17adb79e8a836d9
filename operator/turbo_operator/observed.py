"""The plain, frozen records that cross between the rooms: what is seen (`Observed`) and decided (`Plan`).

Pure: no client, no clock. Records are projections: a few fields of what the API server holds, never its raw
dictionaries. Memory is in bytes, money in US dollars per hour as `Decimal`, times in seconds since the epoch.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from decimal import Decimal
from typing import Any

from turbo_runtime.contract import ModelFacts


@dataclass(frozen=True, slots=True)
class Accelerator:
    """One row of the catalogue: a TurboAccelerator as the planner sees it."""

    name: str
    resource_name: str  # nvidia.com/gpu, cpu, ...
    quantity: Decimal  # of the resource that makes one accelerator; of cpu, cores
    memory_bytes: int
    price_per_hour: Decimal | None  # of one accelerator on demand; None is unknown, never zero
    price_source: str | None = None
    node_selector: Mapping[str, str] = field(default_factory=dict)
    tolerations: tuple[Mapping[str, Any], ...] = ()


@dataclass(frozen=True, slots=True)
class PodView:
    """A pod of a deployment: enough to say what holds it up and how it does."""

    name: str
    plan_hash: str
    phase: str
    ready: bool
    ip: str | None
    reason: str | None  # the first failing container's or scheduling reason, as Kubernetes says it
    message: str | None
    terminating: bool = False


@dataclass(frozen=True, slots=True)
class ChildView:
    """A child object of ours as it stands: identity and the hash of what we last applied to it."""

    kind: str
    name: str
    uid: str
    applied_hash: str | None  # annotation serving.turbo.dev/applied-hash
    plan_hash: str | None = None  # Deployments and ControllerRevisions
    replicas: int | None = None  # Deployments: spec.replicas
    available_replicas: int = 0
    observed_generation: int = 0
    generation: int = 0
    data: Mapping[str, Any] | None = None  # ConfigMap: data; ControllerRevision: the frozen pod template
    failed: bool = False  # Jobs
    complete: bool = False  # Jobs
    message: str | None = None  # ReplicaFailure or Job failure, as Kubernetes says it


@dataclass(frozen=True, slots=True)
class Observed:
    """Everything one reconcile looks at, read once from the cache; no API call is made to build it."""

    accelerators: Mapping[str, Accelerator]
    children: tuple[ChildView, ...] = ()
    pods: tuple[PodView, ...] = ()
    model: ModelFacts | None = None  # from the inspect Job
    model_error: str | None = None  # why there is none, in a sentence


@dataclass(frozen=True, slots=True)
class Rejected:
    """A candidate that was not chosen, and why: an enum reason and a sentence."""

    accelerator: str
    tensor: int
    method: str
    reason: str  # a PlanFeasible reason
    detail: str


@dataclass(frozen=True, slots=True)
class Choice:
    """The chosen candidate of a feasible plan."""

    accelerator: Accelerator
    tensor: int
    accelerators_per_replica: int
    method: str  # Suffix or Off
    max_draft_tokens: int
    dtype: str  # float32 or bfloat16: what the runtime is told
    memory_bytes: int  # estimated need of one replica, per accelerator, KV pool and reserve included
    max_model_len: int
    kv_cache_bytes: int  # of memory_bytes: the pool that the runtime is told to make, per accelerator
    host_memory_bytes: int  # memory of one replica's container; on cpu the accelerator's own
    cost_per_hour: Decimal | None  # of all replicas


@dataclass(frozen=True, slots=True)
class Plan:
    """The planner's answer. `choice` is None when nothing is feasible; `reason` and `detail` say why."""

    choice: Choice | None
    replicas: int
    reason: str  # a PlanFeasible reason
    detail: str  # a full sentence for the condition
    rejected: tuple[Rejected, ...] = ()
