"""The prefix cache: whole tiles of prompts, found again by their content.

A tile is `PROMPT_TILE` tokens of a prompt at a multiple of `PROMPT_TILE`. Its keys and values depend on the
tokens up to its end and on nothing else, because such tiles are computed by one rule (`attention`); answers
and the rest of a prompt are computed by another and are never shared. Knows block numbers, no tensors.
"""

from __future__ import annotations

from array import array
from collections.abc import Sequence
from hashlib import blake2b
from itertools import islice

from turbo_runtime.engine.blocks import BLOCK_SIZE, PROMPT_TILE, BlockLedger, BrokenLedger, blocks_for

TILE_BLOCKS = PROMPT_TILE // BLOCK_SIZE


def tile_keys(tenant: str, prompt: Sequence[int]) -> tuple[bytes, ...]:
    """A key for each whole tile of the prompt, chained: it stands for all tokens up to the tile's end.

    The chain begins with the tenant, so that nobody learns from the time to a first token what another has
    asked. Whatever else changes keys and values (an adapter) belongs there too. Of 256 bits: no two differ
    by chance, nor by intent.
    """
    key = blake2b(tenant.encode(), digest_size=32).digest()
    keys = []
    for start in range(0, len(prompt) // PROMPT_TILE * PROMPT_TILE, PROMPT_TILE):
        content = array("q", prompt[start : start + PROMPT_TILE]).tobytes()
        key = blake2b(key + content, digest_size=32).digest()
        keys.append(key)
    return tuple(keys)


class PrefixCache:
    """Names for kept blocks of a ledger, a tile at a time; gives up the longest idle ones for new blocks.

    Who holds a tile holds those before it and lets go of them after it (`BlockLedger.trim`), so a tile is
    never given up before those that follow it: what is cached is always reachable from the prompt's start.
    """

    def __init__(self, ledger: BlockLedger) -> None:
        self.ledger = ledger
        self._blocks: dict[bytes, tuple[int, ...]] = {}  # of a tile
        self._key: dict[int, bytes] = {}  # of the tile that a block belongs to
        self.queries = 0  # prompt tokens looked for, at the first admission of a sequence
        self.hits = 0  # of them, found
        self.evictions = 0  # tokens given up

    def __len__(self) -> int:
        """Tiles that are cached."""
        return len(self._blocks)

    def find(self, keys: Sequence[bytes]) -> list[int]:
        """The blocks of the longest leading run of these tiles that is cached. They are the caller's only
        once it shares them in the ledger.
        """
        found: list[int] = []
        for key in keys:
            blocks = self._blocks.get(key)
            if blocks is None:
                break
            found.extend(blocks)
        return found

    def publish(self, keys: Sequence[bytes], table: list[int], known: int) -> None:
        """Take in the tiles of `table` from number `known` to `len(keys)`, which are computed now.

        Where another sequence has published the same tile before, the table gets that one's blocks and its
        own are free again: what was computed twice takes its memory once.
        """
        for number, key in enumerate(islice(keys, known, None), known):
            place = slice(number * TILE_BLOCKS, (number + 1) * TILE_BLOCKS)
            own = table[place]
            earlier = self._blocks.get(key)
            if earlier is not None:
                self.ledger.share(earlier)
                self.ledger.release(own)
                table[place] = earlier
                continue
            self.ledger.keep(own)
            self._blocks[key] = tuple(own)
            for block in own:
                self._key[block] = key

    def extend(self, table: list[int], tokens: int) -> None:
        """Lengthen a table in place so that it holds `tokens`, giving up idle tiles where free blocks do not
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
        """Raise BrokenLedger unless exactly the blocks of cached tiles are kept and a tile's are held as
        one.
        """
        for key, blocks in self._blocks.items():
            if len(blocks) != TILE_BLOCKS or any(self._key.get(block) != key for block in blocks):
                raise BrokenLedger(f"blocks {blocks} are not those of one cached tile")
            if len({self.ledger.references(block) for block in blocks}) != 1:
                raise BrokenLedger(f"blocks {blocks} of one tile have different holders")
        for block in range(self.ledger.num_blocks):
            if self.ledger.is_kept(block) != (block in self._key):
                raise BrokenLedger(f"block {block} is kept without a tile, or cached and not kept")
        if len(self._key) != TILE_BLOCKS * len(self._blocks):
            raise BrokenLedger(f"{len(self._key)} blocks for {len(self._blocks)} cached tiles")

    def _evict_longest_idle(self) -> None:
        block = self.ledger.longest_idle
        assert block is not None
        blocks = self._blocks.pop(self._key[block])
        for each in blocks:
            del self._key[each]
        self.ledger.forget(blocks)
        self.evictions += PROMPT_TILE
