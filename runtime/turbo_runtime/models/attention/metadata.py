"""The slots of one step's tokens, and how each of them attends; also as transformers' attention."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor, nn
from transformers import AttentionInterface, AttentionMaskInterface

from turbo_runtime.kv_cache.block_pool import PROMPT_TILE
from turbo_runtime.models.attention.pool import KVPool
from turbo_runtime.models.attention.rows import ROW_COUNTS, RowAttention
from turbo_runtime.models.attention.spans import Spans
from turbo_runtime.models.attention.tiles import TileAttention
from turbo_runtime.models.step_batch import Ints, StepBatch, padded

LONG_SPAN = 32  # tokens from which a span is cheaper as one call than row by row
IMPLEMENTATION = "turbo_paged"


@dataclass(frozen=True, slots=True)
class Rule:
    """The inputs that decide how a position is computed."""

    exact: bool = True  # (prompt length, position) alone; else also what is cheapest in this step
    row_counts: tuple[int, ...] = ROW_COUNTS  # those that give the same bits on this machine
    uniform: bool = False  # tiles have the bits of rows, as in compiled code: position alone decides

    def shared_tile(self, block_size: int) -> int:
        """The unit of sharing: tokens of a prompt whose blocks are shared when it is whole."""
        return block_size if self.exact and self.uniform else PROMPT_TILE

    @classmethod
    def common(cls, rules: Sequence[Rule]) -> Rule:
        """What holds on all ranks."""
        counts = (count for count in ROW_COUNTS if all(count in rule.row_counts for rule in rules))
        return cls(all(rule.exact for rule in rules), tuple(counts), all(rule.uniform for rule in rules))


class StepMetadata(Protocol):
    """One flat batch, prepared once for all layers."""

    tokens: int  # rows that are not padding
    positions: Tensor  # (rows,)

    def attend(
        self,
        layer: int,
        query: Tensor,
        key: Tensor,
        value: Tensor | None,
        scaling: float,
        sinks: Tensor | None = None,
    ) -> Tensor:
        """Store key and value (rows, KV heads, width); query (rows, heads, width), sinks (heads) float32 ->
        outputs like queries.
        """


class AttentionMetadata:
    """A step by tiles and single rows, whose arithmetic is the same in every step."""

    def __init__(self, pool: KVPool, batch: StepBatch, rows: int, rule: Rule) -> None:
        """The batch's tokens, then padding up to `rows`."""
        self._pool = pool
        self.tokens = len(batch.tokens)  # rows that are not padding
        self.positions = pool.tensor(padded(batch.positions, rows))
        self._slots = pool.tensor(batch.slot_mapping)
        spans = Spans.of(batch)
        parts = _split(spans, batch.prompt_lens, rule)
        # a window that no sequence has outgrown hides nothing
        length = int(spans.end.max())
        self._windows = [window if window < length else 0 for window in pool.shape.windows]
        self._views = {window: _View(pool, parts, rows, rule, window) for window in {*self._windows} or {0}}

    def attend(
        self,
        layer: int,
        query: Tensor,
        key: Tensor,
        value: Tensor | None,
        scaling: float,
        sinks: Tensor | None = None,
    ) -> Tensor:
        """Store key and value (rows, KV heads, width); query (rows, heads, width), sinks (heads) float32 ->
        outputs like queries.
        """
        pool = self._pool
        # padding is not stored: it holds another row's output, which may be NaN
        pool.write(layer, self._slots, key[: self.tokens], None if value is None else value[: self.tokens])
        rows, heads, width = query.shape
        view = self._views[self._windows[layer] if self._windows else 0]
        by_head = query.view(rows, pool.kv_heads, pool.group, width).transpose(0, 1)
        queries = by_head.reshape(pool.kv_heads, rows * pool.group, width)
        outputs = view.attend(layer, queries, scaling, None if sinks is None else sinks.view(-1, pool.group))
        by_row = outputs.view(pool.kv_heads, rows, pool.group, -1).transpose(0, 1)
        return by_row.reshape(rows, heads, -1)


class _View:
    """What the rows of a step see through one window: tiles and single rows."""

    def __init__(self, pool: KVPool, parts: tuple[Spans, Spans], rows: int, rule: Rule, window: int) -> None:
        tiled, single = parts
        self._parts: list[TileAttention | RowAttention] = []
        output_rows = np.zeros((rows, pool.group), np.int64)
        place = 0
        if len(tiled.count):
            tiles = TileAttention(pool, tiled, aligned=rule.exact, window=window)
            output_rows[tiled.rows()] = tiles.output_rows
            self._parts.append(tiles)
            place = tiles.padded
        if len(single.count):
            row_wise = RowAttention(pool, single, rule.row_counts, window)
            output_rows[single.rows()] = place + row_wise.output_rows
            self._parts.append(row_wise)
        # where each query's output stands in those of the parts
        self._output_rows = pool.tensor(output_rows.ravel())

    def attend(self, layer: int, queries: Tensor, scaling: float, sinks: Tensor | None) -> Tensor:
        """Queries (KV heads, rows * group, width), sinks (KV heads, group) -> (KV heads, rows * group, value
        width).
        """
        parts = [part.attend(layer, queries, scaling, sinks) for part in self._parts]
        outputs = parts[0] if len(parts) == 1 else torch.cat(parts, 1)
        return outputs.index_select(1, self._output_rows)


def _split(columns: Spans, prompt_lens: Ints, rule: Rule) -> tuple[Spans, Spans]:
    """(what is computed in tiles, what row by row)."""
    if not rule.exact:
        long = columns.count >= LONG_SPAN
        return columns.select(long), columns.select(~long)
    whole = prompt_lens // PROMPT_TILE * PROMPT_TILE
    return columns.part(columns.start, whole), columns.part(whole, columns.end)


def paged_attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,  # noqa: ARG001  transformers' interface; the step knows who sees what
    scaling: float,
    *,
    paged_step: StepMetadata,
    **_: Any,  # a dropout of 0 among them
) -> tuple[Tensor, None]:
    """Attend: (1, heads, rows, width) and twice (1, KV heads, rows, width) -> (1, rows, heads, width)."""
    layer = module.layer_idx
    assert isinstance(layer, int)
    query, key, value = (tensor[0].transpose(0, 1) for tensor in (query, key, value))
    return paged_step.attend(layer, query, key, value, scaling)[None], None


def register() -> None:
    """Register `attn_implementation="turbo_paged"` with transformers."""
    AttentionInterface.register(IMPLEMENTATION, paged_attention)
    # no dense mask over a flat row of many sequences: it would be large and unread
    AttentionMaskInterface.register(IMPLEMENTATION, lambda *_, **__: None)
