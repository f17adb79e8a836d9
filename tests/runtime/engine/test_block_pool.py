"""The block_pool of KV blocks: nothing is lost, nothing is given twice."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from turbo_runtime.kv_cache.block_pool import (
    BLOCK_SIZE,
    BlockPool,
    CorruptBlockPoolError,
    OutOfBlocks,
    blocks_for,
)

SIZE = 12
moves = st.lists(st.tuples(st.integers(0, 3), st.integers(0, SIZE * BLOCK_SIZE + 20)), max_size=40)


@given(moves)
def test_blocks_are_free_or_in_one_table_whatever_sequences_grow_and_shrink(
    moves: list[tuple[int, int]],
) -> None:
    block_pool = BlockPool(SIZE)
    tables: list[list[int]] = [[] for _ in range(4)]
    for which, tokens in moves:
        table = tables[which]
        before = list(table)
        if blocks_for(tokens) >= len(table):
            lacking = blocks_for(tokens) - len(table)
            if lacking > block_pool.num_available:
                with pytest.raises(OutOfBlocks):
                    block_pool.extend(table, tokens)
                assert table == before
                continue
            block_pool.extend(table, tokens)
            assert table[: len(before)] == before
        else:
            block_pool.trim(table, tokens)
            assert table == before[: blocks_for(tokens)]
        assert len(table) == blocks_for(tokens)
        held = [block for each in tables for block in each]
        assert len(held) == len(set(held)) == block_pool.num_used
        assert block_pool.num_used + block_pool.num_available == SIZE
        assert all(block_pool.references[block] == 1 for block in held)
        block_pool.check(tables)


def test_a_shared_block_is_free_only_when_its_last_holder_lets_go() -> None:
    block_pool = BlockPool(2)
    (block,) = block_pool.take(1)
    block_pool.share([block])
    block_pool.release([block])
    assert block_pool.num_available == 1
    block_pool.release([block])
    assert block_pool.num_available == 2
    with pytest.raises(ValueError, match="no holder to let go of it"):
        block_pool.release([block])
    with pytest.raises(ValueError, match="cannot be shared"):
        block_pool.share([block])


KEYS = [b"1", b"2", b"3", b"4"]


def test_a_cached_block_is_idle_between_its_holders_and_gone_once_its_place_is_needed() -> None:
    block_pool = BlockPool(3)
    table = block_pool.take(2)
    block_pool.publish(KEYS[:2], table, 0)
    first, second = table
    block_pool.release([second])
    block_pool.release([first])
    assert (block_pool.num_used, block_pool.num_available, sum(map(block_pool.is_cached, block_pool.blocks))) == (0, 3, 2)
    with pytest.raises(OutOfBlocks):
        block_pool.take(4)
    assert block_pool.find(KEYS) == [first, second]
    block_pool.share([second])
    assert block_pool.num_used == 1
    others = block_pool.take(2)
    assert (block_pool.num_available, block_pool.evictions) == (0, BLOCK_SIZE)
    assert first in others
    assert block_pool.is_cached(second)
    block_pool.check([[second], others])


def test_a_block_that_another_published_before_takes_the_place_of_an_equal_one() -> None:
    block_pool = BlockPool(4)
    one, other = block_pool.take(2), block_pool.take(2)
    block_pool.publish(KEYS[:1], one, 0)
    block_pool.publish(KEYS[:2], other, 0)
    assert other[0] == one[0]
    assert (block_pool.references[one[0]], block_pool.num_used) == (2, 3)
    assert sum(map(block_pool.is_cached, block_pool.blocks)) == 2
    block_pool.check([one, other])


def test_the_deepest_of_cached_blocks_goes_first() -> None:
    block_pool = BlockPool(4)
    table: list[int] = []
    block_pool.extend(table, 4 * BLOCK_SIZE)
    block_pool.publish(KEYS, table, 0)
    before = list(table)
    block_pool.trim(table, 0)
    for length in (3, 2, 1, 0):
        (taken,) = block_pool.take(1)
        assert taken == before[length]
        assert block_pool.find(KEYS) == before[:length]


def lost(block_pool: BlockPool, table: list[int]) -> None:
    table.pop()


def held_without_a_count(block_pool: BlockPool, table: list[int]) -> None:
    table.append(table[0])


def free_and_used(block_pool: BlockPool, table: list[int]) -> None:
    block_pool._free.append(table[0])


def free_twice(block_pool: BlockPool, table: list[int]) -> None:
    block_pool._free.append(block_pool._free[0])


def nowhere(block_pool: BlockPool, table: list[int]) -> None:
    block_pool._free.pop()


def idle_and_not_cached(block_pool: BlockPool, table: list[int]) -> None:
    block_pool._idle[block_pool._free.pop()] = None


@pytest.mark.parametrize(
    "damage", [lost, held_without_a_count, free_and_used, free_twice, nowhere, idle_and_not_cached]
)
def test_damage_to_the_books_is_noticed(damage: Callable[[BlockPool, list[int]], None]) -> None:
    block_pool = BlockPool(6)
    table = block_pool.take(2)
    block_pool.check([table])
    damage(block_pool, table)
    with pytest.raises(CorruptBlockPoolError):
        block_pool.check([table])


def test_a_ledger_without_blocks_is_refused() -> None:
    with pytest.raises(ValueError, match="at least one block"):
        BlockPool(0)
