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
            if lacking > ledger.num_free:
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
        assert ledger.num_used + ledger.num_free == SIZE
        assert all(ledger.references(block) == 1 for block in held)
        ledger.check(tables)


def test_a_shared_block_is_free_only_when_its_last_holder_lets_go() -> None:
    ledger = BlockPool(2)
    (block,) = ledger.take(1)
    ledger.share([block])
    ledger.release([block])
    assert ledger.num_free == 1
    ledger.release([block])
    assert ledger.num_free == 2
    with pytest.raises(ValueError, match="no holder to let go of it"):
        ledger.release([block])
    with pytest.raises(ValueError, match="cannot be shared"):
        ledger.share([block])
    with pytest.raises(ValueError, match="no content to keep"):
        ledger.keep([block])


def test_a_kept_block_is_idle_between_its_holders_and_free_once_forgotten() -> None:
    ledger = BlockPool(3)
    first, second = ledger.take(2)
    ledger.keep([first, second])
    ledger.release([second])
    ledger.release([first])
    assert (ledger.num_used, ledger.num_free, ledger.num_available) == (0, 1, 3)
    assert ledger.longest_idle == second
    with pytest.raises(OutOfBlocks):
        ledger.take(2)
    ledger.share([second])
    assert (ledger.num_used, ledger.longest_idle) == (1, first)
    ledger.forget([first])
    assert (ledger.num_available, ledger.num_free) == (2, 2)
    ledger.check([[second]])


def test_the_deepest_of_kept_blocks_goes_first() -> None:
    ledger = BlockPool(4)
    table: list[int] = []
    ledger.extend(table, 4 * BLOCK_SIZE)
    ledger.keep(table)
    before = list(table)
    ledger.trim(table, 0)
    for block in reversed(before):
        assert ledger.longest_idle == block
        ledger.forget([block])


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


def idle_and_not_kept(ledger: BlockPool, table: list[int]) -> None:
    ledger._idle[ledger._free.pop()] = None


@pytest.mark.parametrize(
    "damage", [lost, held_without_a_count, free_and_used, free_twice, nowhere, idle_and_not_kept]
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
