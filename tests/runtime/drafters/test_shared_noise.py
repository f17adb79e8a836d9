"""Sampled requests share their noise with the suffix drafter: drafts are accepted more, and nothing else."""

from __future__ import annotations

from dataclasses import dataclass

import pytest
import torch
from torch import Tensor

from turbo_runtime.drafters.interface import Draft, DraftRequest
from turbo_runtime.drafters.proposer import Proposer
from turbo_runtime.messages import SamplingParams
from turbo_runtime.sampling.noise import Noise, answer_key
from turbo_runtime.sampling.sampler import AnswerRows, Sampler, tokens_of_step
from turbo_runtime.speculation.verification import verify

WORDS = 2000  # of which one comes at random, then `THEN`, then one of `ENDS` by their chances
THEN = WORDS
ENDS = range(WORDS + 1, WORDS + 6)
CHANCES = torch.tensor([0.3, 0.25, 0.2, 0.15, 0.1])
VOCABULARY = WORDS + 6
NOISE = Noise(VOCABULARY)
UNITS = 300


def row(last: int, temperature: float) -> Tensor:
    """Logits whose law at that temperature is the one above."""
    logits = torch.full((VOCABULARY,), -torch.inf)
    if last < WORDS:
        logits[THEN] = 0.0
    elif last == THEN:
        logits[ENDS.start :] = temperature * CHANCES.log()
    else:
        logits[:WORDS] = 0.0
    return logits


@dataclass
class Fared:
    """An answer, and what became of the drafts of its ends in the second half."""

    tokens: list[int]
    ends: int = 0
    accepted: int = 0
    expected: float = 0.0  # of them, by what the drafts say of themselves


def run(temperature: float, drafted_with: tuple[int, float] | None) -> Fared:
    """Through the real drafter, noise, law and verifier; one draft a step, or none."""
    drafters = Proposer()
    law = Sampler(SamplingParams(temperature=temperature), (ENDS[0],), answer_key(5, (ENDS[0],), 0), NOISE)
    fared = Fared([ENDS[0]])
    while len(fared.tokens) < 3 * UNITS:
        tokens, draft = fared.tokens, Draft()
        if drafted_with is not None:
            (draft,) = drafters.propose([DraftRequest("r", tokens, 1, 1, "", *drafted_with)])
        rows = torch.stack([row(last, temperature) for last in (tokens[-1], *draft.tokens)])
        (token_at,) = tokens_of_step(rows, [AnswerRows(law, tokens, list(draft.tokens), 0)], NOISE)
        verdict = verify(token_at, draft.tokens, stop_ids=(), room=1)
        drafters.observe(draft, verdict.tokens)
        if tokens[-1] == THEN and len(tokens) > 3 * UNITS / 2:
            fared.ends += 1
            fared.accepted += verdict.accepted
            fared.expected += sum(draft.cumulative_acceptance)
        tokens.extend(verdict.tokens)
    return fared


@pytest.mark.parametrize("temperature", [0.5, 1.0])
def test_with_its_noise_a_sampled_request_accepts_far_more_and_says_the_same(temperature: float) -> None:
    key = answer_key(5, (ENDS[0],), 0)
    alone = run(temperature, None)
    shared = run(temperature, (key, temperature))
    others = run(temperature, (key + 1, temperature))
    frequent = run(temperature, (key, 0.0))
    assert alone.tokens == shared.tokens == others.tokens == frequent.tokens
    assert shared.accepted > 0.75 * shared.ends
    assert frequent.accepted < 0.45 * frequent.ends
    assert others.accepted < 0.45 * others.ends


def test_survival_is_that_of_what_is_proposed() -> None:
    fared = run(1.0, (answer_key(5, (ENDS[0],), 0), 1.0))
    assert fared.expected == pytest.approx(fared.accepted, abs=0.1 * fared.ends)


def test_a_greedy_request_is_proposed_what_followed_most_often() -> None:
    text = [20, 1, 7, 21, 1, 8, 22, 1, 8, 23, 1]
    for key in range(20):
        (draft,) = Proposer().propose([DraftRequest("r", text, 1, 1, "", key, 0.0)])
        assert draft.tokens == (8,)
    drawn = {
        Proposer().propose([DraftRequest("r", [*text], 1, 1, "", key, 1.0)])[0].tokens for key in range(40)
    }
    assert drawn == {(7,), (8,)}
