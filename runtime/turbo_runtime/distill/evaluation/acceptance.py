"""What drafts of heads would have brought to answers that nothing was learnt from."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor

from turbo_runtime.distill.data.responses import Completion
from turbo_runtime.drafters.heads.drafter import HeadsDrafter
from turbo_runtime.drafters.interface import Coupling, DraftRequest
from turbo_runtime.sampling.noise import answer_key

_AT_ONCE = 256  # places drafted for together


@dataclass(frozen=True, slots=True)
class Evaluation:
    """Of some answers. Their first tokens come with their prompts and their last ones without a draft, as the
    token that every verification has for nothing: neither is drafted.
    """

    answers: int
    tokens: int
    acceptance_per_position: tuple[float, ...]  # that a draft's token there is right, all before it being so
    acceptance_length: float | None  # tokens of a verification of all heads' drafts, its own one included


def evaluate(said: Sequence[Completion], taken: Sequence[Sequence[int]], heads: int) -> Evaluation:
    """`taken`: for each answer, how many of the tokens drafted behind each of its tokens but the last would
    be accepted.
    """
    reached, right = [0] * heads, [0] * heads
    verifications = committed = 0
    for counts in taken:
        at = 0
        while at < len(counts):  # as decoding goes: the next draft begins behind what was accepted
            accepted, rest = counts[at], len(counts) - at  # of tokens that are still to come
            for position in range(min(heads, rest - 1, accepted + 1)):
                reached[position] += 1
                right[position] += position < accepted
            committed += accepted + 1
            verifications += 1
            at += accepted + 1
    return Evaluation(
        len(said),
        sum(len(one.tokens) for one in said),
        tuple(r / n if n else 0.0 for r, n in zip(right, reached, strict=True)),
        committed / verifications if verifications else None,
    )


def taken_of(said: Completion, states: Tensor, source: HeadsDrafter) -> list[int]:
    """How many tokens drafted behind each token of the answer but its last are the answer's own; drafts are
    made by the drafter that serves, with the noise that the answer was drawn with. `states`
    (tokens, width): those that the answer's tokens were drawn from.
    """
    asked = said.asked
    prompt = asked.prompt
    coupling = Coupling(answer_key(asked.seed, prompt, asked.choice), asked.temperature)
    text = (*prompt, *said.tokens)
    counts: list[int] = []
    for first in range(0, len(said.tokens) - 1, _AT_ONCE):
        places = range(first, min(first + _AT_ONCE, len(said.tokens) - 1))
        wants = [
            DraftRequest("", text[: len(prompt) + at + 1], len(prompt), len(text), "", coupling, states[at])
            for at in places
        ]
        counts += _accepted(source, wants, text)
    return counts


def _accepted(source: HeadsDrafter, wants: Sequence[DraftRequest], text: Sequence[int]) -> list[int]:
    """How far each draft goes as the text does, its last token left out."""
    proposal = source.begin(wants)
    grown = [0] * len(wants)
    live = [True] * len(wants)
    while any(live):
        right: list[int | None] = []
        for index, (want, offer) in enumerate(
            zip(wants, proposal.next_candidates([0.0] * len(wants)), strict=True)
        ):
            at = len(want.tokens) + grown[index]
            live[index] &= offer is not None and at < len(text) - 1 and offer.token == text[at]
            grown[index] += live[index]
            right.append(offer.token if offer is not None and live[index] else None)
        proposal.advance(right)
    return grown
