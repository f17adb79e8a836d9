"""Typical replicas and the targets that their capacity is refereed with, on the lengths of Azure's trace."""

from __future__ import annotations

import csv
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from turbo_dev.replay import Replica, replay
from turbo_operator.planner.performance.queueing import Engines, rows
from turbo_operator.planner.requirements import Bound, Demand, Lengths

_LENGTHS = Path(__file__).resolve().parents[2] / "benchmarks" / "data" / "azure_lengths.csv"


@dataclass(frozen=True)
class Curve:
    """How fast a replica is. Seconds and tokens."""

    step: float  # of a step, however little it does
    row: float  # more for each request that it decodes
    held: float  # more for each token that those hold
    prefill: float  # to read one token of a prompt
    chunk: int
    first: float
    slots: int

    def replica(self) -> Replica:
        """As the replay wants it."""
        return Replica(
            lambda requests, tokens: self.step + self.row * requests + self.held * tokens,
            self.prefill,
            self.chunk,
            self.first,
            self.slots,
        )

    def engines(self, held: float) -> Engines:
        """As the planner wants it, with the mean tokens that a decoding request holds."""
        states = rows(np.array([float(self.slots)]))
        return Engines(
            rows=states,
            decode=self.step + (self.row + self.held * held) * states,
            prefill=np.array([self.prefill]),
            chunk=np.array([float(self.chunk)]),
            first=np.array([self.first]),
        )


# Orders of magnitude of an 8B and an fp8 70B model on an H100, an 8B on an L4, a large mixture of experts on
# eight accelerators, a 32B on an A100, a 70B on four H100; of some also with a draft: a step is longer and
# commits more than two tokens, so that a token takes less than half of it, and its share of a chunk.
CURVES = {
    "8B-H100": Curve(7.5e-3, 2.6e-5, 4.4e-8, 1.3e-5, 2048, 0.04, 256),
    "70B-H100": Curve(29e-3, 1.2e-4, 5.5e-8, 1.15e-4, 2048, 0.09, 64),
    "8B-L4": Curve(60e-3, 2e-4, 5e-7, 2.2e-4, 512, 0.05, 48),
    "MoE-8x": Curve(30e-3, 3e-4, 1e-8, 1e-5, 8192, 0.1, 512),
    "32B-A100": Curve(40e-3, 3e-4, 1.5e-7, 3.3e-4, 2048, 0.08, 40),
    "70B-4xH100": Curve(16e-3, 6e-5, 1.5e-8, 3.2e-5, 4096, 0.06, 256),
    "8B-H100-draft": Curve(4.2e-3, 4e-5, 2e-8, 1.3e-5, 930, 0.04, 128),
    "8B-L4-draft": Curve(31e-3, 3.5e-4, 2.3e-7, 2.2e-4, 233, 0.05, 24),
    "70B-4xH100-draft": Curve(8.5e-3, 9e-5, 0.7e-8, 3.2e-5, 1862, 0.06, 128),
}


@dataclass(frozen=True)
class Case:
    """A replica, a service and the one target that bounds its capacity."""

    curve: str
    service: str
    first: bool  # the target is of the time to first token, else of the time per output token
    bound: Bound

    @property
    def key(self) -> tuple[str, str, bool, int]:
        """Curve, service, whether of the first token, percentile."""
        return self.curve, self.service, self.first, round(100 * self.bound.share)

    def __str__(self) -> str:
        target = "first" if self.first else "output"
        return f"{self.curve}-{self.service}-{target} token p{self.key[-1]}"

    def demand(self, lengths: NDArray[np.int64]) -> Demand:
        """All that a user says: means and 95th percentiles of the lengths, and the target."""
        prompt, answer = (Lengths(float(of.mean()), float(np.percentile(of, 95))) for of in lengths.T)
        return Demand(
            prompt,
            answer,
            assumed=False,
            time_to_first_token=self.bound if self.first else None,
            time_per_output_token=None if self.first else self.bound,
        )


# Seconds to the first token and per output token at these percentiles: about what a replay sees at six tenths
# of the saturated rate. Of code's short answers the high percentiles stop there, at the time of a step that
# reads a whole chunk, whatever the rate; they are of 0.45 of it, or of 0.3.
PERCENTILES = (90, 95, 99)
_SECONDS = {
    ("8B-H100", "code"): ((0.24, 0.29, 0.42), (0.032, 0.035, 0.03)),
    ("8B-H100", "conversation"): ((0.13, 0.16, 0.2), (0.017, 0.018, 0.021)),
    ("70B-H100", "code"): ((1.7, 2.1, 3), (0.24, 0.2, 0.22)),
    ("70B-H100", "conversation"): ((0.7, 0.87, 1.2), (0.059, 0.065, 0.083)),
    ("8B-L4", "code"): ((3.8, 4.9, 7.5), (0.13, 0.17, 0.18)),
    ("8B-L4", "conversation"): ((1.7, 2.1, 3.1), (0.12, 0.13, 0.15)),
    ("MoE-8x", "code"): ((0.31, 0.36, 0.45), (0.077, 0.085, 0.1)),
    ("MoE-8x", "conversation"): ((0.24, 0.25, 0.28), (0.069, 0.07, 0.074)),
    ("32B-A100", "code"): ((4.3, 5.4, 8), (0.63, 0.49, 0.58)),
    ("32B-A100", "conversation"): ((1.7, 2.2, 3.1), (0.098, 0.11, 0.16)),
    ("70B-4xH100", "code"): ((0.53, 0.65, 0.92), (0.091, 0.12, 0.13)),
    ("70B-4xH100", "conversation"): ((0.27, 0.33, 0.44), (0.037, 0.039, 0.046)),
    ("8B-H100-draft", "code"): ((0.24, 0.3, 0.43), (0.014, 0.013, 0.017)),
    ("8B-H100-draft", "conversation"): ((0.14, 0.16, 0.21), (0.01, 0.011, 0.013)),
    ("8B-L4-draft", "code"): ((3.4, 4.4, 6.9), (0.076, 0.084, 0.085)),
    ("8B-L4-draft", "conversation"): ((1.8, 2.2, 3.4), (0.063, 0.071, 0.089)),
    ("70B-4xH100-draft", "code"): ((0.5, 0.61, 0.88), (0.064, 0.054, 0.06)),
    ("70B-4xH100-draft", "conversation"): ((0.27, 0.3, 0.4), (0.021, 0.023, 0.028)),
}
# Of code's time per output token at the median.
_MEDIANS = {"8B-H100": 0.020, "70B-H100": 0.100, "8B-L4": 0.120, "MoE-8x": 0.065, "32B-A100": 0.150}
_ALL = (
    *(
        Case(curve, service, first, Bound(seconds, percentile / 100))
        for (curve, service), both in _SECONDS.items()
        for first, row in zip((True, False), both, strict=True)
        for percentile, seconds in zip(PERCENTILES, row, strict=True)
    ),
    *(Case(curve, "code", False, Bound(seconds, 0.5)) for curve, seconds in _MEDIANS.items()),
)
# Where the plan is further from a replay than a tenth: (curve, service, first token, percentile). Of
# conversations a mean and a percentile do not tell that answers are either short or near the longest, nor
# that one prompt in ten is at the wall; of code on an L4 the time is that of a step that reads a whole chunk.
_FURTHER = frozenset(
    {
        ("8B-L4", "code", False, 99),
        ("32B-A100", "conversation", False, 95),
        ("32B-A100", "conversation", False, 99),
        ("8B-L4-draft", "conversation", False, 99),
        ("70B-4xH100-draft", "conversation", True, 90),
    }
)
FURTHER = tuple(case for case in _ALL if case.key in _FURTHER)
CASES = tuple(case for case in _ALL if case.key not in _FURTHER)


def trace(service: str) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
    """Seconds of arrival [n], and tokens of prompts and answers [n, 2], of one service."""
    with _LENGTHS.open(encoding="utf-8") as file:
        found = [row for row in csv.DictReader(file) if row["service"] == service]
    seconds = np.array([float(row["seconds"]) for row in found])
    return seconds, np.array([(int(row["ContextTokens"]), int(row["GeneratedTokens"])) for row in found])


def drawn(
    lengths: NDArray[np.int64], times: int, rate: float, seed: int
) -> tuple[list[float], list[int], list[int]]:
    """Each request of a trace so many times, in random order: arrivals, prompts, answers.

    They come at random (Poisson) and, like the lengths, have their mean exactly: less noise, for as few.
    """
    draw = np.random.default_rng(seed)
    order = np.concatenate([draw.permutation(len(lengths)) for _ in range(times)])
    arrivals = draw.exponential(size=len(order)).cumsum()
    arrivals *= len(order) / rate / arrivals[-1]
    prompts, answers = lengths[order].T.tolist()
    return arrivals.tolist(), prompts, answers


def seen(case: Case, lengths: NDArray[np.int64], rate: float) -> NDArray[np.float64]:
    """The times that the case is about, of all requests of several replays at this rate but their first."""
    times = 6 if case.bound.share > 0.95 else 3  # few are above a high percentile
    found = []
    for seed in range(3):
        each = replay(CURVES[case.curve].replica(), *drawn(lengths, times, rate, seed))
        found.append((each.to_first_token if case.first else each.per_output_token)[600:])
    together = np.concatenate(found)
    return together[~np.isnan(together)]
