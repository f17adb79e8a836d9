"""The few numbers that the step-time model was fitted with, and their provenance. Pure.

One set for all accelerators and models; an engine changes the two that are its own, and an accelerator's
`efficiency` in the catalogue any of them by name.

Two digits of a fit to the rows of benchmarks/data/perf, 1,724 of requests kept running and 558 of saturated
throughput: what `make bench NAME=planner ARGS=--coefficients` prints, which a test holds. They are of dense
models and of models with experts, 7 to 1,026 thousand million weights in 16, 8 and 4 bits, on accelerators of
NVIDIA's Ampere to Blackwell generations, served by vLLM, SGLang and TensorRT-LLM. No share is above 1. The
Turbo runtime was measured on none of them: it has the common set, and its own start-up points calibrate it.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass

from turbo_operator.api.constants import EngineName


@dataclass(frozen=True, slots=True)
class Coefficients:
    """Fractions of the peak that are reached, and seconds of fixed work."""

    bandwidth: float = 0.93  # of memory bandwidth, for dense weights and KV cache
    expert_bandwidth: float = 1.0  # the same for routed experts
    flops: float = 0.61  # of peak flops, for dense layers
    expert_flops: float = 0.27  # the same for routed experts
    layer_seconds: float = 64e-6  # of every layer of a step
    expert_layer_seconds: float = 40e-6  # more of a layer with routed experts
    prefill_layer_seconds: float = 0.98e-3  # of every layer before a first token: queue, scheduling, sampling
    prefill_wait: float = 0.091  # of the others' prefills that a first token waits for

    def over(self, efficiency: Mapping[str, float]) -> Coefficients:
        """These with an accelerator's own values in place."""
        return dataclasses.replace(self, **efficiency)


NAMES = tuple(field.name for field in dataclasses.fields(Coefficients))
BY_ENGINE = {
    EngineName.TURBO: Coefficients(),
    EngineName.VLLM: Coefficients(prefill_layer_seconds=0.77e-3, prefill_wait=0.084),
}
