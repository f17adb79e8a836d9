"""What passes between the engine and its drafters: plain data, and the verbs of a source of drafts.

A drafter may look at anything and be wrong at will: what the engine commits does not depend on it (see
`engine/verify.py`). It says how sure it is, and the engine decides how much of it is worth verifying.
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, NamedTuple, Protocol

from turbo_runtime.messages import DEFAULT_DRAFT, Drafting

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True, slots=True)
class Coupling:
    """The noise of an answer: what is drafted with it is what the engine's own draw would be, were the
    drafter's law the model's (Daliri, Musco, Suresh, arXiv 2408.07978).
    """

    key: int  # the answer's, `sampling.answer_key`
    temperature: float  # 0: greedy, no noise


@dataclass(frozen=True, slots=True)
class DraftRequest:
    """One sequence that drafts are wanted for."""

    request_id: str
    tokens: Sequence[int]  # prompt and answer so far; only ever grows
    prompt_length: int
    limit: int  # most tokens to draft, at least 1
    scope: str
    coupling: Coupling
    hidden: Tensor | None = None  # (width,): the model's last hidden state that the last token was drawn from
    drafting: Drafting = "auto"  # what the request asks for
    name: str = DEFAULT_DRAFT  # of the trained draft it chose


class LosingCandidate(NamedTuple):
    """A token that another one was surer of."""

    source: str
    cell: Hashable
    token: int


class TokenOrigin(NamedTuple):
    """What a drafted token's confidence came from, so that its source learns what became of it; and what
    else there was in its place.
    """

    source: str
    cell: Hashable  # of the source's calibration
    instead: int | None = None  # the token drafted here without sources that take time; None: there is none
    outbid: tuple[
        LosingCandidate, ...
    ] = ()  # whose sources learn as well: else they would learn where they are sure


@dataclass(frozen=True, slots=True)
class Draft:
    """Tokens that may follow, and for each the chance that it and all before it are accepted."""

    tokens: tuple[int, ...] = ()
    survival: tuple[float, ...] = ()  # as long as `tokens`, never rising
    evidence: tuple[TokenOrigin, ...] = ()  # as long as `tokens`
    name: str = DEFAULT_DRAFT  # of the trained draft that was asked, perhaps beside others

    @property
    def drafter(self) -> str:
        """Who proposed it, a label of metrics: a source's name, "hybrid" of several, "" of none."""
        names = {evidence.source for evidence in self.evidence}
        return names.pop() if len(names) == 1 else "hybrid" if names else ""

    def drafted_by(self, source: str, length: int) -> int:
        """How many of the first `length` tokens are that source's."""
        return sum(evidence.source == source for evidence in self.evidence[:length])

    def cut(self, length: int) -> Draft:
        """The first `length` tokens of it."""
        if length >= len(self.tokens):
            return self
        return replace(
            self,
            tokens=self.tokens[:length],
            survival=self.survival[:length],
            evidence=self.evidence[:length],
        )


class TokenCandidate(NamedTuple):
    """One source's next token for one want."""

    token: int
    confidence: float  # calibrated chance that it is accepted if all before it are
    cell: Hashable


class CandidateStream(Protocol):
    """One source's part in the drafts of a batch, which grow by a token of whichever source at a time."""

    def offers(self, beside: Sequence[float], /) -> list[TokenCandidate | None]:
        """The next token for each want; None where the source knows nothing or the want's draft has ended.
        `beside`: for each want how sure others are of theirs; where that can hardly be more, a source that
        takes time may keep silent.
        """

    def advance(self, tokens: Sequence[int | None]) -> None:
        """The token that each draft got; None ends the draft."""


class Drafter(Protocol):
    """Where drafts come from."""

    name: str
    takes_time: bool  # more than next to none

    def begin(self, wants: Sequence[DraftRequest]) -> CandidateStream:
        """Read what is new in each want."""

    def learn(self, cell: Hashable, accepted: bool) -> None:
        """What became of a token offered, all before it having been accepted."""

    def finish(self, request_id: str, tokens: Sequence[int], prompt_length: int, scope: str) -> None:
        """The request ended, with an answer or without: what it held is let go."""
