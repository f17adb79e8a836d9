"""Attention in compiled code on CPUs: the values, and rows that nothing else changes."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from turbo_runtime.kv_cache.block_pool import BLOCK_SIZE, blocks_for
from turbo_runtime.models.attention.host import HostKVPool, HostMetadata
from turbo_runtime.models.attention.pool import KVCacheSpec
from turbo_runtime.models.compiled.attention_kernel import compile_attention
from turbo_runtime.models.step_batch import Chunk, StepBatch

LENGTH, BLOCKS = 200, 40
SPECS = {
    "one query a head": KVCacheSpec(2, 2, 16, 16),
    "seven queries a head": KVCacheSpec(14, 2, 32, 32),
    "narrow heads": KVCacheSpec(4, 2, 6, 10),
    "window": KVCacheSpec(6, 2, 16, 16, windows=(24,)),
    "sinks": KVCacheSpec(4, 2, 16, 16, sinks=True, windows=(70,)),
    "latents": KVCacheSpec(8, 1, 40, 20, latent=True),
}
specs = pytest.mark.parametrize("spec", SPECS.values(), ids=SPECS)
dtypes = pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])


class Drawn:
    """Queries, keys and values of a sequence, and its blocks."""

    def __init__(self, spec: KVCacheSpec, dtype: torch.dtype, seed: int, length: int = LENGTH) -> None:
        generator = torch.Generator().manual_seed(seed)

        def draw(heads: int, width: int) -> Tensor:
            return torch.randn(length, heads, width, generator=generator).to(dtype)

        self.query, self.key = draw(spec.heads, spec.key_width), draw(spec.kv_heads, spec.key_width)
        self.value = None if spec.latent else draw(spec.kv_heads, spec.value_width)
        self.sinks = torch.randn(spec.heads, generator=generator) if spec.sinks else None
        self.length, self.seed = length, seed

    def chunk(self, start: int, end: int) -> Chunk:
        number = blocks_for(self.length)
        table = [(self.seed * number + 7 * block) % BLOCKS for block in range(number)]
        return Chunk([0] * (end - start), start, table, 0, self.length)


def attend(pool: HostKVPool, parts: Sequence[tuple[Drawn, int, int]], padding: int = 0) -> list[Tensor]:
    """The outputs of some positions of each sequence in one step."""
    count = sum(end - start for _, start, end in parts)
    chunks = [sequence.chunk(start, end) for sequence, start, end in parts]
    step = HostMetadata(pool, StepBatch.join(chunks, BLOCK_SIZE, pool.scratch), count + padding)

    def joined(name: str) -> Tensor:
        rows = torch.cat([getattr(sequence, name)[start:end] for sequence, start, end in parts])
        return torch.cat([rows, rows.new_full((padding, *rows.shape[1:]), torch.nan)])

    value = None if pool.shape.latent else joined("value")
    scaling = pool.key_width**-0.5
    out = step.attend(0, joined("query"), joined("key"), value, scaling, parts[0][0].sinks)
    assert (out[count:] == 0).all()
    return [each.clone() for each in out[:count].split([end - start for _, start, end in parts])]


def expected(spec: KVCacheSpec, sequence: Drawn) -> Tensor:
    """All positions, in float64."""
    key, query = sequence.key.double(), sequence.query.double()
    value = key[..., : spec.value_width] if sequence.value is None else sequence.value.double()
    key, value = (each.repeat_interleave(spec.group, 1).transpose(0, 1) for each in (key, value))
    scores = query.transpose(0, 1) @ key.transpose(1, 2) * spec.key_width**-0.5
    distance = torch.arange(sequence.length)[:, None] - torch.arange(sequence.length)
    hidden = distance < 0
    if spec.windows:
        hidden |= distance >= spec.windows[0]
    scores = scores.masked_fill(hidden, -math.inf)
    if sequence.sinks is not None:
        sinks = sequence.sinks.double()[:, None, None].expand(-1, sequence.length, 1)
        scores = torch.cat([scores, sinks], 2)
    return (scores.softmax(-1)[..., : sequence.length] @ value).transpose(0, 1)


def new_pool(spec: KVCacheSpec, dtype: torch.dtype) -> HostKVPool:
    return HostKVPool(spec, layers=1, blocks=BLOCKS, dtype=dtype)


@specs
@dtypes
def test_every_position_attends_to_what_it_sees(spec: KVCacheSpec, dtype: torch.dtype) -> None:
    sequence = Drawn(spec, dtype, seed=1)
    (out,) = attend(new_pool(spec, dtype), [(sequence, 0, LENGTH)])
    rounding = 2e-6 if dtype == torch.float32 else 1e-2
    torch.testing.assert_close(out.double(), expected(spec, sequence), atol=rounding, rtol=rounding)


@specs
@dtypes
@given(cuts=st.lists(st.integers(1, LENGTH - 1), max_size=8), padding=st.integers(0, 3))
def test_a_position_has_the_same_bits_however_steps_cut_its_sequence(
    spec: KVCacheSpec, dtype: torch.dtype, cuts: list[int], padding: int
) -> None:
    sequence, pool = Drawn(spec, dtype, seed=1), new_pool(spec, dtype)
    (whole,) = attend(new_pool(spec, dtype), [(sequence, 0, LENGTH)])
    steps = pairwise([0, *sorted({*cuts}), LENGTH])
    parts = [attend(pool, [(sequence, start, end)], padding)[0] for start, end in steps]
    assert torch.equal(torch.cat(parts), whole)


@specs
@dtypes
def test_other_sequences_of_a_step_change_no_bit(spec: KVCacheSpec, dtype: torch.dtype) -> None:
    one, other = (Drawn(spec, dtype, seed, length=90) for seed in (1, 2))
    other.sinks = one.sinks
    (alone,) = attend(new_pool(spec, dtype), [(one, 0, 90)])
    pool = new_pool(spec, dtype)
    first, _ = attend(pool, [(one, 0, 60), (other, 0, 70)])
    _, second = attend(pool, [(other, 70, 83), (one, 60, 90)])
    assert torch.equal(torch.cat([first, second]), alone)


@specs
@dtypes
@pytest.mark.parametrize("filled", [BLOCK_SIZE, BLOCK_SIZE + 1, 5 * BLOCK_SIZE])
def test_blocks_that_wait_for_later_tokens_are_not_read(
    spec: KVCacheSpec, dtype: torch.dtype, filled: int
) -> None:
    one, other = (Drawn(spec, dtype, seed, length=150) for seed in (1, 2))
    other.sinks = one.sinks
    parts = [(one, 0, filled), (other, 0, 130)]
    pool = new_pool(spec, dtype)
    for each in (*pool.keys, *pool.values):
        each.fill_(torch.nan)
    used = [block for drawn, _, end in parts for block in drawn.chunk(0, end).table[: blocks_for(end)]]
    for block in (*used, pool.scratch):
        pool.clear(block * BLOCK_SIZE + torch.arange(BLOCK_SIZE))
    assert all(map(torch.equal, attend(pool, parts), attend(new_pool(spec, dtype), parts)))


@pytest.mark.usefixtures("three_threads")
def test_threads_share_the_work_and_change_no_bit() -> None:
    spec = SPECS["seven queries a head"]
    sequence = Drawn(spec, torch.float32, seed=1)
    (shared,) = attend(new_pool(spec, torch.float32), [(sequence, 0, LENGTH)])
    torch.set_num_threads(1)
    (alone,) = attend(new_pool(spec, torch.float32), [(sequence, 0, LENGTH)])
    assert torch.equal(shared, alone)


@specs
@dtypes
def test_cleared_slots_hold_zeros_in_all_that_is_stored(spec: KVCacheSpec, dtype: torch.dtype) -> None:
    sequence, pool = Drawn(spec, dtype, seed=1, length=40), new_pool(spec, dtype)
    attend(pool, [(sequence, 0, 40)])
    stored = [*pool.keys, *pool.values]
    assert all(each.any() for each in stored)
    chunk = sequence.chunk(0, 40)
    pool.clear(torch.from_numpy(StepBatch.join([chunk], BLOCK_SIZE, pool.scratch).slot_mapping))
    assert not any(each.any() for each in stored)


@specs
def test_queries_may_stand_in_any_order_in_memory(spec: KVCacheSpec) -> None:
    """transformers' modules give heads before rows."""
    sequence = Drawn(spec, torch.float32, seed=1)
    (whole,) = attend(new_pool(spec, torch.float32), [(sequence, 0, LENGTH)])
    for name in ("query", "key", "value"):
        if (given_rows := getattr(sequence, name)) is not None:
            setattr(sequence, name, given_rows.transpose(0, 1).contiguous().transpose(0, 1))
    step = HostMetadata(
        pool := new_pool(spec, torch.float32),
        StepBatch.join([sequence.chunk(0, LENGTH)], BLOCK_SIZE, pool.scratch),
        LENGTH,
    )
    scaling = spec.key_width**-0.5
    out = step.attend(0, sequence.query, sequence.key, sequence.value, scaling, sequence.sinks)
    assert torch.equal(out, whole)


def test_a_cache_is_made_with_its_code_for_which_no_step_waits() -> None:
    spec = KVCacheSpec(3, 3, 5, 7)
    pool = HostKVPool(spec, layers=1, blocks=BLOCKS, dtype=torch.float32)
    compiled = compile_attention.cache_info().misses
    attend(pool, [(Drawn(spec, torch.float32, 1), 0, 20)])
    assert compile_attention.cache_info().misses == compiled
