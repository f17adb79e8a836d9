"""The KV cache's blocks: who holds them, and which hold beginnings of prompts. Without tensors.

A block is used (by several holders if several sequences read it), free, or idle: without holders, but cached
until the block is needed. A rollback of rejected tokens is a shorter table (`trim`): later tokens overwrite
their slots.

Only blocks in whole tiles of a prompt (`PROMPT_TILE` tokens at a multiple of it) are cached. Their keys and
values depend only on the tokens up to the block's end, because one rule computes such tiles (`attention`),
wherever steps cut them; another computes answers and the rest of a prompt. Where both give the same bits
(`Rule.uniform`), a tile is a block, and a prompt takes over what a block has of its next tokens by a copy.
"""

from __future__ import annotations

from array import array
from collections import Counter, OrderedDict
from collections.abc import Iterable, Sequence
from hashlib import blake2b
from itertools import takewhile
from operator import eq

BLOCK_SIZE = 16  # token slots of one block, unless a kernel needs larger ones
PROMPT_TILE = 64  # aligned positions that one call computes; whole blocks


def blocks_for(tokens: int, block_size: int = BLOCK_SIZE) -> int:
    """Return the number of blocks for that many tokens."""
    return -(-tokens // block_size)


def block_keys(
    scope: str, prompt: Sequence[int], tile: int = PROMPT_TILE, block_size: int = BLOCK_SIZE
) -> tuple[bytes, ...]:
    """Return a chained key for each block in a whole tile of the prompt: it stands for all tokens up to its
    end. The chain begins with the scope, so that the time to a first token reveals no other scope's prompts;
    whatever else changes keys and values belongs there too. 256 bits exclude collisions, even intended ones.
    """
    key = scope_key(scope)
    keys = []
    for start in range(0, len(prompt) // tile * tile, block_size):
        content = array("q", prompt[start : start + block_size]).tobytes()
        key = blake2b(key + content, digest_size=32).digest()
        keys.append(key)
    return tuple(keys)


def scope_key(scope: str) -> bytes:
    """Return the key before those of all blocks of a scope."""
    return blake2b(scope.encode(), digest_size=32).digest()


class OutOfBlocks(Exception):  # noqa: N818  a condition that the scheduler plans around, not a fault
    """Too few blocks are available; nothing was taken."""


class CorruptBlockPoolError(RuntimeError):
    """A block is lost, used twice or shared wrongly: a bug, after which no answer can be trusted."""


class BlockPool:
    """Holders and keys of `num_blocks` blocks.

    The holder of a block holds those before it and releases them after it (`trim`), so a block is never
    evicted before those that follow it: cached blocks are always reachable from the prompt's start.
    """

    def __init__(self, num_blocks: int, first: int = 0, block_size: int = BLOCK_SIZE) -> None:
        """Blocks are numbered from `first`: disjoint pools can share tensors."""
        if num_blocks < 1:
            raise ValueError(f"a KV cache needs at least one block, not {num_blocks}")
        self.num_blocks, self.block_size = num_blocks, block_size
        self.blocks = range(first, first + num_blocks)
        # a stack: the block freed last is warm in the CPU's cache
        self._free = list(reversed(self.blocks))
        self._idle: OrderedDict[int, None] = OrderedDict()  # longest idle first
        self.references = dict.fromkeys(self.blocks, 0)  # the number of holders, by block
        self._block: dict[bytes, int] = {}  # cached, by key
        self._key: dict[int, bytes] = {}
        self._newest: dict[bytes, int] = {}  # the cached block behind one, by the key of that
        self._content: dict[int, tuple[bytes, Sequence[int]]] = {}  # of these: that key, and their tokens
        self.evictions = 0  # tokens

    @property
    def num_available(self) -> int:
        """Blocks without holders."""
        return len(self._free) + len(self._idle)

    @property
    def num_used(self) -> int:
        """Blocks with holders."""
        return self.num_blocks - self.num_available

    def blocks_for(self, tokens: int) -> int:
        """Return the number of blocks for that many tokens."""
        return blocks_for(tokens, self.block_size)

    def part(self, num_blocks: int, first: int) -> BlockPool:
        """Create an empty pool of some of the blocks."""
        return BlockPool(num_blocks, first, self.block_size)

    def is_cached(self, block: int) -> bool:
        """Whether the block's content outlives its holders."""
        return block in self._key

    def find(self, keys: Iterable[bytes]) -> list[int]:
        """Find the longest leading run of cached blocks, which the caller must `share`."""
        return [self._block[key] for key in takewhile(self._block.__contains__, keys)]

    def take(self, count: int) -> list[int]:
        """Take blocks, evicting the longest idle ones as needed; OutOfBlocks changes nothing."""
        if count > self.num_available:
            raise OutOfBlocks(f"{count} blocks wanted, {self.num_available} free")
        while len(self._free) < count:
            block, _ = self._idle.popitem(last=False)
            del self._block[self._key.pop(block)]
            if block in self._content:
                del self._newest[self._content.pop(block)[0]]
            self._free.append(block)
            self.evictions += self.block_size
        taken = [self._free.pop() for _ in range(count)]
        for block in taken:
            self.references[block] = 1
        return taken

    def share(self, blocks: Sequence[int]) -> None:
        """Add a holder to each of these blocks, which must be used or idle."""
        for block in blocks:
            if self.references[block] == 0 and block not in self._key:
                raise ValueError(f"block {block} is free and cannot be shared")
        for block in blocks:
            self._idle.pop(block, None)
            self.references[block] += 1

    def release(self, blocks: Iterable[int]) -> None:
        """Remove a holder from each of these blocks in order; without holders they are idle or free."""
        for block in blocks:
            if self.references[block] == 0:
                raise ValueError(f"block {block} has no holder to let go of it")
            self.references[block] -= 1
            if self.references[block] == 0:
                if block in self._key:
                    self._idle[block] = None
                else:
                    self._free.append(block)

    def publish(self, keys: Sequence[bytes], table: list[int], known: int) -> None:
        """Cache the computed blocks of `table` from index `known` to `len(keys)`; where another sequence
        published an equal block before, the table gets that.
        """
        for index in range(known, len(keys)):
            key, own = keys[index], table[index]
            earlier = self._block.get(key)
            if earlier is None:
                self._block[key], self._key[own] = own, key
            else:
                self.share([earlier])
                self.release([own])
                table[index] = earlier

    def note(self, keys: Sequence[bytes], table: Sequence[int], tokens: Sequence[int], known: int) -> None:
        """Let `find_beginning` find the published blocks from index `known` on. `keys`: one before those of
        all blocks, too; `tokens`: of all blocks.
        """
        for index in range(known, len(keys) - 1):
            start, before, block = index * self.block_size, keys[index], table[index]
            self._content.pop(self._newest.get(before, -1), None)
            self._newest[before] = block
            self._content[block] = before, tokens[start : start + self.block_size]

    def find_beginning(self, before: bytes, tokens: Sequence[int]) -> tuple[int, int]:
        """Find a cached block behind the one of key `before` that begins with some of these tokens, and with
        how many; with none, any block.
        """
        block = self._newest.get(before, -1)
        _, content = self._content.get(block, (b"", ()))
        equal = takewhile(bool, map(eq, content, tokens))
        return block, sum(equal)

    def extend(self, table: list[int], tokens: int) -> None:
        """Extend a sequence's table in place to hold `tokens`; OutOfBlocks changes nothing."""
        table.extend(self.take(max(0, self.blocks_for(tokens) - len(table))))

    def trim(self, table: list[int], tokens: int) -> None:
        """Shorten a table in place, the last block first: most sequences can share the beginning."""
        length = self.blocks_for(tokens)
        if len(table) > length:
            self.release(table[: length - 1 if length else None : -1])
            del table[length:]

    def check(self, tables: Iterable[Sequence[int]]) -> None:
        """Raise CorruptBlockPoolError unless `tables` are all holders and every block has one state."""
        holders, free = Counter(block for table in tables for block in table), Counter(self._free)
        for block in self.blocks:
            references, key, idle = self.references[block], self._key.get(block), block in self._idle
            where = f"idle {idle}, {free[block]} times free, cached {key is not None}, {references} holders"
            if references != holders[block]:
                raise CorruptBlockPoolError(f"block {block} counts {references} and has {holders[block]}")
            if idle != (key is not None and not references) or free[block] != (not references and not idle):
                raise CorruptBlockPoolError(f"block {block}: {where}")
            if key is not None and self._block.get(key) != block:
                raise CorruptBlockPoolError(f"block {block} is cached under two names")
        if not self._content.keys() <= self._key.keys() or len(self._content) != len(self._newest):
            raise CorruptBlockPoolError("a block whose beginning may be copied is not cached")
        if len(self._key) != len(self._block):
            raise CorruptBlockPoolError(f"{len(self._key)} blocks have {len(self._block)} names")
