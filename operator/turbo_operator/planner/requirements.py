"""Requirements of a deployment in numbers: lengths, load, bounds and limits, with defaults applied. Pure."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any

from turbo_operator import api
from turbo_operator.api import CapacityType, EngineName, Objective, ScalingMode, TurboDeploymentSpec, quantity
from turbo_operator.api.requirements import DEFAULT_INPUT_TOKENS, DEFAULT_OUTPUT_TOKENS, Latency
from turbo_operator.api.requirements import Lengths as SpecLengths
from turbo_operator.budget import beside, device_pod_cores
from turbo_operator.planner.capabilities import lora_rank
from turbo_operator.planner.inputs import PlannerInputs
from turbo_operator.planner.performance import memory
from turbo_operator.snapshot import Accelerator, Host, Supply
from turbo_runtime.contract.config import DType
from turbo_runtime.contract.documents import ModelShape

P95_OF_MEAN = 3.0
WALL = 0.06  # fraction of the lengths that are as long as the 95th percentile
DEPTH = -math.log(WALL)
MIN_TOKENS = 4.0  # of the shortest; none of Azure's outputs has fewer, 3 % of Mooncake's
POWERS = (0.01, 64.0)  # from all lengths alike to nearly all near zero
ADAPTER_RANK = 64  # of adapters that were not read; PEFT's own default is 8
# In addition to the weights on their way to a device: interpreter, tokenizer, page cache.
HOST_RESERVE = 4 * memory.GIB
DRAFT_CORES = 8  # that a draft model on the host's cores is given
# Of vLLM: its server, its core, the memory that its processes share; and each worker with its CUDA context.
VLLM_RESERVE, VLLM_WORKER_BYTES = 6 * memory.GIB, 4 * memory.GIB


@dataclass(frozen=True, slots=True)
class Lengths:
    """Tokens of a prompt or an output, given by a mean and a 95th percentile.

    A Weibull distribution that begins at a few tokens and ends in a wall at the percentile:
    length = shortest + (p95 - shortest) min(1, E / DEPTH)^power, E exponential. The prompts of published
    traces end so, at their context window (in Azure's of 2023 the 99th percentile is 1 to 2 % above the
    95th). A lognormal through the same two numbers has up to four times their variance.
    """

    mean: float
    p95: float
    shortest: float = field(init=False)
    power: float = field(init=False)  # 1: exponential

    def __post_init__(self) -> None:
        shortest = min(MIN_TOKENS, self.mean / 4.0)
        object.__setattr__(self, "shortest", shortest)
        object.__setattr__(self, "power", _power((self.mean - shortest) / (self.p95 - shortest)))

    @property
    def second_moment(self) -> float:
        """Mean of the square."""
        span = self.p95 - self.shortest
        return self.shortest * (2.0 * self.mean - self.shortest) + span**2 * _moment(2.0 * self.power)

    @property
    def squared_variation(self) -> float:
        """Variance over the mean squared."""
        return max(0.0, self.second_moment / self.mean**2 - 1.0)


@lru_cache(maxsize=4096)
def _power(mean: float) -> float:
    """Find the power of min(1, E / DEPTH) that has this mean."""
    low, high = POWERS  # no lengths have a 95th percentile above 20 times their mean, where the range ends
    for _ in range(40):
        middle = (low + high) / 2.0
        low, high = (middle, high) if _moment(middle) > mean else (low, middle)
    return low


def _moment(power: float) -> float:
    """Compute the mean of min(1, E / DEPTH)^power: an incomplete gamma function, by its series."""
    term = total = 1.0 / (power + 1.0)
    for index in range(2, 24):
        term *= DEPTH / (power + index)
        total += term
    return WALL + WALL * DEPTH * total


@dataclass(frozen=True, slots=True)
class Bound:
    """A time in seconds that this fraction of the requests must keep."""

    seconds: float
    share: float  # 0.95: of 95 in 100


@dataclass(frozen=True, slots=True)
class Demand:
    """The load to plan for and the bounds to keep. At most one of `rate` and `concurrency` is known."""

    prompt: Lengths
    output: Lengths
    assumed: bool  # some length is a default
    rate: float | None = None  # requests per second of all clients together
    concurrency: int | None = None  # requests always under way
    time_to_first_token: Bound | None = None
    time_per_output_token: Bound | None = None
    tokens_per_second: float | None = None  # minimum of output tokens of all replicas together

    @property
    def mean_context(self) -> float:
        """Mean tokens that a decoding request has in the KV cache: the context of the step-time model."""
        # A long output is under way for longer, so more than half of the mean: E[output^2] / (2 E[output]).
        return self.prompt.mean + self.output.second_moment / (2.0 * self.output.mean)

    @property
    def has_load(self) -> bool:
        """Whether it states a load, from which a number of replicas follows."""
        return any(value is not None for value in (self.rate, self.concurrency, self.tokens_per_second))

    @property
    def has_latency(self) -> bool:
        """Whether it bounds a latency."""
        return self.time_to_first_token is not None or self.time_per_output_token is not None


def demand(spec: TurboDeploymentSpec, max_tokens: float = math.inf) -> Demand:
    """Derive the load and the bounds; prompt and output of a request have at most `max_tokens` tokens."""
    workload, targets = spec.workload or api.Workload(), spec.targets or api.Targets()
    prompt, output = workload.input_tokens, workload.output_tokens
    rate, tokens = workload.requests_per_second, targets.tokens_per_second

    def mean(own: SpecLengths | None, default: int, other: SpecLengths | None) -> float:
        """A mean of the spec stays; a default gives way to the other's, and two defaults shrink alike."""
        if own is not None:
            return own.mean
        if other is not None:
            return max(1.0, min(default, max_tokens - other.mean))
        return default * min(1.0, max_tokens / (DEFAULT_INPUT_TOKENS + DEFAULT_OUTPUT_TOKENS))

    prompt_mean = mean(prompt, DEFAULT_INPUT_TOKENS, output)
    output_mean = mean(output, DEFAULT_OUTPUT_TOKENS, prompt)
    return Demand(
        prompt=_lengths(prompt_mean, prompt, max_tokens - output_mean),
        output=_lengths(output_mean, output, max_tokens - prompt_mean),
        assumed=prompt is None or output is None,
        rate=None if rate is None else float(rate),
        concurrency=workload.concurrency,
        time_to_first_token=_bound(targets.time_to_first_token),
        time_per_output_token=_bound(targets.time_per_output_token),
        tokens_per_second=None if tokens is None else float(tokens),
    )


def describe_overlong(spec: TurboDeploymentSpec, max_tokens: int) -> str | None:
    """Name the means of the spec that no request of `max_tokens` tokens holds; None if they fit."""
    required, workload = demand(spec, max_tokens), spec.workload or api.Workload()
    if required.prompt.mean + required.output.mean <= max_tokens:
        return None
    lengths = (("inputTokens", workload.input_tokens), ("outputTokens", workload.output_tokens))
    means = [f"{name}.mean is {length.mean}" for name, length in lengths if length is not None]
    return f"spec.workload.{' and '.join(means)}" if means else None


def _lengths(mean: float, lengths: SpecLengths | None, max_tokens: float) -> Lengths:
    """Build lengths with the percentile of the spec or the usual one, and no longer than fits."""
    p95 = lengths.p95 if lengths is not None and lengths.p95 is not None else mean * P95_OF_MEAN
    return Lengths(mean, max(mean, min(p95, max_tokens)))


def _bound(latency: Latency | None) -> Bound | None:
    return None if latency is None else Bound(latency.max.seconds, latency.percentile / 100)


@dataclass(frozen=True, slots=True)
class Requirements:
    """A spec in numbers, which every candidate is compared with."""

    inputs: PlannerInputs
    now: float  # seconds since the epoch
    shape: ModelShape
    max_model_len: int
    demand: Demand
    min_replicas: int
    max_replicas: int
    cost: api.Cost
    accelerators: api.Accelerators
    parallelism: api.Parallelism
    resources: api.Resources | None  # the pod template's, over those of the plan
    names: tuple[str, ...]  # of accelerators that are allowed, the preferred one first
    rows: tuple[Accelerator, ...]  # those of them that there are

    @property
    def objective(self) -> api.Objective:
        """What is best among feasible plans."""
        return self.inputs.spec.plan_policy.objective

    @property
    def external(self) -> bool:
        """Whether somebody else decides on the replicas."""
        return self.inputs.spec.scaling_mode == ScalingMode.EXTERNAL

    @property
    def expands(self) -> bool:
        """Whether the objective asks for more replicas than the load needs."""
        return self.objective != Objective.COST and self.inputs.spec.scaling_mode == ScalingMode.PLANNED

    @property
    def only_one(self) -> bool:
        """Whether cost can change neither the choice nor its feasibility."""
        is_unbounded = self.cost.max_per_hour is None and self.cost.max_per_million_tokens is None
        is_on_demand = self.accelerators.capacity_types == (CapacityType.ON_DEMAND,)
        return len(self.accelerators.allowed or ()) == 1 and is_on_demand and is_unbounded

    @property
    def needs_speed(self) -> bool:
        """Whether an accelerator of unknown speed cannot be evaluated."""
        is_priced = self.objective != Objective.COST or self.cost.max_per_million_tokens is not None
        return is_priced or not self.unloaded

    @property
    def unloaded(self) -> bool:
        """Whether the load is unknown: then a latency is that of one request alone on a replica."""
        return not (self.demand.has_load or self.demand.has_latency)

    @property
    def rate(self) -> float | None:
        """Requests per second that are planned for; of a throughput its share of outputs."""
        if self.demand.rate is not None or self.demand.tokens_per_second is None:
            return self.demand.rate
        return None if self.demand.concurrency else self.demand.tokens_per_second / self.demand.output.mean

    def adapter_bytes(self, element: memory.Numbers, tensor: memory.Numbers, stages: memory.Numbers) -> Any:
        """Return the bytes of the slots of all adapters on one accelerator."""
        adapters, rank = self.inputs.spec.adapters or (), self.inputs.adapter_rank or ADAPTER_RANK
        return len(adapters) * memory.adapter_bytes(self.shape, element, tensor, stages, lora_rank(rank))

    def dtype_on(self, accelerator: Accelerator) -> DType:
        """Return the data type of the computation, in the runtime's words."""
        dtype = self.inputs.spec.model.dtype
        # On cores whatever their flags: replicas on unlike nodes must give the same bytes.
        is_usual = memory.on_cpu(accelerator)
        return "float32" if dtype == "Float32" or (dtype == "Auto" and is_usual) else "bfloat16"

    def element_bytes(self, accelerator: Accelerator) -> int:
        """Return the bytes of one number of that type."""
        return memory.ELEMENT_BYTES[self.dtype_on(accelerator)]

    def engine_on(self, accelerator: Accelerator) -> EngineName:
        """Return the engine of an accelerator's pods; of two that may, the one that Auto takes there."""
        engines = self.inputs.spec.engines
        if len(engines) == 1:
            return engines[0]
        return EngineName.TURBO if memory.on_cpu(accelerator) else EngineName.VLLM

    def host_memory_bytes(self, accelerator: Accelerator, tensor: int = 1) -> int:
        """Return the memory of one container: on cores the accelerator's own. Turbo holds the weights twice
        while one process loads them; vLLM maps them, and has a process for each of its accelerators.
        """
        if memory.on_cpu(accelerator):
            return accelerator.memory_bytes
        if self.engine_on(accelerator) == EngineName.VLLM:
            # Each worker keeps the adapters, whole, beside those of the accelerator.
            kept = self.adapter_bytes(self.element_bytes(accelerator), 1.0, 1.0)
            return VLLM_RESERVE + tensor * (VLLM_WORKER_BYTES + int(kept))
        element = float(self.element_bytes(accelerator))
        total = int(memory.weights(self.shape, element, quantized=False).total)
        return (2 if tensor == 1 else 1) * total + tensor * HOST_RESERVE  # each rank reads its slices once

    def host(self, accelerator: Accelerator, tensor: int, draft_bytes: int) -> Host | None:
        """Return what one pod takes in addition to `tensor` accelerators, with a draft of so many bytes on
        the host's cores.
        """
        total = self.host_memory_bytes(accelerator, tensor) + draft_bytes
        draft_cores = DRAFT_CORES if draft_bytes else 0
        cores = device_pod_cores(self.engine_on(accelerator), tensor, draft_cores)
        return beside(accelerator, total, self.resources, cores)

    @property
    def draft_host(self) -> Accelerator | None:
        """The cores by which those of hosts are measured that a draft runs on: the first whose speed is
        stated.
        """
        stated = (
            row
            for _, row in sorted(self.inputs.catalog.items())
            if memory.on_cpu(row) and row.memory_bandwidth and row.flops.get("bf16")
        )
        return next(stated, None)

    def accelerators_per_node(self, accelerator: Accelerator) -> int:
        """Return the accelerators of one node, as stated or as the largest has; 1 without any."""
        supply = (self.inputs.supply or {}).get(accelerator.name, Supply())
        return accelerator.count_per_node or max((1, *(node.allocatable for node in supply.nodes)))

    def has_room(self, accelerator: Accelerator, tensor: int) -> bool:
        """Whether a node has one more accelerator than the model takes, for a draft."""
        return tensor * (self.parallelism.data or 1) < self.accelerators_per_node(accelerator)

    def find_parallelism_conflict(self) -> str | None:
        """Describe the pinned degrees that no accelerator allows; None if one may."""
        tensor, pipeline, shape = self.parallelism.tensor or 1, self.parallelism.pipeline or 1, self.shape
        data = self.parallelism.data or 1
        if not shape.experts and data > 1:
            return (
                f"spec.parallelism.data is {data}, and the model has no routed experts for the groups to "
                "share: leave it out, since as many replicas do the same."
            )
        if not shape.experts and self.parallelism.expert:
            return "spec.parallelism.expert is true, and the model has no routed experts: leave it out."
        if shape.heads % tensor:
            divisors = [str(degree) for degree in range(1, 65) if shape.heads % degree == 0]
            return (
                f"spec.parallelism.tensor is {tensor} and does not divide the model's {shape.heads} heads: "
                f"write one of {', '.join(divisors)}, or leave it out."
            )
        if pipeline > shape.layers:
            return (
                f"spec.parallelism.pipeline is {pipeline}, and the model has {shape.layers} layers: write "
                "at most that, or leave it out."
            )
        limit = self.accelerators.max_per_replica
        if limit is not None and tensor * pipeline * data > limit:
            return (
                f"spec.parallelism asks for {tensor * pipeline * data} accelerators per replica, and "
                f"spec.accelerators.maxPerReplica is {limit}: raise it, or leave parallelism out."
            )
        return None

    def find_accelerator_conflict(self, accelerator: Accelerator) -> str | None:
        """Describe the pinned degrees that this accelerator does not allow; None if it does."""
        tensor, data = self.parallelism.tensor, self.parallelism.data or 1
        if memory.on_cpu(accelerator):
            if {tensor, self.parallelism.pipeline, data} <= {None, 1}:
                return None
            return (
                f"A replica on {accelerator.name} is one pod's cores: leave spec.parallelism out, or give "
                "the TurboAccelerator a larger quantity."
            )
        per_node = self.accelerators_per_node(accelerator)
        if (tensor or 1) * data <= per_node:
            return None
        if data > 1:
            return (
                f"spec.parallelism asks for {(tensor or 1) * data} accelerators of one node, and a node of "
                f"{accelerator.name} has {per_node}: data-parallel groups on several nodes are not supported "
                "yet, so write fewer."
            )
        nodes = (self.parallelism.pipeline or 1) * (tensor or 1) // per_node
        is_whole = not (tensor or 1) % per_node and nodes <= self.shape.layers
        several = f"parallelism: {{tensor: {per_node}, pipeline: {nodes}}} for {nodes} nodes, "
        return (
            f"spec.parallelism.tensor is {tensor}, and a node of {accelerator.name} has {per_node}: "
            f"write at most that, {several if is_whole else ''}or set spec.countPerNode on the "
            "TurboAccelerator."
        )

    def find_resource_conflict(self, accelerator: Accelerator, tensor: int, draft_bytes: int) -> str | None:
        """Describe the pod template's amounts that contradict the plan; None if they agree."""
        resources = self.resources
        host_memory = self.host_memory_bytes(accelerator, tensor) + draft_bytes
        if resources is None:
            return None
        for part, amounts in (("requests", resources.requests or {}), ("limits", resources.limits or {})):
            for name, amount in amounts.items():
                path = f"spec.podTemplate.spec.resources.{part}.{name}"
                if memory.on_cpu(accelerator) and name in ("cpu", "memory"):
                    return (
                        f"{path} would change what {accelerator.name} is counted and priced as: leave it "
                        "out, and choose another TurboAccelerator or change the quantity and memory of "
                        "this one."
                    )
                if name == "memory" and quantity(amount) < host_memory:
                    return (
                        f"{path} is {amount}, and loading the model beside {accelerator.name} takes "
                        f"{memory.gib(host_memory)}: write at least that, or leave it out."
                    )
        return None


def build_requirements(inputs: PlannerInputs, now: float) -> Requirements:
    """Convert a spec into numbers."""
    spec, max_model_len = inputs.spec, inputs.spec.model.max_model_len or inputs.shape.max_position
    accelerators = spec.accelerators or api.Accelerators()
    names = accelerators.allowed or tuple(sorted(inputs.catalog))
    # Not read while the policy is External.
    scaling = api.Scaling() if spec.scaling_mode == ScalingMode.EXTERNAL else spec.scaling
    return Requirements(
        inputs=inputs,
        now=now,
        shape=inputs.shape,
        max_model_len=max_model_len,
        demand=demand(spec, max_model_len),
        min_replicas=scaling.min_replicas or 1,
        max_replicas=scaling.max_replicas or api.MAX_REPLICAS,
        cost=spec.cost or api.Cost(),
        accelerators=accelerators,
        parallelism=spec.parallelism or api.Parallelism(),
        resources=spec.pod_template.spec.resources,
        names=names,
        rows=tuple(inputs.catalog[name] for name in names if name in inputs.catalog),
    )
