"""`load` counts tokens while a run is full: not its first answers, nor its last."""

from __future__ import annotations

import time

from load import _Counted

from turbo_runtime.engine.request import EngineStats, Step, TokenEvent

TICK = 0.002


def step(*events: tuple[int, bool]) -> Step:
    """What a step told: (tokens, whether the answer ended) of each."""
    time.sleep(TICK)
    told = [TokenEvent("r", (1,) * tokens, "stop" if ended else None) for tokens, ended in events]
    return Step(tuple(told), EngineStats())


def test_tokens_and_seconds_are_those_between_the_first_answers_and_the_last() -> None:
    counted = _Counted(first=1, last=3)
    counted.see(step((3, False), (2, True)))
    assert (counted.tokens, counted.seconds) == (0, 0.0)
    counted.see(step((1, False), (4, True)))
    counted.see(step((1, False), (5, True)))  # the third that ended
    seconds = counted.seconds
    assert seconds >= 2 * TICK
    counted.see(step((7, True), (5, True)))
    assert (counted.tokens, counted.seconds) == (11, seconds)


def test_one_at_a_time_everything_counts() -> None:
    counted = _Counted(first=0, last=2)
    for _ in range(2):
        counted.see(step((3, False)))
        counted.see(step((1, True)))
    assert counted.tokens == 8
