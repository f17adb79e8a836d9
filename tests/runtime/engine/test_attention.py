"""A position's attention depends on (prompt length, position) alone, and is what softmax says."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from itertools import pairwise

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from turbo_runtime.engine.startup.attention_probes import find_invariant_row_counts
from turbo_runtime.kv_cache.block_pool import BLOCK_SIZE, PROMPT_TILE, blocks_for
from turbo_runtime.models.attention import rows as row_wise
from turbo_runtime.models.attention.metadata import AttentionMetadata, Rule
from turbo_runtime.models.attention.pool import KVCacheSpec, KVPool
from turbo_runtime.models.attention.rows import RowAttention, SplitKVItems
from turbo_runtime.models.attention.spans import Spans
from turbo_runtime.models.step_batch import Chunk, StepBatch

HEADS, KV_HEADS, KEY, NARROW = 6, 2, 16, 8
# of one layer each: none, less than a tile, a chunk and a bit, and one that only the last positions outgrow
WINDOWS = (0, 40, 150, 270)
SINKS = torch.linspace(-1.0, 3.0, HEADS)
LENGTH = 290
SCALING = 0.25
WAYS = pytest.mark.parametrize("value", [KEY, NARROW], ids=["as wide as keys", "narrow"])


pytestmark = pytest.mark.usefixtures("one_thread")


def pool(
    dtype: torch.dtype = torch.float32,
    blocks: int = 3 * blocks_for(LENGTH),
    value: int = NARROW,
    *,
    sinks: bool = False,
) -> KVPool:
    shape = KVCacheSpec(HEADS, KV_HEADS, KEY, value, windows=WINDOWS, sinks=sinks)
    return KVPool(shape, layers=len(WINDOWS), blocks=blocks, dtype=dtype, device=torch.device("cpu"))


def tensors(
    dtype: torch.dtype = torch.float32, seed: int = 0, value: int = NARROW
) -> tuple[Tensor, Tensor, Tensor]:
    """Queries, keys and values (LENGTH, heads, width) of one sequence."""
    generator = torch.Generator().manual_seed(seed)
    shapes = ((LENGTH, HEADS, KEY), (LENGTH, KV_HEADS, KEY), (LENGTH, KV_HEADS, value))
    made = [torch.randn(shape, generator=generator).to(dtype) for shape in shapes]
    return made[0], made[1], made[2]


def table(number: int) -> list[int]:
    """Blocks of one of three sequences, not in order."""
    return list(range(number, 3 * blocks_for(LENGTH), 3))[::-1]


def span(start: int, count: int, blocks: list[int], prompt_length: int) -> Chunk:
    return Chunk([0] * count, start, blocks, 0, prompt_length)


def batch(kv: KVPool, spans: list[Chunk]) -> StepBatch:
    return StepBatch.join(spans, BLOCK_SIZE, kv.scratch)


def computed(
    cuts: Sequence[int],
    prompt_length: int,
    *,
    rule: Rule | None = None,
    mates: Sequence[int] = (),
    dtype: torch.dtype = torch.float32,
    padding: int = 0,
    value: int = NARROW,
    in_a_row: bool = False,
    layer: int = 0,
    sinks: Tensor | None = None,
) -> Tensor:
    """(LENGTH, heads, value width) of the sequence, a step from each of `cuts` to the next, beside sequences
    of the lengths `mates`. `in_a_row`: its blocks follow each other.
    """
    kv, own_tensors = pool(dtype, value=value), tensors(dtype, value=value)
    own_table = list(range(blocks_for(LENGTH))) if in_a_row else table(0)
    answers = []
    edges = [*cuts, LENGTH]
    for start, end in pairwise(edges):
        others = [span(0, length, table(1 + i), length // 2) for i, length in enumerate(mates)]
        spans = [*others, span(start, end - start, own_table, prompt_length)]
        before = sum(mates)
        rows = before + end - start + padding
        flat = [torch.ones(rows, *each.shape[1:], dtype=dtype) for each in own_tensors]
        for all_rows, own in zip(flat, own_tensors, strict=True):
            all_rows[before : before + end - start] = own[start:end]
        step = AttentionMetadata(kv, batch(kv, spans), rows, rule or Rule())
        answers.append(step.attend(layer, *flat, SCALING, sinks)[before : before + end - start])
    return torch.cat(answers)


@pytest.mark.parametrize("size", [32, 64])
@WAYS
def test_blocks_of_another_size_give_the_same_bits(size: int, value: int) -> None:
    """In rows and in tiles, through the table and in a row."""
    shape = KVCacheSpec(HEADS, KV_HEADS, KEY, value, windows=WINDOWS)
    cuts = [0, 70, 71, 100, 130]
    for in_a_row in (False, True):
        kv = KVPool(
            shape,
            layers=len(WINDOWS),
            blocks=4 * blocks_for(LENGTH, size),
            dtype=torch.float32,
            device=torch.device("cpu"),
            block_size=size,
        )
        blocks = list(range(1, 4 * blocks_for(LENGTH, size), 1 if in_a_row else 3))
        found = []
        for start, end in pairwise([*cuts, LENGTH]):
            piece = [span(start, end - start, blocks[: blocks_for(end, size)], 100)]
            step = AttentionMetadata(kv, StepBatch.join(piece, size, kv.scratch), end - start, Rule())
            own = [each[start:end] for each in tensors(value=value)]
            found.append(step.attend(0, *own, SCALING))
        assert torch.equal(torch.cat(found), computed(cuts, 100, value=value, in_a_row=in_a_row))


@cache
def found_out(value: int) -> tuple[int, ...]:
    """Row counts that hold."""
    return find_invariant_row_counts(pool(value=value, sinks=True))


@pytest.mark.parametrize("prompt_length", [0, 64, 200])
@pytest.mark.parametrize("rule", [Rule(), Rule(exact=False)], ids=["exact", "free"])
@pytest.mark.parametrize(("dtype", "close"), [(torch.float32, 1e-5), (torch.bfloat16, 2e-2)])
@pytest.mark.parametrize("layer", range(len(WINDOWS)))
@WAYS
def test_it_is_causal_softmax_attention(
    prompt_length: int, rule: Rule, dtype: torch.dtype, close: float, layer: int, value: int
) -> None:
    query, key, values = (tensor.transpose(0, 1).double() for tensor in tensors(dtype, value=value))
    key, values = (tensor.repeat_interleave(HEADS // KV_HEADS, 0) for tensor in (key, values))
    distance = torch.arange(LENGTH)[:, None] - torch.arange(LENGTH)
    hidden = (distance < 0) | (distance >= (WINDOWS[layer] or LENGTH))
    scores = (query @ key.transpose(1, 2) * SCALING).masked_fill(hidden, float("-inf"))
    for sinks in (None, SINKS):
        beside = (
            torch.empty(HEADS, LENGTH, 0) if sinks is None else sinks[:, None, None].expand(-1, LENGTH, 1)
        )
        weights = torch.cat([scores, beside], 2).softmax(-1)[..., :LENGTH]
        expected = (weights @ values).transpose(0, 1).float()
        found = computed(
            [0, 40, 44, 45, 46, 200],
            prompt_length,
            rule=rule,
            dtype=dtype,
            padding=3,
            value=value,
            layer=layer,
            sinks=sinks,
        )
        torch.testing.assert_close(found.float(), expected, atol=close, rtol=close)


@given(
    st.sets(st.integers(1, LENGTH - 1), max_size=12),
    st.integers(0, LENGTH),
    st.lists(st.integers(1, 150), max_size=2),
    st.integers(0, 5),
    st.booleans(),
    st.sampled_from([KEY, NARROW]),
    st.sampled_from(range(len(WINDOWS))),
    st.sampled_from([None, SINKS]),
)
@settings(max_examples=80)
def test_however_a_sequence_is_cut_into_steps_and_whoever_else_is_there_the_bits_are_the_same(
    cuts: set[int],
    prompt_length: int,
    mates: list[int],
    padding: int,
    in_a_row: bool,
    value: int,
    layer: int,
    sinks: Tensor | None,
) -> None:
    rule = Rule(row_counts=found_out(value))
    assert 1 in rule.row_counts
    at_once = computed([0], prompt_length, rule=rule, value=value, layer=layer, sinks=sinks)
    in_a_row = in_a_row and not mates  # whose blocks lie in between
    cut = computed(
        [0, *sorted(cuts)],
        prompt_length,
        rule=rule,
        mates=mates,
        padding=padding,
        value=value,
        in_a_row=in_a_row,
        layer=layer,
        sinks=sinks,
    )
    assert torch.equal(cut, at_once)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_keys_that_the_window_has_passed_are_not_read(dtype: torch.dtype) -> None:
    """But for those in the chunk in which it begins."""
    kv, window = pool(dtype, value=KEY), WINDOWS[1]
    kv.keys[1][
        :, [place % BLOCK_SIZE + table(0)[place // BLOCK_SIZE] * BLOCK_SIZE for place in range(64)]
    ] = float("nan")
    flat = [torch.ones(20, heads, KEY, dtype=dtype) for heads in (HEADS, KV_HEADS, KV_HEADS)]
    for start in (256, 270):
        step = AttentionMetadata(kv, batch(kv, [span(start, 20, table(0), 200)]), 20, Rule())
        assert start - window > 128
        assert step.attend(1, *flat, SCALING).isfinite().all()


@pytest.mark.parametrize(("start", "count"), [(0, 2), (10, 50), (70, 40)])
def test_what_others_write_in_the_same_step_is_read_by_nobody_else(start: int, count: int) -> None:
    kv = pool(value=KEY)
    flat = [torch.ones(2 * count, heads, KEY) for heads in (HEADS, KV_HEADS, KV_HEADS)]
    flat[1][count:], flat[2][count:] = float("nan"), float("nan")
    own = blocks_for(start + count)
    # the second one's blocks follow those of the first
    tables = list(range(own)), list(range(own, 2 * own))
    spans = [span(start, count, table, 0) for table in tables]
    step = AttentionMetadata(kv, batch(kv, spans), 2 * count, Rule())
    found = step.attend(0, flat[0], flat[1], flat[2], SCALING)
    assert found[:count].isfinite().all()


def test_the_prompt_tiles_of_two_prompts_that_begin_alike_have_the_same_bits() -> None:
    shorter, longer = computed([0], 100), computed([0], 260)
    assert torch.equal(shorter[:PROMPT_TILE], longer[:PROMPT_TILE])


@WAYS
def test_groups_of_gathered_keys_change_no_bits(monkeypatch: pytest.MonkeyPatch, value: int) -> None:
    together = computed([0, 100, 110], 0, mates=[30, 90], value=value)
    monkeypatch.setattr(row_wise, "GROUP_BYTES", 1)
    assert torch.equal(computed([0, 100, 110], 0, mates=[30, 90], value=value), together)


def test_padding_is_written_nowhere() -> None:
    kv = pool()
    ones = [
        torch.ones(8, heads, width) for heads, width in ((HEADS, KEY), (KV_HEADS, KEY), (KV_HEADS, NARROW))
    ]
    AttentionMetadata(kv, batch(kv, [span(0, 3, table(0), 0)]), 8, Rule()).attend(0, *ones, SCALING)
    written = {int(slot) // BLOCK_SIZE for slot in kv.keys[0].abs().sum((0, 2)).nonzero()}
    assert written == {table(0)[0]}


def test_only_the_last_keys_of_an_item_are_masked() -> None:
    parts = [span(LENGTH - 1, 1, table(0), 0), span(256, 4, table(1), 0), span(254, 4, table(2), 0)]
    kv = pool()
    attention = RowAttention(kv, Spans.of(batch(kv, parts)), (4,))
    (group,) = attention._groups
    # of three chunks each: one, one, and two where the rows lie on both sides of an edge
    assert isinstance(group, SplitKVItems)
    assert group._edge.tolist() == [2, 5, 7, 8]


def test_a_token_beyond_its_sequences_blocks_is_written_nowhere() -> None:
    inside, beyond = span(14, 2, [3], 0), span(15, 2, [3], 0)
    assert StepBatch.join([inside], BLOCK_SIZE, 9).slot_mapping.tolist() == [62, 63]
    with pytest.raises(IndexError, match="beyond the blocks of its sequence"):
        StepBatch.join([beyond], BLOCK_SIZE, 9)
