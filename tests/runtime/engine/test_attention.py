"""A position's attention depends on (prompt length, position) alone, and is what softmax says."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from turbo_runtime.engine.attention import CacheShape, KVPool, PagedStep, Rule, Span
from turbo_runtime.engine.attention import rows as row_wise
from turbo_runtime.engine.attention.check import row_counts_that_hold, tiles_hold
from turbo_runtime.engine.attention.rows import ROW_COUNTS, RowAttention
from turbo_runtime.engine.attention.spans import Spans
from turbo_runtime.engine.blocks import BLOCK_SIZE, PROMPT_TILE, blocks_for

HEADS, KV_HEADS, KEY, VALUE = 6, 2, 16, 8
LENGTH = 290
SCALING = 0.25


pytestmark = pytest.mark.usefixtures("one_thread")


def pool(dtype: torch.dtype = torch.float32, blocks: int = 3 * blocks_for(LENGTH)) -> KVPool:
    shape = CacheShape(HEADS, KV_HEADS, KEY, VALUE)
    return KVPool(shape, layers=1, blocks=blocks, dtype=dtype, device=torch.device("cpu"))


def tensors(dtype: torch.dtype = torch.float32, seed: int = 0) -> tuple[Tensor, Tensor, Tensor]:
    """Queries, keys and values (LENGTH, heads, width) of one sequence."""
    generator = torch.Generator().manual_seed(seed)
    shapes = ((LENGTH, HEADS, KEY), (LENGTH, KV_HEADS, KEY), (LENGTH, KV_HEADS, VALUE))
    query, key, value = (torch.randn(shape, generator=generator).to(dtype) for shape in shapes)
    return query, key, value


def table(number: int) -> list[int]:
    """Blocks of one of three sequences, not in order."""
    return list(range(number, 3 * blocks_for(LENGTH), 3))[::-1]


def computed(
    cuts: Sequence[int],
    prompt_length: int,
    *,
    rule: Rule | None = None,
    mates: Sequence[int] = (),
    dtype: torch.dtype = torch.float32,
    padding: int = 0,
) -> Tensor:
    """(LENGTH, heads, value width) of the sequence, a step from each of `cuts` to the next, beside sequences
    of the lengths `mates`.
    """
    kv, (query, key, value) = pool(dtype), tensors(dtype)
    answers = []
    edges = [*cuts, LENGTH]
    for start, end in pairwise(edges):
        others = [Span(0, length, table(1 + i), length // 2) for i, length in enumerate(mates)]
        spans = [*others, Span(start, end - start, table(0), prompt_length)]
        before = sum(mates)
        rows = before + end - start + padding
        flat = [torch.ones(rows, *each.shape[1:], dtype=dtype) for each in (query, key, value)]
        for all_rows, own in zip(flat, (query, key, value), strict=True):
            all_rows[before : before + end - start] = own[start:end]
        step = PagedStep(kv, spans, rows, rule or Rule())
        answers.append(step.attend(0, *flat, SCALING)[before : before + end - start])
    return torch.cat(answers)


@pytest.mark.parametrize("prompt_length", [0, 63, 64, 200, LENGTH])
@pytest.mark.parametrize("rule", [Rule(), Rule(exact=False)], ids=["exact", "free"])
@pytest.mark.parametrize(("dtype", "close"), [(torch.float32, 1e-5), (torch.bfloat16, 2e-2)])
def test_it_is_causal_softmax_attention(
    prompt_length: int, rule: Rule, dtype: torch.dtype, close: float
) -> None:
    query, key, value = (tensor.transpose(0, 1).float() for tensor in tensors(dtype))
    expected = F.scaled_dot_product_attention(
        query[None], key[None], value[None], is_causal=True, scale=SCALING, enable_gqa=True
    )[0].transpose(0, 1)
    found = computed([0, 40, 41, 46, 200], prompt_length, rule=rule, dtype=dtype, padding=3).float()
    torch.testing.assert_close(found, expected, atol=close, rtol=close)


@given(
    st.sets(st.integers(1, LENGTH - 1), max_size=12),
    st.integers(0, LENGTH),
    st.lists(st.integers(1, 150), max_size=2),
    st.integers(0, 5),
)
@settings(max_examples=40)
def test_however_a_sequence_is_cut_into_steps_and_whoever_else_is_there_the_bits_are_the_same(
    cuts: set[int], prompt_length: int, mates: list[int], padding: int
) -> None:
    counts = row_counts_that_hold(pool())
    assert 1 in counts
    rule = Rule(row_counts=counts)
    at_once = computed([0], prompt_length, rule=rule)
    assert torch.equal(
        computed([0, *sorted(cuts)], prompt_length, rule=rule, mates=mates, padding=padding), at_once
    )


def test_the_prompt_tiles_of_two_prompts_that_begin_alike_have_the_same_bits() -> None:
    shorter, longer = computed([0], 100), computed([0], 260)
    assert torch.equal(shorter[:PROMPT_TILE], longer[:PROMPT_TILE])


def test_groups_of_gathered_keys_change_no_bits(monkeypatch: pytest.MonkeyPatch) -> None:
    together = computed([0, 100, 110], 0, mates=[30, 90])
    monkeypatch.setattr(row_wise, "GROUP_BYTES", 1)
    assert torch.equal(computed([0, 100, 110], 0, mates=[30, 90]), together)


def test_padding_is_written_nowhere() -> None:
    kv = pool()
    ones = [
        torch.ones(8, heads, width) for heads, width in ((HEADS, KEY), (KV_HEADS, KEY), (KV_HEADS, VALUE))
    ]
    PagedStep(kv, [Span(0, 3, table(0), 0)], 8, Rule()).attend(0, *ones, SCALING)
    written = {int(slot) // BLOCK_SIZE for slot in kv.keys[0].abs().sum((0, 2)).nonzero()}
    assert written == {table(0)[0]}


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
    found = row_counts_that_hold(pool())
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
    assert row_counts_that_hold(pool()) == ()


def test_all_counts_are_tried() -> None:
    assert set(row_counts_that_hold(pool())) <= set(ROW_COUNTS)


def test_only_the_last_keys_of_an_item_are_masked() -> None:
    spans = Spans.of([Span(LENGTH - 1, 1, table(0), 0), Span(256, 4, table(1), 0), Span(254, 4, table(2), 0)])
    attention = RowAttention(pool(), spans, (4,))
    (group,) = attention._groups
    # of three chunks each: one, one, and two where the rows lie on both sides of an edge
    assert group._tail.tolist() == [2, 5, 7, 8]


def test_a_tile_far_into_a_prompt_is_tried_in_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    assert tiles_hold(pool())
    real = F.scaled_dot_product_attention

    def crowded(query: Tensor, key: Tensor, value: Tensor, **rest: Any) -> Tensor:
        """Adds up in another order where the last two of the tile's rows are alike."""
        whole = real(query, key, value, **rest)
        group = HEADS // KV_HEADS
        alike = torch.equal(query[:, :, -group:], query[:, :, -2 * group : -group])
        return whole * (1 + 1e-6) if alike and key.shape[2] > 2 * PROMPT_TILE else whole

    monkeypatch.setattr(F, "scaled_dot_product_attention", crowded)
    assert not tiles_hold(pool())
