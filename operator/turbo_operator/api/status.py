"""The status of a TurboDeployment: what the operator writes. Read leniently: another version may write it."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from turbo_operator.api.condition import Condition, Count, StatusRecord, Timestamp, Word
from turbo_operator.api.reference import ReferenceStatus, Saving

MAX_SENTENCE, MAX_REJECTED_DRAFTS = 2048, 5
_Sentence = Annotated[str, Field(max_length=MAX_SENTENCE)]
_Weights = Annotated[int, Field(ge=0, json_schema_extra={"format": "int64"})]


class ShapeStatus(StatusRecord):
    """The model's shape as the inspect Job read it; counts are of elements, not bytes."""

    architecture: Word
    parameters: _Weights
    layers: Count
    hidden_size: Count
    heads: Count
    kv_heads: Count
    head_dim: Count
    vocab_size: Count
    max_position: Count
    dtype: Word
    quantization: Word | None = None
    """Type of the quantized weights; absent where none is."""
    quantized_parameters: _Weights = 0
    """Of parameters: those that are quantized."""
    embedding_parameters: _Weights = 0
    """Of parameters: a table that is looked up and multiplied by nothing."""
    experts: Count = 0
    """Routed experts of a layer; 0 where the model is dense."""
    experts_per_token: Count = 0
    """Routed experts that each token passes through."""
    expert_parameters: _Weights = 0
    """Of parameters: the routed experts of all layers."""
    kv_latent: Count = 0
    """Elements cached per token and layer instead of keys and values; 0 without latent attention."""
    sliding_window: Count = 0
    """Tokens that sliding layers look back; 0 where none slides."""
    sliding_layers: Count = 0
    """Layers that look back sliding_window tokens."""
    mtp_layers: Count = 0
    """Layers that predict the tokens after the next; not in parameters."""
    mlp_width: Count = 0
    """Inner elements of one token in the widest MLP, its experts together; 0 where it is not known."""
    dequantizable: bool = False
    """Whether the weights are quantized, and engine Turbo dequantizes them as it loads them."""
    unsupported: Word = ""
    """Setting of the model's configuration that engine Turbo does not support; empty where there is none."""


class ModelStatus(StatusRecord):
    """Which model it is, exactly."""

    resolved_revision: Word | None = None
    """The commit of the hub that the revision stood for."""
    digest: Word | None = None
    """sha256 of configuration and weight files' names, sizes, headers and samples."""
    shape: ShapeStatus | None = None
    """Its shape."""


class CacheStatus(StatusRecord):
    """The copy of the model on a claim."""

    claim_name: Word
    """The claim."""
    revision: Word
    """The commit of the hub that it is of."""
    progress: Word | None = None
    """How much of it is there, in steps of a tenth, like download 40 %; absent once it is whole."""
    estimated_remaining: Word | None = None
    """About how long the rest will take, like 5m."""
    lost_time: Timestamp | None = None
    """When a pod was seen not to find all of it, so that it was fetched again (RFC 3339, UTC); absent once
    a pod that has looked since runs for ten minutes.
    """


class Predicted(StatusRecord):
    """What the plan is expected to do at the planned load; absent is unknown."""

    time_to_first_token: Word | None = None
    """At the target's percentile, like 123ms."""
    time_per_output_token: Word | None = None
    """At the target's percentile, like 12.3ms."""
    tokens_per_second: Word | None = None
    """Output tokens of all replicas."""
    cost_per_hour: Word | None = None
    """All replicas, in US dollars per hour."""
    cost_per_million_tokens: Word | None = None
    """Of output, in US dollars."""
    provenance: Word | None = None
    """What the figures rest on, the weakest first: Assumed, Roofline, Calibrated, Measured."""


class RejectedPlan(StatusRecord):
    """A candidate that was not chosen."""

    accelerator: Word
    """Its accelerator."""
    engine: Word | None = None
    """Its engine."""
    capacity_type: Word | None = None
    """How those are paid for."""
    tensor: Count
    """Its tensor parallelism."""
    nodes: Count | None = None
    """Nodes of one replica."""
    data: Count | None = None
    """Its data-parallel groups."""
    method: Word
    """Its drafting method, or Off."""
    reason: Word
    """Why not, in one word."""
    message: _Sentence
    """Why not, in a sentence."""


class PlanStatus(StatusRecord):
    """A plan, of the spec or of the pods that serve."""

    hash: Word | None = None
    """Hash of all that shapes a pod; part of the Deployment's name."""
    engine: Word | None = None
    """The engine."""
    accelerator: Word | None = None
    """The chosen TurboAccelerator."""
    capacity_type: Word | None = None
    """How its accelerators are paid for."""
    tensor: Count | None = None
    """Tensor parallelism."""
    accelerators_per_replica: Count | None = None
    """Accelerators of one replica."""
    nodes: Count | None = None
    """Nodes of one replica."""
    data: Count | None = None
    """Data-parallel groups of one replica."""
    method: Word | None = None
    """Drafting method, or Off."""
    placement: Word | None = None
    """Where the draft runs; absent where there is none that takes memory."""
    max_draft_tokens: Count | None = None
    """Ceiling of drafted tokens."""
    replicas: Count | None = None
    """Replicas that the planned load needs."""
    predicted: Predicted | None = None
    """What it is expected to do."""
    reason: Word | None = None
    """Why this plan, or why none, in one word."""
    message: _Sentence | None = None
    """The same in a sentence."""
    rejected: Annotated[tuple[RejectedPlan, ...], Field(max_length=5)] = ()
    """The best candidates that were not chosen."""


class RolloutStatus(StatusRecord):
    """How far the plan is that takes over from the one that serves, or why it was rolled back."""

    plan_hash: Word
    """The plan that takes over."""
    spec_hash: Word
    """Hash of the spec, its replicas left out, that the plan was made for."""
    over_limits: bool | None = None
    """Whether what served before was above a limit that was lowered: it may go above it on the way, too."""
    available_replicas: Count = 0
    """The most of its replicas that were available at once."""
    last_progress_time: Timestamp | None = None
    """When one more became available, or a node took its first pod (RFC 3339, UTC); absent until then."""
    reason: Word | None = None
    """RolledBack once it made no progress for spec.rollout.progressDeadline; where no plan served before it
    ProgressDeadlineExceeded. Absent until then."""
    message: _Sentence | None = None
    """What its first failing pod said then, or what was found on a step."""
    passed_steps: Count | None = None
    """Steps of spec.rollout.canary that it has passed."""
    step_time: Timestamp | None = None
    """Since when all replicas of its step have been available; absent while they are not."""
    failed_step: Count | None = None
    """The step on which it was given up, counted from 1."""


_Factor = Annotated[str, Field(max_length=16, pattern=r"^\d{1,6}\.\d{3}$")]


class Calibrated(StatusRecord):
    """What measured step times are to the planner's, as factors; of one engine on one accelerator."""

    engine: Word
    """The engine."""
    accelerator: Word
    """The TurboAccelerator."""
    decode: _Factor
    """Of a step that decodes, from what pods measured at their start."""
    prefill: _Factor
    """Of reading a prompt, from what pods measured at their start."""
    online: _Factor
    """On both, from how long requests took under load."""
    until: Timestamp | None = None
    """When online is 1 again unless it is heard once more (RFC 3339, UTC); absent while it is 1."""


class ObservedMetrics(StatusRecord):
    """What is measured and paid now, in steps of ten per cent; absent is unknown."""

    tokens_per_second: Word | None = None
    """Output tokens of all pods; changes every four minutes at most, and with the cost."""
    speedup: Word | None = None
    """Speed of outputs over that without drafts, in the last ten minutes; of vLLM by its accepted drafts."""
    acceptance_length: Word | None = None
    """Tokens that a step with drafts adds to a request, of all pods since they started."""
    cost_per_hour: Word | None = None
    """Of the pods that hold accelerators, in US dollars per hour."""
    cost_per_million_tokens: Word | None = None
    """Of output at the present load, in US dollars."""


class StartupTimes(StatusRecord):
    """How long each stage of the start of a pod took, in seconds like 12s; absent is unknown."""

    pod: Word
    """The pod: the latest that became ready."""
    scheduling: Word | None = None
    """Until a node took it."""
    pulling: Word | None = None
    """Until its container began: images, volumes and init containers."""
    loading: Word | None = None
    """Loading the model, as the pod says."""
    checking: Word | None = None
    """The start-up check and the micro-benchmark, as the pod says."""
    ready: Word | None = None
    """From its creation until it was ready."""
    first_token: Word | None = None
    """From its creation until the first token of an answer."""


class ScaleEvent(StatusRecord):
    """One change of the number of replicas."""

    time: Timestamp
    """When it was seen (RFC 3339, UTC)."""
    before: Annotated[int, Field(ge=0, alias="from")]
    """Replicas before it."""
    after: Annotated[int, Field(ge=0, alias="to")]
    """Replicas after it."""
    reason: Word
    """Why, in one word."""


class UnavailableAccelerator(StatusRecord):
    """A TurboAccelerator that a pod has waited for without success."""

    accelerator: Word
    """Its name."""
    expiration_time: Timestamp
    """Until then nothing is planned on it but what its nodes have free (RFC 3339, UTC)."""


class DraftStatus(StatusRecord):
    """The trained draft that is in use, or about to be."""

    name: Word
    """Its TurboDraft."""
    version: Word
    """Its version."""
    claim_name: Word
    """The claim that it lies on."""
    path: Annotated[str, Field(max_length=1024)]
    """Its folder there."""
    digest: Word
    """Of its configuration and tensors."""
    target_digest: Word
    """Of the model that it was trained for."""


class TrainingStatus(StatusRecord):
    """The training that runs, or the last one."""

    number: Count
    """Counts trainings; it is in the name of the Job, the folder and the TurboDraft."""
    input_hash: Word
    """Hash of what decides the draft, in the name of its folder: another one is another training."""
    spec_hash: Word
    """Hash of spec.speculation.training as it was when this one was last begun or ended."""
    target_digest: Word | None = None
    """Of the model that it is for."""
    accelerator_name: Word | None = None
    """The TurboAccelerator it runs on."""
    excluded_accelerators: Annotated[tuple[Word, ...], Field(max_length=32)] = ()
    """TurboAccelerators that its pod has waited for without success, until one has run."""
    start_time: Timestamp | None = None
    """When its first pod began to run (RFC 3339, UTC); absent until then."""
    cost_per_hour: Word | None = None
    """Of that, in US dollars; absent where the price is not known."""
    cost: Word | None = None
    """US dollars of the time that its pods ran; counted now and then."""
    last_cost_time: Timestamp | None = None
    """Since when the pod that runs is not counted in cost yet (RFC 3339, UTC)."""
    progress: Word | None = None
    """The stage and how much of it is done, in steps of a tenth, like answers 40 %."""
    estimated_remaining: Word | None = None
    """About how long the stage will take yet, like 5m."""
    below_threshold_time: Timestamp | None = None
    """Since when the measured speedup is below trigger.speedupBelow (RFC 3339, UTC)."""
    result: Word | None = None
    """How it ended: Trained, BudgetExceeded or TrainingFailed; absent until then."""
    message: _Sentence | None = None
    """Why it ended badly."""
    completion_time: Timestamp | None = None
    """When it ended (RFC 3339, UTC)."""


class RejectedDraft(DraftStatus):
    """A draft that was tried and is not used."""

    reason: Word
    """Why, in one word."""
    message: _Sentence
    """Why, in a sentence."""
    time: Timestamp
    """When (RFC 3339, UTC)."""


class TurboDeploymentStatus(StatusRecord):
    """What there is; written by the operator, on change only."""

    observed_generation: Count = 0
    """The generation of the spec that this speaks of."""
    url: Annotated[str, Field(max_length=1024)] | None = None
    """Base URL of the OpenAI API inside the cluster."""
    replicas: Count = 0
    """Pods there are."""
    ready_replicas: Count = 0
    """Pods that serve."""
    desired_replicas: Count | None = None
    """Pods that are wanted now."""
    selector: Annotated[str, Field(max_length=1024)] | None = None
    """Label selector of the pods, for autoscalers."""
    model: ModelStatus | None = None
    """Which model it is, exactly."""
    cache: CacheStatus | None = None
    """The copy of the model on the claim of spec.cache."""
    plan: PlanStatus | None = None
    """What the spec comes to: what runs, is about to, or was tried and rolled back."""
    pending_plan: PlanStatus | None = None
    """With planPolicy.apply Manual: the plan that waits for `turbo approve NAME`; with Recommend the one that
    is recommended."""
    serving_plan: PlanStatus | None = None
    """The last plan whose replicas were all available: what serves until another one's are."""
    rollout: RolloutStatus | None = None
    """How far plan is in taking over from servingPlan; absent where they are the same."""
    draft: DraftStatus | None = None
    """The trained draft that is in use, or about to be."""
    training: TrainingStatus | None = None
    """The training that runs, or the last one."""
    canary: DraftStatus | None = None
    """A new one that is tried on a pod of its own, or waits to be."""
    rejected_drafts: Annotated[tuple[RejectedDraft, ...], Field(max_length=MAX_REJECTED_DRAFTS)] = ()
    """The last drafts that a canary rejected, the latest last."""
    observed: ObservedMetrics | None = None
    """What is measured and paid now."""
    calibrations: Annotated[tuple[Calibrated, ...], Field(max_length=16)] = ()
    """What pods have told of their speed, those of the latest plan first."""
    reference: ReferenceStatus | None = None
    """With planPolicy.apply Recommend: the Deployment that the plan is for."""
    saving: Saving | None = None
    """What is saved; absent until it is measured."""
    startup: StartupTimes | None = None
    """How long the latest pod took to start."""
    scale_history: Annotated[tuple[ScaleEvent, ...], Field(max_length=5)] = ()
    """The last changes of the number of replicas, the latest last."""
    unavailable_accelerators: Annotated[tuple[UnavailableAccelerator, ...], Field(max_length=32)] = ()
    """Accelerators that are passed over for a while."""
    conditions: Annotated[
        tuple[Condition, ...],
        Field(max_length=16, json_schema_extra={"x-kubernetes-list-map-keys": ["type"]}),
    ] = ()
    """The state, aspect by aspect."""

    def condition(self, kind: str) -> Condition | None:
        """The condition of one type, if there is one."""
        return next((condition for condition in self.conditions if condition.type == kind), None)
