"""Benchmarks of requests that follow each other count while a run is full, not its first or last answers."""

from __future__ import annotations

from engines import WhileFull

from turbo_runtime.engine.request import EngineStats, Step, TokenEvent


def step(*events: tuple[int, bool]) -> Step:
    """What a step told: (tokens, whether the answer ended) of each."""
    told = [TokenEvent("r", (1,) * tokens, "stop" if ended else None) for tokens, ended in events]
    return Step(tuple(told), EngineStats())


def test_tokens_and_seconds_are_those_between_the_first_answers_and_the_last() -> None:
    counted = WhileFull(requests=6, at_a_time=2)
    counted.see(step((3, True), (2, True)), 1.0)
    assert (counted.tokens, counted.seconds) == (0, 0.0)
    counted.see(step((1, False), (4, True)), 3.0)
    counted.see(step((1, True), (5, False)), 4.5)  # the fourth that ended: the last two are taken in
    counted.see(step((7, True), (5, True)), 9.0)
    assert (counted.tokens, counted.seconds) == (11, 3.5)


def test_where_none_waits_or_one_runs_at_a_time_everything_counts() -> None:
    for counted in (WhileFull(requests=2, at_a_time=1), WhileFull(requests=2, at_a_time=2)):
        counted.see(step((3, False)), 1.0)
        counted.see(step((1, True)), 2.0)
        counted.see(step((4, True)), 4.0)
        assert (counted.tokens, counted.seconds) == (8, 4.0)
