"""What drafts bring on this machine: the same prompts answered without, with what is drafted from memory
alone, and with heads beside it.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from statistics import median
from typing import NamedTuple

from turbo_runtime.distill.answers import Said
from turbo_runtime.distill.errors import DistillError
from turbo_runtime.distill.served import Served
from turbo_runtime.drafters.heads.module import Heads
from turbo_runtime.drafters.heads.source import HeadsSource
from turbo_runtime.drafters.load import InUse
from turbo_runtime.engine.request import Drafting, SamplingParams, Submit

BATCHES = (1, 8, 32)
ROUNDS = 3


class Way(NamedTuple):
    """How prompts are answered."""

    drafting: Drafting
    heads: Heads | None = None


def ways(heads: Heads) -> dict[str, Way]:
    """Without drafts, from memory alone, and with heads beside it."""
    return {"none": Way("off"), "memory": Way("suffix"), "heads": Way("auto", heads)}


@dataclass(frozen=True, slots=True)
class Run:
    """Some prompts, answered one way."""

    way: str
    round: int
    answers: tuple[tuple[int, ...], ...]
    seconds: float  # of each step the share of these among all that were answered
    drafts: int  # steps of an answer that verified drafts, of whichever drafter
    accepted: int

    @property
    def speed(self) -> float:
        """Tokens a second, prompts included in the time."""
        return sum(map(len, self.answers)) / self.seconds


@dataclass(frozen=True, slots=True)
class Gain:
    """At so many requests at a time: medians over rounds, over the same round without drafts."""

    batch: int
    prompts: int  # of a round, the fewest
    tokens_per_second: float  # without drafts
    before: float  # from memory alone: its speed over none
    after: float  # with heads
    acceptance_length: float  # with heads: tokens of a step that verified drafts, of whichever drafter
    differing: int  # answers that were not the same with drafts; under the guarantee `bytes` there are none


def runs(
    served: Served,
    ways: Mapping[str, Way],
    asked: Sequence[Said],
    known: Sequence[Said],
    params: SamplingParams,
    batch: int,
    rounds: int = ROUNDS,
) -> Iterator[Run]:
    """In each round some of the prompts are answered in all `ways`, in an order that moves on: other prompts
    in each while every round has at least `batch`. Where so many are asked at a time, prompts of the other
    rounds take the places of those that have ended, until the last one has. `known` answers are in the memory
    before each run, and nothing else: none of `asked` may be among them.
    """
    names = list(ways)
    parts = max(1, min(rounds, len(asked) // batch))
    for number in range(rounds):
        turn = number % len(names)
        for way in [*names[turn:], *names[:turn]]:
            source = None if (heads := ways[way].heads) is None else HeadsSource(heads, served.noise)
            run = _Bench(served, InUse(ways[way].drafting, source), known, batch)
            some = [asked[(number + later) % parts :: parts] for later in range(parts)]
            yield run.answer(way, number, some[0], list(chain.from_iterable(some[1:])), params)


def gain_of(batch: int, found: Sequence[Run]) -> Gain:
    """Of all runs at so many requests at a time."""
    rounds: dict[int, dict[str, Run]] = {}
    for run in found:
        rounds.setdefault(run.round, {})[run.way] = run
    each = list(rounds.values())
    drafts = sum(one["heads"].drafts for one in each)
    return Gain(
        batch,
        min(len(run.answers) for run in found),
        median(one["none"].speed for one in each),
        median(one["memory"].speed / one["none"].speed for one in each),
        median(one["heads"].speed / one["none"].speed for one in each),
        1 + sum(one["heads"].accepted for one in each) / drafts if drafts else 1.0,
        sum(
            answer != plain
            for one in each
            for run in one.values()
            for answer, plain in zip(run.answers, one["none"].answers, strict=True)
        ),
    )


class _Bench:
    """An engine of its own for one run."""

    def __init__(self, served: Served, in_use: InUse, known: Sequence[Said], batch: int) -> None:
        self._engine, self._batch = served.engine(in_use), batch
        drafters = self._engine.speculation.drafters
        for number, one in enumerate(known):
            text = (*one.asked.prompt, *one.tokens)
            drafters.finish(f"known {number}", text, len(one.asked.prompt), "")
        while drafters.waiting:
            drafters.read(1 << 12)

    def answer(
        self, way: str, number: int, asked: Sequence[Said], company: Sequence[Said], params: SamplingParams
    ) -> Run:
        engine = self._engine
        prompts = [one.asked.prompt for one in (*asked, *company)]
        told: list[list[int]] = [[] for _ in prompts]
        waiting, live = list(reversed(range(len(prompts)))), set[int]()
        seconds, left = 0.0, len(asked)
        while left:
            began = time.perf_counter()
            while waiting and len(live) < self._batch:
                index = waiting.pop()
                engine.accept(Submit(str(index), prompts[index], params))
                live.add(index)
            share = sum(index < len(asked) for index in live) / len(live)
            for event in engine.step().events:
                if event.error:
                    raise DistillError(f"a prompt cannot be answered: {event.error}; leave it out")
                index = int(event.request_id)
                told[index] += event.tokens
                if event.finish_reason is not None:
                    live.remove(index)
                    left -= index < len(asked)
            seconds += (time.perf_counter() - began) * share
        stats = engine.stats()
        answers = tuple(map(tuple, told[: len(asked)]))
        return Run(way, number, answers, seconds, stats.drafts, stats.accepted_tokens)
