"""How a row of a table was served, as the planner's step-time model sees it."""

from __future__ import annotations

import csv
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from measurements.served import accelerator_name, family, served_shape
from turbo_operator.planner.performance import memory, step_time
from turbo_operator.planner.performance.candidate_curves import compute_types
from turbo_operator.planner.performance.step_time import Coefficients, ForwardCost, Machine
from turbo_operator.snapshot import Accelerator
from turbo_runtime.contract.documents import ModelShape

Numbers = NDArray[np.float64]
Words = NDArray[np.str_]
Mask = NDArray[np.bool_]
GENERAL = Coefficients()
ELEMENT = 2.0  # bytes of a number that is computed with
# The servers that were measured, as aiconfigurator's systems/*.yaml state them; the catalog's nodes are a
# cloud's, which may have fewer accelerators and a slower network.
SERVER = 8  # accelerators
NETWORK = {"Hopper": 50e9, "Blackwell": 100e9}  # bytes per second between servers, one way, per accelerator


@dataclass(frozen=True)
class Deployment:
    """How one row was served."""

    shape: ModelShape
    accelerator: Accelerator
    tensor: int
    data: int = 1  # groups that attend to requests of their own
    stages: int = 1  # of layers
    cache_bytes: int = 2  # of one cached element

    @property
    def accelerators(self) -> int:
        """All of the replica."""
        return self.tensor * self.data * self.stages

    def machine(self) -> Machine:
        """Its rates, in the types that it computes in."""
        it = self.accelerator
        assert it.memory_bandwidth is not None
        dense, expert = (it.flops.get(kind, it.flops["bf16"]) for kind in compute_types(self.shape))
        on_one_node = self.accelerators <= max(it.count_per_node or 1, SERVER)
        network = max(it.network_bandwidth or 0.0, NETWORK.get(family(it.name), 0.0))
        link = it.interconnect_bandwidth if on_one_node else network
        return Machine(
            bandwidth=it.memory_bandwidth,
            flops=dense,
            expert_flops=expert,
            attention_flops=it.flops["bf16"],
            link=np.inf if self.accelerators == 1 else (link or np.nan),
            tensor=float(self.tensor),
            data=float(self.data),
            coefficients=GENERAL,
        )

    def work(self, tokens: float) -> ForwardCost:
        """What a pass does, the cache in the mean over requests of `tokens` tokens."""
        weights = memory.weights(self.shape, ELEMENT)
        return step_time.build_work(
            self.shape, weights.dense, weights.expert, self._cached(tokens, slides=True)
        )

    def most_rows(self, tokens: float, max_num_seqs: float, max_num_batched_tokens: float) -> float:
        """Requests of `tokens` tokens each that each group's memory holds beside the activations of the
        largest pass of an engine with these ceilings; 0 or less where none fits.

        What a sliding window has passed is kept.
        """
        shape, stages = self.shape, float(self.stages)
        weights = memory.weights(shape, ELEMENT)
        mine = replace(weights, expert=weights.expert / self.data)
        held = memory.stage_bytes(shape, mine, ELEMENT, stages) / self.tensor
        tensor = float(self.tensor)
        activations = memory.activation_bytes(
            shape, ELEMENT, tensor, max_num_seqs, max_num_batched_tokens, 0.0
        )
        room = memory.usable(self.accelerator) - held - activations
        cached = self._cached(tokens, slides=False) * memory.largest_stage(shape.layers, stages)
        return float(room / (cached * tokens))

    def _cached(self, tokens: float, slides: bool) -> memory.Numbers:
        """Bytes of one cached token, in the mean over requests of `tokens` tokens."""
        return memory.kv_bytes(self.shape, float(self.cache_bytes), float(self.tensor), tokens, slides)


def deployment(
    catalog: Mapping[str, Accelerator],
    model: str,
    precision: str,
    system: str,
    tensor: int,
    data: int = 1,
    stages: int = 1,
    cache_bytes: int = 2,
) -> Deployment | str:
    """The deployment that a row's words describe, or which word is not known."""
    shape = served_shape(model, precision)
    if shape is None:
        return f"model {model} {precision}"
    accelerator = catalog.get(accelerator_name(system))
    if accelerator is None or accelerator.memory_bandwidth is None or "bf16" not in accelerator.flops:
        return f"accelerator {system}"
    return Deployment(shape, accelerator, tensor, data, stages, cache_bytes)


def stacked(records: Sequence[Machine] | Sequence[ForwardCost]) -> dict[str, Any]:
    """Every number of the records as one array."""
    return {
        field.name: np.array([getattr(record, field.name) for record in records], float)
        for field in fields(records[0])
        if field.name != "coefficients"
    }


def taken(record: Any, which: Mask) -> Any:
    """Some elements of every number of a `Machine` or a `Work`."""
    numbers = {f.name: getattr(record, f.name) for f in fields(record) if f.name != "coefficients"}
    return replace(record, **{name: column[which] for name, column in numbers.items()})


class UnreadableError(ValueError):
    """A cell without which its row cannot be told; the message says which and why."""


def word(line: Mapping[str, str | None], column: str) -> str:
    """What a row says in `column`; it may be empty."""
    text = line.get(column)
    if text is None:
        raise UnreadableError(f"no column {column}")
    return text


def number(line: Mapping[str, str | None], column: str) -> float:
    """A positive number, however it is written: 8 and 8.0 are the same."""
    try:
        found = float(word(line, column) or "nan")
    except ValueError as error:
        if isinstance(error, UnreadableError):
            raise
        found = math.nan
    if not 0.0 < found < math.inf:
        raise UnreadableError(f"no positive number in {column}")
    return found


def count(line: Mapping[str, str | None], column: str) -> int:
    """How many; 0 where the table does not say."""
    text = line.get(column) or "0"
    try:
        return max(0, int(float(text)))
    except (ValueError, OverflowError):
        return 0


def table(path: Path) -> Iterator[dict[str, str | None]]:
    """The lines of a CSV file; none where it is not there."""
    if path.exists():
        with path.open(encoding="utf-8", newline="") as lines:
            yield from csv.DictReader(lines)
