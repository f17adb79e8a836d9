"""The data and methods between the engine and its drafters.

A drafter may use any data and may be wrong: the committed tokens do not depend on it (see
`speculation.verification`). It states its confidence, and the engine decides how much to verify.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Hashable, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

from torch import Tensor

from turbo_runtime.contract.config import DraftMethod
from turbo_runtime.drafters.draft_memory import DraftMemory
from turbo_runtime.messages import DEFAULT_DRAFT

SURE = 0.9  # confidence of others from which a costly drafter keeps silent: it is seldom surer
_PRIOR = 8.0  # observations that a claim counts for
_FORGET_AT = 512.0  # observations of a cell, at which they are halved, so that it follows the traffic


@dataclass(frozen=True, slots=True)
class DraftRequest:
    """A request for the draft of one sequence. With its noise a drafter draws what the engine draws, if its
    distribution is the model's (Daliri, Musco, Suresh, arXiv 2408.07978).
    """

    request_id: str
    tokens: Sequence[int]  # prompt and answer so far; only ever grows
    prompt_length: int
    limit: int  # maximum number of tokens, at least 1
    scope: str
    key: int  # of its noise, `sampling.answer_key`
    temperature: float  # 0: greedy, no noise
    hidden: Tensor | None = None  # (width,): the model's last hidden state, which gave the last token
    method: DraftMethod = "auto"  # the request's choice of drafters
    draft: str = DEFAULT_DRAFT  # name of its trained draft
    # its blocks of KV cache, for all tokens, of which all but the last are computed, and `limit`
    # drafted ones; none where a prompt is still being computed
    table: Sequence[int] = ()
    lora_id: int = 0  # number of its adapter; 0: none


@dataclass(frozen=True, slots=True)
class ComputedTokens:
    """Committed tokens of a sequence that a step of the model computed."""

    request_id: str
    tokens: Sequence[int]  # prompt and answer so far, at least one more than `end`
    prompt_length: int
    scope: str
    table: Sequence[int]
    start: int  # position of the first computed token
    end: int  # behind the last
    decoded: bool  # whether they are one token, else a prompt's chunk, before the accepted drafts
    streams: Tensor  # (end - start, layers, width): what enters those layers of the model


class TokenOrigin(NamedTuple):
    """The source of a drafted token, which learns its result, and the alternatives to it."""

    source: str
    cell: Hashable  # of the source's calibration
    fallback_token: int | None = None  # drafted here without costly sources
    # (source, cell, token) of less confidence; those learn as well: else they would only where they are sure
    losing_candidates: tuple[tuple[str, Hashable, int], ...] = ()


@dataclass(frozen=True, slots=True)
class Draft:
    """Tokens that may follow, with the chance of each that it and all before it are accepted."""

    tokens: tuple[int, ...] = ()
    cumulative_acceptance: tuple[float, ...] = ()  # as long as `tokens`, never rising
    origins: tuple[TokenOrigin, ...] = ()  # as long as `tokens`
    name: str = DEFAULT_DRAFT  # of the trained draft that may have contributed
    costly_key: Hashable | None = field(default=None, compare=False)  # of its drafters, if one is costly

    def compare(self, committed: Sequence[int]) -> tuple[float, int]:
        """Return the sum of the chances claimed for the tokens that `committed` ones judge, verified or not,
        and how many were right: up to the first wrong one, each given that all before it were right.
        """
        claimed, right, before = 0.0, 0, 1.0
        for token, actual, chance in zip(self.tokens, committed, self.cumulative_acceptance, strict=False):
            claimed += chance / before
            if token != actual:
                break
            right, before = right + 1, chance
        return claimed, right

    def drafted_without(self, source: str, length: int) -> int:
        """Count the tokens of other sources than that among the first `length`."""
        return sum(origin.source != source for origin in self.origins[:length])


class TokenCandidate(NamedTuple):
    """One drafter's next token for one draft."""

    token: int
    confidence: float  # calibrated chance that it is accepted if all before it are
    cell: Hashable
    rivals: tuple[tuple[Hashable, int], ...] = ()  # (cell, token) of its own that are less confident


class Drafter(ABC):
    """A source of drafts, with the measured acceptance of its tokens: counts in cells, shrunk to the claimed
    confidence. The drafts of a batch grow by a token of any drafter at a time.
    """

    name: str  # a method that a request may choose
    has_passes = False  # whether each token of a draft takes a pass of its own
    is_costly = False  # whether its time counts: it drafts only where that pays
    reads_hidden = False  # whether it reads the model's hidden rows
    follows = False  # whether it has a KV cache of its own, which `follow` keeps up with the model's
    stream_layers: tuple[int, ...] = ()  # layers of the model whose input it needs to `follow`
    version = ""  # of its weights

    def __init__(self) -> None:
        self._cells: dict[Hashable, tuple[float, float]] = {}  # accepted, seen

    @abstractmethod
    def begin(self, requests: Sequence[DraftRequest]) -> None:
        """Begin empty drafts for these requests: read their new tokens."""

    @abstractmethod
    def next_candidates(self, best_confidence: Sequence[float]) -> list[TokenCandidate | None]:
        """Return the next token for each draft; None where it has ended, or the drafter has none, or is
        costly and `best_confidence`, that of the other drafters, is high.
        """

    @abstractmethod
    def advance(self, tokens: Sequence[int | None]) -> None:
        """Append a token to each draft; None ends the draft."""

    def follow(self, computed: Sequence[ComputedTokens], layers: Sequence[int]) -> None:  # noqa: B027
        """Take note of what a step computed; `streams` have these `layers`, all that it needs among them."""

    def expect(self, request_id: str, tokens: Sequence[int]) -> None:  # noqa: B027  few drafters read texts
        """Take note of a request whose prompt is being computed; `tokens` only grow."""

    def bring(self, memories: Sequence[DraftMemory]) -> None:  # noqa: B027
        """Take note of the answers that the drafts in use brought, in place of those of drafts before."""

    @property
    def waiting(self) -> bool:
        """Whether there is something to `read`."""
        return False

    def read(self, _max_tokens: int) -> int:
        """Read up to so many tokens of prompts and finished answers; the number of tokens read."""
        return 0

    def finish(self, request_id: str, tokens: Sequence[int], prompt_length: int, scope: str) -> None:  # noqa: B027
        """Forget an ended request; `tokens`, empty unless it may be remembered, are prompt and answer."""

    def confidence(self, cell: Hashable, claim: float) -> float:
        """Return the posterior mean of the cell's acceptance under a beta prior around the claim."""
        accepted, seen = self._cells.get(cell, (0.0, 0.0))
        return (accepted + _PRIOR * claim) / (seen + _PRIOR)

    def learn(self, cell: Hashable, accepted: bool) -> None:
        """Learn the result of a candidate whose predecessors were all accepted."""
        hits, seen = self._cells.get(cell, (0.0, 0.0))
        scale = 0.5 if seen >= _FORGET_AT else 1.0
        self._cells[cell] = (hits * scale + accepted, seen * scale + 1.0)
