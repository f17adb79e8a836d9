"""The start-up check finds out where attention's bits depend on the step."""

from __future__ import annotations

from math import inf
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from turbo_runtime.engine.startup.attention_probes import (
    NotProvenError,
    _Probe,
    are_tiles_invariant,
    find_host_rule,
    find_invariant_row_counts,
)
from turbo_runtime.kv_cache.block_pool import BLOCK_SIZE, PROMPT_TILE
from turbo_runtime.models.attention import rows as row_wise
from turbo_runtime.models.attention.host import HostKVPool, HostMetadata
from turbo_runtime.models.attention.pool import KVCacheSpec, KVPool
from turbo_runtime.models.attention.rows import RowAttention
from turbo_runtime.models.attention.spans import Spans

HEADS, KV_HEADS, KEY, NARROW = 6, 2, 16, 8

pytestmark = pytest.mark.usefixtures("one_thread")


def pool(value: int = NARROW, windows: tuple[int, ...] = ()) -> KVPool:
    shape = KVCacheSpec(HEADS, KV_HEADS, KEY, value, windows=windows)
    return KVPool(shape, layers=1, blocks=60, dtype=torch.float32, device=torch.device("cpu"))


@pytest.mark.parametrize("rows_each", [2, 8])
def test_products_whose_bits_depend_on_their_rows_are_left_out(
    rows_each: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    real, group = torch.bmm, HEADS // KV_HEADS
    width = -(-rows_each * group // 4) * 4

    def another_order(a: Tensor, b: Tensor) -> Tensor:
        if a.shape[1] != width:
            return real(a, b)
        half = a.shape[2] // 2
        return real(a[:, :, half:], b[:, half:]) + real(a[:, :, :half], b[:, :half])

    monkeypatch.setattr(torch, "bmm", another_order)
    found = find_invariant_row_counts(pool())
    assert rows_each not in found
    assert 1 in found


def test_products_whose_bits_depend_on_how_many_there_are_hold_at_no_count(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    real = torch.bmm

    def crowded(a: Tensor, b: Tensor) -> Tensor:
        half = a.shape[2] // 2 if a.shape[0] > 150 else 0
        return real(a[:, :, half:], b[:, half:]) + (real(a[:, :, :half], b[:, :half]) if half else 0)

    monkeypatch.setattr(torch, "bmm", crowded)
    assert find_invariant_row_counts(pool()) == ()


def test_what_is_not_tried_in_time_is_not_held() -> None:
    with pytest.raises(NotProvenError):
        find_invariant_row_counts(pool(value=KEY), deadline=0.0)
    assert find_invariant_row_counts(pool(value=KEY), optional_deadline=0.0) == (1,)


def test_sequences_beside_the_one_that_is_tried_are_as_many_as_a_call_has_room_for(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    kv = pool(value=KEY)
    assert (30, True) in _Probe(kv, 320).batches()
    monkeypatch.setattr(row_wise, "GROUP_BYTES", 8 * 576 * kv.shape.elements * kv.dtype.itemsize)
    long = {number for number, as_long in _Probe(kv, 576).batches() if as_long}
    assert long == {1, 6, 8}


def test_a_tile_far_into_a_prompt_is_tried_in_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    assert are_tiles_invariant(pool())
    real = F.scaled_dot_product_attention

    def crowded(query: Tensor, key: Tensor, value: Tensor, **rest: Any) -> Tensor:
        """Adds up in another order where the last two of the tile's rows are alike."""
        whole = real(query, key, value, **rest)
        group = HEADS // KV_HEADS
        alike = torch.equal(query[:, :, -group:], query[:, :, -2 * group : -group])
        return whole * (1 + 1e-6) if alike and key.shape[2] > 2 * PROMPT_TILE else whole

    monkeypatch.setattr(F, "scaled_dot_product_attention", crowded)
    assert not are_tiles_invariant(pool())


@pytest.mark.parametrize("window", [200, 4096])
def test_the_window_of_a_model_is_tried(window: int, monkeypatch: pytest.MonkeyPatch) -> None:
    real, tried = RowAttention.__init__, set[int]()

    def noted(self: RowAttention, pool: KVPool, spans: Spans, counts: tuple[int, ...], window: int) -> None:
        tried.add(window)
        real(self, pool, spans, counts, window)

    monkeypatch.setattr(RowAttention, "__init__", noted)
    find_invariant_row_counts(pool(windows=(window, 0)))
    assert tried == {0, window}


HOST = KVCacheSpec(HEADS, KV_HEADS, KEY, KEY, windows=(0, 150))


def host_pool(spec: KVCacheSpec = HOST) -> HostKVPool:
    return HostKVPool(spec, layers=1, blocks=4, dtype=torch.float32)


def test_compiled_attention_holds_and_any_block_may_be_shared() -> None:
    assert find_host_rule(host_pool(), inf).shared_tile(BLOCK_SIZE) == BLOCK_SIZE


@pytest.mark.parametrize("tokens", [1, 41, 150 + 2 * PROMPT_TILE])
def test_compiled_attention_that_depends_on_how_many_rows_there_are_is_found_out(
    tokens: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = HostMetadata.attend

    def another(self: HostMetadata, *given: Any) -> Tensor:
        return real(self, *given) * (1 + 1e-6 * (self.tokens == tokens))

    monkeypatch.setattr(HostMetadata, "attend", another)
    with pytest.raises(NotProvenError, match="how many others"):
        find_host_rule(host_pool(), inf)


def test_compiled_attention_that_is_not_tried_in_time_is_not_held() -> None:
    with pytest.raises(NotProvenError, match="too long"):
        find_host_rule(host_pool(), 0.0)
