"""Every parameter against a reference in plain Python, and with any drafts the answer without them."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from turbo_runtime.messages import SamplingParams
from turbo_runtime.sampling import processors as module
from turbo_runtime.sampling.dense import DENSE
from turbo_runtime.sampling.noise import Noise, answer_key, position_key
from turbo_runtime.sampling.processors import Edits, Processors
from turbo_runtime.sampling.rows import NOTHING, DrawnRows, RowKernels, Rule, rule_of
from turbo_runtime.sampling.sampler import AnswerRows, NoTokenError, Sampler, tokens_of_step
from turbo_runtime.sampling.search import SEARCH
from turbo_runtime.sampling.truncation import truncate
from turbo_runtime.speculation.verification import verify

VOCABULARY = 23
NOISE = Noise(VOCABULARY)
PROMPT = (3, 4, 4, 9)
STOPS = frozenset({0, 7})

tokens = st.integers(0, VOCABULARY - 1)
rows = st.lists(st.integers(-40, 40), min_size=VOCABULARY, max_size=VOCABULARY).map(
    lambda row: torch.tensor(row) / 8
)
penalties = {
    "repetition_penalty": st.sampled_from([0.5, 1.25, 1.5]),
    "presence_penalty": st.sampled_from([-0.75, 0.5, 2.0]),
    "frequency_penalty": st.sampled_from([-0.25, 0.3, 1.5]),
    "logit_bias": st.lists(
        st.tuples(tokens, st.integers(-100, 100).map(float)), max_size=4, unique_by=lambda pair: pair[0]
    ).map(tuple),
    "min_tokens": st.integers(0, 12),
    "bad_words": st.lists(st.lists(tokens, min_size=1, max_size=3).map(tuple), max_size=6).map(tuple),
}
candidates = {
    "top_k": st.integers(0, VOCABULARY + 2),
    "top_p": st.floats(0.01, 1.0),
    "min_p": st.floats(0.0, 1.0),
}
temperatures = st.sampled_from([0.0, 0.3, 1.0, 2.0])


def some_params(**strategies: st.SearchStrategy[object]) -> st.SearchStrategy[SamplingParams]:
    """Any of these parameters, each set or left out."""
    return st.builds(
        lambda chosen, temperature: SamplingParams(
            temperature=temperature, max_tokens=16, stop_token_ids=STOPS, **chosen
        ),
        st.fixed_dictionaries({}, optional=strategies),
        temperatures,
    )


def processed(row: Sequence[float], params: SamplingParams, answer: Sequence[int]) -> list[float]:
    """The logits that the rules at the head of the room give, token by token."""
    found = []
    for token, raw in enumerate(row):
        logit = raw + dict(params.logit_bias).get(token, 0.0)
        if token in answer or token in PROMPT:
            penalty = params.repetition_penalty
            logit = logit / penalty if logit > 0 else logit * penalty
        logit -= params.frequency_penalty * list(answer).count(token)
        logit -= params.presence_penalty * (token in answer)
        forbidden = token in STOPS and len(answer) < params.min_tokens
        for run in params.bad_words:
            begun = len(answer) >= len(run) - 1 and tuple(answer[len(answer) - len(run) + 1 :]) == run[:-1]
            forbidden = forbidden or (token == run[-1] and begun)
        found.append(-math.inf if forbidden else logit)
    return found


def kept(row: Sequence[float], params: SamplingParams) -> list[int]:
    """The tokens that min_p, top_k and top_p leave, by sorting everything."""
    ranked = sorted((t for t in range(len(row)) if row[t] > -math.inf), key=lambda t: (-row[t], t))
    weight = [math.exp((row[t] - row[ranked[0]]) / params.temperature) for t in ranked]
    if params.min_p:
        ranked = [t for t, w in zip(ranked, weight, strict=True) if w >= params.min_p * (1 - 1e-12)]
    ranked = ranked[: params.top_k or None]
    if params.top_p < 1.0:
        total = math.fsum(weight[: len(ranked)])
        before = list(itertools.accumulate(weight[: len(ranked)], initial=0.0))
        ranked = [t for i, t in enumerate(ranked) if i == 0 or before[i] < params.top_p * total * (1 - 1e-12)]
    return ranked


def edited(processors: Processors, row: torch.Tensor, drafts: Sequence[int] = ()) -> torch.Tensor:
    """The row after what was read and `drafts`, changed."""
    edits, rows = Edits(VOCABULARY), row.repeat(len(drafts) + 1, 1)
    processors.collect(edits, 0, drafts)
    edits.apply(rows)
    return rows[-1]


@settings(max_examples=150, deadline=None)
@given(rows, some_params(**penalties), st.lists(tokens, max_size=14))
def test_processed_logits_are_those_of_the_reference(
    row: torch.Tensor, params: SamplingParams, answer: list[int]
) -> None:
    processors = Processors(params, PROMPT, STOPS, VOCABULARY)
    for token in answer:
        processors.read([token])
    found = edited(processors, row).tolist()
    assert found == pytest.approx(processed(row.tolist(), params, answer), rel=1e-5, abs=1e-5)
    if processors.idle:
        assert found == row.tolist()


@settings(max_examples=150, deadline=None)
@given(rows, some_params(**penalties), st.lists(tokens, max_size=14), st.integers(0, 5))
def test_a_row_after_drafts_is_changed_as_if_they_were_the_answers(
    row: torch.Tensor, params: SamplingParams, answer: list[int], drafted: int
) -> None:
    reading, drafting = (Processors(params, PROMPT, STOPS, VOCABULARY) for _ in range(2))
    begun = max(0, len(answer) - drafted)
    reading.read(answer)
    drafting.read(answer[:begun])
    before = edited(drafting, row)
    assert torch.equal(edited(drafting, row, answer[begun:]), edited(reading, row))
    assert torch.equal(edited(drafting, row), before), "drafts leave it as it was"


@settings(max_examples=150, deadline=None)
@given(rows, some_params(**candidates), st.sets(tokens, max_size=VOCABULARY - 1))
def test_candidates_are_those_of_the_reference(
    row: torch.Tensor, params: SamplingParams, forbidden: set[int]
) -> None:
    params = replace(params, temperature=params.temperature or 0.5)
    row[sorted(forbidden)] = -torch.inf
    found = truncate(row, rule_of(params))
    assert set(found.isfinite().nonzero().squeeze(1).tolist()) == set(kept(row.tolist(), params))
    assert torch.equal(found[found.isfinite()], row[found.isfinite()])


def test_a_nucleus_of_thousands_is_found_where_it_ends() -> None:
    row = torch.linspace(3.0, -3.0, 6000)[torch.randperm(6000, generator=torch.Generator().manual_seed(1))]
    for p in (0.001, 0.03, 0.2, 0.9, 0.9999):
        params = SamplingParams(temperature=2.0, top_p=p)
        assert set(truncate(row, rule_of(params)).isfinite().nonzero().squeeze(1).tolist()) == set(
            kept(row.tolist(), params)
        )


def test_of_equal_logits_the_lower_ids_are_kept() -> None:
    row = torch.tensor([1.0, 3.0, 3.0, 3.0, 0.0])

    def ids(**params: float) -> list[int]:
        found = truncate(row, rule_of(SamplingParams(**params)))  # type: ignore[arg-type]
        return found.isfinite().nonzero().squeeze(1).tolist()

    assert ids(top_k=2) == [1, 2]
    assert ids(top_k=50) == [0, 1, 2, 3, 4]
    assert ids(top_p=1e-9) == [1]
    assert ids(top_p=0.5) == [1, 2]
    assert ids(min_p=1.0) == [1, 2, 3]
    assert ids(min_p=1.0, top_p=0.6) == [1, 2]


@settings(max_examples=150, deadline=None)
@given(rows, some_params(**penalties, **candidates), st.lists(tokens, max_size=14))
def test_a_token_is_the_best_of_what_the_reference_leaves(
    row: torch.Tensor, params: SamplingParams, answer: list[int]
) -> None:
    key = answer_key(5, PROMPT, 0)
    law = Sampler(params, PROMPT, key, NOISE)
    logits = processed(row.tolist(), params, answer)
    if max(logits) == -math.inf:
        with pytest.raises(NoTokenError, match="bad_words"):
            law.token(row, [*PROMPT, *answer])
        return
    token = law.token(row, [*PROMPT, *answer])
    if params.temperature == 0.0:
        assert logits[token] == pytest.approx(max(logits), abs=1e-5)
        return
    noise = NOISE.gumbel(position_key(key, len(PROMPT) + len(answer)), torch.arange(VOCABULARY)).tolist()
    scores = {t: logits[t] / params.temperature + noise[t] for t in kept(logits, params)}
    assert token in scores
    assert scores[token] == pytest.approx(max(scores.values()), abs=1e-4)


TABLE = torch.randn(VOCABULARY, VOCABULARY, generator=torch.Generator().manual_seed(3)) * 2


def answers(
    wanted: Sequence[SamplingParams], drafts: Sequence[Sequence[int]] | None, wrong: Sequence[bool]
) -> list[list[int]]:
    """The answers of a first-order model to all of these at once, step by step. `drafts` are guesses of the
    answers; those at `wrong` places, in turn, are spoilt.
    """
    laws = [Sampler(p, PROMPT, answer_key(i, PROMPT, 0), NOISE) for i, p in enumerate(wanted)]
    found: list[list[int]] = [list(PROMPT) for _ in laws]
    live = list(range(len(laws)))
    step = 0
    while live:
        step += 1
        parts, contexts = [], []
        for i in live:
            guess = [] if drafts is None else list(drafts[i][len(found[i]) :][: (step + i) % 5])
            for j in range(len(guess)):
                guess[j] = (guess[j] + wrong[(step + i + j) % len(wrong)]) % VOCABULARY
            parts.append(AnswerRows(laws[i], found[i], guess, len(contexts)))
            contexts += [found[i][-1], *guess]
        drawn = tokens_of_step(TABLE[torch.tensor(contexts)], parts, NOISE)
        for i, part, token_at in zip(list(live), parts, drawn, strict=True):
            room = wanted[i].max_tokens - len(found[i]) + len(PROMPT)
            verdict = verify(token_at, part.drafts, stop_ids=laws[i].stop_ids, room=room)
            found[i].extend(verdict.tokens)
            if verdict.finish_reason:
                live.remove(i)
    return found


@settings(max_examples=60, deadline=None)
@given(
    st.lists(some_params(**penalties, **candidates), min_size=1, max_size=4),
    st.lists(st.booleans(), min_size=1, max_size=7),
)
def test_any_drafts_in_any_company_give_the_answer_that_each_has_alone(
    wanted: list[SamplingParams], wrong: list[bool]
) -> None:
    wanted = [replace(p, bad_words=p.bad_words[:3]) for p in wanted]
    together = answers(wanted, None, [False])
    assert answers(wanted, together, wrong) == together
    laws = [Sampler(p, PROMPT, answer_key(i, PROMPT, 0), NOISE) for i, p in enumerate(wanted)]
    for law, answer in zip(laws, together, strict=True):
        for end in range(len(PROMPT), len(answer)):
            assert law.token(TABLE[answer[end - 1]], answer[:end]) == answer[end]


def test_a_row_may_be_asked_for_twice() -> None:
    params = SamplingParams(frequency_penalty=2.0, bad_words=((5, 6),), min_tokens=2)
    law = Sampler(params, PROMPT, 1, NOISE)
    first = law.token(TABLE[0], PROMPT)
    assert law.token(TABLE[0], PROMPT) == first
    second = law.token(TABLE[first], [*PROMPT, first])
    assert law.token(TABLE[first], [*PROMPT, first]) == second


@pytest.mark.parametrize(
    ("params", "sentence"),
    [
        ({"logit_bias": ((23, 1.0),)}, "logit_bias names token 23; the model's ids lie between 0 and 22"),
        ({"bad_words": ((1, -1),)}, "bad_words names token -1; the model's ids lie between 0 and 22"),
        ({"bad_words": ((),)}, "bad_words holds an empty run of tokens; leave it out"),
    ],
)
def test_a_token_that_the_model_lacks_is_refused_by_one_sentence(
    params: dict[str, object], sentence: str
) -> None:
    with pytest.raises(ValueError, match=f"^{sentence}$"):
        Sampler(SamplingParams(**params), PROMPT, 1, NOISE)  # type: ignore[arg-type]


def test_where_all_tokens_are_forbidden_the_answer_ends_with_a_sentence() -> None:
    every = tuple((token,) for token in range(VOCABULARY))
    for rest in ({"temperature": 0.0}, {}, {"top_p": 0.9}, {"top_k": 3}, {"min_p": 0.1, "top_p": 0.5}):
        law = Sampler(SamplingParams(**rest, bad_words=every), PROMPT, 1, NOISE)  # type: ignore[arg-type]
        with pytest.raises(NoTokenError, match="no token is left to choose from"):
            law.token(TABLE[0], PROMPT)
    law = Sampler(SamplingParams(), PROMPT, 1, NOISE)
    with pytest.raises(NoTokenError, match="not finite"):
        law.token(torch.full((VOCABULARY,), math.nan), PROMPT)


def test_an_answer_that_waits_for_its_first_row_holds_nothing_as_large_as_prompt_or_vocabulary(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    params = SamplingParams(repetition_penalty=1.2, frequency_penalty=0.5)
    with monkeypatch.context() as patch:
        patch.setattr(module, "Penalties", None)
        waiting = [Processors(params, PROMPT, STOPS, VOCABULARY) for _ in range(3)]
    late, early = waiting[0], waiting[1]
    row = torch.linspace(-3, 3, VOCABULARY)
    edited(early, row)
    for each in (late, early):
        each.read([3, 5, 3])
    assert torch.equal(edited(late, row), edited(early, row))


@pytest.mark.parametrize("kernels", [SEARCH, DENSE], ids=["search", "dense"])
def test_a_mask_keeps_its_tokens_and_forbids_others_whatever_their_logits(kernels: RowKernels) -> None:
    generator = torch.Generator().manual_seed(5)
    allowed = torch.rand(2, 1003, generator=generator) < 0.5
    allowed[0, 1], allowed[1, :3] = True, torch.tensor([False, False, True])
    masks = np.packbits(allowed.numpy(), axis=1, bitorder="little")
    logits = torch.randn(3, 1003, generator=generator)
    logits[1, 1] = math.inf  # which is kept: nothing can be drawn
    logits[2, :3] = torch.tensor([math.nan, math.inf, -math.inf])
    expected = logits.clone()
    expected[1:].masked_fill_(~allowed, -math.inf)
    rows = DrawnRows()
    rows.add(0, 3, Rule())
    rows.keep(1, masks[0])
    rows.keep(2, masks[1])
    drawn = kernels.draw(logits, rows, Noise(1003))
    assert torch.equal(logits, expected)
    assert drawn.tolist() == [int(expected[0].argmax()), NOTHING, int(expected[2].argmax())]


@pytest.mark.parametrize("kernels", [SEARCH, DENSE], ids=["search", "dense"])
def test_a_mask_of_fewer_tokens_than_a_row_has_is_refused(kernels: RowKernels) -> None:
    rows = DrawnRows()
    rows.add(0, 3, Rule())
    rows.keep(1, np.full(125, 255, np.uint8))
    with pytest.raises((AssertionError, RuntimeError)):
        kernels.draw(torch.zeros(3, 1003), rows, Noise(1003))


def test_logits_of_any_size_leave_the_noise_to_decide_in_all_ways_to_draw() -> None:
    logits, noise = torch.full((40, 64), 1e30), Noise(64)
    rows = DrawnRows()
    rows.add(0, 40, rule_of(SamplingParams(temperature=1.0)))
    found = [kernels.draw(logits.clone(), rows, noise).tolist() for kernels in (SEARCH, DENSE)]
    assert found[0] == found[1]
    assert len({*found[0]}) > 10
