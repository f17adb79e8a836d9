"""Speedups on this machine: the same prompts without drafts, with those from memory, and with a draft too."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain, count, zip_longest
from statistics import median

from turbo_runtime.distill.data.responses import Completion
from turbo_runtime.distill.recipe import DistillError
from turbo_runtime.distill.target import TargetModel
from turbo_runtime.drafters.loader import ActiveDrafts
from turbo_runtime.engine.loop import Engine
from turbo_runtime.messages import GenerationRequest, SamplingParams

BATCHES = (1, 8, 32)
ROUNDS = 3
WARM_UP = 16  # prompts
_WARM_UP_BATCH = 8
Ways = Mapping[str, Callable[[], ActiveDrafts]]  # what drafts; its drafters are created each time anew


def ways(create: Callable[[], ActiveDrafts]) -> dict[str, Callable[[], ActiveDrafts]]:
    """Return no drafts, memory alone, and in addition the draft that `create` loads."""
    return {
        "none": lambda: ActiveDrafts("off"),
        "memory": lambda: ActiveDrafts("suffix"),
        "draft": create,
    }


@dataclass(frozen=True, slots=True)
class Run:
    """Some prompts, answered one way."""

    way: str
    round: int
    answers: tuple[tuple[int, ...], ...]
    seconds: float  # of each step the share of these prompts among all in it
    drafts: int  # steps of a response that verified drafts, of whichever drafter
    accepted: int

    @property
    def speed(self) -> float:
        """Tokens a second, prompts included in the time."""
        return sum(map(len, self.answers)) / self.seconds


@dataclass(frozen=True, slots=True)
class Speedup:
    """Speedups at a batch size: medians over rounds, each over the same round without drafts."""

    batch: int
    prompts: int  # of a round, the fewest
    tokens_per_second: float  # without drafts
    before: float  # from memory alone
    after: float  # with the draft
    acceptance_length: float  # with the draft: tokens of a step that verified drafts, of whichever drafter
    differing: int  # responses that differ with drafts; under the guarantee `bitwise` there are none


def runs(
    served: TargetModel,
    ways: Ways,
    measured: Sequence[Completion],
    known: Sequence[Completion],
    warm_up: Sequence[Completion],
    params: SamplingParams,
    batch: int,
    rounds: int = ROUNDS,
) -> Iterator[Run]:
    """Answer some of the prompts in all `ways` in each round: other prompts in each while every round has at
    least `batch`. The ways step in turn, in an order that rotates from round to round, so that the machine's
    other load falls on all alike; where the KV cache is too small for that, one way follows another. Prompts
    of the other rounds fill the batch as some end, until the last one of the round has.

    In each round and way the memory starts with the `known` responses, and then the prompts of `warm_up` are
    answered: so the engine learns, as in service, how sure its drafts are and what they cost. It knows
    nothing else but the cost of steps, which all share. None of `measured` may be among either, nor may a
    draft have been trained on `warm_up`: it would be too sure of it.
    """
    names = list(ways)
    parts = max(1, min(rounds, len(measured) // batch))
    max_length = max(len(completion.request.prompt) for completion in measured) + params.max_tokens
    together = served.can_hold(len(names), batch, max_length)
    for number in range(rounds):
        first = number % len(names)
        order = [*names[first:], *names[:first]]
        own, *others = [measured[(number + later) % parts :: parts] for later in range(parts)]
        fillers = list(chain.from_iterable(others))
        for group in [order] if together else [[name] for name in order]:
            engines = served.engines([ways[name]() for name in group])
            benches = {name: Bench(engine, params) for name, engine in zip(group, engines, strict=True)}
            for way, bench in benches.items():
                bench.remember(known)
                deque(bench.answer(way, number, warm_up, (), _WARM_UP_BATCH), 0)
            turns = [bench.answer(way, number, own, fillers, batch) for way, bench in benches.items()]
            yield from [run for steps in zip_longest(*turns) for run in steps if run is not None]
            del bench, benches, engines, turns  # before the next ones are created


def compute_speedup(batch: int, found: Sequence[Run]) -> Speedup:
    """Summarize all runs at a batch size."""
    plain, memory, draft = (
        sorted((run for run in found if run.way == way), key=lambda run: run.round)
        for way in ("none", "memory", "draft")
    )
    drafts = sum(run.drafts for run in draft)
    return Speedup(
        batch,
        min(len(run.answers) for run in found),
        median(run.speed for run in plain),
        median(run.speed / base.speed for run, base in zip(memory, plain, strict=True)),
        median(run.speed / base.speed for run, base in zip(draft, plain, strict=True)),
        1 + sum(run.accepted for run in draft) / drafts if drafts else 1.0,
        sum(
            answer != expected
            for runs in (memory, draft)
            for run, base in zip(runs, plain, strict=True)
            for answer, expected in zip(run.answers, base.answers, strict=True)
        ),
    )


class Bench:
    """An engine of its own for one run."""

    def __init__(self, engine: Engine, params: SamplingParams) -> None:
        self._engine, self._params = engine, params
        self._numbers = count()  # no request's name is used twice

    def remember(self, known: Sequence[Completion]) -> None:
        """Fill the memory as if the engine had generated them."""
        drafters = self._engine.speculation.drafters
        for number, completion in enumerate(known):
            prompt = completion.request.prompt
            drafters.finish(f"known {number}", (*prompt, *completion.tokens), len(prompt), "")
        while drafters.waiting:
            drafters.read(1 << 12)

    def answer(
        self, way: str, number: int, own: Sequence[Completion], fillers: Sequence[Completion], batch: int
    ) -> Iterator[Run | None]:
        """Answer `own`, `batch` at a time, then `fillers`; yield None after each step, then the run."""
        engine, before = self._engine, self._engine.stats()
        prompts = [completion.request.prompt for completion in (*own, *fillers)]
        names = {str(next(self._numbers)): index for index in range(len(prompts))}
        responses: list[list[int]] = [[] for _ in prompts]
        waiting, live = list(reversed(names.items())), set[int]()
        seconds, remaining = 0.0, len(own)
        while remaining:
            start_time = time.perf_counter()
            while waiting and len(live) < batch:
                name, index = waiting.pop()
                engine.accept(GenerationRequest(name, prompts[index], self._params))
                live.add(index)
            share = sum(index < len(own) for index in live) / len(live)
            for event in engine.step().events:
                if event.error:
                    raise DistillError(f"a prompt cannot be answered: {event.error}; leave it out")
                index = names[event.request_id]
                responses[index] += event.tokens
                if event.finish_reason is not None:
                    live.remove(index)
                    remaining -= index < len(own)
            seconds += (time.perf_counter() - start_time) * share
            yield None
        stats = engine.stats()
        answers = tuple(map(tuple, responses[: len(own)]))
        drafts, accepted = stats.drafts - before.drafts, stats.accepted_tokens - before.accepted_tokens
        yield Run(way, number, answers, seconds, drafts, accepted)
