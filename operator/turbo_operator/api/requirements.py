"""What is asked of a deployment: the load that comes, the latency wanted, the hardware allowed, the money."""

from __future__ import annotations

from decimal import Decimal
from enum import StrEnum
from typing import Annotated, Literal

from pydantic import Field

from turbo_operator.api.constants import CapacityType
from turbo_operator.api.validation import (
    Amount,
    ASecondToAnHour,
    Duration,
    Fraction,
    ObjectName,
    Record,
    Rule,
    UpToAnHour,
    duration_cel,
)

# Of a workload that does not say: shown as assumed.
DEFAULT_INPUT_TOKENS = 512
DEFAULT_OUTPUT_TOKENS = 256

Tokens = Annotated[int, Field(strict=True, ge=1, le=16_777_216)]
Degree = Annotated[int, Field(strict=True, ge=1, le=64)]
Rate = Annotated[Decimal, Amount('write a number above 0 as a string, like "4" or "0.25"')]
_HOURLY = 'write US dollars per hour above 0 as a string, like "24.00"'
_Hourly = Annotated[Decimal, Amount(_HOURLY)]
_Dollars = Annotated[Decimal, Amount('write US dollars above 0 as a string, like "0.60"')]


class Lengths(Record):
    """How many tokens a request has."""

    mean: Tokens
    """Of all requests together."""
    p95: Tokens | None = None
    """That one request in twenty is longer than. Default: three times the mean. What is planned for ends
    where maxModelLen leaves room for the mean of the other lengths."""

    rules = (
        Rule("!has(self.p95) || self.p95 >= self.mean", "write a p95 that is not below the mean", "p95"),
    )


class Workload(Record):
    """The load that is expected."""

    input_tokens: Lengths | None = None
    """Tokens of a prompt. Default: a mean of 512, or what maxModelLen leaves; shown as assumed."""
    output_tokens: Lengths | None = None
    """Tokens of an output. Default: a mean of 256, or what maxModelLen leaves; shown as assumed."""
    requests_per_second: Rate | None = None
    """Requests of all clients together in a busy hour."""
    concurrency: Annotated[int, Field(strict=True, ge=1, le=1_000_000)] | None = None
    """Instead of requestsPerSecond: requests that are always under way, each followed by the next."""

    rules = (
        Rule(
            "!(has(self.requestsPerSecond) && has(self.concurrency))",
            "write requestsPerSecond or concurrency, not both: one follows from the other",
            "concurrency",
        ),
    )


class Latency(Record):
    """A bound on a time, and of how many requests it holds."""

    max: Annotated[
        UpToAnHour, Rule(duration_cel("duration(self) > duration('0s')"), "write a time above 0, like 25ms")
    ]
    """The longest time, like 25ms."""
    percentile: Literal[50, 90, 95, 99] = 95
    """Share of requests in per cent that keep it: 50, 90, 95 or 99."""


class Targets(Record):
    """What a plan must reach."""

    time_to_first_token: Latency | None = None
    """From a request's arrival to its first token."""
    time_per_output_token: Latency | None = None
    """A request's mean time per output token after the first."""
    tokens_per_second: Rate | None = None
    """Output tokens per second of all replicas together, at least."""


class Accelerators(Record):
    """The hardware that may be used."""

    allowed: Annotated[tuple[ObjectName, ...], Field(max_length=32)] | None = None
    """Names of TurboAccelerators; at equal cost the earlier one is taken. Default: every one there is."""
    capacity_types: Annotated[tuple[CapacityType, ...], Field(max_length=3)] = (CapacityType.ON_DEMAND,)
    """OnDemand, Spot or Reserved; at equal cost the earlier one is taken. All but OnDemand need
    your prices."""
    max_per_replica: Degree | None = None
    """Accelerators of one replica at most."""
    max_total: Annotated[int, Field(strict=True, ge=1, le=100_000)] | None = None
    """Accelerators of all replicas together at most."""
    pending_timeout: ASecondToAnHour = Duration("10m")
    """How long a pod may wait for an accelerator before the next best class is planned."""

    rules = (
        Rule(
            "!has(self.allowed) || self.allowed.size() > 0",
            "name a TurboAccelerator (kubectl get turboaccelerators), or leave allowed out for all of them",
            "allowed",
        ),
        Rule(
            "!has(self.allowed) || self.allowed.all(name, self.allowed.exists_one(other, other == name))",
            "name each TurboAccelerator once",
            "allowed",
            holds=lambda it: it.allowed is None or len(set(it.allowed)) == len(it.allowed),
        ),
        Rule(
            "self.capacityTypes.size() > 0",
            "name OnDemand, Spot or Reserved, or leave capacityTypes out for OnDemand",
            "capacityTypes",
        ),
        Rule(
            "self.capacityTypes.all(name, self.capacityTypes.exists_one(other, other == name))",
            "name each capacity type once",
            "capacityTypes",
            holds=lambda it: len(set(it.capacity_types)) == len(it.capacity_types),
        ),
    )


class Parallelism(Record):
    """How one replica is divided over accelerators; what is left out is planned."""

    tensor: Degree | None = None
    """Accelerators that share every layer."""
    pipeline: Degree | None = None
    """Groups of layers, one after the other, each on its own accelerators."""
    data: Degree | None = None
    """Groups of accelerators that share the routed experts of a model, each with requests and a cache of its
    own. Not planned: 1 where it is left out."""
    expert: Annotated[bool, Field(strict=True)] | None = None
    """True spreads whole routed experts over the accelerators of a replica, rather than a slice of each. Not
    planned: false where it is left out."""

    rules = (
        Rule(
            "!has(self.data) || self.data < 2 || !has(self.pipeline) || self.pipeline < 2",
            "leave data out, or pipeline: data-parallel groups on several nodes need an address and a rank "
            "on each, which is not supported yet",
            "data",
        ),
    )


class Objective(StrEnum):
    """What is best among the plans that reach the targets within the budget."""

    COST = "Cost"
    LATENCY = "Latency"
    THROUGHPUT = "Throughput"


class Cost(Record):
    """What it may cost."""

    max_per_hour: _Hourly | None = None
    """Hard ceiling of all replicas together, in US dollars per hour: a plan above it is not run."""
    max_per_million_tokens: _Dollars | None = None
    """Hard ceiling of a million output tokens at the planned load, in US dollars."""
    currency: Literal["USD"] = "USD"
    """US dollars."""


class DeploymentRef(Record):
    """A Deployment of vLLM in the namespace of the TurboDeployment."""

    name: ObjectName
    """Its name."""
    port: Annotated[int, Field(strict=True, ge=1, le=65_535)] = 8000
    """The port of its pods that has vLLM's metrics."""


class PlanPolicy(Record):
    """Which plan is best, and when one that runs gives way to another."""

    objective: Objective = Objective.COST
    """Cost takes the cheapest plan, Latency the fastest tokens, Throughput the most tokens per second."""
    min_saving_fraction: Fraction = Decimal("0.10")
    """The running plan stays while it is feasible and the best one saves less than this share of its cost."""
    apply: Literal["Auto", "Manual", "Recommend"] = "Auto"
    """Auto: a plan takes effect by itself. Manual: it waits in status.pendingPlan for `turbo approve NAME`;
    what runs stays, also when the spec has changed. Replicas follow spec.scaling all the same. Recommend: no
    pod is made; status.pendingPlan is the plan for what the Deployment of deploymentRef does, and
    status.saving what it would save."""
    deployment_ref: DeploymentRef | None = None
    """With apply Recommend: the Deployment whose load is planned for. Nothing of it is changed."""

    rules = (
        Rule(
            "has(self.deploymentRef) == (self.apply == 'Recommend')",
            "write deploymentRef with apply: Recommend, and with that alone: it names the Deployment to plan "
            "for",
            "deploymentRef",
        ),
    )

    @property
    def recommends(self) -> bool:
        """Whether plans are for somebody to read."""
        return self.apply == "Recommend"
