"""The prefix cache: blocks of prompts, found by their content.

Only blocks in whole tiles of a prompt (`PROMPT_TILE` tokens at a multiple of it) are shared. Their keys and
values depend only on the tokens up to the block's end, because one rule computes such tiles (`attention`),
wherever steps cut them; another computes answers and the rest of a prompt. Where both give the same bits
(`Rule.uniform`), a tile is a block. Knows block numbers, no tensors.
"""

from __future__ import annotations

from array import array
from collections.abc import Sequence
from hashlib import blake2b
from itertools import islice, takewhile

from turbo_runtime.kv_cache.block_pool import (
    BLOCK_SIZE,
    PROMPT_TILE,
    BlockPool,
    CorruptBlockPoolError,
    blocks_for,
)


def block_keys(scope: str, prompt: Sequence[int], tile: int = PROMPT_TILE) -> tuple[bytes, ...]:
    """Return a chained key for each block in a whole tile of the prompt: it stands for all tokens up to its
    end.

    The chain begins with the scope (`GenerationRequest.scope`), so that the time to a first token reveals no
    other scope's prompts. Whatever else changes keys and values (an adapter) belongs there too. 256 bits
    exclude collisions, even intended ones.
    """
    key = blake2b(scope.encode(), digest_size=32).digest()
    keys = []
    for start in range(0, len(prompt) // tile * tile, BLOCK_SIZE):
        content = array("q", prompt[start : start + BLOCK_SIZE]).tobytes()
        key = blake2b(key + content, digest_size=32).digest()
        keys.append(key)
    return tuple(keys)


class PrefixCache:
    """Keys of kept blocks of a block pool; evicts the longest idle ones for new blocks.

    The holder of a block holds those before it and releases them after it (`BlockPool.trim`), so a block is
    never evicted before those that follow it: cached blocks are always reachable from the prompt's start.
    """

    def __init__(self, ledger: BlockPool) -> None:
        self.ledger = ledger
        self._block: dict[bytes, int] = {}
        self._key: dict[int, bytes] = {}
        self.queries = 0  # prompt tokens looked up, at the first admission of a sequence
        self.hits = 0  # of them, found
        self.evictions = 0  # tokens

    def __len__(self) -> int:
        """Number of cached blocks."""
        return len(self._block)

    def find(self, keys: Sequence[bytes]) -> list[int]:
        """Find the longest leading run of cached blocks; the caller must share them in the block pool."""
        return [self._block[key] for key in takewhile(self._block.__contains__, keys)]

    def publish(self, keys: Sequence[bytes], table: list[int], known: int) -> None:
        """Cache the blocks of `table` from index `known` to `len(keys)`, which are computed now. The table
        gets an equal block that another sequence published before, and frees its own.
        """
        for index, key in enumerate(islice(keys, known, None), known):
            own, earlier = table[index], self._block.get(key)
            if earlier is not None:
                self.ledger.share([earlier])
                self.ledger.release([own])
                table[index] = earlier
                continue
            self.ledger.keep([own])
            self._block[key], self._key[own] = own, key

    def extend(self, table: list[int], tokens: int) -> None:
        """Extend a table in place to hold `tokens`, evicting idle blocks as needed; may raise OutOfBlocks."""
        count = blocks_for(tokens) - len(table)
        if count <= self.ledger.num_available:  # else evict nothing
            while self.ledger.num_free < count:
                block = self.ledger.longest_idle
                assert block is not None
                del self._block[self._key.pop(block)]
                self.ledger.forget([block])
                self.evictions += BLOCK_SIZE
        self.ledger.extend(table, tokens)

    def check(self) -> None:
        """Raise CorruptBlockPoolError unless exactly the cached blocks are kept."""
        for key, block in self._block.items():
            if self._key.get(block) != key:
                raise CorruptBlockPoolError(f"block {block} is cached under two names")
        for block in self.ledger.blocks:
            if self.ledger.is_kept(block) != (block in self._key):
                raise CorruptBlockPoolError(f"block {block} is kept without a name, or cached and not kept")
        if len(self._key) != len(self._block):
            raise CorruptBlockPoolError(f"{len(self._key)} blocks have {len(self._block)} names")
