"""`load` counts tokens until its last request is taken in."""

from __future__ import annotations

import time

from load import _WhileFull

from turbo_runtime.engine.request import EngineStats, Step, TokenEvent


def step(*events: tuple[int, bool]) -> Step:
    """What a step told: (tokens, whether the answer ended) of each."""
    told = [TokenEvent("r", (1,) * tokens, "stop" if ended else None) for tokens, ended in events]
    return Step(tuple(told), EngineStats())


def test_tokens_are_counted_until_nobody_waits_any_more() -> None:
    counted = _WhileFull(following=2)
    counted.see(step((3, False), (2, True)))
    counted.see(step((1, False), (4, True)))  # two have ended: the last one is taken in now
    until = counted.until
    time.sleep(0.001)
    counted.see(step((7, True), (5, True)))
    assert (counted.tokens, counted.until) == (10, until)
