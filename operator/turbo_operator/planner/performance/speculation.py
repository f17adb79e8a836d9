"""What drafts of each method are taken to gain and to cost before anything is measured. Pure.

Time per output token is T(B, k) / tau(k): a step that verifies k drafts of each of B requests takes T and
commits tau tokens to each. tau follows from the chance that the draft at each position is accepted. k is
chosen per number of requests, 0 included, so that no draft makes a plan slower by construction.

Acceptance lengths are the smallest among published rows of the method (all of them count the bonus token).
Suffix is taken to gain nothing: how often a text repeats itself is a property of the traffic, and no saving
is stated until it is measured.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np

from turbo_operator.api import OFF, EngineName, Method, Placement, Speculation
from turbo_operator.planner.arrays import Indices, Numbers
from turbo_operator.planner.capabilities import TRAINED_METHODS, Engine
from turbo_runtime.contract.documents import ModelShape

DEPTH = 5  # drafts of one step in those rows: EAGLE's tree, Medusa's heads, the assistant's default
REDUCED_VOCABULARY = 32_000  # of an EAGLE3 head
DRAFTS = (1, 2, 3, 4, 5, 6, 7, 8, 12, 16, 24, 32, 48, 64)  # those tried, up to the ceiling


@dataclass(frozen=True, slots=True)
class Prior:
    """What a method is assumed to reach."""

    acceptance_length: float  # tau at `depth` drafts
    depth: int
    source: str


SPEC_BENCH = "Spec-Bench leaderboard (Apache-2.0), commit fd2c1cd7, Vicuna 7B to 33B"
PRIORS: Mapping[str, Prior] = {
    Method.TURBO_HEADS: Prior(2.32, DEPTH, f"{SPEC_BENCH}: Medusa"),
    # EAGLE3's rows there draft trees, which accept more than the one chain that is planned: the first EAGLE's
    # smallest is taken instead.
    Method.EAGLE3: Prior(3.39, DEPTH, f"{SPEC_BENCH}: EAGLE"),
    Method.DRAFT_MODEL: Prior(2.01, DEPTH, f"{SPEC_BENCH}: SpS, a 68M draft"),
    # The second token is accepted in 85 to 90 % of the steps; 1.8 times the tokens per second came of it.
    Method.MTP: Prior(1.85, 1, "the DeepSeek-V3 technical report, arXiv:2412.19437, section 5.4.3"),
}


def acceptance(prior: Prior) -> float:
    """The chance per position, the same at each, at which `depth` drafts commit the prior's length."""
    low, high = 0.0, 1.0
    for _ in range(40):
        middle = (low + high) / 2.0
        reached = sum(middle**position for position in range(prior.depth + 1))
        low, high = (middle, high) if reached < prior.acceptance_length else (low, middle)
    return low


ACCEPTANCE = {method: acceptance(prior) for method, prior in PRIORS.items()}


def committed(method: str, drafts: int) -> float:
    """Tokens that a step with so many drafts commits to each request (tau), the bonus token included."""
    chance = ACCEPTANCE.get(method, 0.0)
    return float(sum(chance**position for position in range(drafts + 1)))


@dataclass(frozen=True, slots=True)
class SpeculationOption:
    """One way to speculate."""

    method: str
    placement: Placement | None  # None where nothing of it takes memory
    max_draft_tokens: int
    acceptance: tuple[float, ...] = ()  # by position, where that of the draft itself is known

    @property
    def has_prior(self) -> bool:
        """Whether anything is known or assumed of its acceptance."""
        return self.method in PRIORS

    @property
    def is_assumed(self) -> bool:
        """Whether its acceptance is that of other drafts."""
        return self.has_prior and not self.acceptance

    def committed(self, drafts: int) -> float:
        """Return the tokens that a step with so many drafts commits to each request."""
        if not self.acceptance:
            return committed(self.method, drafts)
        return 1.0 + float(np.cumprod(self.acceptance[:drafts]).sum())

    def drafts(self) -> tuple[int, ...]:
        """Numbers of drafts to try in addition to none; empty where none is assumed to be accepted."""
        most = min(self.max_draft_tokens, len(self.acceptance) or self.max_draft_tokens)
        return tuple(k for k in DRAFTS if k <= most) if self.has_prior else ()


# At equal cost a method that is there for nothing comes first, the larger draft later, none last.
ORDER = (
    *map(
        str, (Method.SUFFIX, Method.N_GRAM, Method.TURBO_HEADS, Method.EAGLE3, Method.MTP, Method.DRAFT_MODEL)
    ),
    OFF,
)


def list_options(
    speculation: Speculation,
    engine: Engine,
    shape: ModelShape,
    draft: ModelShape | None,
    trained: tuple[float, ...] | None = None,
) -> tuple[SpeculationOption, ...]:
    """List the ways that the spec leaves open with this engine, the preferred one first; `trained` is the
    acceptance of an EAGLE-3 draft that was trained for the model.
    """
    limit = speculation.max_draft_tokens
    limit = engine.max_draft_tokens if limit is None else limit
    none = SpeculationOption(OFF, None, 0)
    if speculation.mode == "Disabled" or limit == 0:
        return (none,)
    # On Turbo a trained draft drafts together with the suffix drafter, and its speedup is measured where it
    # runs: until then nothing is assumed of it. Before the first one the suffix drafter drafts alone.
    requested = speculation.method
    if engine.name == EngineName.VLLM:
        is_trained = speculation.draft_ref is not None or speculation.training is not None
        requested = Method.EAGLE3 if is_trained and requested == Method.AUTO else requested
    elif (
        speculation.draft_ref
        or requested in TRAINED_METHODS
        or (speculation.has_trained and requested == Method.EAGLE3)
    ):
        requested = Method.SUFFIX
    named = [place for place in Placement if speculation.placement in ("Auto", place)]
    placements: dict[str, list[Placement | None]] = {
        Method.SUFFIX: [None],
        Method.N_GRAM: [None],
        Method.DRAFT_MODEL: [*named] if draft is not None else [],
        Method.MTP: [Placement.COLOCATED] if shape.mtp_layers else [],
    }
    options = [
        SpeculationOption(
            method,
            placement,
            min(limit, shape.mtp_layers) if method == Method.MTP else limit,
            (trained or ()) if method == Method.EAGLE3 else (),
        )
        for method in ORDER
        if method != OFF and method in engine.methods
        if requested == method or (requested == Method.AUTO and method not in engine.by_name)
        for placement in placements.get(method, [Placement.COLOCATED])
    ]
    return (*options, none) if speculation.mode == "Auto" else tuple(options)


def head_parameters(method: str, shape: ModelShape, max_draft_tokens: int) -> int:
    """Weights that drafting adds to the model's own: heads, a layer, or the model's own MTP layers."""
    layer = layer_parameters(shape)
    if method == Method.TURBO_HEADS:
        return max_draft_tokens * shape.hidden_size**2
    if method == Method.EAGLE3:
        return layer + 3 * shape.hidden_size**2 + REDUCED_VOCABULARY * shape.hidden_size
    if method == Method.MTP:
        return shape.mtp_layers * (layer + 2 * shape.hidden_size**2)
    return 0


def layer_parameters(shape: ModelShape) -> int:
    """Weights of one layer in the mean."""
    tables = shape.vocab_size * shape.hidden_size
    return max(1, shape.parameters - tables - shape.embedding_parameters) // shape.layers


def pass_share(method: str, shape: ModelShape) -> float:
    """One pass of the drafting layer and its head, as a share of one pass of the model."""
    vocabulary = REDUCED_VOCABULARY if method == Method.EAGLE3 else shape.vocab_size
    return (1.0 + vocabulary * shape.hidden_size / layer_parameters(shape)) / shape.layers


def draft_seconds(method: str, drafts: int, shape: ModelShape, plain: Numbers, draft: Numbers) -> Numbers:
    """Time to make `drafts` drafts, by a pass of the model without any (`plain`) and of the draft model."""
    if method == Method.DRAFT_MODEL:
        return drafts * draft
    # Heads draft all positions in one pass; the others need one pass for each.
    passes = 1 if method == Method.TURBO_HEADS else drafts
    return passes * pass_share(method, shape) * plain


def find_fastest(
    option: SpeculationOption,
    step: Callable[[float], Numbers],
    drafting: Callable[[int], Numbers],
    *,
    is_fixed: bool = False,
) -> tuple[Numbers, Indices]:
    """Find the number of drafts with the fewest seconds per committed token and request, and those seconds.

    `step(k)` is a pass that verifies k drafts, `drafting(k)` what making them takes, both over the same
    candidates and rows [c, n]. No drafts are always among those tried. Where the number `is_fixed`, it is the
    same in all rows of a candidate: of those that are slower than none in no row, the fastest in the last.
    """
    best = plain = step(0.0)
    number = np.zeros(best.shape, np.int64)
    for k in option.drafts():
        seconds = (step(float(k)) + drafting(k)) / option.committed(k)
        is_better = seconds < best
        if is_fixed:
            is_better = is_better[:, -1:] & (seconds <= plain).all(axis=1, keepdims=True)
        number = np.where(is_better, k, number)
        best = np.where(is_better, seconds, best)
    return best, number
