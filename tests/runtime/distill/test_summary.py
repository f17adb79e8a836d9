"""What a distillation says at its end: no praise of a draft that memory alone beats, nothing left unsaid."""

from __future__ import annotations

from turbo_runtime.distill.evaluation.record import DomainRecord, Evaluation, Record
from turbo_runtime.distill.evaluation.speedup_benchmark import Speedup


def record(count: int, speedups: dict[int, tuple[float, float]], left_out: int = 0) -> Record:
    unseen = Evaluation(count, 100, (0.8,), 2.5 if count else None)
    told = tuple(
        Speedup(batch, 9, 30.0, before, after, 3.0, 0) for batch, (before, after) in speedups.items()
    )
    found = DomainRecord(unseen, unseen, "sha256:1", told)
    return Record("heads", {"support": found}, {"training": 20}, left_out, (), (), 0, {})


def test_gains_are_told_beside_those_from_memory_alone() -> None:
    (line,) = record(40, {1: (1.2, 1.5), 8: (1.1, 1.2)}).summary()
    assert line == (
        "support: acceptance length 2.50 over 40 answers held out; 1.50 times as fast at 1 (1.20 from memory "
        "alone), 1.20 times as fast at 8 (1.10 from memory alone)"
    )


def test_where_memory_alone_is_faster_it_says_so() -> None:
    (line,) = record(40, {1: (3.14, 2.54), 8: (1.2, 1.19), 32: (1.2, 1.1)}).summary()
    assert line.endswith("; at 1, 32 memory alone is faster")


def test_few_answers_are_told_as_few() -> None:
    (line,) = record(3, {}).summary()
    assert line.endswith("; 3 are few to measure on: give more prompts")


def test_answers_that_are_left_out_are_counted() -> None:
    first, second = record(0, {}, left_out=4).summary()
    assert first == "4 of 24 answers say one thing over and over or end at once: they are left out"
    assert second == (
        "support: every answer held out stands among those learned from; give more prompts to measure it"
    )
