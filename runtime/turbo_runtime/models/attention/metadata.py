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
    uniform: bool = False  # tiles have the bits of rows: position alone decides, a long span may be either

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
        queries = query.new_empty(pool.kv_heads, max(rows * pool.group, view.min_queries), width)
        by_head = query.view(rows, pool.kv_heads, pool.group, width).transpose(0, 1)
        queries[:, : rows * pool.group].view(by_head.shape).copy_(by_head)
        outputs = view.attend(layer, queries, scaling, None if sinks is None else sinks.view(-1, pool.group))
        given = min(outputs.shape[1] // pool.group, rows)
        result = query.new_zeros(rows, heads, outputs.shape[2])
        by_row = result[:given].view(given, pool.kv_heads, pool.group, -1)
        by_row.copy_(
            outputs[:, : given * pool.group].view(pool.kv_heads, given, pool.group, -1).transpose(0, 1)
        )
        return result


class _View:
    """What the rows of a step see through one window: tiles and single rows."""

    def __init__(self, pool: KVPool, parts: tuple[Spans, Spans], rows: int, rule: Rule, window: int) -> None:
        tiled, single = parts
        self._parts: list[TileAttention | RowAttention] = []
        self._output_rows: Tensor | None = None  # where each query's output stands in those of the parts
        self.min_queries = 0  # rows of queries that it reads, padding included
        output_rows = np.zeros((rows, pool.group), np.int64)
        place = 0
        if len(tiled.count):
            tiles = TileAttention(pool, tiled, aligned=rule.exact, window=window)
            output_rows[tiled.rows()] = tiles.output_rows
            self._parts.append(tiles)
            place = tiles.padded
        if len(single.count):
            whole = not self._parts
            row_wise = RowAttention(pool, single, rule.row_counts, window, whole_step=whole)
            output_rows[single.rows()] = place + row_wise.output_rows
            self._parts.append(row_wise)
            if row_wise.in_place:
                self.min_queries = row_wise.item_rows
                return
        self._output_rows = pool.tensor(output_rows.ravel())

    def attend(self, layer: int, queries: Tensor, scaling: float, sinks: Tensor | None) -> Tensor:
        """Queries (KV heads, rows * group or `min_queries`, width), sinks (KV heads, group) -> (KV heads, of
        all tokens at least, value width).
        """
        parts = [part.attend(layer, queries, scaling, sinks) for part in self._parts]
        outputs = parts[0] if len(parts) == 1 else torch.cat(parts, 1)
        return outputs if self._output_rows is None else outputs.index_select(1, self._output_rows)


def _split(columns: Spans, prompt_lens: Ints, rule: Rule) -> tuple[Spans, Spans]:
    """(what is computed in tiles, what row by row)."""
    if rule.uniform or not rule.exact:
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
