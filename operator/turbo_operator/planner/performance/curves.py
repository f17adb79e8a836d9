"""How fast one replica of each of c candidates is, by the number of requests it decodes together. Pure."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from turbo_operator.planner.arrays import Numbers
from turbo_operator.planner.requirements import Demand

GRID = 40  # states of the queue that are looked at, whatever the number of slots
DENSE = 4  # of them the first that are one request apart
TINY = 1e-12


def rows(slots: Numbers) -> Numbers:
    """States [c, GRID] at which `Engines.decode` is wanted: all of few slots, ever fewer of many.

    The last one of each candidate is its `slots`. Distances grow with the root of the state, as the queue's
    own spread does.
    """
    step = np.arange(1.0, GRID + 1.0)
    bend = (np.maximum(step - DENSE, 0.0) / (GRID - DENSE)) ** 2
    return np.asarray(np.minimum(step, slots[:, None]) + np.maximum(slots - GRID, 0.0)[:, None] * bend)


@dataclass(frozen=True, slots=True)
class Engines:
    """One replica of each of c candidates, as its queue sees it. Seconds and tokens."""

    rows: Numbers  # [c, GRID] requests decoded together; from `rows`
    decode: Numbers  # [c, GRID] one step with so many, over the tokens that it commits to each of them (tau)
    prefill: Numbers  # [c] to read one token of a prompt, the mean prompt's time over its length
    chunk: Numbers  # [c] tokens of prompts that one step reads at most, over tau
    first: Numbers  # [c] fixed part of a time to first token, beside queue, prompt and one step

    @property
    def slots(self) -> Numbers:
        """[c] requests decoded together at most."""
        return self.rows[:, -1]

    def decode_at(self, together: Numbers) -> Numbers:
        """[c] a step with so many; with less than one the share of time that has any."""
        return interpolate(self.rows, self.decode, together)[0] * np.minimum(together, 1.0)


def crowd(engines: Engines, demand: Demand) -> Numbers:
    """[c] requests that can be decoded together: the slots, or as many as chunks bring before they end."""
    return np.minimum(engines.slots, np.maximum(engines.chunk * demand.output.mean / demand.prompt.mean, 1.0))


def completions(engines: Engines, demand: Demand, together: Numbers) -> Numbers:
    """[c] requests per second of so many that are replaced as they end: all read, then decode, in turn."""
    read = demand.prompt.mean * engines.prefill
    return together / (demand.output.mean * engines.decode_at(together) + together * read)


def interpolate(grid: Numbers, values: Numbers, at: Numbers) -> tuple[Numbers, Numbers]:
    """[c] values [c, n] over ascending grids [c, n] and their slopes: linear between, flat beyond."""
    upper = np.clip(np.count_nonzero(grid < at[:, None], axis=1), 1, grid.shape[1] - 1)
    candidate = np.arange(len(grid))
    left, low = grid[candidate, upper - 1], values[candidate, upper - 1]
    width = grid[candidate, upper] - left
    slope = (values[candidate, upper] - low) / np.maximum(width, TINY)
    return low + slope * np.minimum(np.maximum(at - left, 0.0), width), slope
