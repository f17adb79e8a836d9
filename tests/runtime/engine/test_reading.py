"""Drafters read in the background of steps: within a share of their time, and in time for the answer."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from turbo_dev.drafting import NoDraft
from turbo_runtime.drafters.interface import DraftRequest
from turbo_runtime.drafters.loader import ActiveDrafts
from turbo_runtime.drafters.proposer import Proposer
from turbo_runtime.engine.loop import Engine
from turbo_runtime.engine.speculator import Reading
from turbo_runtime.messages import GenerationRequest, SamplingParams
from turbo_runtime.speculation.controller import DraftOutcome, GoodputController, StepTimes
from turbo_runtime.speculation.step_cost import StepShape

MakeEngine = Callable[..., Engine]


class Slow:
    """Reads a text at a pace, by a clock of its own."""

    def __init__(self, tokens: int, pace: float) -> None:
        self.left, self.pace, self.now = tokens, pace, 0.0

    @property
    def waiting(self) -> bool:
        return self.left > 0

    def read(self, most: int) -> int:
        count = min(most, self.left)
        self.left -= count
        self.now += count * self.pace
        return count


class Patient(NoDraft):
    """Asks nobody, so that nothing is read for an asker, and leaves reading the time it takes."""

    def spare(self, shape: StepShape) -> float:
        return 1.0


@pytest.mark.parametrize("pace", [1e-6, 1e-5, 1e-4, 1e-3])
@pytest.mark.parametrize("spare", [5e-5, 5e-4, 5e-3])
def test_reading_keeps_to_its_share_of_the_steps_whatever_its_pace(pace: float, spare: float) -> None:
    text: Any = Slow(1 << 30, pace)
    steps, slowest = 2000, 0.0
    reading = Reading(lambda: text.now)
    for _ in range(steps):
        slowest = max(slowest, reading.step(text, lambda: spare))
    assert text.now <= 1.05 * steps * spare + 512 * pace  # the first slice, before the pace was known
    assert text.now >= min(0.4 * steps * spare, steps * 1000 * pace) - 32 * pace


def test_nothing_is_saved_up_while_there_is_nothing_to_read() -> None:
    text: Any = Slow(0, 1e-5)
    reading = Reading(lambda: text.now)
    for _ in range(1000):
        assert reading.step(text, lambda: 1e-3) == 0.0
    text.left = 10_000
    assert reading.step(text, lambda: 1e-3) <= 1.1e-3


def test_reading_is_charged_to_no_request_but_told_by_the_meter() -> None:
    control = GoodputController(None, lambda tokens: tokens)
    for _ in range(50):
        asked = control.asks
        control.learn(StepShape(1), [DraftOutcome("a", asked, 0, 0)], StepTimes(0.0, 0.020, reading=0.020))
    assert control.asks
    assert control.speedup == pytest.approx(0.5, rel=0.01)


def test_a_prompt_is_known_when_its_answer_begins(make_engine: MakeEngine) -> None:
    server = make_engine(control=Patient(), step_tokens=64)
    prompt = tuple(1 + n % 70 for n in range(148))
    server.accept(GenerationRequest("r", prompt, SamplingParams(temperature=0.0, max_tokens=20)))
    event = ()
    while not event:
        event = server.step().events
    assert not server.speculation.drafters.waiting
    tokens = [*prompt, 1 + len(prompt) % 70]
    (draft,) = server.speculation.drafters.propose([DraftRequest("r", tokens, 148, 3, "", 0, 0.0)])
    assert draft.tokens == tuple(1 + (149 + n) % 70 for n in range(3))


@pytest.mark.parametrize(("drafter", "wanted"), [("off", "auto"), ("auto", "off"), ("heads", "auto")])
def test_nothing_is_read_for_who_will_not_ask(make_engine: MakeEngine, drafter: str, wanted: str) -> None:
    server = make_engine(Proposer(ActiveDrafts(drafter)))
    params = SamplingParams(temperature=0.0, max_tokens=20, draft_method=wanted)
    server.accept(GenerationRequest("r", tuple(range(1, 60)), params))
    server.step()
    assert server.speculation.drafters._suffix.num_bytes == 0


def test_what_was_answered_is_read_in_the_steps_that_follow_and_at_rest(make_engine: MakeEngine) -> None:
    server = make_engine()
    server.accept(GenerationRequest("r", tuple(range(1, 60)), SamplingParams(temperature=0.0, max_tokens=40)))
    while not server.idle:
        server.step()
    drafters = server.speculation.drafters
    assert drafters.waiting  # not in the step that the last token came from
    for _ in range(3):
        server.rest()
    assert not drafters.waiting
    assert drafters._suffix.num_bytes > 0
