"""The heads as a torch module for training; drafting packs them (`drafter.HeadsDrafter`).

Head j guesses the token j + 1 places behind the last committed one, from the hidden state h that the last
committed one was drawn from and from the token right before the guessed one:

    x_j = h + SiLU(W_j h + b_j)                        (Medusa; Cai et al., arXiv 2401.10774)
    m   = A e(token before)                            e: the target's embedding
    logits_j = E x_j + B m                             E: rows of the target's LM head; the Markov term
    confidence_j = c_j [x_j, m, f] + d_j               f: log-odds of the likeliest token; a logit

The Markov term follows the growing draft (as in Hydra, arXiv 2402.05109). A confidence is that of the drafted
token, given all before it accepted.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

CERTAIN = 1 - 1e-6  # the highest probability with its own odds


class Heads(nn.Module):
    """Parameters are the heads' own; the target's rows are shared and never trained or stored."""

    embedding: Tensor
    output: Tensor
    vocabulary: Tensor

    def __init__(
        self, embedding: Tensor, output: Tensor, vocabulary: Tensor, *, heads: int, markov_rank: int
    ) -> None:
        """`embedding` (target vocabulary, width); `output` (V, width), the LM head's rows of `vocabulary`
        (V,) int64, ascending ids of the target.
        """
        super().__init__()
        device = embedding.device
        width = embedding.shape[1]
        shapes = shapes_of(width, len(vocabulary), heads, markov_rank)
        self.register_buffer("embedding", embedding, persistent=False)
        self.register_buffer("output", output, persistent=False)
        self.register_buffer("vocabulary", vocabulary.to(device), persistent=False)
        self.heads = heads
        # zeros: at first every head equals the LM head
        self.block = nn.Parameter(torch.zeros(shapes["block"], device=device))
        self.block_bias = nn.Parameter(torch.zeros(shapes["block_bias"], device=device))
        self.markov_in = nn.Parameter(torch.randn(shapes["markov_in"], device=device) * width**-0.5)
        self.markov_out = nn.Parameter(torch.zeros(shapes["markov_out"], device=device))
        self.confidence = nn.Parameter(torch.zeros(shapes["confidence"], device=device))
        self.confidence.data[:, -1] = 1.0  # at first the confidence is the probability of the likeliest token
        self.confidence_bias = nn.Parameter(torch.zeros(shapes["confidence_bias"], device=device))

    def clues(self, states: Tensor, m: Tensor, logits: Tensor) -> Tensor:
        """[x, m, f] (rows, width + rank + 1), of one head's states (rows, width), m and logits."""
        logits = logits.float()
        likeliest = logits.amax(-1) - logits.logsumexp(-1)
        odds = likeliest - torch.log1p(-likeliest.exp().clamp(max=CERTAIN))
        return torch.cat([states, m, odds[:, None].to(states.dtype)], -1)

    def certainty(self, clues: Tensor, head: int) -> Tensor:
        """The confidence (rows,) of one head as a logit."""
        return (clues @ self.confidence[head] + self.confidence_bias[head]).float()

    def forward(self, hidden: Tensor, before: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """All heads at once, the tokens being known, as in training: hidden (rows, width) and before (rows,
        heads), the token before each guessed one -> logits (rows, heads, V), and what they came from:
        states (heads, rows, width) and m (rows, heads, rank).
        """
        steps = torch.einsum("rw,hvw->hrv", hidden, self.block) + self.block_bias[:, None]
        states = hidden + F.silu(steps)
        m = self.embedding[before].to(self.markov_in.dtype) @ self.markov_in  # the target's may be another
        shared = states @ self.output.T
        logits = [shared[j] + m[:, j] @ self.markov_out[j] for j in range(self.heads)]
        return torch.stack(logits, 1), states, m


def shapes_of(width: int, words: int, heads: int, markov_rank: int) -> dict[str, tuple[int, ...]]:
    """Return the shapes of all parameters; `words`: tokens that can be drafted."""
    return {
        "block": (heads, width, width),
        "block_bias": (heads, width),
        "markov_in": (width, markov_rank),
        "markov_out": (heads, markov_rank, words),
        "confidence": (heads, width + markov_rank + 1),
        "confidence_bias": (heads,),
    }
