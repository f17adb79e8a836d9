"""A drafter that takes a pass for each token makes those that are worth their time."""

from __future__ import annotations

import math
from collections.abc import Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from turbo_runtime.drafters import proposer
from turbo_runtime.drafters.interface import Drafter, DraftRequest, TokenCandidate
from turbo_runtime.drafters.pass_gate import PassGate
from turbo_runtime.drafters.proposer import Guarded, propose

CHANCE = st.floats(0.0, 1.0)


def gate(seconds: float, confidence: float, passes: int = 60) -> PassGate:
    made = PassGate()
    for _ in range(passes):
        made.learn(0, seconds, [confidence])
    return made


def test_a_pass_is_made_where_what_it_gains_is_worth_more_than_its_time() -> None:
    known = gate(seconds=0.002, confidence=0.5)
    assert known.pays(0, [(1.0, 0.0)], 0.0041)  # half a token
    assert not known.pays(0, [(1.0, 0.0)], 0.0039)
    assert not known.pays(0, [(1.0, 0.5)], 0.0041)  # others are right in half of these
    assert not known.pays(0, [(0.5, 0.0)], 0.0041)  # it is looked at in half of these
    assert known.pays(0, [(0.5, 0.0), (0.5, 0.0)], 0.0041)  # a pass for two drafts takes as long


def test_what_takes_an_unknown_time_is_tried() -> None:
    assert PassGate().pays(0, [(0.01, 0.9)], 1e-6)


def test_depths_are_told_apart() -> None:
    known = gate(seconds=0.002, confidence=0.1)
    assert not known.pays(0, [(1.0, 0.0)], 0.004)
    assert known.pays(1, [(1.0, 0.0)], 0.004)


def test_what_does_not_pay_is_tried_again_some_time() -> None:
    known = gate(seconds=0.002, confidence=0.1)
    tries = [known.pays(0, [(1.0, 0.0)], 0.004) for _ in range(400)]
    assert not any(tries[:64])
    assert any(tries)


@pytest.mark.parametrize("usual", [0, 60])
def test_one_pass_that_took_very_long_does_not_end_all_others(usual: int) -> None:
    """The first one that loads what it needs, or one that the machine stalled."""
    known = gate(seconds=0.002, confidence=0.8, passes=usual)
    known.learn(0, 3.0, [0.8])
    assert not known.pays(0, [(1.0, 0.0)], 0.004)
    made = 0
    for _ in range(12_000):
        if known.pays(0, [(1.0, 0.0)], 0.004):
            known.learn(0, 0.002, [0.8])
            made += 1
    assert made > 1000


@pytest.mark.parametrize("sure", [0, 16])
def test_a_pass_that_is_never_worth_its_time_is_seldom_made(sure: int) -> None:
    """However many tokens of a draft others are sure of, for which it would make no pass."""
    known = gate(seconds=0.02, confidence=1.0)
    made = 0
    for _ in range(20_000):
        for _ in range(sure):
            known.pays(0, [(1.0, 0.95)], 0.004)
        if known.pays(0, [(1.0, 0.0)], 0.004):
            known.learn(0, 0.02, [1.0])
            made += 1
    assert made * 0.016 < 0.02 * 20_000 * 0.004  # they lose less than a fiftieth of a token a step


@given(st.lists(st.tuples(CHANCE, CHANCE), min_size=1, max_size=4), CHANCE, st.floats(0.0, 1.0))
def test_where_a_token_is_worth_more_no_pass_is_left_out_that_was_made_before(
    drafts: list[tuple[float, float]], confidence: float, token_seconds: float
) -> None:
    if gate(0.01, confidence).pays(0, drafts, token_seconds):
        assert gate(0.01, confidence).pays(0, drafts, 2 * token_seconds)


class Slow(Drafter):
    """Gives 7 at each place, in 2 ms."""

    name = "slow"
    is_costly = has_passes = True

    def __init__(self) -> None:
        super().__init__()
        self.now, self.passes = 0.0, 0

    def begin(self, requests: Sequence[DraftRequest]) -> None:
        self._left = requests[0].limit

    def next_candidates(self, best_confidence: Sequence[float]) -> list[TokenCandidate | None]:
        if not self._left:
            return [None] * len(best_confidence)
        self.now, self.passes = self.now + 0.002, self.passes + 1
        return [TokenCandidate(7, 0.8, "cell")] * len(best_confidence)

    def advance(self, tokens: Sequence[int | None]) -> None:
        self._left -= len(tokens)


@pytest.mark.parametrize(("token_seconds", "length"), [(math.inf, 12), (0.004, 3), (0.001, 0)])
def test_drafts_end_where_a_further_pass_is_not_worth_its_time(
    token_seconds: float, length: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    drafter = Slow()
    monkeypatch.setattr(proposer.time, "perf_counter", lambda: drafter.now)
    guard, wanted = Guarded(drafter), [DraftRequest("r", [1], 1, 12, "", 0, 0.0)]
    for _ in range(40):
        propose([guard], wanted, 0.0)  # to learn from
    drafter.passes = 0
    (draft,) = propose([guard], wanted, 0.0, token_seconds)
    assert len(draft.tokens) == drafter.passes == length
