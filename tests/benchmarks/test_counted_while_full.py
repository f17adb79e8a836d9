"""Benchmarks of requests that follow each other count while a run is full, not its first or last answers."""

from __future__ import annotations

from engines import WhileFull

from turbo_runtime.messages import EngineStats, StepOutput, TokenEvent


def step(*events: tuple[str, int, bool]) -> StepOutput:
    """What a step told: (request, tokens, whether the answer ended) of each."""
    told = [TokenEvent(name, (1,) * tokens, "stop" if ended else None) for name, tokens, ended in events]
    return StepOutput(tuple(told), EngineStats())


def test_seconds_are_those_between_the_first_answers_and_the_last_and_tokens_of_what_ends_in_them() -> None:
    counted = WhileFull(requests=6, at_a_time=2)
    counted.see(step(("a", 3, True), ("b", 2, True), ("c", 1, False)), 1.0)
    assert (counted.tokens, counted.seconds) == (0, 0.0)
    counted.see(step(("c", 1, False), ("d", 4, True)), 3.0)
    counted.see(
        step(("c", 1, True), ("e", 5, False)), 4.5
    )  # the fourth that ended: the last two are taken in
    counted.see(step(("e", 7, True), ("f", 5, True)), 9.0)
    assert (counted.tokens, counted.seconds) == (4 + 3, 3.5)


def test_where_none_waits_or_one_runs_at_a_time_everything_counts() -> None:
    for counted in (WhileFull(requests=2, at_a_time=1), WhileFull(requests=2, at_a_time=2)):
        counted.see(step(("a", 3, False)), 1.0)
        counted.see(step(("a", 1, True)), 2.0)
        counted.see(step(("b", 4, True)), 4.0)
        assert (counted.tokens, counted.seconds) == (8, 4.0)
