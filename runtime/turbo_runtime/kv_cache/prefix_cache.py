"""The prefix cache: blocks of prompts, found again by their content.

Only blocks in whole tiles of a prompt (`PROMPT_TILE` tokens at a multiple of it) are shared. Their keys and
values depend on the tokens up to the block's end and on nothing else, because such tiles are computed by one
rule (`attention`), wherever a step begins or ends in them; answers and the rest of a prompt are computed by
another. Where both give the same bits (`Rule.uniform`), a tile is a block. Knows block numbers, no tensors.
"""

from __future__ import annotations

from array import array
from collections.abc import Sequence
from hashlib import blake2b
from itertools import islice

from turbo_runtime.kv_cache.block_pool import (
    BLOCK_SIZE,
    PROMPT_TILE,
    BlockPool,
    CorruptBlockPoolError,
    blocks_for,
)


def block_keys(scope: str, prompt: Sequence[int], tile: int = PROMPT_TILE) -> tuple[bytes, ...]:
    """A key for each block in a whole tile of the prompt, chained: it stands for all tokens up to its end.

    The chain begins with the scope (`Submit.scope`), so that nobody learns from the time to a first token
    what another has asked. Whatever else changes keys and values (an adapter) belongs there too. Of 256 bits:
    no two differ by chance, nor by intent.
    """
    key = blake2b(scope.encode(), digest_size=32).digest()
    keys = []
    for start in range(0, len(prompt) // tile * tile, BLOCK_SIZE):
        content = array("q", prompt[start : start + BLOCK_SIZE]).tobytes()
        key = blake2b(key + content, digest_size=32).digest()
        keys.append(key)
    return tuple(keys)


class PrefixCache:
    """Names for kept blocks of a ledger; gives up the longest idle ones for new blocks.

    Who holds a block holds those before it and lets go of them after it (`BlockLedger.trim`), so a block is
    never given up before those that follow it: what is cached is always reachable from the prompt's start.
    """

    def __init__(self, ledger: BlockPool) -> None:
        self.ledger = ledger
        self._block: dict[bytes, int] = {}
        self._key: dict[int, bytes] = {}
        self.queries = 0  # prompt tokens looked for, at the first admission of a sequence
        self.hits = 0  # of them, found
        self.evictions = 0  # tokens given up

    def __len__(self) -> int:
        """Blocks that are cached."""
        return len(self._block)

    def find(self, keys: Sequence[bytes]) -> list[int]:
        """The longest leading run of these blocks that is cached. They are the caller's only once it shares
        them in the ledger.
        """
        found: list[int] = []
        for key in keys:
            block = self._block.get(key)
            if block is None:
                break
            found.append(block)
        return found

    def publish(self, keys: Sequence[bytes], table: list[int], known: int) -> None:
        """Take in the blocks of `table` from number `known` to `len(keys)`, which are computed now.

        Where another sequence has published the same block before, the table gets that one and its own is
        free again: what was computed twice takes its memory once.
        """
        for number, key in enumerate(islice(keys, known, None), known):
            own, earlier = table[number], self._block.get(key)
            if earlier is not None:
                self.ledger.share([earlier])
                self.ledger.release([own])
                table[number] = earlier
                continue
            self.ledger.keep([own])
            self._block[key], self._key[own] = own, key

    def extend(self, table: list[int], tokens: int) -> None:
        """Lengthen a table in place so that it holds `tokens`, giving up idle blocks where free ones do not
        suffice; raises OutOfBlocks if they do not suffice either.
        """
        wanted = blocks_for(tokens) - len(table)
        if wanted <= 0:
            return
        if wanted <= self.ledger.num_available:  # else nothing is given up for nothing
            while self.ledger.num_free < wanted:
                self._evict_longest_idle()
        self.ledger.extend(table, tokens)

    def check(self) -> None:
        """Raise BrokenLedger unless exactly the cached blocks are kept."""
        for key, block in self._block.items():
            if self._key.get(block) != key:
                raise CorruptBlockPoolError(f"block {block} is cached under two names")
        for block in self.ledger.blocks:
            if self.ledger.is_kept(block) != (block in self._key):
                raise CorruptBlockPoolError(f"block {block} is kept without a name, or cached and not kept")
        if len(self._key) != len(self._block):
            raise CorruptBlockPoolError(f"{len(self._key)} blocks have {len(self._block)} names")

    def _evict_longest_idle(self) -> None:
        block = self.ledger.longest_idle
        assert block is not None
        del self._block[self._key.pop(block)]
        self.ledger.forget([block])
        self.evictions += BLOCK_SIZE
