"""The start-up check finds out where attention's bits depend on the step."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from turbo_runtime.engine.startup.attention_probes import (
    NotProvenError,
    _Probe,
    are_tiles_invariant,
    are_tiles_rows,
    find_invariant_row_counts,
)
from turbo_runtime.kv_cache.block_pool import PROMPT_TILE
from turbo_runtime.models.attention import rows as row_wise
from turbo_runtime.models.attention.pool import KVCacheSpec, KVPool
from turbo_runtime.models.attention.rows import ROW_COUNTS
from turbo_runtime.models.attention.spans import padded_queries

HEADS, KV_HEADS, KEY, NARROW = 6, 2, 16, 8

pytestmark = pytest.mark.usefixtures("one_thread")


def pool(value: int = NARROW, windows: tuple[int, ...] = ()) -> KVPool:
    """Values as wide as keys go through the fused kernel, others are split over their keys."""
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


@pytest.mark.parametrize("rows_each", [1, 3, 17])
def test_a_fused_kernel_whose_bits_depend_on_its_rows_is_found_out(
    rows_each: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    real, width = F.scaled_dot_product_attention, padded_queries(rows_each, HEADS // KV_HEADS)

    def another_order(query: Tensor, key: Tensor, value: Tensor, **rest: Any) -> Tensor:
        whole = real(query, key, value, **rest)
        return whole * (1 + 1e-6) if query.shape[2] == width else whole

    monkeypatch.setattr(F, "scaled_dot_product_attention", another_order)
    same = {rows for rows in ROW_COUNTS if padded_queries(rows, HEADS // KV_HEADS) == width}
    alike_with_one = same if 1 in same else set(ROW_COUNTS) - same
    assert set(find_invariant_row_counts(pool(value=KEY))) == alike_with_one


@pytest.mark.parametrize("crowd", [3, 12])
def test_a_fused_kernel_whose_bits_depend_on_how_many_items_there_are_holds_at_no_count(
    crowd: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = F.scaled_dot_product_attention

    def crowded(query: Tensor, key: Tensor, value: Tensor, **rest: Any) -> Tensor:
        whole = real(query, key, value, **rest)
        return whole * (1 + 1e-6) if query.shape[0] > crowd else whole

    monkeypatch.setattr(F, "scaled_dot_product_attention", crowded)
    assert find_invariant_row_counts(pool(value=KEY)) == ()


@pytest.mark.parametrize("keys", [*(64 * tiles for tiles in range(1, 10)), 832, 1024, 1088])
def test_a_fused_kernel_whose_bits_depend_on_its_rows_at_some_number_of_keys_is_found_out(
    keys: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    real, single = F.scaled_dot_product_attention, padded_queries(1, HEADS // KV_HEADS)

    def another_order(query: Tensor, key: Tensor, value: Tensor, **rest: Any) -> Tensor:
        whole = real(query, key, value, **rest)
        return whole * (1 + 1e-6) if key.shape[2] == keys and query.shape[2] > single else whole

    monkeypatch.setattr(F, "scaled_dot_product_attention", another_order)
    assert find_invariant_row_counts(pool(value=KEY)) == (1,)
    assert not are_tiles_rows(pool(value=KEY))


def test_a_sequence_that_is_read_where_it_lies_is_tried(monkeypatch: pytest.MonkeyPatch) -> None:
    real, group = F.scaled_dot_product_attention, HEADS // KV_HEADS

    def another_order(query: Tensor, key: Tensor, value: Tensor, **rest: Any) -> Tensor:
        whole = real(query, key, value, **rest)
        in_place = key.storage_offset() > 0  # in the cache, behind what others have
        return whole * (1 + 1e-6) if in_place and query.shape[2] == padded_queries(4, group) else whole

    monkeypatch.setattr(F, "scaled_dot_product_attention", another_order)
    same = {rows for rows in ROW_COUNTS if padded_queries(rows, group) == padded_queries(4, group)}
    assert set(find_invariant_row_counts(pool(value=KEY))) == set(ROW_COUNTS) - same


def test_what_is_not_tried_in_time_is_not_held() -> None:
    with pytest.raises(NotProvenError):
        find_invariant_row_counts(pool(value=KEY), deadline=0.0)
    assert find_invariant_row_counts(pool(value=KEY), optional_deadline=0.0) == (1,)
    assert not are_tiles_rows(pool(value=KEY), deadline=0.0)


def test_sequences_beside_the_one_that_is_tried_are_as_many_as_a_call_has_room_for(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    kv = pool(value=KEY)
    assert (30, True) in _Probe(kv, 320).batches()
    monkeypatch.setattr(row_wise, "GROUP_BYTES", 8 * 576 * kv.shape.elements * kv.dtype.itemsize)
    long = {number for number, as_long in _Probe(kv, 576).batches() if as_long}
    assert long == {1, 6, 8}
    assert _Probe(kv, 1024).batches() == {(0, False)}


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
    real, keys = F.scaled_dot_product_attention, set[int]()

    def another_order(query: Tensor, key: Tensor, value: Tensor, **rest: Any) -> Tensor:
        keys.add(key.shape[2])
        whole = real(query, key, value, **rest)
        hides_first = bool((rest["attn_mask"][..., 0] < 0).any())
        return whole * (1 + 1e-6) if hides_first and query.shape[2] > padded_queries(1, 3) else whole

    monkeypatch.setattr(F, "scaled_dot_product_attention", another_order)
    kv = pool(value=KEY, windows=(window, 0))
    assert find_invariant_row_counts(kv) == (1,)
    assert max(keys) <= max(1088, window + 2 * PROMPT_TILE)
    assert not are_tiles_rows(kv)
