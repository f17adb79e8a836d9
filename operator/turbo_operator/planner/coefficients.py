"""The few numbers that the step-time model was fitted with, and their provenance. Pure.

One set for all accelerators and models; an engine changes the two that are its own, and an accelerator's
`efficiency` in the catalogue any of them by name.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass

from turbo_operator.api.names import EngineName


@dataclass(frozen=True, slots=True)
class Coefficients:
    """Fractions of the peak that are reached, and seconds of fixed work."""

    bandwidth: float = 0.90  # of memory bandwidth, for dense weights and KV cache
    expert_bandwidth: float = 0.90  # the same for routed experts
    flops: float = 0.62  # of peak flops, for dense layers
    expert_flops: float = 0.147  # the same for routed experts
    layer_seconds: float = 70e-6  # of every layer of a step
    expert_layer_seconds: float = 31e-6  # more of a layer with routed experts
    prefill_layer_seconds: float = 1.17e-3  # of every layer before a first token: queue, scheduling, sampling
    prefill_wait: float = 0.09  # of the others' prefills that a first token waits for

    def over(self, efficiency: Mapping[str, float]) -> Coefficients:
        """These with an accelerator's own values in place."""
        return dataclasses.replace(self, **efficiency)


NAMES = tuple(field.name for field in dataclasses.fields(Coefficients))
BY_ENGINE = {EngineName.TURBO: Coefficients(), EngineName.VLLM: Coefficients()}
