"""A model on a GPU: one upload a step, attention in one call a layer, and small steps as captured graphs.

A launch costs as much as a small kernel computes: a step of an 8B has some thousand kernels, whose launches
take as long as reading all its weights. A captured graph is one launch. It has a fixed size, so there is one
for each of a few numbers of rows, and a step is filled up with padding (`graphs`).
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence

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
from turbo_runtime.models.graphs import GRAPH_ROWS, MAX_GRAPH_QUERIES, Capture, StepGraph, capture_on_gpu
from turbo_runtime.models.layers.lora import Adapter
from turbo_runtime.models.layers.native import LeanDecoder
from turbo_runtime.models.parallel.decoder import RankGroup
from turbo_runtime.models.runner import Forward, ModelRunner, StepInputs
from turbo_runtime.models.step_batch import Chunk, StepBatch
from turbo_runtime.models.transfer import upload

log = logging.getLogger(__name__)


class CudaModelRunner(ModelRunner):
    """The runner for GPUs. With an `op` that computes elsewhere it works there too, and with `graphs` that
    capture there, all of it.
    """

    pool: PagedKVPool

    def __init__(
        self,
        model: PreTrainedModel,
        *,
        blocks: int,
        max_length: int,
        group: RankGroup | None = None,
        adapters: Sequence[Adapter] = (),
        op: VarlenAttention = DEFAULT_OP,
        page_size: int = PAGE_SIZE,
        graphs: Callable[[], Capture] | None = None,
    ) -> None:
        """As `ModelRunner`; `op` has the signature of `torch.nn.attention.varlen.varlen_attn_out`, and takes
        pages of `page_size` tokens. `graphs`: what captures steps, by default on a GPU.
        """
        self._op, self._page_size = op, page_size
        super().__init__(model, blocks=blocks, max_length=max_length, group=group, adapters=adapters)
        self._new_capture = graphs or (capture_on_gpu if self.device.type == "cuda" else None)
        self.graphs: list[StepGraph] = []  # the smallest first
        self._outputs: Forward | None = None  # of all graphs

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
        size = StepSize.of(batch, len(batch.tokens))
        return VarlenMetadata.upload(batch, size, pool, size.rows, self._op)

    def beside(self, model: PreTrainedModel, max_length: int) -> ModelRunner:
        """Build a runner of another model, with a cache for the same tokens."""
        unfit = self._op is DEFAULT_OP and not supports(cache_shape(model.config), model.dtype)
        if unfit or model.device.type != self.device.type:
            return super().beside(model, max_length)
        blocks, page = self.pool.blocks, self._page_size
        return CudaModelRunner(model, blocks=blocks, max_length=max_length, op=self._op, page_size=page)

    def first_layers(self, count: int) -> CudaModelRunner:
        """Return the model without its later layers; its steps are no graphs."""
        shallow = super().first_layers(count)
        assert isinstance(shallow, CudaModelRunner)
        shallow.graphs = []
        return shallow

    def padded_rows(self, rows: int) -> int:
        """How many rows a step of so many is computed with."""
        sizes = (graph.size.rows for graph in self.graphs if graph.size.rows >= rows)
        return next(sizes, super().padded_rows(rows))

    @torch.inference_mode()
    def execute_here(self, chunks: Sequence[Chunk], layers: Sequence[int] = ()) -> Forward:
        """Do this rank's part of `execute`."""
        batch = StepBatch.join(chunks, self.pool.block_size, self.pool.scratch)
        rows, number = len(batch.tokens), len(batch.logits_indices)
        self._adapter_rows.select(batch.token_lora_mapping, self.device)
        eager = layers or self._adapter_rows.groups  # a graph holds the model alone
        graph = None if eager else self._find_graph(StepSize.of(batch, rows))
        if graph is not None:
            assert self._outputs is not None
            packed = upload(pack(batch, graph.size, self.pool), self.device)
            graph.fill(packed, *batch.block_table.shape)
            graph.replay()
            logits, hidden, finite = _tensors(self._outputs)
            return Forward(logits[:number], hidden[:number], finite[: len(chunks)], lent=True)
        size = StepSize.of(batch, super().padded_rows(rows))
        step = VarlenMetadata.upload(batch, size, self.pool, rows, self._op)
        return self._run(step, size, number, layers)

    def _find_graph(self, step: StepSize) -> StepGraph | None:
        """The smallest graph that a step of that size fits into."""
        return next((graph for graph in self.graphs if step.fits(graph.size)), None)

    def _run(self, step: VarlenMetadata, size: StepSize, picked: int, layers: Sequence[int] = ()) -> Forward:
        inputs = StepInputs(step.ids, step.sequence, step.picked[:picked])
        return self._compute(inputs, step, size.sequences, layers)

    def resize(self, blocks: int, max_length: int) -> None:
        """Replace the cache, which graphs would still write to; on one rank."""
        self.release_graphs()
        super().resize(blocks, max_length)

    def release_graphs(self) -> None:
        """Run all steps without graphs, which keep no memory; on one rank."""
        self.graphs, self._outputs = [], None

    @torch.inference_mode()
    def capture(self, max_rows: int) -> None:
        """Capture steps of up to `max_rows` rows as graphs, where the model can be, in the arithmetic that is
        set now and in place of earlier ones; on one rank. The largest comes first, whose memory the others
        share.
        """
        self.release_graphs()
        decoder = self.decoder
        if self._new_capture is None or not isinstance(decoder, LeanDecoder) or not decoder.captures:
            return
        capture = self._new_capture()
        for rows in sorted((rows for rows in GRAPH_ROWS if rows <= max_rows), reverse=True):
            self.graphs.insert(0, self._capture(rows, capture))
        log.info("steps of up to %d tokens are graphs", self.graphs[-1].size.rows if self.graphs else 0)

    def _capture(self, rows: int, capture: Capture) -> StepGraph:
        pages = -(-self.max_length // self.pool.block_size)
        size = StepSize(rows, rows, pages, min(rows, MAX_GRAPH_QUERIES))
        scratch = self.pool.scratch
        nothing = StepBatch.join([Chunk([0], 0, [scratch], 1, 0)], self.pool.block_size, scratch)
        columns = upload(pack(nothing, size, self.pool), self.device)[: sum(size.lengths)].clone()
        table = columns.new_full((rows, pages), scratch)
        self._adapter_rows.select(nothing.token_lora_mapping, self.device)

        def compute() -> Forward:
            step = VarlenMetadata(self.pool, columns, table, size, rows, self._op)
            return self._run(step, size, rows)

        if self._outputs is None:  # none is larger than those of the first
            logits, hidden, finite = map(torch.empty_like, _tensors(compute()))
            self._outputs = Forward(logits, hidden, finite)
        kept = _tensors(self._outputs)

        def run() -> None:
            for whole, found in zip(kept, _tensors(compute()), strict=True):
                whole[: len(found)].copy_(found)

        return StepGraph(size, columns, table, capture(run))


def _tensors(forward: Forward) -> tuple[Tensor, Tensor, Tensor]:
    return forward.logits, forward.hidden, forward.finite
