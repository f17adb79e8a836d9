"""Heads take time; drafts from memory take none. Whether the former are asked is weighed by what they add."""

from __future__ import annotations

import random
from collections.abc import Sequence

import pytest

from turbo_runtime.contract import StepTime
from turbo_runtime.drafters.draft import Coupling, Draft, Offer, Proposal, Want
from turbo_runtime.drafters.drafters import Drafters
from turbo_runtime.drafters.heads.source import HeadsSource
from turbo_runtime.drafters.hybrid import propose
from turbo_runtime.drafters.load import InUse
from turbo_runtime.engine.goodput.control import Control, Outcome, StepTimes
from turbo_runtime.engine.goodput.cost import StepShape

ANSWERS, PLAIN, ROW = 8, 0.090, 0.002  # seconds of a step, and of each drafted row more
SEEDS = (StepTime(1, 1, 0, PLAIN - 7 * ROW), StepTime(8, 1, 0, PLAIN), StepTime(1, 128, 0, PLAIN + 120 * ROW))
HEADS = "default v1"


def speed(
    memory: float, heads: float, seconds: float, *, with_heads: bool = True, steps: int = 3000
) -> float:
    """Tokens a second over those without drafts. Memory drafts a token that is right with one chance; where
    heads are asked, they draft one more behind it, right with the other, and take so many seconds a step.
    """
    control, noise = Control(SEEDS, lambda tokens: tokens), random.Random(3)
    names = [f"r{n}" for n in range(ANSWERS)]
    tokens, spent = 0, 0.0
    for _ in range(steps):
        asked = control.to_draft(names)
        by_heads = bool(asked) and with_heads and control.heads_pay(HEADS)
        survivals = [[memory, memory * heads][: 1 + by_heads] for name in names if name in asked]
        counts = iter(control.choose(survivals, StepShape(ANSWERS), ANSWERS, seconds * by_heads))
        outcomes = []
        for name in names:
            count = next(counts) if name in asked else 0
            first = count > 0 and noise.random() < memory
            second = first and count > 1 and noise.random() < heads
            outcomes.append(
                Outcome(name, name in asked, count, first + second, HEADS, int(count > 1), float(second))
            )
        rest = PLAIN + ROW * sum(outcome.drafted for outcome in outcomes)
        drafting = seconds * by_heads
        times = StepTimes(drafting, rest, heads={HEADS: drafting} if by_heads else {})
        control.learn(StepShape(ANSWERS), outcomes, times)
        tokens += ANSWERS + sum(outcome.won for outcome in outcomes)
        spent += drafting + rest
    return tokens / spent / (ANSWERS / PLAIN)


@pytest.mark.parametrize("memory", [0.3, 0.5, 0.8])
def test_heads_that_take_more_than_they_bring_leave_the_drafts_from_memory_what_these_bring(
    memory: float,
) -> None:
    alone = speed(memory, 0.0, 0.0, with_heads=False)
    assert alone > 1.02
    assert speed(memory, 0.1, 0.015) >= alone - 0.01


def test_heads_that_bring_more_than_they_take_are_asked() -> None:
    assert speed(0.6, 0.8, 0.003) >= speed(0.6, 0.0, 0.0, with_heads=False) + 0.1


def test_where_nothing_helps_heads_lose_no_more_than_all_drafts_may() -> None:
    assert speed(0.02, 0.02, 0.015) >= 0.99


def test_new_heads_have_an_account_of_their_own() -> None:
    control = Control(SEEDS, lambda tokens: tokens)
    bad = Outcome("a", True, 0, 0, HEADS)
    for _ in range(50):
        control.learn(StepShape(1), [bad], StepTimes(0.05, PLAIN, heads={HEADS: 0.05}))
    assert not control.heads_pay(HEADS)
    assert control.heads_pay("default v2")


class Fixed:
    """Offers one token."""

    def __init__(self, name: str, token: int, confidence: float) -> None:
        self.name, self._offer = name, Offer(token, confidence, None)

    def begin(self, wants: Sequence[Want]) -> Proposal:
        self._left = [True] * len(wants)
        return self

    def offers(self, _beside: Sequence[float]) -> list[Offer | None]:
        return [self._offer if left else None for left in self._left]

    def advance(self, _tokens: Sequence[int | None]) -> None:
        self._left = [False] * len(self._left)

    def learn(self, _cell: object, _accepted: bool) -> None:
        """It knows what it knows."""

    def finish(self, *_: object) -> None:
        """It holds nothing."""


@pytest.mark.parametrize(("token", "lead"), [(7, 0.75), (8, 1.0)])
def test_what_another_source_offers_too_is_won_by_heads_as_far_as_they_are_surer(
    token: int, lead: float
) -> None:
    want = Want("r", [1], 1, 4, "", Coupling(0, 0.0))
    (draft,) = propose([Fixed("suffix", token, 0.2), Fixed("heads", 7, 0.8)], [want])
    assert draft.evidence[0].source == "heads"
    assert draft.evidence[0].lead == pytest.approx(lead)


class Slow(Fixed):
    """Counts how often it is asked."""

    asked = 0

    def begin(self, wants: Sequence[Want]) -> Proposal:
        self.asked += 1
        return super().begin(wants)


def test_heads_that_do_not_pay_are_not_asked_and_those_that_do_tell_their_time() -> None:
    source = Slow(HeadsSource.name, 7, 0.8)
    drafters = Drafters(InUse("auto", source, "v1"))
    want = Want("r", [1], 1, 4, "", Coupling(0, 0.0))
    heads = drafters.heads_of(want.drafting, want.name)
    assert heads == HEADS
    assert drafters.heads_of("suffix", want.name) == ""
    assert drafters.propose([want], 0.0, lambda name: name != heads) == [Draft()]
    assert (source.asked, drafters.heads_seconds) == (0, {})
    (draft,) = drafters.propose([want], 0.0, lambda name: name == heads)
    assert draft.tokens == (7,)
    assert set(drafters.heads_seconds) == {heads}
    assert drafters.heads_seconds[heads] > 0
