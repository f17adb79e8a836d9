"""Log probabilities are the model's own, whatever the answer was drawn with."""

from __future__ import annotations

import math
from collections.abc import Sequence

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from turbo_runtime.messages import TokenLogprob
from turbo_runtime.models.transfer import download
from turbo_runtime.sampling.logprobs import PromptLogprobs, read_scores, score


def token_logprobs(logits: torch.Tensor, tokens: Sequence[int], top: int) -> list[TokenLogprob]:
    """Score a token for each row of `logits` (rows, vocabulary), on the host."""
    if not tokens:
        return []
    return read_scores(download(*score(logits, torch.tensor(tokens), top)), tokens, 0, top)


rows = st.lists(st.integers(-40, 40), min_size=1, max_size=40).map(lambda row: torch.tensor(row) / 8)


@settings(max_examples=80, deadline=None)
@given(rows, st.data())
def test_a_tokens_logprob_rank_and_rivals_are_those_of_sorting_everything(
    row: torch.Tensor, data: st.DataObject
) -> None:
    token = data.draw(st.integers(0, len(row) - 1))
    top = data.draw(st.integers(0, len(row) + 2))
    logits = row.tolist()
    total = math.log(math.fsum(math.exp(logit) for logit in logits))
    ranked = sorted(range(len(row)), key=lambda t: (-logits[t], t))
    (found,) = token_logprobs(row[None], [token], top)
    assert found.token == token
    assert found.logprob == pytest.approx(logits[token] - total, abs=1e-9)
    assert found.rank == 1 + ranked.index(token)
    assert [t for t, _ in found.top] == ranked[:top]
    assert [p for _, p in found.top] == pytest.approx([logits[t] - total for t in ranked[:top]], abs=1e-9)


@settings(max_examples=40, deadline=None)
@given(st.integers(1, 12), st.lists(st.integers(1, 5), min_size=1, max_size=12), st.data())
def test_a_prompt_in_chunks_with_some_computed_twice_is_told_once(
    length: int, sizes: list[int], data: st.DataObject
) -> None:
    table = torch.randn(length, 9, generator=torch.Generator().manual_seed(length))
    prompt = [position % 9 for position in range(length)]
    collected = PromptLogprobs(prompt, 2)
    start, turn = 0, 0
    while start < length:
        count = min(sizes[turn % len(sizes)], length - start)
        positions = collected.rows(start, count)
        rows, tokens = table[positions.start : positions.stop], collected.tokens(positions)
        collected.read(token_logprobs(rows, tokens, 2), positions)
        start += count
        turn += 1
        if turn < 9 and data.draw(st.booleans()):
            start = 0  # preempted: computed again
    whole = collected.take()
    assert whole == tuple(token_logprobs(table[: length - 1], prompt[1:], 2))


@pytest.mark.parametrize("threads", [1, 2])
def test_a_row_is_told_the_same_to_the_bit_among_any_others(threads: int) -> None:
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    table = torch.randn(21, 40_003, generator=torch.Generator().manual_seed(3)) * 5
    tokens = [37 * i % 40_003 for i in range(21)]
    together = token_logprobs(table, tokens, 2)
    for size in (1, 2, 5, 8, 13):
        parts = [token_logprobs(table[i : i + size], tokens[i : i + size], 2) for i in range(0, 21, size)]
        assert [each for part in parts for each in part] == together
    torch.set_num_threads(before)


def test_rows_of_a_prompt_that_were_left_out_are_missed() -> None:
    collected = PromptLogprobs([1, 2, 3, 4], 1)
    assert collected.take() is None
    with pytest.raises(ValueError, match="rows from 1 on came, 0 were due"):
        collected.read(token_logprobs(torch.zeros(2, 9), [3, 4], 1), range(1, 3))
