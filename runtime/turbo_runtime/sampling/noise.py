"""Gumbel noise for every token of a vocabulary, addressed by a position's key: counter-based, stateless.

g = -log(e) with e from the standard exponential distribution. A vocabulary is cut into blocks of `BLOCK` ids,
and the least e of each block needs no others: the minimum of n exponentials is exponential with rate n, falls
on each of them equally often, and the excess of the others is standard exponential again (Rényi, 1953). So
`draw` can search the highest score of a row block by block.
"""

from __future__ import annotations

import hashlib
import math
from array import array
from collections.abc import Sequence

import torch
from torch import Tensor

from turbo_runtime.messages import MASK_64

BLOCK = 64  # ids; a power of two, whose logarithm is at most the 11 bits that uniforms leave over

_GOLDEN = 0x9E3779B97F4A7C15
_MIX_1 = 0xBF58476D1CE4E5B9
_MIX_2 = 0x94D049BB133111EB
_UNIFORM_BITS = 53  # uniforms of 24 bits tie in large vocabularies


def mix64(value: int) -> int:
    """Mix 64 bits by the finalizer of SplitMix64 (Steele, Lea, Flood, OOPSLA 2014), a bijection."""
    value &= MASK_64
    value = ((value ^ (value >> 30)) * _MIX_1) & MASK_64
    value = ((value ^ (value >> 27)) * _MIX_2) & MASK_64
    return value ^ (value >> 31)


def answer_key(seed: int, prompt: Sequence[int], choice: int) -> int:
    """Return 64 bits for one answer: another seed, prompt or choice gives independent noise."""
    digest = hashlib.blake2b(array("q", prompt).tobytes(), digest_size=8).digest()
    key = mix64(seed + _GOLDEN)
    key = mix64(key ^ int.from_bytes(digest, "little"))
    return mix64(key + (choice + 1) * _GOLDEN)


def position_key(answer: int, position: int) -> int:
    """Return 64 bits as int64 for an absolute position (0: the prompt's first token) of the answer."""
    return _signed(mix64(answer ^ mix64((position + 1) * _GOLDEN)))


def token_exponential(key: int, token: int) -> float:
    """Return the exponential of one token at one position, to within rounding, in plain Python."""
    bits = mix64(key - (token // BLOCK + 1) * _GOLDEN)
    minimum = _float_exponential(bits) / BLOCK
    if bits & (BLOCK - 1) == token & (BLOCK - 1):
        return minimum
    return minimum + _float_exponential(mix64(key + (token + 1) * _GOLDEN))


class Noise:
    """Exponential and Gumbel noise of a vocabulary; `key` and `keys` are those of `position_key`."""

    def __init__(self, vocabulary: int, device: torch.device | str = "cpu") -> None:
        self.vocabulary = vocabulary
        self.device = torch.device(device)
        self.num_blocks = -(-vocabulary // BLOCK)
        # An id times an odd constant, as SplitMix64 steps its state; int64 wraps as unsigned 64-bit numbers
        # do. Blocks count down from -1, tokens up from 1.
        self._tokens = torch.arange(1, vocabulary + 1, device=device) * _signed(_GOLDEN)
        self._blocks = -torch.arange(1, self.num_blocks + 1, device=device) * _signed(_GOLDEN)

    def block_minima(self, keys: Tensor) -> tuple[Tensor, Tensor]:
        """Return the least exponential of each block and its place: (rows, blocks) for `keys` (rows,)."""
        bits = _mix(self._blocks + keys[:, None])
        return _exponential(bits).div_(BLOCK), bits.bitwise_and_(BLOCK - 1)

    def gumbel_within(self, keys: Tensor, ids: Tensor, minima: Tensor, places: Tensor) -> Tensor:
        """Return Gumbel noise (n,) float64 of `ids` under `keys`, with the `block_minima` of their blocks."""
        beyond = _exponential(_mix(self._tokens.index_select(0, ids) + keys)).add_(minima)
        return torch.where(places == ids % BLOCK, minima, beyond).log_().neg_()

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
        minima, places = (column.gather(1, ids // BLOCK).flatten() for column in self.block_minima(keys))
        repeated = keys.repeat_interleave(ids.shape[1])
        return self.gumbel_within(repeated, ids.flatten(), minima, places).view_as(ids)

    def gumbel(self, key: int, ids: Tensor) -> Tensor:
        """Return standard Gumbel noise (n,) float64 of these tokens at one position."""
        return self.gumbel_rows(torch.tensor([key], device=self.device), ids[None])[0]


def _mix(x: Tensor) -> Tensor:
    """Apply `mix64` to every element, in place; the masks make the shifts logical ones."""
    x.bitwise_xor_((x >> 30).bitwise_and_((1 << 34) - 1)).mul_(_signed(_MIX_1))
    x.bitwise_xor_((x >> 27).bitwise_and_((1 << 37) - 1)).mul_(_signed(_MIX_2))
    return x.bitwise_xor_((x >> 31).bitwise_and_((1 << 33) - 1))


def _float_exponential(bits: int) -> float:
    """`_exponential` of one number."""
    return -math.log(max(bits >> (64 - _UNIFORM_BITS), 1) * 2.0**-_UNIFORM_BITS)


def _exponential(bits: Tensor) -> Tensor:
    """Return -log(u), float64, with u in (0, 1) from the upper 53 of 64 random bits."""
    uniform = (bits >> (64 - _UNIFORM_BITS)).bitwise_and_((1 << _UNIFORM_BITS) - 1).clamp_(min=1).double()
    return uniform.mul_(2.0**-_UNIFORM_BITS).log_().neg_()


def _signed(value: int) -> int:
    """The int64 with the same 64 bits."""
    value &= MASK_64
    return value - (1 << 64) if value >> 63 else value
