"""`--method auto`: a small training of each method shows which pays.

A draft of acceptance length t whose making reads a share c of the weights that a step of the target reads
brings about t / (1 + c) tokens in the time of one, where both are bound by memory and a few rows more are
verified for nothing (Leviathan, Kalman, Matias, arXiv 2211.17192, section 3). Only counts decide: the same
responses lead to the same choice on every machine.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

from turbo_runtime.distill.errors import DistillError
from turbo_runtime.distill.recipe import AUTO, OTHERWISE, Recipe

ANSWERS, EPOCHS = 96, 2  # responses that each method learns from, and how often
MIN_SPEEDUP = 1.05  # expected, below which no draft pays


@dataclass(frozen=True, slots=True)
class Pilot:
    """The result of a small training of one method."""

    method: str
    acceptance_length: float
    cost: float  # weights that a draft reads, over those of a step

    @property
    def expected(self) -> float:
        """Expected tokens in the time of a step without drafts."""
        return self.acceptance_length / (1 + self.cost)


def settings(recipe: Recipe, method: str) -> Recipe:
    """Return the recipe for a method: its own defaults where the recipe has none."""
    default = Recipe(method=method, **OTHERWISE[method])
    own = {name: getattr(default, name) for name in OTHERWISE[AUTO] if not getattr(recipe, name)}
    return replace(recipe, method=method, **own)


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
