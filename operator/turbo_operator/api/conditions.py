"""The types of conditions and their reasons."""

from __future__ import annotations

from enum import StrEnum


class ConditionType(StrEnum):
    """The conditions of a TurboDeployment; all but Reconciling and Stalled are good when True."""

    READY = "Ready"
    PLAN_FEASIBLE = "PlanFeasible"
    PLAN_APPROVED = "PlanApproved"  # only with planPolicy.apply Manual
    MODEL_INSPECTED = "ModelInspected"
    MODEL_CACHED = "ModelCached"  # only where a model is fetched to a claim
    AVAILABLE = "Available"
    DRAFT_READY = "DraftReady"  # only where a draft is asked for
    DRAFT_TRAINED = "DraftTrained"  # only where drafts are trained
    DRAFT_PROMOTED = "DraftPromoted"  # only where a new draft is, or was, tried
    SPECULATION_EFFECTIVE = "SpeculationEffective"
    POOL_ACCEPTED = "PoolAccepted"  # only where there is, or may be, an InferencePool
    TARGETS_MET = "TargetsMet"  # only where spec.targets has any
    WITHIN_BUDGET = "WithinBudget"
    SCALING_ACTIVE = "ScalingActive"
    RECONCILING = "Reconciling"
    STALLED = "Stalled"


class ReadyReason(StrEnum):
    """Why Ready is as it is; else Ready carries the reason of the condition that holds it up."""

    SERVING = "Serving"
    SCALED_TO_ZERO = "ScaledToZero"  # as asked: what is there serves the spec, and nothing answers
    INVALID_SPEC = "InvalidSpec"
    APPLY_REJECTED = "ApplyRejected"  # by the API server: a quota, a webhook, a rule on one of the children
    SUSPENDED = "Suspended"
    ROLLED_BACK = "RolledBack"  # the plan made no progress, and the one before it serves
    USER_ACTION_REQUIRED = "UserActionRequired"  # a limit of the spec holds the new plan back
    # Only with planPolicy.apply Recommend
    RECOMMENDED = "Recommended"
    DEPLOYMENT_NOT_FOUND = "DeploymentNotFound"
    METRICS_MISSING = "MetricsMissing"  # no pod of the Deployment shows vLLM's
    WAITING_FOR_TRAFFIC = "WaitingForTraffic"  # too few requests yet to tell the load


class RolloutReason(StrEnum):
    """Of `status.rollout`: how the takeover of a new plan has ended badly."""

    ROLLED_BACK = "RolledBack"  # the plan that served before serves on, until the spec changes
    PROGRESS_DEADLINE_EXCEEDED = "ProgressDeadlineExceeded"  # there is none to go back to: it is tried on


class PlanReason(StrEnum):
    """Of PlanFeasible: why a plan, or a rejected candidate, is feasible or not."""

    FEASIBLE = "Feasible"
    TARGET_UNREACHABLE = "TargetUnreachable"
    BUDGET_EXCEEDED = "BudgetExceeded"
    INSUFFICIENT_CAPACITY = "InsufficientCapacity"  # the cluster has not that many, or a quota leaves fewer
    INVALID_PARALLELISM = "InvalidParallelism"
    INSUFFICIENT_MEMORY = "InsufficientMemory"
    PRICE_UNKNOWN = "PriceUnknown"
    ACCELERATOR_NOT_FOUND = "AcceleratorNotFound"  # no TurboAccelerator of that name
    PERFORMANCE_UNKNOWN = "PerformanceUnknown"  # its speed is not stated
    NOT_YET_SUPPORTED = "NotYetSupported"
    HIGHER_COST = "HigherCost"  # of rejected rows: fits, and costs more than the chosen one
    NOT_PREFERRED = "NotPreferred"  # of rejected rows: fits at the same cost, and gives less or comes later
    MODEL_UNKNOWN = "ModelUnknown"  # not inspected yet
    LOAD_UNKNOWN = "LoadUnknown"  # with planPolicy.apply Recommend: the Deployment has not shown it yet


class ModelInspectedReason(StrEnum):
    """Of ModelInspected: how far the inspect Job is."""

    INSPECTED = "Inspected"
    INSPECTING = "Inspecting"
    INSPECT_RETRYING = "InspectRetrying"  # its last attempt failed, or its pod cannot start
    INSPECT_FAILED = "InspectFailed"


class PlanApprovedReason(StrEnum):
    """Of PlanApproved: whether the best plan may take effect."""

    APPROVED = "Approved"
    WAITING_FOR_APPROVAL = "WaitingForApproval"
    WAITING_FOR_PLAN = "WaitingForPlan"


class ModelCachedReason(StrEnum):
    """Of ModelCached: how far the Job is that fetches the model to a claim."""

    CACHED = "Cached"
    WAITING_FOR_MODEL = "WaitingForModel"  # not inspected yet
    FETCHING = "Fetching"
    FETCH_RETRYING = "FetchRetrying"  # its last attempt failed, or its pod cannot start
    FETCH_FAILED = "FetchFailed"
    SUSPENDED = "Suspended"


class AvailableReason(StrEnum):
    """Of Available: what the first failing pod, or its ReplicaSet, says."""

    MINIMUM_REPLICAS_AVAILABLE = "MinimumReplicasAvailable"
    WAITING_FOR_ACCELERATOR = "WaitingForAccelerator"
    WAITING_FOR_PODS = "WaitingForPods"  # those of an earlier plan hold what new ones take
    QUOTA_EXCEEDED = "QuotaExceeded"
    IMAGE_PULL_BACK_OFF = "ImagePullBackOff"
    CRASH_LOOP_BACK_OFF = "CrashLoopBackOff"
    OOM_KILLED = "OOMKilled"
    FAILED_CREATE = "FailedCreate"  # the API server rejected a pod
    MODEL_LOADING = "ModelLoading"
    NO_PLAN = "NoPlan"
    SUSPENDED = "Suspended"


class DraftReason(StrEnum):
    """Of DraftReady: whether pods draft with the draft that is asked for."""

    LOADED = "Loaded"
    LOADING = "Loading"  # not every pod has taken it up yet
    NOT_FOUND = "NotFound"
    TARGET_MODEL_MISMATCH = "TargetModelMismatch"  # it was trained for another model
    NOT_YET_SUPPORTED = "NotYetSupported"
    LOAD_FAILED = "LoadFailed"  # a pod says what is wrong with it
    SPECULATION_DISABLED = "SpeculationDisabled"  # the plan is one without speculation


class TrainingReason(StrEnum):
    """Of DraftTrained: how far the training of a draft is."""

    TRAINED = "Trained"  # there is a draft for the model that is served, and none is due
    TRAINING = "Training"
    WAITING_FOR_PLAN = "WaitingForPlan"  # the model is not known, or no plan drafts
    WAITING_FOR_PROMPTS = "WaitingForPrompts"  # too few were captured
    WAITING_FOR_PODS = "WaitingForPods"  # none answers yet, and a draft for vLLM learns from their answers
    WAITING_FOR_ACCELERATOR = "WaitingForAccelerator"  # none has room, or the pod waits for a node
    NO_ACCELERATOR = "NoAccelerator"  # none will do, whatever room there is
    PRICE_UNKNOWN = "PriceUnknown"  # maxCost is set, and what it is to be spent on has no price
    WAITING_FOR_BUDGET = "WaitingForBudget"  # with the replicas it would be above maxPerHour or maxTotal
    BUDGET_EXCEEDED = "BudgetExceeded"  # maxCost is spent
    TRAINING_FAILED = "TrainingFailed"
    SUSPENDED = "Suspended"
    APPLY_REJECTED = "ApplyRejected"  # by the API server: its Job or its TurboDraft


class CanaryReason(StrEnum):
    """Of DraftPromoted: what the canary of a new draft has come to."""

    WAITING_FOR_BUDGET = "WaitingForBudget"  # a pod beside the only one costs too much
    WAITING_FOR_PLAN = "WaitingForPlan"  # no plan with it is feasible on what serves
    STARTING = "Starting"
    EVALUATING = "Evaluating"  # too little was answered yet to tell
    PROMOTED = "Promoted"
    NO_IMPROVEMENT = "NoImprovement"  # less than what was there has
    INCONCLUSIVE = "Inconclusive"  # not enough was answered within a day of a node's having its pod
    AUDIT_MISMATCH = "AuditMismatch"  # an answer differs from the one without drafts
    LOAD_FAILED = "LoadFailed"
    POD_FAILED = "PodFailed"
    APPLY_REJECTED = "ApplyRejected"  # by the API server: what it would be tried on


class EffectReason(StrEnum):
    """Of SpeculationEffective: whether drafts make answers faster."""

    MEASURED = "Measured"
    INSUFFICIENT_SAMPLES = "InsufficientSamples"
    DISABLED = "Disabled"


class PoolAcceptedReason(StrEnum):
    """Of PoolAccepted: what gateways say of the InferencePool."""

    ACCEPTED = "Accepted"
    NO_GATEWAY = "NoGateway"  # none has said anything
    PENDING = "Pending"  # one has not reported yet, or the API server not answered whether it knows the kind
    NOT_ACCEPTED = "NotAccepted"  # one says what is wrong


class TargetsMetReason(StrEnum):
    """Of TargetsMet: whether requests keep spec.targets."""

    MET = "Met"
    FIRST_TOKEN_MISSED = "FirstTokenMissed"  # noqa: S105  no password
    OUTPUT_TOKEN_MISSED = "OutputTokenMissed"  # noqa: S105
    THROUGHPUT_MISSED = "ThroughputMissed"
    NO_TRAFFIC = "NoTraffic"
    INSUFFICIENT_SAMPLES = "InsufficientSamples"
    INCONCLUSIVE = "Inconclusive"  # the target lies within a bucket of the histogram that the share is in
    METRICS_MISSING = "MetricsMissing"


class WithinBudgetReason(StrEnum):
    """Of WithinBudget: whether what runs is within spec.cost."""

    WITHIN_BUDGET = "WithinBudget"
    NO_BUDGET = "NoBudget"
    BUDGET_EXCEEDED = "BudgetExceeded"
    PRICE_UNKNOWN = "PriceUnknown"
    BUDGET_UNREADABLE = "BudgetUnreadable"


class ScalingReason(StrEnum):
    """Of ScalingActive: what determined the number of replicas."""

    PLANNED = "Planned"
    SCALING = "Scaling"
    STABLE = "Stable"
    METRICS_UNAVAILABLE = "MetricsUnavailable"
    SCALING_LIMITED = "ScalingLimited"
    IDLE = "Idle"  # no request came for idleAfter: there is no replica until the next one
    EXTERNALLY_MANAGED = "ExternallyManaged"
    SUSPENDED = "Suspended"


class ReconcilingReason(StrEnum):
    """Why Reconciling is False; else it carries the reason of the condition that holds it up."""

    UP_TO_DATE = "UpToDate"
    PROGRESSING = "Progressing"  # Ready, and not all replicas are there yet or not all others gone


class StalledReason(StrEnum):
    """Whether the object waits for a change by its user."""

    NOT_STALLED = "NotStalled"
    USER_ACTION_REQUIRED = "UserActionRequired"
    ROLLED_BACK = "RolledBack"
    PROGRESS_DEADLINE_EXCEEDED = "ProgressDeadlineExceeded"
