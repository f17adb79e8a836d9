"""What every candidate is measured against: a spec, its defaults worked out. Pure."""

from __future__ import annotations

from dataclasses import dataclass
from decimal import Decimal

from turbo_operator.api import CapacityType, DType, Objective, Resources, TurboDeploymentSpec
from turbo_operator.api.scaling import ScalingPolicy
from turbo_operator.planner.capabilities import NOW
from turbo_operator.planner.demand import Demand, demand, overlong
from turbo_operator.planner.performance.memory import ELEMENT_BYTES
from turbo_runtime.contract.model import ModelShape

MOST_REPLICAS = 1000  # as many as the scale subresource takes


@dataclass(frozen=True, slots=True)
class Requirements:
    """A spec in numbers."""

    shape: ModelShape
    dtype: DType
    max_model_len: int
    demand: Demand
    overlong: str | None  # the lengths that max_model_len does not hold, as the start of a sentence
    policy: ScalingPolicy
    fixed: int  # replicas while the policy is External
    fewest: int
    most: int
    objective: Objective
    max_per_hour: Decimal | None
    max_per_million: Decimal | None
    max_per_replica: int | None
    max_total: int | None
    tensor: int | None
    pipeline: int | None
    names: tuple[str, ...]  # of accelerators, the preferred one first
    only_one: bool  # cost can change neither the choice nor its feasibility
    capacity_types: tuple[CapacityType, ...]
    resources: Resources | None  # the template's, over those of the plan

    @property
    def external(self) -> bool:
        """Whether somebody else decides on the replicas."""
        return self.policy == ScalingPolicy.EXTERNAL

    @property
    def loaded(self) -> bool:
        """Whether a load is asked for, from which a number of replicas follows."""
        loads = (self.demand.rate, self.demand.concurrency, self.demand.tokens_per_second)
        return any(each is not None for each in loads)

    @property
    def expands(self) -> bool:
        """Whether more replicas than the load needs are taken for the objective's sake."""
        return self.objective != Objective.COST and self.policy == ScalingPolicy.PLANNED

    @property
    def best(self) -> str:
        """The objective in a word, of what is feasible."""
        return {Objective.COST: "least", Objective.LATENCY: "fastest", Objective.THROUGHPUT: "most"}[
            self.objective
        ]

    @property
    def needs_speed(self) -> bool:
        """Whether an accelerator whose speed is unknown cannot be judged."""
        it = self.demand
        asked = (it.rate, it.concurrency, it.time_to_first_token, it.time_per_output_token)
        return (
            any(each is not None for each in (*asked, it.tokens_per_second, self.max_per_million))
            or self.objective != Objective.COST
        )

    @property
    def targets(self) -> bool:
        """Whether a latency is bounded."""
        return self.demand.time_to_first_token is not None or self.demand.time_per_output_token is not None

    @property
    def unloaded(self) -> bool:
        """Whether nothing says how many requests come: then a latency is that of one alone on a replica."""
        it = self.demand
        return (
            not self.targets and it.rate is None and it.concurrency is None and it.tokens_per_second is None
        )

    @property
    def rate(self) -> float | None:
        """Requests per second that are planned for; of a throughput its share of answers."""
        if self.demand.rate is not None or self.demand.tokens_per_second is None:
            return self.demand.rate
        return None if self.demand.concurrency else self.demand.tokens_per_second / self.demand.answer.mean


def request(spec: TurboDeploymentSpec, shape: ModelShape, names: tuple[str, ...]) -> Requirements:
    """The spec's demands; `names` are the accelerators that there are, in order."""
    accelerators, cost, parallelism = spec.accelerators, spec.cost, spec.parallelism
    allowed = accelerators.allowed if accelerators else None
    capacity_types = accelerators.capacity_types if accelerators else (CapacityType.ON_DEMAND,)
    per_hour = cost.max_per_hour if cost else None
    per_million = cost.max_per_million_tokens if cost else None
    one = allowed is not None and len(allowed) == 1 and capacity_types == (CapacityType.ON_DEMAND,)
    bounds = None if spec.scaling_policy == ScalingPolicy.EXTERNAL else spec.scaling  # not read there
    longest = spec.model.max_model_len or NOW.longest(shape)
    return Requirements(
        shape=shape,
        dtype=spec.model.dtype,
        max_model_len=longest,
        demand=demand(spec, longest),
        overlong=overlong(spec, longest),
        policy=spec.scaling_policy,
        fixed=spec.replicas,
        fewest=(bounds and bounds.min_replicas) or 1,
        most=(bounds and bounds.max_replicas) or MOST_REPLICAS,
        objective=cost.objective if cost else Objective.COST,
        max_per_hour=per_hour,
        max_per_million=per_million,
        max_per_replica=accelerators.max_per_replica if accelerators else None,
        max_total=accelerators.max_total if accelerators else None,
        tensor=parallelism.tensor if parallelism else None,
        pipeline=parallelism.pipeline if parallelism else None,
        names=allowed or names,
        only_one=one and per_hour is None and per_million is None,
        capacity_types=capacity_types,
        resources=spec.template.resources if spec.template else None,
    )


def computed_in(dtype: DType, shape: ModelShape, cpu: bool) -> str:
    """The runtime's word for what is computed in.

    On cores Auto is float32 whatever their flags: replicas on unlike nodes must give the same bytes, and
    bfloat16 is emulated on many. On a device it is bfloat16, unless the weights are stored in float32.
    """
    if dtype != DType.AUTO:
        return dtype.lower()
    return "float32" if cpu or shape.dtype == "float32" else "bfloat16"


def element_bytes(dtype: str) -> int:
    """Bytes of one number of that type."""
    return ELEMENT_BYTES[dtype]
