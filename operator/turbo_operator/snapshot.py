"""What is seen, as plain, frozen records that cross between packages; what is decided is in `plan`.

Pure: no client, no clock. Records are projections: a few fields of what the API server holds, never its raw
dictionaries. Memory is in bytes, money in US dollars per hour as `Decimal`, times in seconds since the epoch.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from decimal import Decimal
from enum import Enum, auto
from typing import Any

from pydantic import BaseModel

from turbo_operator.activator.report import Traffic
from turbo_operator.api import (
    CapacityType,
    DraftStatus,
    EngineName,
    Provisioning,
    TurboAccelerator,
    label_value,
    quantity,
)
from turbo_operator.commitments import NO_BUDGET, Allowance
from turbo_runtime.contract.documents import JobProgress, Load, ModelInfo

ENDED_PHASES = frozenset({"Failed", "Succeeded"})  # of a pod that holds nothing any more


class Presence(Enum):
    """Whether a kind that the cluster may lack can be used in a namespace."""

    UNKNOWN = auto()  # the API server has not answered
    ABSENT = auto()
    REFUSED = auto()  # it is there, and the operator may not list it
    PRESENT = auto()


@dataclass(frozen=True, slots=True)
class Accelerator:
    """One row of the catalog: a TurboAccelerator as the planner sees it.

    Rates are of one accelerator, in bytes and floating-point operations per second; None is unknown. What an
    accelerator of resource `cpu` has is that many cores' share of the machine.
    """

    name: str
    resource_name: str  # nvidia.com/gpu, cpu, ...
    quantity: Decimal  # of the resource that makes one accelerator; of cpu, cores
    memory_bytes: int
    memory_bandwidth: float | None = None
    flops: Mapping[str, float] = field(default_factory=dict)  # dense, by type: bf16, fp8, int8, fp4
    interconnect_bandwidth: float | None = None  # one way, between accelerators of a node
    network_bandwidth: float | None = None  # one way, per accelerator, between nodes
    count_per_node: int | None = None  # accelerators of a node
    prices: Mapping[CapacityType, Decimal] = field(default_factory=dict)  # of one accelerator for an hour
    price_per_node: bool = False  # nodes are bought whole: what is left over on one is paid too
    price_source: str | None = None
    provisioning: Provisioning = Provisioning.FIXED
    max_count: int | None = None  # Elastic: accelerators that the cluster may grow to; None is no bound
    # Over `planner.performance.step_time`, by its names.
    efficiency: Mapping[str, float] = field(default_factory=dict)
    node_selector: Mapping[str, str] = field(default_factory=dict)
    tolerations: tuple[Mapping[str, Any], ...] = ()
    # Labels of its nodes of a capacity type, where they are not those that clouds write.
    capacity_selectors: Mapping[CapacityType, Mapping[str, str]] = field(default_factory=dict)

    @classmethod
    def of(cls, accelerator: TurboAccelerator) -> Accelerator:
        """Convert an object of the API."""
        spec, pricing = accelerator.spec, accelerator.spec.pricing
        return cls(
            name=accelerator.metadata.name,
            resource_name=spec.resource_name,
            quantity=quantity(spec.quantity),
            memory_bytes=int(quantity(spec.memory)),
            memory_bandwidth=_giga(spec.memory_bandwidth_gbps),
            flops={name: rate * 1e12 for name, rate in _floats(spec.tflops).items()},
            interconnect_bandwidth=_giga(spec.interconnect_gbps),
            network_bandwidth=_giga(spec.network_gbps),
            count_per_node=spec.count_per_node,
            prices=_by_type(pricing.per_accelerator_hour if pricing else None),
            price_per_node=pricing.billing_unit == "Node" if pricing else False,
            price_source=pricing.source if pricing else None,
            provisioning=spec.provisioning,
            max_count=spec.max_count,
            efficiency=_floats(spec.efficiency),
            node_selector=dict(spec.node_selector or {}),
            tolerations=tuple(toleration.dump() for toleration in spec.tolerations or ()),
            capacity_selectors={
                kind: dict(nodes.node_selector) for kind, nodes in _by_type(spec.capacity_types).items()
            },
        )


def _floats(amounts: BaseModel | None) -> dict[str, float]:
    """The amounts that a part of a spec states."""
    return {name: float(value) for name, value in amounts or () if value is not None}


def _giga(rate: Decimal | None) -> float | None:
    return None if rate is None else float(rate) * 1e9


def _by_type(stated: object) -> dict[CapacityType, Any]:
    """What an object of the API states for each capacity type."""
    values = {kind: getattr(stated, kind.name.lower(), None) for kind in CapacityType}
    return {kind: value for kind, value in values.items() if value is not None}


@dataclass(frozen=True, slots=True)
class Host:
    """Cores and memory beside accelerators: what a node has free, or what one pod takes."""

    millicores: int
    memory_bytes: int


@dataclass(frozen=True, slots=True)
class NodeSupply:
    """A node that an accelerator's pods may go to, in accelerators: what it has, and what no pod holds."""

    name: str
    allocatable: int
    free: int  # what pods of this TurboDeployment hold counts as free: a new plan may take their place
    host: Host | None = None  # free beside devices; None: not known, nothing is held against it
    capacity_types: frozenset[CapacityType] = frozenset(CapacityType)  # whose pods may go there


@dataclass(frozen=True, slots=True)
class Supply:
    """What the cluster has of one accelerator, and how much of it the namespace's quota leaves."""

    nodes: tuple[NodeSupply, ...] = ()
    quota: int | None = None  # accelerators that quotas leave this TurboDeployment; None: no quota
    # Elastic: a pod waited for one longer than pendingTimeout; until then (epoch seconds) no more are planned
    unavailable_until: float | None = None
    closed: int = 0  # nodes with the labels of its pods that take none: not ready, cordoned or tainted


@dataclass(frozen=True, slots=True, kw_only=True)
class AcceleratorLabels:
    """The accelerators and capacity type that a pod is billed as, by its labels; names are label values."""

    accelerator: str | None = None
    accelerators: int = 1  # of the pod
    capacity_type: str = CapacityType.ON_DEMAND
    nodes: int = 1  # of its replica, each with a pod


@dataclass(frozen=True, slots=True)
class TrafficSample:
    """What the activator of a router's pod reported, and when."""

    at: float
    traffic: Traffic


@dataclass(frozen=True, slots=True)
class MissingFile:
    """What a pod did not find of a model on a claim."""

    path: str  # empty: of the folder of all models
    at: float  # when, in seconds since the epoch


@dataclass(frozen=True, slots=True)
class PodView(AcceleratorLabels):
    """A pod of a deployment: enough to say what holds it up and how it does.

    In a `Snapshot` one stands for a whole replica, also where that has a pod on each of several nodes.
    """

    name: str
    plan_hash: str
    phase: str
    ready: bool
    ip: str | None
    reason: str | None  # the first failing container's or scheduling reason, as Kubernetes says it
    message: str | None
    terminating: bool = False
    pending_since: float | None = None  # of a pod that no node has taken yet
    ready_since: float | None = None
    created: float | None = None
    scheduled_since: float | None = None  # when a node took it
    started: float | None = None  # when its container began
    overdue: float = math.inf  # when it should have ended at the latest; later it stands in nobody's way
    orphan: str | None = None  # its resource version, where nothing controls it any more
    owner_uid: str | None = None  # by its label, without which the Service does not select it
    load: LoadSample | None = None  # the latest that was read
    traffic: TrafficSample | None = None  # the same of a router's pod
    engine: str = EngineName.TURBO
    group: str | None = None  # of a replica on several nodes: its number in the LeaderWorkerSet
    worker: int = 0  # and that of the pod in the group; 0 is the leader, which answers
    draft_label: str | None = None  # the version of the draft that its template names
    lacks: MissingFile | None = None  # why it does not start, where that is it
    has_image: bool = False  # whether it mounts an image

    @property
    def is_present(self) -> bool:
        """Whether it is a serving pod that has not ended."""
        return bool(self.plan_hash) and self.phase not in ENDED_PHASES

    @property
    def waits_for_node(self) -> bool:
        """Whether the scheduler has found no node for it: of a new pod it says nothing yet."""
        return self.pending_since is not None and self.reason in ("Unschedulable", "SchedulingGated")

    @property
    def is_serving(self) -> bool:
        """Whether it is a serving pod that is there to stay."""
        return self.is_present and not self.terminating

    def drafts_with(self, version: str) -> bool:
        """Whether it answers and drafts with that version: vLLM starts with the draft of its arguments, or
        not at all.
        """
        if self.engine == EngineName.VLLM:
            return self.ready and self.draft_label == label_value(version)
        return self.ready and self.load is not None and self.load.load.draft_version == version


@dataclass(frozen=True, slots=True)
class Occupancy:
    """What a pod had under way, integrated over the time since its first sample."""

    request_seconds: float = 0.0  # running requests
    squared_seconds: float = 0.0  # their square: over request_seconds, how many a request runs among
    token_seconds: float = 0.0  # tokens that they held in the KV cache

    def then(self, before: Load, after: Load, seconds: float) -> Occupancy:
        """With `seconds` more, over which the load went straight from one to the other."""
        one, two = before.running_requests, after.running_requests
        tokens = before.running_tokens + after.running_tokens
        return Occupancy(
            self.request_seconds + seconds * (one + two) / 2.0,
            self.squared_seconds + seconds * (one * one + two * two) / 2.0,
            self.token_seconds + seconds * tokens / 2.0,
        )


@dataclass(frozen=True, slots=True)
class LoadSample:
    """A pod's load, when it was read, and what has been since the samples before."""

    at: float
    load: Load
    tokens_per_second: float | None = None  # of output; None of a first sample, or after a restart
    occupancy: Occupancy = Occupancy()
    first: Load | None = None  # the sample that `occupancy` began with; None: this one

    @classmethod
    def after(cls, before: LoadSample | None, at: float, load: Load) -> LoadSample:
        """The sample that follows `before` (None: the first one): counters of one process only grow."""
        if before is None or at <= before.at or load.generated_tokens < before.load.generated_tokens:
            return cls(at, load)
        seconds = at - before.at
        rate = (load.generated_tokens - before.load.generated_tokens) / seconds
        occupancy = before.occupancy.then(before.load, load, seconds)
        return cls(at, load, rate, occupancy, before.first or before.load)


@dataclass(frozen=True, slots=True)
class GatewayView:
    """What a gateway says of an InferencePool as it is now."""

    name: str  # with its kind and namespace
    accepted: bool
    error: str | None = None  # what is wrong, in its words


@dataclass(frozen=True, slots=True)
class ChildView(AcceleratorLabels):
    """A child object of ours as it stands: identity and the hash of what we last applied to it."""

    kind: str
    name: str
    uid: str
    applied_hash: str | None  # annotation serving.turbo.dev/applied-hash
    plan_hash: str | None = None  # of workloads and ControllerRevisions
    replicas: int | None = None  # of workloads: spec.replicas
    available_replicas: int = 0
    observed_generation: int = 0
    generation: int = 0
    pods: int = 0  # Deployments: pods that its controller counts, those that end left out
    unavailable_since: float | None = None  # of workloads: epoch seconds; None while it is available
    terminating: bool = False
    finalizers: tuple[str, ...] = ()
    data: Mapping[str, Any] | None = None  # ConfigMap: data; ControllerRevision: the frozen pod template
    failed: bool = False  # Jobs
    complete: bool = False  # Jobs
    has_image: bool = False  # of a Job: whether its pods mount an image
    message: str | None = None  # ReplicaFailure or Job failure, as Kubernetes says it
    reason: str | None = None  # of a Job that failed
    ended: float | None = None  # of a Job: when it failed or was complete, in seconds since the epoch
    gateways: tuple[GatewayView, ...] = ()  # of an InferencePool: those that have taken it up

    @property
    def is_over_quota(self) -> bool:
        """Whether a quota lets it make no pod."""
        return "quota" in (self.message or "").lower()


@dataclass(frozen=True, slots=True)
class DraftView:
    """A TurboDraft."""

    name: str
    method: str
    claim_name: str
    path: str
    version: str
    target_digest: str
    gone: bool = False  # it is known from the status alone
    digest: str = ""  # of its configuration and tensors
    deployment: str | None = None  # the TurboDeployment whose candidate it is
    created: float = 0.0  # seconds since the epoch
    # By position, that the token drafted there is right, all before it being so, on the kind of traffic that
    # it drafts worst for; empty: not evaluated.
    acceptance: tuple[float, ...] = ()


def identity(draft: DraftView | DraftStatus) -> tuple[str, ...]:
    """What makes it another draft where it differs: its name, and what pods load."""
    return draft.name, draft.version, draft.claim_name, draft.path, draft.digest


@dataclass(frozen=True, slots=True)
class JobPod(AcceleratorLabels):
    """A pod of a Job that inspects or fetches the model, or trains a draft."""

    name: str
    job: str
    phase: str
    ip: str | None = None
    exit_code: int | None = None  # None: it has not ended
    reason: str | None = None  # what holds it up or ended it, as Kubernetes says it
    message: str | None = None  # what its container left, or what Kubernetes says of the reason
    started: float | None = None  # when its container began and ended, in seconds since the epoch
    ended: float | None = None
    pending_since: float | None = None  # of a pod that no node has taken yet
    scheduled_since: float | None = None  # when a node took it
    terminating: bool = False
    lacks: MissingFile | None = None  # why it does not start, where that is it

    @property
    def runs(self) -> bool:
        """Whether its container runs."""
        return self.phase == "Running" and self.exit_code is None


@dataclass(frozen=True, slots=True)
class ReportingPod(JobPod):
    """A pod of a Job that reports its progress."""

    progress: JobProgress | None = None  # the latest that was read


@dataclass(frozen=True, slots=True)
class TrainPod(ReportingPod):
    """A pod that trains a draft."""


@dataclass(frozen=True, slots=True)
class FetchPod(ReportingPod):
    """A pod that fetches the model to a claim."""


@dataclass(frozen=True, slots=True)
class Snapshot:
    """Everything one reconcile looks at, read once from the cache; no API call is made to build it."""

    accelerators: Mapping[str, Accelerator]
    supply: Mapping[str, Supply] | None = None  # by accelerator; None: not known, nothing is held against it
    children: tuple[ChildView, ...] = ()
    pods: tuple[PodView, ...] = ()
    routers: tuple[PodView, ...] = ()  # pods that requests go through
    model: ModelInfo | None = None  # from the inspect Job
    model_error: str | None = None  # why there is none, in a sentence
    inspecting: tuple[JobPod, ...] = ()  # pods of the Job that reads it
    inspected_by: str | None = None  # the TurboDeployment whose Job reads the same one
    fetching: tuple[FetchPod, ...] = ()  # pods of Jobs that bring it to a claim
    draft: DraftView | None = None  # the one that is asked for
    named: tuple[tuple[str, DraftView | None], ...] = ()  # further ones that requests may choose, by name
    drafts: tuple[DraftView, ...] = ()  # candidates of this TurboDeployment, oldest first
    speedup: float | None = None  # of what serves over no drafts, measured under load; None: not known
    trainings: tuple[TrainPod, ...] = ()  # pods that train a draft
    # Variants, by plan hash, whose ReplicaSet is being deleted without its pods.
    releasing: frozenset[str] = frozenset()
    # `supply` for a training, which takes no serving pod's place; None where no draft is trained.
    free: Mapping[str, Supply] | None = None
    group_lack: str | None = None  # why no replica can be on several nodes, as the end of a sentence
    pool_kind: Presence = Presence.PRESENT  # of InferencePools
    allowance: Allowance = NO_BUDGET  # what TurboBudgets leave it
    counted_time: float = math.inf  # when what nodes have free was counted, in seconds since the epoch
