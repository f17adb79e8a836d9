"""The KV cache as a ledger: which blocks of slots are free, and how often each is referred to.

Owns numbers only, no tensors: the pool that the numbers point into lives in `attention.py`. A reference count
above one means that several sequences read the block; it returns to the free list when the last of them lets
go. Rolling back rejected tokens is a shorter table (`trim`): their slots are simply written again.
"""

from __future__ import annotations

BLOCK_SIZE = 16  # token slots of one block
PROMPT_TILE = 64  # positions of a prompt that are computed, and shared, as one; whole blocks


def blocks_for(tokens: int) -> int:
    """How many blocks hold that many tokens."""
    return -(-tokens // BLOCK_SIZE)


class OutOfBlocks(Exception):  # noqa: N818  a condition that the scheduler plans around, not a fault
    """Fewer blocks are free than were asked for; nothing was taken."""


class BlockLedger:
    """Free list and reference counts of `num_blocks` blocks, numbered from 0."""

    def __init__(self, num_blocks: int) -> None:
        if num_blocks < 1:
            raise ValueError(f"a KV cache needs at least one block, not {num_blocks}")
        self.num_blocks = num_blocks
        self._free = list(
            range(num_blocks - 1, -1, -1)
        )  # a stack: the block freed last is warm in the CPU's cache
        self._references = [0] * num_blocks

    @property
    def num_free(self) -> int:
        """Blocks that nobody refers to."""
        return len(self._free)

    @property
    def num_used(self) -> int:
        """Blocks that somebody refers to."""
        return self.num_blocks - len(self._free)

    def references(self, block: int) -> int:
        """How many holders the block has."""
        return self._references[block]

    def take(self, count: int) -> list[int]:
        """`count` free blocks, one reference each; raises OutOfBlocks and takes none if there are fewer."""
        if count > len(self._free):
            raise OutOfBlocks(f"{count} blocks wanted, {len(self._free)} free")
        taken = [self._free.pop() for _ in range(count)]
        for block in taken:
            self._references[block] = 1
        return taken

    def share(self, blocks: list[int]) -> None:
        """One more holder for each of these blocks, which must have one already."""
        for block in blocks:
            if self._references[block] == 0:
                raise ValueError(f"block {block} is free and cannot be shared")
        for block in blocks:
            self._references[block] += 1

    def release(self, blocks: list[int]) -> None:
        """One holder less for each of these blocks; those without a holder are free again."""
        for block in blocks:
            if self._references[block] == 0:
                raise ValueError(f"block {block} is free already")
            self._references[block] -= 1
            if self._references[block] == 0:
                self._free.append(block)

    def extend(self, table: list[int], tokens: int) -> None:
        """Lengthen a sequence's table in place so that it holds `tokens`; raises OutOfBlocks and changes
        nothing.
        """
        table.extend(self.take(max(0, blocks_for(tokens) - len(table))))

    def trim(self, table: list[int], tokens: int) -> None:
        """Shorten a sequence's table in place to what `tokens` need: the slots of rejected tokens go back."""
        kept = blocks_for(tokens)
        self.release(table[kept:])
        del table[kept:]
