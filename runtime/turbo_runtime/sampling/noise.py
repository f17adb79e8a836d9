"""Gumbel noise for every token of a vocabulary, addressed by a position's key: counter-based, stateless.

g = -log(e) with e from the standard exponential distribution. A vocabulary is cut into blocks of `BLOCK` ids,
and the minimum e of each block needs no others: that of n exponentials is exponential with rate n, falls on
each of them equally often, and the excess of the others is standard exponential again (Rényi, 1953). So the
highest score of a row is found block by block (`search`).
"""

from __future__ import annotations

import hashlib
import math
from array import array
from collections.abc import Sequence
from typing import Any, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from turbo_runtime.messages import MASK_64

Ints = NDArray[np.int64]
Floats = NDArray[Any]
Bits = TypeVar("Bits", Ints, Tensor)

BLOCK = 64  # ids; a power of two, whose logarithm is at most the 11 bits that uniforms leave over

GOLDEN = 0x9E3779B97F4A7C15
MIX_1 = 0xBF58476D1CE4E5B9
MIX_2 = 0x94D049BB133111EB
_FEW = 16  # keys
UNIFORM_BITS = 53  # uniforms of 24 bits tie in large vocabularies


def mix64(value: int) -> int:
    """Mix 64 bits by the finalizer of SplitMix64 (Steele, Lea, Flood, OOPSLA 2014), a bijection."""
    value &= MASK_64
    value = ((value ^ (value >> 30)) * MIX_1) & MASK_64
    value = ((value ^ (value >> 27)) * MIX_2) & MASK_64
    return value ^ (value >> 31)


def answer_key(seed: int, prompt: Sequence[int], choice: int) -> int:
    """Return 64 bits for one answer: another seed, prompt or choice gives independent noise."""
    digest = hashlib.blake2b(array("q", prompt).tobytes(), digest_size=8).digest()
    key = mix64(seed + GOLDEN)
    key = mix64(key ^ int.from_bytes(digest, "little"))
    return mix64(key + (choice + 1) * GOLDEN)


def position_key(answer: int, position: int) -> int:
    """Return 64 bits as int64 for an absolute position (0: the prompt's first token) of the answer."""
    return signed(mix64(answer ^ mix64((position + 1) * GOLDEN)))


def position_keys(answers: Sequence[int], positions: Sequence[int]) -> Ints:
    """Return the `position_key` (n,) of each of some answers, whose keys are int64."""
    if len(answers) <= _FEW:  # a dozen calls of numpy take longer, and most of all when nothing is in a cache
        return np.array(list(map(position_key, answers, positions)), np.int64)
    state = (np.array(positions, np.int64) + 1) * signed(GOLDEN)
    return _mix(np.array(answers, np.int64) ^ _mix(state))


def token_exponential(key: int, token: int) -> float:
    """Return the exponential of one token at one position, to within rounding, in plain Python."""
    bits = mix64(key - (token // BLOCK + 1) * GOLDEN)
    minimum = _float_exponential(bits) / BLOCK
    if bits & (BLOCK - 1) == token & (BLOCK - 1):
        return minimum
    return minimum + _float_exponential(mix64(key + (token + 1) * GOLDEN))


class Noise:
    """Exponential and Gumbel noise of a vocabulary; `key` and `keys` are those of `position_key`."""

    def __init__(self, vocabulary: int, device: torch.device | str = "cpu") -> None:
        self.vocabulary = vocabulary
        self.device = torch.device(device)
        self.num_blocks = -(-vocabulary // BLOCK)
        # An id times an odd constant, as SplitMix64 steps its state; int64 wraps as unsigned 64-bit numbers
        # do. Blocks count down from -1, tokens up from 1.
        self._tokens = torch.arange(1, vocabulary + 1, device=device) * signed(GOLDEN)
        self._blocks = -torch.arange(1, self.num_blocks + 1, device=device) * signed(GOLDEN)

    def block_minima(self, keys: Tensor) -> tuple[Tensor, Tensor]:
        """Return the minimum exponential of each block and its place: (rows, blocks) for `keys` (rows,)."""
        bits = _mix(self._blocks + keys[:, None])
        return _exponential(bits).div_(BLOCK), bits.bitwise_and_(BLOCK - 1)

    def gumbel_table(self, keys: Tensor) -> Tensor:
        """Return standard Gumbel noise (rows, vocabulary) float64 of all tokens, a row for each of `keys`."""
        minima, places = self.block_minima(keys)
        minima = minima.repeat_interleave(BLOCK, 1)[:, : self.vocabulary]
        places = places.repeat_interleave(BLOCK, 1)[:, : self.vocabulary]
        beyond = _exponential(_mix(self._tokens + keys[:, None])).add_(minima)
        within = torch.arange(self.vocabulary, device=keys.device) % BLOCK
        return torch.where(places == within, minima, beyond).log_().neg_()

    def gumbel_rows(self, keys: Tensor, ids: Tensor) -> Tensor:
        """Return standard Gumbel noise (rows, n) float64 of the tokens `ids`, a row for each of `keys`."""
        minima, places = (column.gather(1, ids // BLOCK) for column in self.block_minima(keys))
        beyond = _exponential(_mix(self._tokens[ids] + keys[:, None])).add_(minima)
        return torch.where(places == ids % BLOCK, minima, beyond).log_().neg_()

    def gumbel(self, key: int, ids: Tensor) -> Tensor:
        """Return standard Gumbel noise (n,) float64 of these tokens at one position."""
        return self.gumbel_rows(torch.tensor([key], device=self.device), ids[None])[0]


def _mix(x: Bits) -> Bits:
    """Apply `mix64` to every element, in place; the masks make the shifts logical ones."""
    x ^= (x >> 30) & ((1 << 34) - 1)
    x *= signed(MIX_1)
    x ^= (x >> 27) & ((1 << 37) - 1)
    x *= signed(MIX_2)
    x ^= (x >> 31) & ((1 << 33) - 1)
    return x


def _float_exponential(bits: int) -> float:
    """`_exponential` of one number."""
    return -math.log(max(bits >> (64 - UNIFORM_BITS), 1) * 2.0**-UNIFORM_BITS)


def _exponential(bits: Tensor) -> Tensor:
    """Return -log(u), float64, with u in (0, 1) from the upper 53 of 64 random bits."""
    high = (bits >> (64 - UNIFORM_BITS)) & ((1 << UNIFORM_BITS) - 1)
    uniform = high.clamp_(min=1).double()
    return uniform.mul_(2.0**-UNIFORM_BITS).log_().neg_()


def signed(value: int) -> int:
    """The int64 with the same 64 bits."""
    value &= MASK_64
    return value - (1 << 64) if value >> 63 else value
