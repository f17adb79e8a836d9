"""Coupled verification: with any drafts the engine's own stream and exactly its law. Every proof here catches
three broken verifiers.
"""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from fractions import Fraction
from functools import partial

import pytest
import torch
from scipy import stats

from turbo_runtime.drafters.draft import Coupling, Draft, Want
from turbo_runtime.drafters.drafters import Drafters
from turbo_runtime.engine.request import SamplingParams
from turbo_runtime.engine.sampling.answer import AnswerLaw
from turbo_runtime.engine.sampling.noise import Noise, answer_key, position_key
from turbo_runtime.engine.sampling.step import AnswerRows, TokenAt, tokens_of_step
from turbo_runtime.engine.verify import Verdict, verify

Verifier = Callable[..., Verdict]


def accepts_without_comparing(
    token_at: TokenAt, drafts: Sequence[int], *, stop_ids: Collection[int], room: int
) -> Verdict:
    """Takes the drafts for right, the token behind them for the bonus."""
    del stop_ids
    tokens = (*drafts, token_at(len(drafts)))[:room]
    return Verdict(tokens, min(len(drafts), room), "length" if len(tokens) == room else None)


def skips_the_correction(token_at: TokenAt, drafts: Sequence[int], **rest: object) -> Verdict:
    """Where a draft is wrong, says what the row behind the wrong draft says."""
    verdict = verify(token_at, drafts, **rest)  # type: ignore[arg-type]
    if verdict.accepted == len(drafts):
        return verdict
    return Verdict(
        (*verdict.tokens[:-1], token_at(verdict.accepted + 1)), verdict.accepted, verdict.finish_reason
    )


def reuses_the_row_before(token_at: TokenAt, drafts: Sequence[int], **rest: object) -> Verdict:
    """Off by one: row and noise of the position before, where there is one."""
    return verify(lambda row: token_at(max(0, row - 1)), drafts, **rest)  # type: ignore[arg-type]


MUTANTS = [accepts_without_comparing, skips_the_correction, reuses_the_row_before]

# -- every stream -----------------------------------------------------------------------------------------

LENGTH = 4
STOP = 2
Model = Callable[[tuple[int, ...]], int]


def stream(model: Model, verifier: Verifier, draft: Sequence[int]) -> tuple[int, ...]:
    """The answer of a deterministic model, step by step, each step with this draft."""
    answer: tuple[int, ...] = ()
    while True:
        verdict = verifier(
            lambda row, context=answer: model(context + tuple(draft[:row])),
            draft,
            stop_ids={STOP},
            room=LENGTH - len(answer),
        )
        answer += verdict.tokens
        if verdict.finish_reason:
            return answer


def all_models() -> list[Model]:
    """Every deterministic model whose token depends on the last token and the position's parity."""
    keys = list(itertools.product((None, 0, 1, 2), (0, 1)))
    tables = (
        dict(zip(keys, choice, strict=True)) for choice in itertools.product(range(3), repeat=len(keys))
    )
    return [
        lambda context, table=table: table[(context[-1] if context else None, len(context) % 2)]
        for table in tables
    ]


MODELS = all_models()
DRAFTS = [draft for k in range(LENGTH) for draft in itertools.product(range(3), repeat=k)]


def differing(verifier: Verifier, models: Sequence[Model]) -> int:
    """Of all models and all drafts, how many streams differ from the one without drafts."""
    own = [stream(model, verify, ()) for model in models]
    return sum(
        stream(model, verifier, draft) != said
        for model, said in zip(models, own, strict=True)
        for draft in DRAFTS
    )


def test_every_draft_on_every_model_of_a_tiny_vocabulary_gives_the_models_own_stream() -> None:
    assert differing(verify, MODELS[::7]) == 0


@pytest.mark.parametrize("mutant", MUTANTS)
def test_a_broken_verifier_gives_other_streams(mutant: Verifier) -> None:
    assert differing(mutant, MODELS[::97]) > 0


# -- the exact law ----------------------------------------------------------------------------------------

# P(0), P(1), P(2) after each token, as six equally likely values of the noise of a position
OUTCOMES = {None: (0, 0, 0, 1, 1, 2), 0: (0, 1, 1, 1, 2, 2), 1: (0, 0, 1, 2, 2, 2), 2: (0, 0, 0, 0, 1, 2)}
PATHS = list(itertools.product(range(3), repeat=3))


SHORT_DRAFTS = [draft for draft in DRAFTS if len(draft) < 3]


def noisy_token(noise: Sequence[int], answer: tuple[int, ...], drafts: tuple[int, ...], row: int) -> int:
    context = answer + drafts[:row]
    return OUTCOMES[context[-1] if context else None][noise[len(context)]]


def exact_law(verifier: Verifier, draft: Sequence[int]) -> dict[tuple[int, ...], Fraction]:
    """The chance of each three tokens: all noises of three positions, the first step with `draft`."""
    counts: Counter[tuple[int, ...]] = Counter()
    noises = list(itertools.product(range(6), repeat=3))
    for noise in noises:
        answer: tuple[int, ...] = ()
        guess = tuple(draft)
        while len(answer) < 3:
            token_at = partial(noisy_token, noise, answer, guess)
            answer += verifier(token_at, guess, stop_ids=(), room=3 - len(answer)).tokens
            guess = ()
        counts[answer] += 1
    return {path: Fraction(counts[path], len(noises)) for path in PATHS}


def own_law() -> dict[tuple[int, ...], Fraction]:
    def chance(last: int | None, token: int) -> Fraction:
        return Fraction(OUTCOMES[last].count(token), 6)

    return {(a, b, c): chance(None, a) * chance(a, b) * chance(b, c) for a, b, c in PATHS}


def test_the_law_is_exactly_the_models_own_on_all_paths_under_every_draft() -> None:
    for draft in SHORT_DRAFTS:
        assert exact_law(verify, draft) == own_law()


@pytest.mark.parametrize("mutant", MUTANTS)
def test_a_broken_verifier_has_another_law_by_exact_count(mutant: Verifier) -> None:
    assert any(exact_law(mutant, draft) != own_law() for draft in SHORT_DRAFTS)


# -- the sampled law --------------------------------------------------------------------------------------

TABLE = torch.tensor(
    [[2.0, 0.0, -1.0, 0.5], [0.0, 1.5, 0.0, 0.0], [1.0, 1.0, 1.0, -2.0], [0.0, 0.0, 2.0, 0.0]]
)


@dataclass
class Sampled:
    """A long answer of the first-order law of TABLE, and how its drafts fared."""

    tokens: list[int]
    accepted: int = 0
    drafted: int = 0


def sample(verifier: Verifier, limit: int, params: SamplingParams, length: int = 3000) -> Sampled:
    """Through the real drafter, noise, law and rows."""
    noise, drafters = Noise(len(TABLE)), Drafters()
    law = AnswerLaw(params, (0,), answer_key(5, (0,), 0), noise)
    coupling = Coupling(law.key, params.temperature)
    result = Sampled([0])
    while len(result.tokens) <= length:
        tokens = result.tokens
        draft = Draft()
        if limit:
            (draft,) = drafters.propose([Want("r", tokens, 1, limit, "", coupling)])
        drafts = list(draft.tokens)
        rows = TABLE[torch.tensor([tokens[-1], *drafts])]
        (token_at,) = tokens_of_step(rows, [AnswerRows(law, tokens, drafts, 0)], noise)
        verdict = verifier(token_at, drafts, stop_ids=(), room=length + 1 - len(tokens))
        drafters.observe(draft, verdict.tokens)
        tokens.extend(verdict.tokens)
        result.accepted += verdict.accepted
        result.drafted += len(drafts)
    return result


def least_p_value(tokens: Sequence[int], temperature: float) -> float:
    """Of chi-square tests of what followed each token, and of each pair of tokens in turn."""
    found = []
    for last in range(4):
        after = Counter(b for a, b in itertools.pairwise(tokens) if a == last)
        law = torch.softmax(TABLE[last].double() / temperature, 0)
        found.append(stats.chisquare([after[t] for t in range(4)], (law * after.total()).tolist()).pvalue)
    return float(min(found))


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
    law = AnswerLaw(params, (1, 2), answer_key(11, (1, 2), 0), noise)
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
    law = AnswerLaw(SamplingParams(), (1,), key, noise)
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
    assert verdict == Verdict((5, 2), 2, "stop")


def test_an_answer_gets_no_token_beyond_its_room() -> None:
    assert verify([5, 4, 6, 7].__getitem__, [5, 4, 6], stop_ids=(), room=2) == Verdict((5, 4), 2, "length")
    with pytest.raises(ValueError, match="finished already"):
        verify([1].__getitem__, [], stop_ids=(), room=0)
