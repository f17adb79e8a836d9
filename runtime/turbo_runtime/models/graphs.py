"""Steps as captured graphs: one launch each, of a fixed size, which smaller steps are filled up to.

The larger ones lend their memory to the smaller ones, and all write their results to the same tensors, since
one step runs at a time.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from turbo_runtime.models.attention.varlen import StepSize

GRAPH_ROWS = (4, 8, 16, 24, 32, 48, 64, 96, 128, 192, 256, 384, 512)
# Queries of one sequence. Attention launches a block for each 64 that any sequence might have, so a graph for
# longer ones would launch blocks by the square of its rows; steps with such a piece of a prompt are none.
MAX_GRAPH_QUERIES = 128

Run = Callable[[], None]
Capture = Callable[[Run], Run]  # a step -> what runs it again, on what its tensors hold then


@dataclass(frozen=True, slots=True)
class StepGraph:
    """A captured step, and the tensors that it reads."""

    size: StepSize
    columns: Tensor
    table: Tensor  # (sequences, pages): what lies beyond a sequence's keys is stale, and nobody reads it
    replay: Run

    def fill(self, packed: Tensor, sequences: int, pages: int) -> None:
        """Take over a step from `pack`, whose table has that size. The table of a long context is large: no
        more of it is copied than the step has.
        """
        length = len(self.columns)
        self.columns.copy_(packed[:length])
        self.table[:sequences, :pages].copy_(packed[length:].view(sequences, pages))


def capture_on_gpu() -> Capture:
    """Return what captures steps of this process's GPU, in memory that they share."""
    memory = torch.cuda.graph_pool_handle()

    def capture(run: Run) -> Run:
        side = torch.cuda.Stream()  # type: ignore[no-untyped-call]
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side):
            run()  # once before: libraries choose and load their kernels
        torch.cuda.current_stream().wait_stream(side)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, pool=memory):
            run()
        replay: Run = graph.replay
        return replay

    return capture
