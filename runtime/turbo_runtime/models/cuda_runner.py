"""A model on a GPU: one upload a step, attention in one call a layer, and small steps as captured graphs.

A launch costs as much as a small kernel computes: a step of an 8B has some thousand kernels, whose launches
take as long as reading all its weights. A captured graph is one launch. It has a fixed size, so there is one
for each of a few numbers of rows, and a step is filled up with padding.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel

from turbo_runtime.models.attention.metadata import StepMetadata
from turbo_runtime.models.attention.pool import KVCacheSpec, KVPool, cache_shape
from turbo_runtime.models.attention.varlen import (
    DEFAULT_OP,
    PAGE_SIZE,
    PagedKVPool,
    StepSize,
    VarlenAttention,
    VarlenMetadata,
    pack,
    supports,
)
from turbo_runtime.models.layers.native import LeanDecoder
from turbo_runtime.models.matmul import padded_rows
from turbo_runtime.models.parallel.decoder import RankGroup
from turbo_runtime.models.runner import Forward, ModelRunner, StepInputs
from turbo_runtime.models.step_batch import Chunk, StepBatch
from turbo_runtime.models.transfer import refill, upload

log = logging.getLogger(__name__)

GRAPH_ROWS = (4, 8, 16, 24, 32, 48, 64, 96, 128, 192, 256, 384, 512)


@dataclass(frozen=True, slots=True)
class _Graph:
    """A captured step, and the tensors that it reads and writes."""

    graph: torch.cuda.CUDAGraph
    size: StepSize
    columns: Tensor
    outputs: Forward


class CudaModelRunner(ModelRunner):
    """The runner for GPUs. With an `op` that computes elsewhere, all of it but the graphs works there too."""

    pool: PagedKVPool

    def __init__(
        self,
        model: PreTrainedModel,
        *,
        blocks: int,
        max_length: int,
        group: RankGroup | None = None,
        op: VarlenAttention = DEFAULT_OP,
        page_size: int = PAGE_SIZE,
    ) -> None:
        """As `ModelRunner`; `op` has the signature of `torch.nn.attention.varlen.varlen_attn_out`, and takes
        pages of `page_size` tokens.
        """
        self._op, self._page_size = op, page_size
        super().__init__(model, blocks=blocks, max_length=max_length, group=group)
        self._graphs: list[_Graph] = []  # the smallest first

    @property
    def asynchronous(self) -> bool:
        """Passes are enqueued."""
        return True

    @property
    def shared_tile(self) -> int:
        """A position's arithmetic does not depend on how steps cut the prompt: a page is a unit."""
        return self.pool.block_size

    def allocate(self, blocks: int) -> PagedKVPool:
        """Return a cache of so many pages."""
        return self.allocate_layers(blocks, *self._layers())

    def allocate_layers(self, blocks: int, shape: KVCacheSpec, layers: int) -> PagedKVPool:
        """Return a cache of so many pages for layers of any shape."""
        return PagedKVPool(
            shape,
            layers=layers,
            blocks=blocks,
            dtype=self.dtype,
            device=self.device,
            block_size=self._page_size,
        )

    def attention(self, pool: KVPool, batch: StepBatch) -> StepMetadata:
        """Prepare a step over another cache."""
        assert isinstance(pool, PagedKVPool)
        size = StepSize(len(batch.tokens), *batch.block_table.shape)
        columns = upload(pack(batch, size, pool), self.device)
        return VarlenMetadata(pool, columns, size, size.rows, self._op)

    def beside(self, model: PreTrainedModel, max_length: int) -> ModelRunner:
        """Build a runner of another model, with a cache for the same tokens."""
        unfit = self._op is DEFAULT_OP and not supports(cache_shape(model.config), model.dtype)
        if unfit or model.device != self.device:
            return super().beside(model, max_length)
        blocks, page = self.pool.blocks, self._page_size
        return CudaModelRunner(model, blocks=blocks, max_length=max_length, op=self._op, page_size=page)

    def first_layers(self, count: int) -> CudaModelRunner:
        """Return the model without its later layers; its steps are no graphs."""
        shallow = super().first_layers(count)
        assert isinstance(shallow, CudaModelRunner)
        shallow._graphs = []
        return shallow

    @torch.inference_mode()
    def execute_here(self, chunks: Sequence[Chunk], layers: Sequence[int] = ()) -> Forward:
        """Do this rank's part of `execute`."""
        batch = StepBatch.join(chunks, self.pool.block_size, self.pool.scratch)
        rows, number = len(batch.tokens), len(batch.logits_indices)
        graph = None if layers else next((each for each in self._graphs if each.size.rows >= rows), None)
        if graph is not None:
            refill(graph.columns, pack(batch, graph.size, self.pool))
            graph.graph.replay()
            outputs = graph.outputs
            return Forward(outputs.logits[:number], outputs.hidden[:number], outputs.finite[: len(chunks)])
        size = StepSize(padded_rows(rows), len(chunks), batch.block_table.shape[1])
        columns = upload(pack(batch, size, self.pool), self.device)
        return self._run(VarlenMetadata(self.pool, columns, size, rows, self._op), size, number, layers)

    def _run(self, step: VarlenMetadata, size: StepSize, picked: int, layers: Sequence[int] = ()) -> Forward:
        inputs = StepInputs(step.ids, step.sequence, step.picked[:picked])
        return self._compute(inputs, step, size.sequences, layers)

    @torch.inference_mode()
    def capture(self, max_rows: int) -> None:
        """Capture steps of up to `max_rows` rows as graphs, where the model can be: the largest first, whose
        memory the others share.
        """
        decoder = self.decoder
        if self.device.type != "cuda" or not isinstance(decoder, LeanDecoder) or not decoder.captures:
            return
        pages, memory = -(-self.max_length // self.pool.block_size), torch.cuda.graph_pool_handle()
        for rows in sorted((rows for rows in GRAPH_ROWS if rows <= max_rows), reverse=True):
            self._graphs.insert(0, self._capture(StepSize(rows, rows, pages), memory))
        log.info("steps of up to %d tokens are graphs", self._graphs[-1].size.rows)

    def _capture(self, size: StepSize, memory: Any) -> _Graph:
        scratch = self.pool.scratch
        nothing = StepBatch.join([Chunk([0], 0, [scratch], 1, 0)], self.pool.block_size, scratch)
        columns = upload(pack(nothing, size, self.pool), self.device)

        def run() -> Forward:
            step = VarlenMetadata(self.pool, columns, size, size.rows, self._op)
            return self._run(step, size, size.rows)

        side = torch.cuda.Stream()  # type: ignore[no-untyped-call]
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side):
            run()  # once before: libraries choose and load their kernels
        torch.cuda.current_stream().wait_stream(side)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, pool=memory):
            outputs = run()
        return _Graph(graph, size, columns, outputs)
