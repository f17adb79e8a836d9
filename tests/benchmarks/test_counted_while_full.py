"""Benchmarks of requests that follow each other count while a run is full, not its last answers."""

from __future__ import annotations

from engines import WhileFull

from turbo_runtime.messages import EngineStats, StepOutput, TokenEvent


def step(*events: tuple[str, int, bool]) -> StepOutput:
    """What a step told: (request, tokens, whether the answer ended) of each."""
    told = [TokenEvent(name, (1,) * tokens, "stop" if ended else None) for name, tokens, ended in events]
    return StepOutput(tuple(told), EngineStats())


def test_all_tokens_count_until_the_last_request_has_its_first() -> None:
    counted = WhileFull(requests=6, at_a_time=2)
    counted.see(step(("a", 3, True), ("b", 2, True)), 1.0)
    counted.see(step(("c", 1, False), ("d", 4, True)), 3.0)
    counted.see(step(("c", 1, True), ("e", 5, False)), 4.5)
    counted.see(step(("e", 7, True), ("f", 5, False)), 6.0)
    counted.see(step(("f", 4, True)), 9.0)
    assert (counted.tokens, counted.seconds) == (5 + 5 + 6 + 12, 6.0)


def test_two_runs_have_read_the_same_prompts_whichever_answers_end_first() -> None:
    """Found by a bar that was missed: tokens of whole answers are others where other answers end first. And
    where two end in one step, nobody waits any more before the last prompt is read.
    """
    one, other = (WhileFull(requests=4, at_a_time=2) for _ in range(2))
    one.see(step(("a", 5, True), ("b", 5, False)), 1.0)
    one.see(step(("b", 5, True), ("c", 5, False)), 2.0)
    other.see(step(("a", 5, False), ("b", 5, False)), 1.0)
    other.see(step(("a", 5, True), ("b", 5, True)), 2.0)
    for counted in (one, other):
        counted.see(step(("c", 5, False), ("d", 5, False)), 3.0)
        counted.see(step(("c", 5, True), ("d", 5, True)), 4.0)
        assert (counted.tokens, counted.seconds) == (30, 3.0)


def test_where_none_waits_or_one_runs_at_a_time_everything_counts() -> None:
    for counted in (WhileFull(requests=2, at_a_time=1), WhileFull(requests=2, at_a_time=2)):
        counted.see(step(("a", 3, False)), 1.0)
        counted.see(step(("a", 1, True)), 2.0)
        counted.see(step(("b", 4, True)), 4.0)
        assert (counted.tokens, counted.seconds) == (8, 4.0)
