"""The engine's token at a position: y = argmax(logits / T + g) over the tokens that top-k and top-p keep.

g is Gumbel noise from a counter: a function of (seed, prompt, choice, position, token id) and of nothing
else. So y is one draw from the law that the user asked for (Gumbel-max), and the same draw whatever was
drafted, batched or computed again.

Written rules, since a tie must fall the same way every time:
- temperature 0 (below `GREEDY_BELOW`) is argmax of the logits; top-k and top-p then change nothing.
- order: temperature, then top-k, then top-p on what top-k left. Candidates are ranked by logit, equal ones by
  lower id first.
- top-k keeps exactly the first k of that ranking (all, if k is 0 or above the vocabulary).
- top-p keeps a token if the tokens ranked before it have together less than p of the probability: always at
  least the first.
- of equal perturbed scores the lowest id wins. Every row is worked on alone (1-D tensors), so that no sum is
  split differently for another number of rows. Scores are float64.
"""

from __future__ import annotations

import hashlib
import math
from array import array
from collections.abc import Sequence

import torch
from torch import Tensor

from turbo_runtime.engine.request import MASK_64, SamplingParams

_GOLDEN = 0x9E3779B97F4A7C15
_MIX_1 = 0xBF58476D1CE4E5B9
_MIX_2 = 0x94D049BB133111EB
_UNIFORM_BITS = 53  # uniforms of 24 bits tie in large vocabularies
# The hottest part of a row is scored in full; a token this many units of logits / T below the best is first
# screened by its noise alone.
_HOT_DEPTH = 12.0
GREEDY_BELOW = 1e-6  # a temperature below this is 0: the quotient would leave what float64 resolves


def mix64(value: int) -> int:
    """The finaliser of SplitMix64 (Steele, Lea, Flood, OOPSLA 2014): a bijection of 64 bits that spreads
    every input bit.
    """
    value &= MASK_64
    value = ((value ^ (value >> 30)) * _MIX_1) & MASK_64
    value = ((value ^ (value >> 27)) * _MIX_2) & MASK_64
    return value ^ (value >> 31)


def answer_key(seed: int, prompt: Sequence[int], choice: int) -> int:
    """64 bits for one answer: another seed, prompt or choice gives noise that has nothing to do with this
    one's.
    """
    digest = hashlib.blake2b(array("q", prompt).tobytes(), digest_size=8).digest()
    key = mix64(seed + _GOLDEN)
    key = mix64(key ^ int.from_bytes(digest, "little"))
    return mix64(key + (choice + 1) * _GOLDEN)


def position_key(answer: int, position: int) -> int:
    """64 bits for one absolute position (0 is the prompt's first token) of the answer with that key."""
    return mix64(answer ^ mix64((position + 1) * _GOLDEN))


class NoiseSource:
    """Uniform and Gumbel noise for every token of a vocabulary, addressed by a position's key."""

    def __init__(self, vocabulary: int, device: torch.device | str = "cpu") -> None:
        # token id times an odd constant, as SplitMix64 steps its state; int64 wraps as unsigned 64-bit
        # numbers do
        self._counters = torch.arange(1, vocabulary + 1, dtype=torch.int64, device=device) * _signed(_GOLDEN)

    def bits(self, key: int, ids: Tensor | None = None) -> Tensor:
        """53 random bits per token as int64; `ids` (n,) picks tokens, None is the whole vocabulary."""
        x = (self._counters if ids is None else self._counters[ids]) + _signed(key)
        x.bitwise_xor_((x >> 30).bitwise_and_((1 << 34) - 1)).mul_(
            _signed(_MIX_1)
        )  # the mask makes the shift a logical one
        x.bitwise_xor_((x >> 27).bitwise_and_((1 << 37) - 1)).mul_(_signed(_MIX_2))
        x.bitwise_xor_((x >> 31).bitwise_and_((1 << 33) - 1))
        return x.bitwise_right_shift_(64 - _UNIFORM_BITS).bitwise_and_((1 << _UNIFORM_BITS) - 1)

    def gumbel(self, key: int, ids: Tensor) -> Tensor:
        """Standard Gumbel noise (n,) float64 of these tokens: -log(-log(u)), u = bits / 2^53 in (0, 1)."""
        uniform = self.bits(key, ids).clamp_(min=1).double().mul_(2.0**-_UNIFORM_BITS)
        return uniform.log_().neg_().log_().neg_()


def greedy_tokens(logits: Tensor) -> list[int]:
    """The token of each row of (rows, vocabulary) at temperature 0; `argmax` gives the first of equal values,
    the lowest id.
    """
    return [int(token) for token in logits.argmax(dim=-1).tolist()]


def sampled_token(logits: Tensor, params: SamplingParams, key: int, noise: NoiseSource) -> int:
    """The token of one row (vocabulary,) float32 at a temperature of `GREEDY_BELOW` or more; `key` is the
    position's.
    """
    if params.top_k or params.top_p < 1.0:
        ids = kept_tokens(logits, params)
        return _best(logits, params.temperature, key, ids, noise)[0]
    # All are kept. Noise is bounded only far out, but a cold token needs so rare a value that its bits alone
    # rule nearly all of them out.
    hot_floor = logits.max() - _HOT_DEPTH * params.temperature
    hot = (logits >= hot_floor).nonzero().squeeze(1)
    best, score = _best(logits, params.temperature, key, hot, noise)
    needed = (
        score - float(hot_floor.double()) / params.temperature
    )  # a cold token's noise must be at least this
    # one unit below the exact bound for the rounding of exp, never above it
    least_bits = math.floor(math.exp(-math.exp(-needed)) * 2.0**_UNIFORM_BITS * (1 - 1e-12)) - 1
    rare = noise.bits(key) >= least_bits
    rare[hot] = False
    cold = rare.nonzero().squeeze(1)
    if cold.numel():
        rival, rival_score = _best(logits, params.temperature, key, cold, noise)
        if (rival_score, -rival) > (score, -best):
            return rival
    return best


def kept_tokens(logits: Tensor, params: SamplingParams) -> Tensor:
    """Ids (n,) ascending that top-k and then top-p keep of one row (vocabulary,), by the rules at the head of
    this module.
    """
    scaled = logits.double() / params.temperature
    vocabulary = scaled.numel()
    if 0 < params.top_k < vocabulary:
        least = scaled.topk(params.top_k).values.min()
        ids = (scaled >= least).nonzero().squeeze(1)  # more than k only if there are ties at the edge
        ranked = ids[scaled[ids].argsort(descending=True, stable=True)][: params.top_k]
        ranked = _nucleus(scaled, ranked, scaled[ranked], params.top_p)
    elif params.top_p < 1.0:
        # The nucleus lies within the hottest tokens unless the row is flat: rank those alone first.
        ids = (scaled >= scaled.max() - _HOT_DEPTH).nonzero().squeeze(1)
        weights = (scaled - scaled.max()).exp()
        if float(weights[ids].sum()) < params.top_p * float(weights.sum()):
            ids = torch.arange(vocabulary, device=logits.device)
        ranked = ids[scaled[ids].argsort(descending=True, stable=True)]
        ranked = _nucleus(scaled, ranked, scaled, params.top_p)
    else:
        return torch.arange(vocabulary, device=logits.device)
    return ranked.sort().values


def _nucleus(scaled: Tensor, ranked: Tensor, support: Tensor, top_p: float) -> Tensor:
    """The head of `ranked` (ids, best first) that holds `top_p` of the probability over `support` (scaled
    logits).
    """
    if top_p >= 1.0:
        return ranked
    peak = support.max()
    total = (support - peak).exp().sum()
    share = (scaled[ranked] - peak).exp() / total
    before = share.cumsum(0) - share
    kept = before < top_p
    kept[0] = True
    return ranked[kept]


def _best(logits: Tensor, temperature: float, key: int, ids: Tensor, noise: NoiseSource) -> tuple[int, float]:
    """The token of ascending `ids` with the highest perturbed score, and that score."""
    scores = logits[ids].double() / temperature + noise.gumbel(key, ids)
    winner = int(scores.argmax())
    return int(ids[winner]), float(scores[winner])


def _signed(value: int) -> int:
    """The int64 with the same 64 bits."""
    value &= MASK_64
    return value - (1 << 64) if value >> 63 else value
