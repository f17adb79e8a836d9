"""Typical replicas and the targets that their capacity is refereed with, on the lengths of Azure's trace."""

from __future__ import annotations

import csv
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from turbo_dev.replay import Replica
from turbo_operator.planner.capacity import Engines, rows
from turbo_operator.planner.demand import Bound, Demand, Lengths

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
# eight accelerators, a 32B on an A100.
CURVES = {
    "8B-H100": Curve(7.5e-3, 2.6e-5, 4.4e-8, 1.3e-5, 2048, 0.04, 256),
    "70B-H100": Curve(29e-3, 1.2e-4, 5.5e-8, 1.15e-4, 2048, 0.09, 64),
    "8B-L4": Curve(60e-3, 2e-4, 5e-7, 2.2e-4, 512, 0.05, 48),
    "MoE-8x": Curve(30e-3, 3e-4, 1e-8, 1e-5, 8192, 0.1, 512),
    "32B-A100": Curve(40e-3, 3e-4, 1.5e-7, 3.3e-4, 2048, 0.08, 40),
}


@dataclass(frozen=True)
class Case:
    """A replica, a service and the one target that bounds its capacity."""

    curve: str
    service: str
    first: bool  # the target is of the time to first token, else of the time per output token
    bound: Bound

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


# Time to first token at the 95th percentile; time per output token at the 95th of conversations, whose
# answers are long, and at the median of code: an answer of ten tokens either meets a prompt or does not, so
# the higher percentiles of its mean hardly move with the rate.
_SECONDS = {
    ("8B-H100", "code"): (0.4, 0.020),
    ("8B-H100", "conversation"): (0.2, 0.020),
    ("70B-H100", "code"): (3.0, 0.100),
    ("70B-H100", "conversation"): (1.0, 0.070),
    ("8B-L4", "code"): (8.0, 0.120),
    ("8B-L4", "conversation"): (2.5, 0.130),
    ("MoE-8x", "code"): (0.4, 0.065),
    ("MoE-8x", "conversation"): (0.3, 0.070),
    ("32B-A100", "code"): (8.0, 0.150),
    ("32B-A100", "conversation"): (2.5, 0.110),
}
CASES = tuple(
    Case(curve, service, first, Bound(seconds, 0.5 if service == "code" and not first else 0.95))
    for (curve, service), both in _SECONDS.items()
    for first, seconds in zip((True, False), both, strict=True)
)


def trace(service: str) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
    """Seconds of arrival [n], and tokens of prompts and answers [n, 2], of one service."""
    with _LENGTHS.open(encoding="utf-8") as file:
        found = [row for row in csv.DictReader(file) if row["service"] == service]
    seconds = np.array([float(row["seconds"]) for row in found])
    return seconds, np.array([(int(row["ContextTokens"]), int(row["GeneratedTokens"])) for row in found])
