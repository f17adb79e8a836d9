"""What passes between the engine and a drafter: plain data, and two verbs.

A drafter may look at anything and be wrong at will: what the engine commits does not depend on it (see
`engine/verify.py`). It says how sure it is, and the engine decides how much of it is worth verifying.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

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
class Want:
    """One sequence that drafts are wanted for."""

    request_id: str
    tokens: Sequence[int]  # prompt and answer so far; only ever grows
    prompt_length: int
    limit: int  # most tokens to draft, at least 1
    tenant: str
    coupling: Coupling
    hidden: Tensor | None = None  # (width,): the model's last hidden state that the last token was drawn from


@dataclass(frozen=True, slots=True)
class Draft:
    """Tokens that may follow, and for each the chance that it and all before it are accepted."""

    tokens: tuple[int, ...] = ()
    survival: tuple[float, ...] = ()  # as long as `tokens`, never rising
    drafter: str = ""  # who proposed it: a label of metrics


class Drafter(Protocol):
    """Proposes for a whole batch, and learns from answers."""

    def propose(self, wants: Sequence[Want]) -> list[Draft]:
        """One draft for each want, perhaps an empty one."""

    def observe(self, want: Want, draft: Draft, accepted: int) -> None:
        """What became of a draft, as far as it was verified."""

    def finish(self, request_id: str, tokens: Sequence[int], prompt_length: int, tenant: str) -> None:
        """The request ended, with an answer or without: what it held is let go."""
