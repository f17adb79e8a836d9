"""States and reference counts of the KV cache's blocks, without tensors (those are in `attention.pool`).

A block is used (by several holders if several sequences read it), free, or idle: without holders, but with
content that the prefix cache keeps until the block is needed. A rollback of rejected tokens is a shorter
table (`trim`): later tokens overwrite their slots.
"""

from __future__ import annotations

from collections import Counter, OrderedDict
from collections.abc import Iterable, Sequence

BLOCK_SIZE = 16  # token slots of one block
PROMPT_TILE = 64  # aligned positions that one call computes; whole blocks


def blocks_for(tokens: int) -> int:
    """Return the number of blocks for that many tokens."""
    return -(-tokens // BLOCK_SIZE)


class OutOfBlocks(Exception):  # noqa: N818  a condition that the scheduler plans around, not a fault
    """Too few blocks are free; nothing was taken."""


class CorruptBlockPoolError(RuntimeError):
    """A block is lost, used twice or shared wrongly: a bug, after which no answer can be trusted."""


class BlockPool:
    """State and reference counts of `num_blocks` blocks."""

    def __init__(self, num_blocks: int, first: int = 0) -> None:
        """Blocks are numbered from `first`: disjoint pools can share tensors."""
        if num_blocks < 1:
            raise ValueError(f"a KV cache needs at least one block, not {num_blocks}")
        self.num_blocks = num_blocks
        self.blocks = range(first, first + num_blocks)
        # a stack: the block freed last is warm in the CPU's cache
        self._free = list(reversed(self.blocks))
        self._idle: OrderedDict[int, None] = OrderedDict()  # longest idle first
        self._references = dict.fromkeys(self.blocks, 0)
        self._kept = dict.fromkeys(self.blocks, False)

    @property
    def num_free(self) -> int:
        """Blocks without holders and without content to keep."""
        return len(self._free)

    @property
    def num_available(self) -> int:
        """Free and idle blocks."""
        return len(self._free) + len(self._idle)

    @property
    def num_used(self) -> int:
        """Blocks with holders."""
        return self.num_blocks - self.num_available

    @property
    def longest_idle(self) -> int | None:
        """The idle block whose last holder released it first."""
        return next(iter(self._idle), None)

    def references(self, block: int) -> int:
        """Return the number of the block's holders."""
        return self._references[block]

    def is_kept(self, block: int) -> bool:
        """Whether the block's content outlives its holders."""
        return self._kept[block]

    def take(self, count: int) -> list[int]:
        """Take free blocks, one reference each; raises OutOfBlocks and takes none if there are fewer."""
        if count > len(self._free):
            raise OutOfBlocks(f"{count} blocks wanted, {len(self._free)} free")
        taken = [self._free.pop() for _ in range(count)]
        for block in taken:
            self._references[block] = 1
        return taken

    def share(self, blocks: Iterable[int]) -> None:
        """Add a holder to each of these blocks, which must be used or idle."""
        blocks = list(blocks)
        for block in blocks:
            if self._references[block] == 0 and not self._kept[block]:
                raise ValueError(f"block {block} is free and cannot be shared")
        for block in blocks:
            if self._references[block] == 0:
                del self._idle[block]
            self._references[block] += 1

    def release(self, blocks: Iterable[int]) -> None:
        """Remove a holder from each of these blocks in order; without holders they are idle or free."""
        for block in blocks:
            if self._references[block] == 0:
                raise ValueError(f"block {block} has no holder to let go of it")
            self._references[block] -= 1
            if self._references[block] == 0:
                if self._kept[block]:
                    self._idle[block] = None
                else:
                    self._free.append(block)

    def keep(self, blocks: Iterable[int]) -> None:
        """Let the content of these used blocks outlive their holders."""
        for block in blocks:
            if self._references[block] == 0:
                raise ValueError(f"block {block} has no holder and no content to keep")
            self._kept[block] = True

    def forget(self, blocks: Iterable[int]) -> None:
        """Free these idle blocks."""
        for block in blocks:
            del self._idle[block]
            self._kept[block] = False
            self._free.append(block)

    def extend(self, table: list[int], tokens: int) -> None:
        """Extend a sequence's table in place to hold `tokens`; OutOfBlocks changes nothing."""
        table.extend(self.take(max(0, blocks_for(tokens) - len(table))))

    def trim(self, table: list[int], tokens: int) -> None:
        """Shorten a sequence's table in place to `tokens`. The last block goes first, so that the beginning,
        which most sequences can share, stays idle longest.
        """
        length = blocks_for(tokens)
        if len(table) > length:
            self.release(table[: length - 1 if length else None : -1])
            del table[length:]

    def check(self, tables: Iterable[Sequence[int]]) -> None:
        """Raise CorruptBlockPoolError unless `tables` are all holders and every block has one state."""
        holders = Counter(block for table in tables for block in table)
        free = Counter(self._free)
        for block in self.blocks:
            references, kept = self._references[block], self._kept[block]
            if references != holders[block]:
                raise CorruptBlockPoolError(
                    f"block {block} counts {references} holders and has {holders[block]}"
                )
            idle = block in self._idle
            if idle != (kept and not references):
                raise CorruptBlockPoolError(f"block {block}: idle {idle}, kept {kept}, {references} holders")
            if free[block] != (0 if references or idle else 1):
                raise CorruptBlockPoolError(
                    f"block {block} is {free[block]} times free with {references} holders"
                )
