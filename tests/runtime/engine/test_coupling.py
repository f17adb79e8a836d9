"""Coupled verification: with any drafts the engine's own stream and exactly its law. Every proof here catches
three broken verifiers.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

import pytest
import torch
from scipy import stats

from turbo_dev.coupling import (
    MUTANTS,
    SHORT_DRAFTS,
    Verifier,
    all_models,
    differing,
    exact_law,
    least_p_value,
    own_law,
    sample,
)
from turbo_runtime.messages import SamplingParams
from turbo_runtime.sampling.noise import Noise, answer_key, position_key
from turbo_runtime.sampling.sampler import Sampler
from turbo_runtime.speculation.verification import VerificationResult, verify

MODELS = all_models()

# -- every stream -----------------------------------------------------------------------------------------


def test_every_draft_on_every_model_of_a_tiny_vocabulary_gives_the_models_own_stream() -> None:
    assert differing(verify, MODELS[::7]) == 0


@pytest.mark.parametrize("mutant", MUTANTS)
def test_a_broken_verifier_gives_other_streams(mutant: Verifier) -> None:
    assert differing(mutant, MODELS[::97]) > 0


# -- the exact law ----------------------------------------------------------------------------------------


def test_the_law_is_exactly_the_models_own_on_all_paths_under_every_draft() -> None:
    for draft in SHORT_DRAFTS:
        assert exact_law(verify, draft) == own_law()


@pytest.mark.parametrize("mutant", MUTANTS)
def test_a_broken_verifier_has_another_law_by_exact_count(mutant: Verifier) -> None:
    assert any(exact_law(mutant, draft) != own_law() for draft in SHORT_DRAFTS)


# -- the sampled law --------------------------------------------------------------------------------------


@pytest.mark.parametrize("temperature", [1.0, 1.6])
def test_sampled_tokens_follow_the_law_with_drafts_as_without(temperature: float) -> None:
    params = SamplingParams(temperature=temperature)
    plain, speculated = sample(verify, 0, params), sample(verify, 6, params)
    assert speculated.tokens == plain.tokens
    assert speculated.accepted > 200
    assert speculated.drafted - speculated.accepted > 200
    assert least_p_value(speculated.tokens, temperature) > 1e-4


@pytest.mark.parametrize("mutant", MUTANTS)
def test_a_broken_verifier_is_caught_by_the_chi_square_test(mutant: Verifier) -> None:
    assert least_p_value(sample(mutant, 6, SamplingParams()).tokens, 1.0) < 1e-6


LOGITS = torch.tensor([2.0, 1.0, 0.5, 0.0, -1.0, -3.0, 1.0, 0.2])


@pytest.mark.parametrize(
    ("params", "kept"),
    [
        (SamplingParams(temperature=1.0), range(8)),
        (SamplingParams(temperature=0.6), range(8)),
        (SamplingParams(temperature=1.7, top_k=4), (0, 1, 2, 6)),
        (SamplingParams(temperature=1.0, top_p=0.8), (0, 1, 2, 6)),
        (SamplingParams(temperature=1.0, min_p=0.2), (0, 1, 2, 6)),
        (SamplingParams(temperature=1.3, top_k=6, top_p=0.6), (0, 1, 6)),
        (SamplingParams(temperature=1.0, logit_bias=((0, -2.0), (5, 4.0)), bad_words=((1,),)), None),
    ],
    ids=str,
)
def test_draws_of_one_row_follow_the_law_that_was_asked_for(
    params: SamplingParams, kept: Sequence[int] | None
) -> None:
    noise, draws = Noise(len(LOGITS)), 2000
    law = Sampler(params, (1, 2), answer_key(11, (1, 2), 0), noise)
    seen = Counter(law.token(LOGITS, range(2 + i)) for i in range(draws))
    row = LOGITS.double()
    if kept is None:
        row, kept = torch.tensor([0.0, 0.5, 0.0, -1.0, 1.0, 1.0, 0.2]).double(), (0, 2, 3, 4, 5, 6, 7)
    else:
        row = row[list(kept)]
    chances = torch.softmax(row / params.temperature, 0)
    assert set(seen) <= set(kept)
    assert stats.chisquare([seen[t] for t in kept], (chances * draws).tolist()).pvalue > 1e-4


# -- drafters that share the noise ------------------------------------------------------------------------


def accepted(drafter_law: torch.Tensor, coupled: bool, steps: int = 1500) -> float:
    """Share of single drafts accepted under LOGITS: argmax(log q + g) of this q, or a draw of other noise."""
    noise, key = Noise(len(LOGITS)), answer_key(3, (1,), 0)
    law = Sampler(SamplingParams(), (1,), key, noise)
    drafted_from = key if coupled else answer_key(4, (1,), 0)
    hits = 0
    for position in range(1, steps + 1):
        g = noise.gumbel(position_key(drafted_from, position), torch.arange(len(LOGITS)))
        draft = int((drafter_law + g).argmax())
        verdict = verify(
            lambda row, at=position: law.token(LOGITS, range(at + row)), [draft], stop_ids=(), room=1
        )
        hits += verdict.accepted
    return hits / steps


def test_a_drafter_that_shares_law_and_noise_is_always_right_and_a_near_one_nearly() -> None:
    near = LOGITS + torch.tensor([0.3, -0.3, 0.2, 0.0, 0.4, -0.2, -0.4, 0.1])
    assert accepted(LOGITS, coupled=True) == 1.0
    p, q = torch.softmax(LOGITS, 0), torch.softmax(near, 0)
    distance = float((p - q).abs().sum()) / 2
    assert accepted(near, coupled=True) > (1 - distance) / (1 + distance) - 0.03  # the coupling's own bound
    assert accepted(near, coupled=False) < 0.5


# -- endings ----------------------------------------------------------------------------------------------


def test_a_stop_token_ends_the_answer_though_more_drafts_were_right() -> None:
    verdict = verify([5, 2, 6, 7].__getitem__, [5, 2, 6], stop_ids={2}, room=9)
    assert verdict == VerificationResult((5, 2), 2, "stop")


def test_an_answer_gets_no_token_beyond_its_room() -> None:
    assert verify([5, 4, 6, 7].__getitem__, [5, 4, 6], stop_ids=(), room=2) == VerificationResult(
        (5, 4), 2, "length"
    )
    with pytest.raises(ValueError, match="finished already"):
        verify([1].__getitem__, [], stop_ids=(), room=0)
