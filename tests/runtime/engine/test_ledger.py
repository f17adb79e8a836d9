"""The ledger of KV blocks: nothing is lost, nothing is given twice."""

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
    ledger = BlockPool(SIZE)
    tables: list[list[int]] = [[] for _ in range(4)]
    for which, tokens in moves:
        table = tables[which]
        before = list(table)
        if blocks_for(tokens) >= len(table):
            lacking = blocks_for(tokens) - len(table)
            if lacking > ledger.num_available:
                with pytest.raises(OutOfBlocks):
                    ledger.extend(table, tokens)
                assert table == before
                continue
            ledger.extend(table, tokens)
            assert table[: len(before)] == before
        else:
            ledger.trim(table, tokens)
            assert table == before[: blocks_for(tokens)]
        assert len(table) == blocks_for(tokens)
        held = [block for each in tables for block in each]
        assert len(held) == len(set(held)) == ledger.num_used
        assert ledger.num_used + ledger.num_available == SIZE
        assert all(ledger.references[block] == 1 for block in held)
        ledger.check(tables)


def test_a_shared_block_is_free_only_when_its_last_holder_lets_go() -> None:
    ledger = BlockPool(2)
    (block,) = ledger.take(1)
    ledger.share([block])
    ledger.release([block])
    assert ledger.num_available == 1
    ledger.release([block])
    assert ledger.num_available == 2
    with pytest.raises(ValueError, match="no holder to let go of it"):
        ledger.release([block])
    with pytest.raises(ValueError, match="cannot be shared"):
        ledger.share([block])


KEYS = [b"1", b"2", b"3", b"4"]


def test_a_cached_block_is_idle_between_its_holders_and_gone_once_its_place_is_needed() -> None:
    ledger = BlockPool(3)
    table = ledger.take(2)
    ledger.publish(KEYS[:2], table, 0)
    first, second = table
    ledger.release([second])
    ledger.release([first])
    assert (ledger.num_used, ledger.num_available, sum(map(ledger.is_cached, ledger.blocks))) == (0, 3, 2)
    with pytest.raises(OutOfBlocks):
        ledger.take(4)
    assert ledger.find(KEYS) == [first, second]
    ledger.share([second])
    assert ledger.num_used == 1
    others = ledger.take(2)
    assert (ledger.num_available, ledger.evictions) == (0, BLOCK_SIZE)
    assert first in others
    assert ledger.is_cached(second)
    ledger.check([[second], others])


def test_a_block_that_another_published_before_takes_the_place_of_an_equal_one() -> None:
    ledger = BlockPool(4)
    one, other = ledger.take(2), ledger.take(2)
    ledger.publish(KEYS[:1], one, 0)
    ledger.publish(KEYS[:2], other, 0)
    assert other[0] == one[0]
    assert (ledger.references[one[0]], ledger.num_used) == (2, 3)
    assert sum(map(ledger.is_cached, ledger.blocks)) == 2
    ledger.check([one, other])


def test_the_deepest_of_cached_blocks_goes_first() -> None:
    ledger = BlockPool(4)
    table: list[int] = []
    ledger.extend(table, 4 * BLOCK_SIZE)
    ledger.publish(KEYS, table, 0)
    before = list(table)
    ledger.trim(table, 0)
    for length in (3, 2, 1, 0):
        (taken,) = ledger.take(1)
        assert taken == before[length]
        assert ledger.find(KEYS) == before[:length]


def lost(ledger: BlockPool, table: list[int]) -> None:
    table.pop()


def held_without_a_count(ledger: BlockPool, table: list[int]) -> None:
    table.append(table[0])


def free_and_used(ledger: BlockPool, table: list[int]) -> None:
    ledger._free.append(table[0])


def free_twice(ledger: BlockPool, table: list[int]) -> None:
    ledger._free.append(ledger._free[0])


def nowhere(ledger: BlockPool, table: list[int]) -> None:
    ledger._free.pop()


def idle_and_not_cached(ledger: BlockPool, table: list[int]) -> None:
    ledger._idle[ledger._free.pop()] = None


@pytest.mark.parametrize(
    "damage", [lost, held_without_a_count, free_and_used, free_twice, nowhere, idle_and_not_cached]
)
def test_damage_to_the_books_is_noticed(damage: Callable[[BlockPool, list[int]], None]) -> None:
    ledger = BlockPool(6)
    table = ledger.take(2)
    ledger.check([table])
    damage(ledger, table)
    with pytest.raises(CorruptBlockPoolError):
        ledger.check([table])


def test_a_ledger_without_blocks_is_refused() -> None:
    with pytest.raises(ValueError, match="at least one block"):
        BlockPool(0)
