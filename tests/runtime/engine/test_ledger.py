"""The ledger of KV blocks: nothing is lost, nothing is given twice."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from turbo_runtime.engine.blocks import BLOCK_SIZE, BlockLedger, OutOfBlocks, blocks_for

SIZE = 12
moves = st.lists(st.tuples(st.integers(0, 3), st.integers(0, SIZE * BLOCK_SIZE + 20)), max_size=40)


@given(moves)
def test_blocks_are_free_or_in_one_table_whatever_sequences_grow_and_shrink(
    moves: list[tuple[int, int]],
) -> None:
    ledger = BlockLedger(SIZE)
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


def test_a_shared_block_is_free_only_when_its_last_holder_lets_go() -> None:
    ledger = BlockLedger(2)
    (block,) = ledger.take(1)
    ledger.share([block])
    ledger.release([block])
    assert ledger.num_free == 1
    ledger.release([block])
    assert ledger.num_free == 2
    with pytest.raises(ValueError, match="free already"):
        ledger.release([block])
    with pytest.raises(ValueError, match="cannot be shared"):
        ledger.share([block])


def test_a_ledger_without_blocks_is_refused() -> None:
    with pytest.raises(ValueError, match="at least one block"):
        BlockLedger(0)
