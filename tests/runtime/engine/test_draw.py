"""Noise and draws: the search finds what looking at every token does, and rows know nothing of each other."""

from __future__ import annotations

import math
from collections.abc import Sequence

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from turbo_runtime.messages import SamplingParams
from turbo_runtime.sampling.noise import (
    BLOCK,
    GOLDEN,
    MIX_1,
    MIX_2,
    Noise,
    answer_key,
    mix64,
    position_key,
    position_keys,
    signed,
    token_exponential,
)
from turbo_runtime.sampling.rows import GREEDY_BELOW, NOTHING, DrawnRows, Rule, rule_of
from turbo_runtime.sampling.search import SEARCH
from turbo_runtime.sampling.truncation import truncate

matrices = st.tuples(st.integers(1, 5), st.integers(1, 200), st.integers(0, 2**31)).map(
    lambda shape: (
        torch.randint(-40, 40, shape[:2], generator=torch.Generator().manual_seed(shape[2])).float() / 8
    )
)


def greedy(logits: torch.Tensor) -> list[int]:
    rows = DrawnRows()
    rows.add(0, len(logits), Rule())
    return SEARCH.draw(logits, rows, Noise(logits.shape[1])).tolist()


def sampled(
    logits: torch.Tensor, params: Sequence[SamplingParams], seed: int, positions: Sequence[int] = ()
) -> list[int]:
    positions = list(positions or range(len(logits)))
    rules = list(map(rule_of, params))
    rows = DrawnRows(list(range(len(logits))), rules, [signed(seed)] * len(logits), positions)
    return SEARCH.draw(logits, rows, Noise(logits.shape[1])).tolist()


@settings(max_examples=60, deadline=None)
@given(matrices, st.one_of(st.floats(0.02, 5.0), st.floats(1e-6, 1e-3)), st.integers(0, 2**64 - 1))
def test_the_search_by_blocks_finds_the_token_of_the_full_search(
    logits: torch.Tensor, temperature: float, seed: int
) -> None:
    noise, keys = Noise(logits.shape[1]), [position_key(seed, row) for row in range(len(logits))]
    every = torch.arange(logits.shape[1])
    scores = [
        row.double() / temperature + noise.gumbel(key, every) for row, key in zip(logits, keys, strict=True)
    ]
    expected = [int(score.argmax()) for score in scores]
    assert sampled(logits, [SamplingParams(temperature=temperature)] * len(logits), seed) == expected


def bits_before_mixing(mixed: int) -> int:
    """The inverse of `mix64`."""
    for shift, factor in ((31, MIX_2), (27, MIX_1), (30, 1)):
        bits = mixed
        while bits != (bits := mixed ^ (bits >> shift)):
            pass
        mixed = bits * pow(factor, -1, 1 << 64) % (1 << 64)
    return mixed


@pytest.mark.parametrize("offset", [0.0, 30.0, -1e4, 1e6, 1e30, -3e38])
@pytest.mark.parametrize("temperature", [GREEDY_BELOW, 0.3, 2.0])
def test_a_token_that_wins_by_a_rounding_is_found_whatever_the_noise_of_its_block(
    temperature: float, offset: float
) -> None:
    vocabulary, generator, wins = 8 * BLOCK, torch.Generator().manual_seed(2), 0
    noise, spread = Noise(vocabulary), max(temperature, abs(offset) * 1e-6)
    rests = [1, 2, 3, *(2**bits + more for bits in (5, 24, 30, 45, 52) for more in (-1, 0, 1)), 2**53]
    for token in (70, 5 * BLOCK):
        block, place = divmod(token, BLOCK)
        for rest in rests:  # 1 - u, in units of 2 ** -53
            state = bits_before_mixing((2**53 - rest) << 11 | place)
            key = (state + (block + 1) * GOLDEN) % 2**64
            seed = bits_before_mixing(key) ^ mix64(GOLDEN)
            gumbel = noise.gumbel(signed(key), torch.arange(vocabulary))
            row = offset - torch.rand(vocabulary, generator=generator) * spread
            others = torch.arange(vocabulary) != token
            rival = int(torch.where(others, gumbel, -math.inf).argmax())
            row[rival] = top = float(row.max())  # the best of the others, from which the search starts
            row[token] = min(top, top + float(gumbel[rival] - gumbel[token]) * temperature)
            for _ in range(3):
                scores = (row.double() - top) / temperature + gumbel
                params = SamplingParams(temperature=temperature)
                assert sampled(row[None], [params], seed, [0]) == [int(scores.argmax())]
                wins += int(scores.argmax()) == token
                row[token] = torch.nextafter(row[token], torch.tensor(top))
    assert wins > 5


@settings(max_examples=60, deadline=None)
@given(matrices, st.integers(0, 2**64 - 1))
def test_a_rows_token_does_not_depend_on_the_rows_beside_it(logits: torch.Tensor, seed: int) -> None:
    params = [SamplingParams(temperature=0.3 + 0.4 * row) for row in range(len(logits))]
    together = sampled(logits, params, seed)
    alone = [sampled(logits[i : i + 1], params[i : i + 1], seed, [i])[0] for i in range(len(logits))]
    assert together == alone


def test_noise_has_the_same_bits_for_one_position_and_for_many() -> None:
    noise = Noise(3001)
    keys = torch.tensor([position_key(9, position) for position in range(33)])
    minima, places = noise.block_minima(keys)
    for row in range(33):
        alone, place = noise.block_minima(keys[row : row + 1])
        assert torch.equal(alone[0], minima[row])
        assert torch.equal(place[0], places[row])
    every = noise.gumbel(int(keys[0]), torch.arange(3001))
    some = torch.tensor([0, 1, 63, 64, 777, 2999, 3000])
    assert torch.equal(noise.gumbel(int(keys[0]), some), every[some])


@pytest.mark.parametrize("count", [0, 1, 16, 17, 40])
def test_keys_of_many_positions_are_those_of_each(count: int) -> None:
    answers = [answer_key(seed, [5, seed], 1) for seed in range(count)]
    positions = [seed * seed for seed in range(count)]
    found = position_keys([signed(answer) for answer in answers], positions)
    assert found.tolist() == list(map(position_key, answers, positions))


def test_noise_of_one_token_without_tensors_is_the_same_to_within_rounding() -> None:
    noise = Noise(700)
    for key in (position_key(answer_key(1, [5], 0), 17), position_key(0, 0), -1):
        alone = [-math.log(token_exponential(key, token)) for token in range(700)]
        assert noise.gumbel(key, torch.arange(700)).tolist() == pytest.approx(alone, rel=1e-12, abs=1e-12)


def test_noise_is_gumbel_and_independent_within_blocks_across_them_and_along_positions() -> None:
    noise = Noise(4096)
    here, there = (noise.gumbel(position_key(3, position), torch.arange(4096)) for position in (7, 8))
    assert stats.kstest(here.tolist(), stats.gumbel_r.cdf).pvalue > 1e-3
    one = Noise(1)
    along = [float(one.gumbel(position_key(9, i), torch.tensor([0]))) for i in range(3000)]
    assert stats.kstest(along, stats.gumbel_r.cdf).pvalue > 1e-3
    for first, second in [(here, there), (here[:-1:2], here[1::2]), (here[:-BLOCK], here[BLOCK:])]:
        assert abs(float(stats.spearmanr(first.tolist(), second.tolist()).statistic)) < 0.06


def test_the_least_noise_of_a_block_falls_on_each_of_its_tokens_equally_often() -> None:
    noise = Noise(BLOCK)
    keys = torch.tensor([position_key(1, position) for position in range(64 * BLOCK)])
    minima, places = noise.block_minima(keys)
    assert stats.chisquare(torch.bincount(places[:, 0], minlength=BLOCK).tolist()).pvalue > 1e-3
    assert stats.kstest((minima[:, 0] * BLOCK).tolist(), "expon").pvalue > 1e-3
    # the two least of n: their difference is exponential of rate n - 1
    two = torch.stack([noise.gumbel(int(key), torch.arange(BLOCK)).topk(2).values for key in keys[:1000]])
    e = two.neg().exp()
    assert stats.kstest(((e[:, 1] - e[:, 0]) * (BLOCK - 1)).tolist(), "expon").pvalue > 1e-3


def test_another_seed_prompt_choice_or_position_has_noise_of_its_own() -> None:
    keys = {
        position_key(answer_key(seed, prompt, choice), position)
        for seed in (0, 1, (1 << 64) - 1)
        for prompt in ((1,), (2,), (1, 2), (2, 1))
        for choice in (0, 1)
        for position in (0, 1, 2)
    }
    assert len(keys) == 3 * 4 * 2 * 3


@settings(max_examples=60, deadline=None)
@given(matrices)
def test_at_temperature_0_the_lowest_id_of_the_highest_logits_is_drawn(logits: torch.Tensor) -> None:
    expected = [row.index(max(row)) for row in logits.tolist()]
    assert greedy(logits) == expected


@pytest.mark.parametrize("wrong", [-math.inf, math.nan])
def test_a_row_without_a_token_says_so_and_spoils_no_other(wrong: float) -> None:
    logits = torch.zeros(3, 130)
    logits[:, 77] = 9.0
    logits[1] = wrong
    assert greedy(logits) == [77, NOTHING, 77]
    assert sampled(logits, [SamplingParams(temperature=0.1)] * 3, 1) == [77, NOTHING, 77]


@pytest.mark.parametrize("wrong", [math.nan, math.inf])
@pytest.mark.parametrize("cut", [{}, {"top_k": 3}, {"top_p": 0.5}, {"min_p": 0.1}], ids=str)
def test_a_row_in_which_one_logit_is_no_number_has_no_token_under_any_key(
    wrong: float, cut: dict[str, float]
) -> None:
    row = torch.randn(300, generator=torch.Generator().manual_seed(4))
    row[5] = wrong
    assert greedy(row[None]) == [NOTHING]
    for seed in range(12):
        assert sampled(row[None], [SamplingParams(**cut)], seed) == [NOTHING]  # type: ignore[arg-type]


@pytest.mark.parametrize("depth", [3.0, 7.9, 8.1, 9.0, 14.0])
def test_top_p_counts_the_many_tokens_that_lie_far_below_the_likeliest(depth: float) -> None:
    vocabulary, params = 20_000, SamplingParams(temperature=1.0, top_p=0.9)
    row = -depth - torch.rand(vocabulary, generator=torch.Generator().manual_seed(6)) * 1e-3
    row[123] = 0.0
    kept = truncate(row, rule_of(params))
    assert (int((kept > -math.inf).sum()) > 1) == (depth < 14.0)
    for seed in range(40):
        expected = sampled(kept[None], [SamplingParams(temperature=1.0)], seed)
        assert sampled(row[None], [params], seed) == expected
