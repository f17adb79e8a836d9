"""What drafts bring on this machine: the same prompts answered without, with what is drafted from memory
alone, and with heads beside it.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain, count, zip_longest
from statistics import median
from typing import NamedTuple

from turbo_runtime.distill.data.responses import Completion
from turbo_runtime.distill.errors import DistillError
from turbo_runtime.distill.target import TargetModel
from turbo_runtime.drafters.heads.drafter import HeadsDrafter
from turbo_runtime.drafters.heads.module import Heads
from turbo_runtime.drafters.loader import ActiveDrafts
from turbo_runtime.engine.loop import Engine
from turbo_runtime.messages import Drafting, GenerationRequest, SamplingParams

BATCHES = (1, 8, 32)
ROUNDS = 3
WARM_UP = 16  # prompts
_WARMING = 8  # of them at a time


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
    served: TargetModel,
    ways: Mapping[str, Way],
    asked: Sequence[Completion],
    known: Sequence[Completion],
    warm_up: Sequence[Completion],
    params: SamplingParams,
    batch: int,
    rounds: int = ROUNDS,
) -> Iterator[Run]:
    """In each round some of the prompts are answered in all `ways`: other prompts in each while every round
    has at least `batch`. The ways take steps in turn, in an order that moves on from round to round, so that
    what else the machine does falls on all that have not ended; where the KV cache does not hold so many
    requests of each, one way follows another. Where so many are asked at a time, prompts of the other rounds
    take the places of those that have ended, until the last one has.

    In each round and way `known` answers are put in the memory, and then the prompts of `warm_up` answered:
    so the engine learns, as it does in service, how sure its drafts are and what they cost. That is all it
    knows, but for what steps cost, which is learnt from those of all. None of `asked` may be among either,
    nor heads have learnt from `warm_up` what to draft: they would be too sure of it.
    """
    names = list(ways)
    parts = max(1, min(rounds, len(asked) // batch))
    longest = max(len(one.asked.prompt) for one in asked) + params.max_tokens
    together = served.holds(len(names), batch, longest)
    for number in range(rounds):
        first = number % len(names)
        order = [*names[first:], *names[:first]]
        some = [asked[(number + later) % parts :: parts] for later in range(parts)]
        company = list(chain.from_iterable(some[1:]))
        for group in [order] if together else [[name] for name in order]:
            benches = _benches(served, {name: ways[name] for name in group}, params)
            for way, bench in benches.items():
                bench.remember(known)
                deque(bench.answer(way, number, warm_up, (), _WARMING), 0)
            yield from _in_turn(
                [bench.answer(way, number, some[0], company, batch) for way, bench in benches.items()]
            )
            del bench, benches  # before others are made


def _benches(served: TargetModel, ways: Mapping[str, Way], params: SamplingParams) -> dict[str, _Bench]:
    in_use = [
        ActiveDrafts(way.drafting, None if way.heads is None else HeadsDrafter(way.heads, served.noise))
        for way in ways.values()
    ]
    engines = served.engines(in_use)
    return {name: _Bench(engine, params) for name, engine in zip(ways, engines, strict=True)}


def _in_turn(going: Sequence[Iterator[Run | None]]) -> list[Run]:
    """What each comes to, a step of each at a time."""
    found = []
    for steps in zip_longest(*going):
        found += [run for run in steps if run is not None]
    return found


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

    def __init__(self, engine: Engine, params: SamplingParams) -> None:
        self._engine, self._params = engine, params
        self._asked = count()  # no request's name is used twice

    def remember(self, known: Sequence[Completion]) -> None:
        """As if it had said them."""
        drafters = self._engine.speculation.drafters
        for number, one in enumerate(known):
            text = (*one.asked.prompt, *one.tokens)
            drafters.finish(f"known {number}", text, len(one.asked.prompt), "")
        while drafters.waiting:
            drafters.read(1 << 12)

    def answer(
        self, way: str, number: int, asked: Sequence[Completion], company: Sequence[Completion], batch: int
    ) -> Iterator[Run | None]:
        """All of `asked`, so many at a time, with `company` behind them: a step each time, and in the end
        what came of it.
        """
        engine, before = self._engine, self._engine.stats()
        names = {f"{next(self._asked)}": index for index in range(len(asked) + len(company))}
        prompts = [one.asked.prompt for one in (*asked, *company)]
        told: list[list[int]] = [[] for _ in prompts]
        waiting, live = list(reversed(names.items())), set[int]()
        seconds, left = 0.0, len(asked)
        while left:
            began = time.perf_counter()
            while waiting and len(live) < batch:
                name, index = waiting.pop()
                engine.accept(GenerationRequest(name, prompts[index], self._params))
                live.add(index)
            share = sum(index < len(asked) for index in live) / len(live)
            for event in engine.step().events:
                if event.error:
                    raise DistillError(f"a prompt cannot be answered: {event.error}; leave it out")
                index = names[event.request_id]
                told[index] += event.tokens
                if event.finish_reason is not None:
                    live.remove(index)
                    left -= index < len(asked)
            seconds += (time.perf_counter() - began) * share
            yield None
        stats = engine.stats()
        answers = tuple(map(tuple, told[: len(asked)]))
        drafts, accepted = stats.drafts - before.drafts, stats.accepted_tokens - before.accepted_tokens
        yield Run(way, number, answers, seconds, drafts, accepted)
