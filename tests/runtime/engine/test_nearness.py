"""Near-ties: what rounding can turn a token into is let pass, and nothing else."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from turbo_runtime.messages import SamplingParams
from turbo_runtime.sampling.noise import Noise, answer_key
from turbo_runtime.sampling.sampler import Sampler

VOCABULARY = 300
CONTEXT = (5, 6, 7, 5, 8)
OFF = 0.05
LAWS = (
    SamplingParams(temperature=0.0),
    SamplingParams(temperature=1.0),
    SamplingParams(temperature=0.2),
    SamplingParams(temperature=1.5, top_k=5),
    SamplingParams(temperature=1.5, top_k=1),
    SamplingParams(temperature=1.0, top_p=0.7),
    SamplingParams(temperature=1.0, top_p=0.02),
    SamplingParams(temperature=1.2, min_p=0.2),
    SamplingParams(temperature=1.0, min_p=0.05, top_k=12, top_p=0.9),
    SamplingParams(temperature=0.8, repetition_penalty=2.0, presence_penalty=0.5, logit_bias=((9, 2.0),)),
)


def law(params: SamplingParams, seed: int) -> Sampler:
    return Sampler(replace(params, seed=seed), CONTEXT[:2], answer_key(seed, CONTEXT[:2], 0), NOISE)


NOISE = Noise(VOCABULARY)


def row(seed: int, spread: float = 2.0) -> tuple[Tensor, Tensor]:
    """Logits, and others that differ from them by up to OFF, many of them by all of it."""
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randn(VOCABULARY, generator=generator) * spread
    # a crowd at one height: ties within OFF for all cuts to fall into
    logits[:40] = logits[:40] * 0.01 + 2 * spread
    off = (torch.rand(VOCABULARY, generator=generator) * 4 - 2).clamp(-1, 1) * OFF
    return logits, logits + off


@pytest.mark.parametrize("params", LAWS, ids=str)
def test_the_token_of_a_row_that_is_off_by_so_much_is_let_pass(params: SamplingParams) -> None:
    turned = 0
    for seed in range(150):
        logits, other = row(seed)
        token = law(params, seed).token(other, CONTEXT)
        turned += token != law(params, seed).token(logits, CONTEXT)
        assert law(params, seed).excess(logits, CONTEXT, token, OFF * 1.0001) <= 0
    assert turned > 0  # the rows are such that rounding matters


@pytest.mark.parametrize("params", LAWS, ids=str)
def test_any_other_token_is_found_out_most_of_the_time(params: SamplingParams) -> None:
    found = 0
    for seed in range(150):
        logits, _ = row(seed)
        drawn = law(params, seed).token(logits, CONTEXT)
        other = int(torch.randint(VOCABULARY, (1,), generator=torch.Generator().manual_seed(seed)))
        found += other != drawn and law(params, seed).excess(logits, CONTEXT, other, OFF) > 0
    assert found > 120


def test_a_greedy_token_may_lie_twice_the_error_below_the_best_and_no_more() -> None:
    logits = torch.zeros(VOCABULARY)
    logits[3], logits[4] = 1.0, 0.875
    greedy = law(SamplingParams(temperature=0.0), 1)
    assert greedy.excess(logits, CONTEXT, 4, 0.07) == pytest.approx(0.125 - 0.14)
    assert greedy.excess(logits, CONTEXT, 4, 0.04) == pytest.approx(0.125 - 0.08)
    assert greedy.excess(logits, CONTEXT, 5, 0.04) == pytest.approx(1.0 - 0.08)


def test_a_rival_that_rounding_may_cut_with_others_above_the_edge_is_none() -> None:
    # before the third token there is just less than top_p of the probability; a little more of the first
    # token, and it cuts the second too, which is no near-tie of the third
    chances = torch.tensor([0.6985, 0.0012, 0.0008])
    rest = (1 - chances.sum()) / (VOCABULARY - 3)
    logits = torch.cat([chances, rest.expand(VOCABULARY - 3)]).log()
    # the many below hold 0.3 together, each less than the third
    logits[3:] = logits[3:].clamp(max=math.log(0.0007))
    params = SamplingParams(temperature=1.0, top_p=0.7 / float(logits.exp().sum()))
    other = logits.clone()
    other[0] += OFF
    turned = 0
    for seed in range(1500):
        drawn = law(params, seed).token(logits, CONTEXT)
        turned += drawn == 1
        if drawn == 1 or seed < 100:
            assert law(params, seed).token(other, CONTEXT) == 0
            assert law(params, seed).excess(logits, CONTEXT, 0, OFF) <= 0
    assert turned > 0


def test_an_error_grows_as_the_repetition_penalty_multiplies_it() -> None:
    penalised = law(SamplingParams(temperature=0.0, repetition_penalty=2.0), 1)
    logits = torch.full((VOCABULARY,), -9.0)
    logits[5], logits[9] = -1.0, -2.17  # 5 was said before: its logit counts twice
    other = logits.clone()
    other[5], other[9] = -1.06, -2.11
    assert penalised.token(logits, CONTEXT) == 5
    assert penalised.token(other, CONTEXT) == 9
    assert penalised.excess(logits, CONTEXT, 9, 0.06) <= 0
    assert penalised.excess(logits, CONTEXT, 9, 0.04) > 0


def test_what_is_forbidden_and_what_is_cut_far_off_is_beyond_every_error() -> None:
    logits, _ = row(1)
    forbidding = law(SamplingParams(temperature=1.0, bad_words=((9,),)), 1)
    assert forbidding.excess(logits, CONTEXT, 9, OFF) == math.inf
    lowest = int(logits.argmin())
    assert law(SamplingParams(temperature=1.0, top_k=3), 1).excess(logits, CONTEXT, lowest, OFF) == math.inf
    broken = torch.full((VOCABULARY,), math.nan)
    assert law(SamplingParams(temperature=1.0), 1).excess(broken, CONTEXT, 3, OFF) == math.inf


def test_a_temperature_near_0_and_an_error_of_many_logits_are_computed_without_overflow() -> None:
    logits, _ = row(2)
    best = int(logits.argmax())
    for params in (SamplingParams(temperature=1e-5, top_p=0.5), SamplingParams(temperature=1e-5, min_p=0.5)):
        assert law(params, 2).excess(logits, CONTEXT, best, 30.0) <= 0
