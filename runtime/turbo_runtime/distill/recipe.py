"""The settings of a training: with the model, the prompts and the machine, all that decides a draft. And the
errors of one.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

HEADS, EAGLE3 = TRAINED = ("heads", "eagle3")
AUTO = "auto"  # whichever of them pays most in a pilot
METHODS = (*TRAINED, AUTO)
# where a method's defaults differ from those below; 0 is the default of the method that a pilot chooses
METHOD_DEFAULTS: Mapping[str, Mapping[str, Any]] = {
    HEADS: {},
    EAGLE3: {"epochs": 6, "rate": 1e-3},
    AUTO: {"epochs": 0, "rate": 0.0},
}
SAMPLING_FIELDS = ("temperature", "top_p", "top_k", "max_tokens")  # what responses depend on
MAX_DEPTH = 8  # tokens drafted at once: an evaluation states the acceptance of so many places
MIN_SPEEDUP = 1.05  # expected, below which no draft pays
PARTS = TEST, VALIDATION, TRAINING = "test", "validation", "training"  # of the prompts


class DistillError(ValueError):
    """The work cannot be done; one sentence says why and what to do."""


class UnsupportedModelError(DistillError):
    """A method cannot draft for the model."""


class TransientError(DistillError):
    """What another try later may bring."""


@dataclass(frozen=True, slots=True)
class Recipe:
    """Settings of responses, draft and training; the flags of `turbo distill` have these names."""

    seed: int = 0
    method: str = HEADS
    # the answers
    temperature: float = 0.0
    top_p: float = 1.0
    top_k: int = 0
    max_tokens: int = 256
    variants: int = 0  # further answers to each prompt that is trained on
    variant_temperature: float = 0.7  # of those, where `temperature` is lower
    # the parts, as shares of every domain's prompts; the rest is trained on
    test_fraction: float = 0.12  # nothing is learnt from these, they are what heads are evaluated on
    validation_fraction: float = 0.08  # these say which epoch was best, and teach the confidences
    # the draft
    depth: int = 4  # tokens drafted at once
    markov_rank: int = 64  # of heads
    vocabulary: int = 8192  # tokens that can be drafted, at most
    draft_memory_mib: float = 0.25  # of answers that it brings
    # the training
    epochs: int = 10
    rows: int = 256  # of one step of the optimizer
    rate: float = 2e-3
    weight_decay: float = 0.05
    warm_up: float = 0.05  # share of all steps over which the rate rises
    head_decay: float = 0.8  # how much less each further head counts
    words: float = 1.0  # weight of the cross-entropy with the model's token
    distribution_loss_weight: float = 1.0  # of that with the distribution that the token was drawn from
    variation: float = 0.0  # weight of the total variation between the distributions

    @property
    def learned_temperature(self) -> float:
        """Of the distribution that is learnt: that of serving, or a greedy model's own."""
        return self.temperature or 1.0

    def for_method(self, method: str) -> Recipe:
        """Return the recipe for a method: its own defaults where this one has none."""
        default = Recipe(method=method, **METHOD_DEFAULTS[method])
        own = {name: getattr(default, name) for name in METHOD_DEFAULTS[AUTO] if not getattr(self, name)}
        return replace(self, method=method, **own)

    @property
    def shares(self) -> dict[str, float]:
        """Of the parts; the last gets the rest."""
        return {TEST: self.test_fraction, VALIDATION: self.validation_fraction, TRAINING: 1.0}


@dataclass(frozen=True, slots=True)
class Pilot:
    """The result of a small training of one method, which shows whether it pays.

    A draft of acceptance length t whose making reads a share c of the weights that a step of the target reads
    brings about t / (1 + c) tokens in the time of one, where both are bound by memory and a few rows more are
    verified for nothing (Leviathan, Kalman, Matias, arXiv 2211.17192, section 3). Only counts decide, so that
    every machine chooses the same.
    """

    method: str
    acceptance_length: float
    cost: float  # weights that a draft reads, over those of a step

    @property
    def expected(self) -> float:
        """Expected tokens in the time of a step without drafts."""
        return self.acceptance_length / (1 + self.cost)


def choose_method(pilots: Mapping[str, Pilot]) -> str:
    """Choose the method that pays most. Raises DistillError where none pays."""
    best = max(pilots.values(), key=lambda pilot: pilot.expected)
    if best.expected < MIN_SPEEDUP:
        results = ", ".join(
            f"{name} {pilot.acceptance_length:.2f} tokens a draft at {pilot.cost:.0%} of a step's cost"
            for name, pilot in pilots.items()
        )
        raise DistillError(
            f"a pilot says that no draft pays here ({results}); give more prompts of one kind, or name a "
            "--method"
        )
    return best.method
