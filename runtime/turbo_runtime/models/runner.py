"""A model over the paged pool: one flat batch in; logits and hidden rows out."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel

from turbo_runtime.kv_cache.block_pool import BLOCK_SIZE
from turbo_runtime.models.attention.metadata import AttentionMetadata, Rule
from turbo_runtime.models.attention.pool import KVPool, cache_shape
from turbo_runtime.models.attention.spans import Span
from turbo_runtime.models.layers.native import LEAN_ARCHITECTURES, LeanDecoder
from turbo_runtime.models.layers.transformers_backend import ModuleDecoder
from turbo_runtime.models.matmul import padded_rows


@dataclass(frozen=True, slots=True)
class Chunk:
    """One sequence's tokens of a step: committed ones that are not computed yet, then drafts."""

    tokens: Sequence[int]
    start: int  # position of the first
    table: list[int]  # blocks for start + len(tokens) tokens
    logit_rows: int  # last tokens that need logits
    prompt_length: int


@dataclass(frozen=True, slots=True)
class Forward:
    """The requested rows, in the order of the chunks."""

    logits: Tensor  # (rows, vocabulary) float32
    hidden: Tensor  # (rows, width), after the final norm
    streams: Tensor | None = None  # (tokens of all chunks, requested layers x width): those layers' inputs
    broken: frozenset[int] = frozenset()  # indices of the chunks with a state that is NaN or infinite


class ModelRunner:
    """Owner of the weights and the KV tensors; the scheduler assigns the slots."""

    def __init__(self, model: PreTrainedModel, *, blocks: int, max_length: int) -> None:
        """`blocks` of KV cache; `max_length` tokens bound one sequence. `model` loses its weights."""
        self.config = config = model.config
        self.vocabulary = int(config.vocab_size)
        self.device = model.device
        self.max_length = max_length
        self.rule = Rule()  # set by the start-up check
        shape, layers = cache_shape(config), config.num_hidden_layers
        self.pool = KVPool(shape, layers=layers, blocks=blocks, dtype=model.dtype, device=model.device)
        lean = type(model).__name__ in LEAN_ARCHITECTURES
        self.decoder: LeanDecoder | ModuleDecoder
        self.decoder = LeanDecoder(model, max_length) if lean else ModuleDecoder(model)

    @torch.inference_mode()
    def forward(self, chunks: Sequence[Chunk], layers: Sequence[int] = ()) -> Forward:
        """Compute all chunks in one pass; `streams` get the inputs of `layers`. A broken chunk leaves zeros
        in its slots: later readers of its blocks would get NaN, even from masked slots.
        """
        tokens = [token for chunk in chunks for token in chunk.tokens]
        rows = padded_rows(len(tokens))
        spans = [Span(c.start, len(c.tokens), c.table, c.prompt_length) for c in chunks]
        step = AttentionMetadata(self.pool, spans, rows, self.rule)
        tokens += [0] * (rows - len(tokens))
        hidden, streams = self.decoder.hidden(torch.tensor(tokens, device=self.device), step, layers)
        finite = hidden[: step.tokens].isfinite().all(1)
        ends = accumulate(len(chunk.tokens) for chunk in chunks)
        indices = [
            i for chunk, end in zip(chunks, ends, strict=True) for i in range(end - chunk.logit_rows, end)
        ]
        selected = hidden.index_select(0, torch.tensor(indices, device=self.device).int())
        logits = torch.empty(0, self.vocabulary, device=self.device)
        if len(selected):
            logits = self.decoder.logits(selected).float()
        inputs = torch.cat([streams[layer][: step.tokens] for layer in layers], 1) if layers else None
        broken = frozenset[int]() if bool(finite.all()) else step.clear_broken(finite)
        return Forward(logits, selected, inputs, broken)

    def clear(self, chunks: Sequence[Chunk]) -> None:
        """Write zeros to the slots of these chunks, whatever a pass that failed has left there."""
        slots = [
            chunk.table[place // BLOCK_SIZE] * BLOCK_SIZE + place % BLOCK_SIZE
            for chunk in chunks
            for place in range(chunk.start, chunk.start + len(chunk.tokens))
        ]
        self.pool.clear(torch.tensor(slots, device=self.device))


def is_out_of_memory(error: Exception) -> bool:
    """Whether a smaller pass may succeed: the CPU's allocator raises a plain RuntimeError."""
    return isinstance(error, torch.cuda.OutOfMemoryError | MemoryError) or "allocate memory" in str(error)


def kv_bytes_per_block(config: Any, dtype: torch.dtype, block_size: int) -> int:
    """Memory of one block over all layers."""
    return int(config.num_hidden_layers) * cache_shape(config).elements * dtype.itemsize * block_size
