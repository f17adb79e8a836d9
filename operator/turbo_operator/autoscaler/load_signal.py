"""From the loads of pods to the replicas that they need: demand over what one replica carries. Pure.

Counts demand and supply twice, in tokens of the KV cache and in requests, and the scarcer of the two decides:
short requests run out of slots long before they run out of memory.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from turbo_operator.api import TurboDeploymentSpec
from turbo_operator.api.requirements import DEFAULT_OUTPUT_TOKENS, Workload
from turbo_operator.plan import Capacity
from turbo_operator.snapshot import PodView
from turbo_runtime.contract.documents import Load

UP = 0.85  # utilization above which there are too few replicas
DOWN = 0.70  # and below which one may go, if those that stay are not above UP without it
# A hair of tolerance: what divides evenly must not need one more for the last bit of a float.
_TOLERANCE = 1e-9


@dataclass(frozen=True, slots=True)
class Signal:
    """The load of the pods, and which of them should have reported one and did not."""

    need: float | None  # demand over what one replica carries; None where either is unknown
    silent: tuple[str, ...]  # names of ready pods without a fresh load
    starting: tuple[str, ...] = ()  # of those that became ready just now, so that nobody has asked them yet

    @property
    def complete(self) -> bool:
        """Whether all is known that a decision for fewer replicas rests on."""
        return self.need is not None and not self.silent and not self.starting

    @property
    def low(self) -> int:
        """The minimum of replicas whose utilization is not above UP."""
        return 0 if self.need is None else math.ceil(self.need / UP - _TOLERANCE)

    @property
    def high(self) -> int:
        """The maximum of replicas of which none may go.

        Either their utilization is not below DOWN, or without one it would be above UP.
        """
        return 0 if self.need is None else max(self.low, math.floor(self.need / DOWN + _TOLERANCE))


def read_signal(
    spec: TurboDeploymentSpec,
    capacity: Capacity | None,
    pods: Sequence[PodView],
    now: float,
    fresh_seconds: float,
) -> Signal:
    """Read the signal of a deployment's pods; loads older than `fresh_seconds` are unknown.

    The requests of any pod with a load are demand: one that drains or is not ready any more has work that was
    sent to this deployment. Only a ready pod is missed when it is silent, and not before it could have been
    asked.
    """
    fresh = {
        pod.name: pod.load.load for pod in pods if pod.load is not None and now - pod.load.at <= fresh_seconds
    }
    missing = [pod for pod in pods if pod.ready and not pod.terminating and pod.name not in fresh]
    starting = tuple(
        pod.name
        for pod in missing
        if pod.load is None and pod.ready_since is not None and now - pod.ready_since <= fresh_seconds
    )
    silent = tuple(pod.name for pod in missing if pod.name not in starting)
    loads = tuple(fresh.values())
    carried = _carried_by_one(capacity, loads)
    if not loads or carried is None:
        return Signal(None, silent, starting)
    # Requests that wait will hold an output as well.
    waiting = sum(load.waiting_requests for load in loads)
    requests = waiting + sum(load.running_requests for load in loads)
    tokens = sum(load.running_tokens + load.waiting_tokens for load in loads)
    tokens_held = tokens + waiting * _mean_output(spec, loads)
    return Signal(max(requests / carried[0], tokens_held / carried[1]), silent, starting)


def _carried_by_one(capacity: Capacity | None, loads: Sequence[Load]) -> tuple[float, float] | None:
    """Requests and tokens of one replica: the plan's capacity while its targets hold, else a pod's own.

    Where pods differ the smallest counts. None while no pod has reported it.
    """
    if capacity is not None:
        return max(capacity.concurrency, 1), max(capacity.tokens, 1)
    tokens = min((load.kv_cache_tokens for load in loads if load.kv_cache_tokens), default=None)
    if tokens is None:
        return None
    return min((load.max_num_seqs for load in loads if load.max_num_seqs), default=math.inf), tokens


def _mean_output(spec: TurboDeploymentSpec, loads: Sequence[Load]) -> float:
    """Tokens of an output: as the workload says, else as the pods' counters show, else the API's default."""
    output = (spec.workload or Workload()).output_tokens
    if output is not None:
        return float(output.mean)
    prompts = sum(load.prompts for load in loads if load.prompts)
    generated = sum(load.generated_tokens for load in loads if load.prompts)
    return generated / prompts if prompts else float(DEFAULT_OUTPUT_TOKENS)
