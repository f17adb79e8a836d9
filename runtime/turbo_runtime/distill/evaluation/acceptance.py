"""What drafts would bring to responses that nothing was learnt from."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor

from turbo_runtime.distill.data.responses import Completion
from turbo_runtime.drafters.heads.drafter import HeadsDrafter
from turbo_runtime.drafters.interface import Coupling, DraftRequest
from turbo_runtime.sampling.noise import answer_key

_BATCH = 256  # positions drafted for together


@dataclass(frozen=True, slots=True)
class Evaluation:
    """Acceptance over some responses. A response's first token comes with its prompt and its last one without
    a draft, as the token that every verification adds: neither is drafted.
    """

    answers: int
    tokens: int
    acceptance_per_position: tuple[float, ...]  # of a draft's token, all before it being right
    acceptance_length: float | None  # tokens of a verification of whole drafts, its own one included


def evaluate(pairs: Sequence[tuple[Completion, Sequence[int]]], heads: int) -> Evaluation:
    """Evaluate responses, each with the number of tokens drafted behind each of its tokens but the last that
    would be accepted.
    """
    reached, right = [0] * heads, [0] * heads
    verifications = committed = 0
    for _, counts in pairs:
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
        len(pairs),
        sum(len(completion.tokens) for completion, _ in pairs),
        tuple(r / n if n else 0.0 for r, n in zip(right, reached, strict=True)),
        committed / verifications if verifications else None,
    )


def count_accepted(completion: Completion, states: Tensor, drafter: HeadsDrafter) -> list[int]:
    """Count the right tokens of a draft behind each token of the response but the last, made by the drafter
    that serves with the noise that the response was drawn with. `states` (tokens, width): those that its
    tokens were drawn from.
    """
    asked = completion.asked
    prompt = asked.prompt
    coupling = Coupling(answer_key(asked.seed, prompt, asked.choice), asked.temperature)
    text = (*prompt, *completion.tokens)
    counts: list[int] = []
    for first in range(0, len(completion.tokens) - 1, _BATCH):
        positions = range(first, min(first + _BATCH, len(completion.tokens) - 1))
        requests = [
            DraftRequest("", text[: len(prompt) + at + 1], len(prompt), len(text), "", coupling, states[at])
            for at in positions
        ]
        counts += _draft_along(drafter, requests, text)
    return counts


def _draft_along(drafter: HeadsDrafter, requests: Sequence[DraftRequest], text: Sequence[int]) -> list[int]:
    """Count how far each draft goes as the text does, whose last token is left out."""
    drafter.begin(requests)
    lengths = [0] * len(requests)
    live = [True] * len(requests)
    while any(live):
        right: list[int | None] = []
        offers = drafter.next_candidates([0.0] * len(requests))
        for index, (request, offer) in enumerate(zip(requests, offers, strict=True)):
            at = len(request.tokens) + lengths[index]
            live[index] &= offer is not None and at < len(text) - 1 and offer.token == text[at]
            lengths[index] += live[index]
            right.append(offer.token if offer is not None and live[index] else None)
        drafter.advance(right)
    return lengths
