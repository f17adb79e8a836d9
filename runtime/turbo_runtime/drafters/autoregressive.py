"""What drafters that draft a token after the other have in common: a pass for each drafted position over all
drafts of the batch, draws with the engine's own noise, and confidences by measured acceptance.

A greedy request gets argmax log q, a sampled one argmax(log q / T + g), over the whole vocabulary: the
engine's own token where q is the model's distribution (see `interface.DraftRequest`).
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from turbo_runtime.drafters.interface import SURE, Drafter, DraftRequest, TokenCandidate
from turbo_runtime.sampling.noise import Noise, signed
from turbo_runtime.sampling.rows import NOTHING, DrawnRows, Rule
from turbo_runtime.sampling.search import kernels_of

_DEPTHS = 8  # drafted positions that are calibrated apart


class AutoregressiveDrafter(Drafter):
    """Drafts of growing length, each token from all before it."""

    is_costly = has_passes = True

    def __init__(self, noise: Noise, version: str) -> None:
        """`noise` on the device of the logits."""
        super().__init__()
        self.noise, self.version = noise, version

    @abstractmethod
    def open(self, requests: Sequence[DraftRequest]) -> dict[int, list[int]]:
        """Catch up with the requests' tokens. Return for each that can be drafted for, by its index, the
        tokens to compute before the first guess.
        """

    @abstractmethod
    def guess(self, requests: Sequence[DraftRequest], fed: Mapping[int, list[int]]) -> Tensor:
        """Compute the next tokens of some drafts, by index -> logits (drafts, vocabulary) float32 behind the
        last of each; of at least as many ids as the engine's vocabulary or fewer.
        """

    @torch.inference_mode()
    def begin(self, requests: Sequence[DraftRequest]) -> None:
        """Catch up with these requests."""
        self._requests, self._depth = requests, 0
        self._unfed = self.open(requests)

    @torch.inference_mode()
    def next_candidates(self, best_confidence: Sequence[float]) -> list[TokenCandidate | None]:
        """Guess the next token, in a pass for all drafts that others are not sure of."""
        candidates: list[TokenCandidate | None] = [None] * len(self._requests)
        fed = {
            index: tokens
            for index, tokens in self._unfed.items()
            if best_confidence[index] < SURE and self._depth < self._requests[index].limit
        }
        if not fed:
            return candidates
        logits = self._over_vocabulary(self.guess(self._requests, fed))
        self._unfed |= {index: [] for index in fed}
        chances = (logits.amax(1) - logits.logsumexp(1)).exp().tolist()
        for index, token, chance in zip(fed, self._draw(logits, list(fed)), chances, strict=True):
            if token != NOTHING:
                sampled = self._requests[index].temperature > 0
                cell = (sampled, min(self._depth, _DEPTHS - 1), int(10 * chance))
                candidates[index] = TokenCandidate(token, self.confidence(cell, chance), cell)
        return candidates

    def advance(self, tokens: Sequence[int | None]) -> None:
        """Append a token to each draft, whoever drafted it."""
        self._depth += 1
        self._unfed = {
            index: [*unfed, token]
            for index, unfed in self._unfed.items()
            if (token := tokens[index]) is not None
        }

    def _over_vocabulary(self, logits: Tensor) -> Tensor:
        """Leave out padding beyond the engine's vocabulary, or pad with ids that are never drawn."""
        missing = self.noise.vocabulary - logits.shape[1]
        return F.pad(logits, (0, missing), value=-torch.inf) if missing else logits

    def _draw(self, logits: Tensor, indices: Sequence[int]) -> list[int]:
        """The token of each draft; `NOTHING` where logits are no numbers."""
        rows = DrawnRows()
        for row, request in enumerate(self._requests[index] for index in indices):
            rule, position = Rule(request.temperature), len(request.tokens) + self._depth
            rows.add(row, 1, rule, signed(request.key), position)
        tokens: list[int] = kernels_of(logits.device).draw(logits, rows, self.noise).tolist()
        return tokens
