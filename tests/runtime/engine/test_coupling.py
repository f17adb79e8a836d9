"""Coupled verification and sampling: the stream is the engine's own for any drafts, and its law is right."""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Callable, Collection, Sequence
from fractions import Fraction

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from turbo_runtime.drafters.suffix import SuffixDrafter
from turbo_runtime.engine.request import SamplingParams
from turbo_runtime.engine.sampling import (
    NoiseSource,
    answer_key,
    greedy_tokens,
    kept_tokens,
    position_key,
    sampled_token,
)
from turbo_runtime.engine.verify import Verdict, verify

Verifier = Callable[..., Verdict]
VOCABULARY = 3
LENGTH = 4
STOP = 2


def stream(
    model: Callable[[tuple[int, ...]], int],
    verifier: Verifier,
    drafts: Callable[[tuple[int, ...]], Sequence[int]],
) -> tuple[int, ...]:
    """The answer of a deterministic model, step by step, each step with the drafts proposed for it."""
    answer: tuple[int, ...] = ()
    while True:
        proposed = list(drafts(answer))
        verdict = verifier(
            lambda row, context=answer, more=tuple(proposed): model(context + more[:row]),
            proposed,
            stop_ids={STOP},
            room=LENGTH - len(answer),
        )
        answer += verdict.tokens
        if verdict.finish_reason:
            return answer


def all_models() -> list[Callable[[tuple[int, ...]], int]]:
    """Every deterministic model whose token depends on the last token and the position's parity."""
    keys = list(itertools.product((None, 0, 1, 2), (0, 1)))
    tables = (
        dict(zip(keys, choice, strict=True))
        for choice in itertools.product(range(VOCABULARY), repeat=len(keys))
    )
    return [
        lambda context, table=table: table[(context[-1] if context else None, len(context) % 2)]
        for table in tables
    ]


MODELS = all_models()
DRAFTS = [draft for k in range(LENGTH) for draft in itertools.product(range(VOCABULARY), repeat=k)]


def differing(verifier: Verifier, models: Sequence[Callable[[tuple[int, ...]], int]]) -> int:
    """Of all models and all drafts, how many streams differ from the one without drafts."""
    count = 0
    for model in models:
        own = stream(model, verify, lambda _: ())
        count += sum(stream(model, verifier, lambda _, d=draft: d[:LENGTH]) != own for draft in DRAFTS)
    return count


def test_every_draft_on_every_model_of_a_tiny_vocabulary_gives_the_models_own_stream() -> None:
    assert differing(verify, MODELS[::7]) == 0


def accepts_one_too_many(token_at: Callable[[int], int], drafts: Sequence[int], **rest: object) -> Verdict:
    verdict = verify(token_at, drafts, **rest)  # type: ignore[arg-type]
    if verdict.finish_reason is None and verdict.accepted < len(drafts):
        return Verdict((*verdict.tokens[:-1], drafts[verdict.accepted]), verdict.accepted + 1)
    return verdict


def skips_the_correction(token_at: Callable[[int], int], drafts: Sequence[int], **rest: object) -> Verdict:
    verdict = verify(token_at, drafts, **rest)  # type: ignore[arg-type]
    if verdict.finish_reason is None and 0 < verdict.accepted < len(drafts):
        return Verdict((*verdict.tokens[:-1], token_at(verdict.accepted + 1)), verdict.accepted)
    return verdict


def runs_past_the_stop(
    token_at: Callable[[int], int], drafts: Sequence[int], *, stop_ids: Collection[int], room: int
) -> Verdict:
    verdict = verify(token_at, drafts, stop_ids=(), room=room)
    stopped = verdict.tokens[-1] in stop_ids
    return Verdict(verdict.tokens, verdict.accepted, "stop" if stopped else verdict.finish_reason)


@pytest.mark.parametrize("mutant", [accepts_one_too_many, skips_the_correction, runs_past_the_stop])
def test_a_broken_verifier_is_caught_by_the_same_comparison(mutant: Verifier) -> None:
    assert differing(mutant, MODELS[::97]) > 0


def test_the_law_is_exactly_the_models_own_on_all_paths() -> None:
    """Where noise picks each outcome of a rational law equally often, what is committed has that law."""
    # P(0 | context) = 1/2, P(1) = 1/3, P(2) = 1/6, as six equally likely values of the noise at each position
    outcome = (0, 0, 0, 1, 1, 2)
    noises = list(itertools.product(range(6), repeat=3))
    for draft in itertools.product(range(VOCABULARY), repeat=2):
        law: Counter[tuple[int, ...]] = Counter()
        for noise in noises:
            verdict = verify(lambda row, n=noise: outcome[n[row]], list(draft), stop_ids=(), room=3)
            tokens = list(verdict.tokens)
            tokens += [outcome[noise[position]] for position in range(len(tokens), 3)]
            law[tuple(tokens)] += 1
        chance = {0: Fraction(1, 2), 1: Fraction(1, 3), 2: Fraction(1, 6)}
        for path in itertools.product(range(VOCABULARY), repeat=3):
            assert Fraction(law[path], len(noises)) == chance[path[0]] * chance[path[1]] * chance[path[2]]


LOGITS = torch.tensor([2.0, 1.0, 0.5, 0.0, -1.0, -3.0, 1.0, 0.2])


@pytest.mark.parametrize(
    "params",
    [
        SamplingParams(temperature=1.0),
        SamplingParams(temperature=0.6),
        SamplingParams(temperature=1.7, top_k=4),
        SamplingParams(temperature=1.0, top_p=0.8),
        SamplingParams(temperature=1.3, top_k=6, top_p=0.9),
    ],
    ids=str,
)
def test_sampled_tokens_follow_the_law_that_was_asked_for(params: SamplingParams) -> None:
    noise = NoiseSource(len(LOGITS))
    key = answer_key(seed=11, prompt=(1, 2, 3), choice=0)
    draws = 6000
    seen = Counter(sampled_token(LOGITS, params, position_key(key, i), noise) for i in range(draws))
    kept = kept_tokens(LOGITS, params)
    law = torch.softmax(LOGITS[kept].double() / params.temperature, 0)
    assert set(seen) <= set(kept.tolist())
    observed = [seen[token] for token in kept.tolist()]
    assert stats.chisquare(observed, (law * draws).tolist()).pvalue > 1e-4


def test_drafting_for_a_known_law_changes_no_token_and_not_the_law() -> None:
    """The real drafter, verifier and sampler on a first-order law: k = 0's stream, with the right pairs."""
    table = torch.tensor(
        [[2.0, 0.0, -1.0, 0.5], [0.0, 2.5, 0.0, 0.0], [1.0, 1.0, 1.0, -2.0], [0.0, 0.0, 3.0, 0.0]]
    )
    noise, params = NoiseSource(4), SamplingParams(temperature=1.0)
    key, length = answer_key(5, (0,), 0), 4000

    def run(limit: int) -> tuple[list[int], int, int]:
        drafter, tokens, accepted, drafted = SuffixDrafter(), [0], 0, 0
        while len(tokens) <= length:
            drafts = drafter.propose("r", tokens, limit) if limit else []

            def token_at(row: int, drafts: list[int] = drafts) -> int:
                last = drafts[row - 1] if row else tokens[-1]
                return sampled_token(table[last], params, position_key(key, len(tokens) + row), noise)

            verdict = verify(token_at, drafts, stop_ids=(), room=length + 1 - len(tokens))
            tokens.extend(verdict.tokens)
            accepted, drafted = accepted + verdict.accepted, drafted + len(drafts)
        return tokens, accepted, drafted

    plain, _, _ = run(0)
    speculated, accepted, drafted = run(6)
    assert speculated == plain
    assert accepted > 200
    assert drafted - accepted > 200
    for last in range(4):
        after = Counter(b for a, b in itertools.pairwise(speculated) if a == last)
        total = sum(after.values())
        expected = torch.softmax(table[last].double(), 0) * total
        assert stats.chisquare([after[t] for t in range(4)], expected.tolist()).pvalue > 1e-4


rows = st.lists(st.integers(-40, 40), min_size=2, max_size=24).map(lambda row: torch.tensor(row) / 8)


@settings(max_examples=60)
@given(rows, st.floats(0.05, 3.0), st.integers(0, (1 << 64) - 1))
def test_the_screened_search_finds_the_token_of_the_full_one(
    row: torch.Tensor, temperature: float, key: int
) -> None:
    noise = NoiseSource(len(row))
    every = torch.arange(len(row))
    scores = row.double() / temperature + noise.gumbel(key, every)
    expected = int(scores.argmax())
    assert sampled_token(row, SamplingParams(temperature=temperature), key, noise) == expected


def test_equal_logits_fall_to_the_lowest_id_and_top_k_keeps_exactly_k() -> None:
    row = torch.tensor([1.0, 3.0, 3.0, 3.0, 0.0])
    assert greedy_tokens(row[None]) == [1]
    assert kept_tokens(row, SamplingParams(top_k=2)).tolist() == [1, 2]
    assert kept_tokens(row, SamplingParams(top_k=50)).tolist() == [0, 1, 2, 3, 4]
    assert kept_tokens(row, SamplingParams(top_p=1e-9)).tolist() == [1]
    assert kept_tokens(torch.zeros(4), SamplingParams(top_p=0.5)).tolist() == [0, 1]


@settings(max_examples=60)
@given(rows, st.integers(1, 24), st.floats(0.01, 0.999))
def test_what_top_p_keeps_is_the_shortest_head_that_holds_p(row: torch.Tensor, k: int, p: float) -> None:
    kept = kept_tokens(row, SamplingParams(top_k=k, top_p=p)).tolist()
    ranked = sorted(range(len(row)), key=lambda token: (-float(row[token]), token))[:k]
    weights = torch.softmax(row.double()[ranked], 0).tolist()
    assert sorted(kept) == sorted(ranked[: len(kept)])
    assert kept
    before_last = sum(weights[: len(kept) - 1])
    assert before_last < p + 1e-9
    if len(kept) < len(ranked):
        assert sum(weights[: len(kept)]) >= p - 1e-9


def test_another_seed_prompt_choice_or_position_has_noise_of_its_own() -> None:
    keys = {
        position_key(answer_key(seed, prompt, choice), position)
        for seed in (0, 1, (1 << 64) - 1)
        for prompt in ((1,), (2,), (1, 2), (2, 1))
        for choice in (0, 1)
        for position in (0, 1, 2)
    }
    assert len(keys) == 3 * 4 * 2 * 3


def test_uniforms_of_one_position_and_of_one_token_are_uniform_and_uncorrelated() -> None:
    noise = NoiseSource(4096)
    here, there = (
        noise.bits(position_key(3, 7)).double() / 2**53,
        noise.bits(position_key(3, 8)).double() / 2**53,
    )
    assert stats.kstest(here.tolist(), "uniform").pvalue > 1e-3
    assert abs(float(torch.corrcoef(torch.stack([here, there]))[0, 1])) < 0.06
    one = NoiseSource(1)
    along = [float(one.bits(position_key(9, position))) / 2**53 for position in range(4096)]
    assert stats.kstest(along, "uniform").pvalue > 1e-3
