"""The pool of KV blocks: nothing is lost, nothing is given twice."""

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
    pool = BlockPool(SIZE)
    tables: list[list[int]] = [[] for _ in range(4)]
    for which, tokens in moves:
        table = tables[which]
        before = list(table)
        if blocks_for(tokens) >= len(table):
            lacking = blocks_for(tokens) - len(table)
            if lacking > pool.num_available:
                with pytest.raises(OutOfBlocks):
                    pool.extend(table, tokens)
                assert table == before
                continue
            pool.extend(table, tokens)
            assert table[: len(before)] == before
        else:
            pool.trim(table, tokens)
            assert table == before[: blocks_for(tokens)]
        assert len(table) == blocks_for(tokens)
        held = [block for each in tables for block in each]
        assert len(held) == len(set(held)) == pool.num_used
        assert pool.num_used + pool.num_available == SIZE
        assert all(pool.references[block] == 1 for block in held)
        pool.check(tables)


def test_a_shared_block_is_free_only_when_its_last_holder_lets_go() -> None:
    pool = BlockPool(2)
    (block,) = pool.take(1)
    pool.share([block])
    pool.release([block])
    assert pool.num_available == 1
    pool.release([block])
    assert pool.num_available == 2
    with pytest.raises(ValueError, match="no holder to let go of it"):
        pool.release([block])
    with pytest.raises(ValueError, match="cannot be shared"):
        pool.share([block])


KEYS = [b"1", b"2", b"3", b"4"]


def test_a_cached_block_is_idle_between_its_holders_and_gone_once_its_place_is_needed() -> None:
    pool = BlockPool(3)
    table = pool.take(2)
    pool.publish(KEYS[:2], table, 0)
    first, second = table
    pool.release([second])
    pool.release([first])
    assert (
        pool.num_used,
        pool.num_available,
        sum(map(pool.is_cached, pool.blocks)),
    ) == (0, 3, 2)
    with pytest.raises(OutOfBlocks):
        pool.take(4)
    assert pool.find(KEYS) == [first, second]
    pool.share([second])
    assert pool.num_used == 1
    others = pool.take(2)
    assert (pool.num_available, pool.evictions) == (0, BLOCK_SIZE)
    assert first in others
    assert pool.is_cached(second)
    pool.check([[second], others])


def test_a_block_that_another_published_before_takes_the_place_of_an_equal_one() -> None:
    pool = BlockPool(4)
    one, other = pool.take(2), pool.take(2)
    pool.publish(KEYS[:1], one, 0)
    pool.publish(KEYS[:2], other, 0)
    assert other[0] == one[0]
    assert (pool.references[one[0]], pool.num_used) == (2, 3)
    assert sum(map(pool.is_cached, pool.blocks)) == 2
    pool.check([one, other])


def test_the_deepest_of_cached_blocks_goes_first() -> None:
    pool = BlockPool(4)
    table: list[int] = []
    pool.extend(table, 4 * BLOCK_SIZE)
    pool.publish(KEYS, table, 0)
    before = list(table)
    pool.trim(table, 0)
    for length in (3, 2, 1, 0):
        (taken,) = pool.take(1)
        assert taken == before[length]
        assert pool.find(KEYS) == before[:length]


def lost(pool: BlockPool, table: list[int]) -> None:
    table.pop()


def held_without_a_count(pool: BlockPool, table: list[int]) -> None:
    table.append(table[0])


def free_and_used(pool: BlockPool, table: list[int]) -> None:
    pool._free.append(table[0])


def free_twice(pool: BlockPool, table: list[int]) -> None:
    pool._free.append(pool._free[0])


def nowhere(pool: BlockPool, table: list[int]) -> None:
    pool._free.pop()


def idle_and_not_cached(pool: BlockPool, table: list[int]) -> None:
    pool._idle[pool._free.pop()] = None


@pytest.mark.parametrize(
    "damage", [lost, held_without_a_count, free_and_used, free_twice, nowhere, idle_and_not_cached]
)
def test_damage_to_the_books_is_noticed(damage: Callable[[BlockPool, list[int]], None]) -> None:
    pool = BlockPool(6)
    table = pool.take(2)
    pool.check([table])
    damage(pool, table)
    with pytest.raises(CorruptBlockPoolError):
        pool.check([table])


def test_a_pool_without_blocks_is_refused() -> None:
    with pytest.raises(ValueError, match="at least one block"):
        BlockPool(0)
