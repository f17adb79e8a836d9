"""What the drafters that are measured here would gain for larger models and on other hardware.

How often they are right is measured here, every draft verified whole. How long a step takes is the planner's
model of it, and a drafter's pass takes the share of one that it reads of the model's weights. A larger model
is taken to accept what this one does: its drafts are trained alike, and what it says repeats itself neither
more nor less.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from operator import itemgetter
from typing import Any

from turbo_dev.drafting import EveryDraft
from turbo_operator.api import EngineName, Method
from turbo_operator.catalog import catalog
from turbo_operator.catalog.shapes import shipped
from turbo_operator.planner.performance import memory, step_time
from turbo_operator.planner.performance.speculation import head_parameters, layer_parameters
from turbo_runtime.contract.documents import ModelShape
from turbo_runtime.distill.data.responses import Completion
from turbo_runtime.distill.evaluation.speedup_benchmark import Bench
from turbo_runtime.distill.recipe import Recipe
from turbo_runtime.distill.target import TargetModel
from turbo_runtime.drafters.loader import ActiveDrafts
from turbo_runtime.messages import SamplingParams
from turbo_runtime.speculation.controller import DraftOutcome, StepTimes
from turbo_runtime.speculation.step_cost import StepShape

EIGHT_BILLION = "meta-llama/Llama-3.1-8B-Instruct"
CONTEXT = 512  # tokens
REQUESTS = (1, 32)  # together
MIN_ACCEPTANCE = 0.05  # of a drafted token, cumulative
MOST = 16  # tokens of a draft


@dataclass(frozen=True)
class Verification:
    """A step of one request."""

    claims: tuple[float, ...]  # for each drafted token the chance that it and all before it are right
    accepted: int  # of them
    passes: Mapping[str, int]  # of drafters, by name


class WholeDrafts(EveryDraft):
    """Verifies every draft whole, and keeps what came of it where one request runs."""

    def __init__(self, passes: Callable[[], Mapping[str, int]]) -> None:
        super().__init__()
        self.verifications: list[Verification] = []
        self._passes, self._claims = passes, tuple[float, ...]()

    def min_acceptance(self, shape: StepShape, answers: int) -> float:  # noqa: ARG002
        return MIN_ACCEPTANCE

    def select_draft_lengths(
        self, acceptances: Sequence[Sequence[float]], shape: StepShape, answers: int, drafting: float
    ) -> list[int]:
        self._claims = tuple(acceptances[0]) if acceptances else ()
        return super().select_draft_lengths(acceptances, shape, answers, drafting)

    def learn(self, shape: StepShape, outcomes: Sequence[DraftOutcome], times: StepTimes) -> None:
        super().learn(shape, outcomes, times)
        passes = self._passes()
        if len(outcomes) == 1:
            claims = self._claims if outcomes[0].drafted else ()
            self.verifications.append(Verification(claims, outcomes[0].won, passes))


def verify_whole(
    served: TargetModel,
    create: Callable[[], ActiveDrafts],
    said: Sequence[Completion],
    known: Sequence[Completion],
    warm_up: Sequence[Completion],
    params: SamplingParams,
) -> list[Verification]:
    """Answer prompts one after the other with what `create` drafts, after the memory has read `known`."""
    drafts = create()
    (engine,) = served.engines([drafts])
    control = WholeDrafts(count_passes(drafts))
    engine.speculation.control = control
    bench = Bench(engine, replace(params, max_draft_tokens=MOST))
    bench.remember(known)
    deque(bench.answer("", 0, warm_up, (), 1), 0)
    control.verifications.clear()
    deque(bench.answer("", 0, said, (), 1), 0)
    return control.verifications


def count_passes(drafts: ActiveDrafts) -> Callable[[], dict[str, int]]:
    """Count from now on: what is returned gives the passes since it was called last, by drafter."""
    counts = dict.fromkeys(drafts.own, 0)

    def count(name: str, drafter: Any, method: str, passes: Callable[[Any, Any], int]) -> None:
        run = getattr(drafter, method)

        def counted(*arguments: Any) -> Any:
            result = run(*arguments)
            counts[name] += passes(arguments, result)
            return result

        setattr(drafter, method, counted)

    for name, drafter in drafts.own.items():
        if name == "heads":  # one for all positions
            count(name, drafter, "next_candidates", lambda _, result: any(result) and not counts["heads"])
        elif name == "eagle3":  # one for each token that it has not seen, of others too
            count(name, drafter, "guess", lambda given, _: max(1, *map(len, given[1].values())))
        else:
            count(name, drafter, "guess", lambda *_: 1)

    def since() -> dict[str, int]:
        found = dict(counts)
        counts.update(dict.fromkeys(counts, 0))
        return found

    return since


@dataclass(frozen=True)
class Served:
    """A model on a device."""

    name: str
    machine: step_time.Machine
    shape: ModelShape
    element: int  # bytes of a weight

    def seconds(self, requests: int, drafts: int) -> float:
        """One step that verifies so many drafts of each request."""
        weights = memory.weights(self.shape, self.element)
        cache = memory.kv_bytes(self.shape, self.element, 1.0, CONTEXT)
        work = step_time.build_work(self.shape, weights.dense, weights.expert, cache)
        return float(step_time.decode_seconds(self.machine, work, float(requests), float(drafts), CONTEXT))

    def shares(self, layers: float) -> dict[str, float]:
        """The weights that a pass of each drafter reads, over those that one of the model does; `layers`: the
        share of the layers that draft alone.
        """
        shape, recipe = self.shape, Recipe()
        width, head = shape.hidden_size, shape.vocab_size * shape.hidden_size
        each = width**2 + recipe.markov_rank * recipe.vocabulary
        passes = {
            "heads": recipe.vocabulary * width + recipe.depth * each,
            "eagle3": head_parameters(Method.EAGLE3, shape, 0),
            "model": layers * shape.layers * layer_parameters(shape) + head,
        }
        read = shape.parameters - shape.embedding_parameters
        return {name: parameters / read for name, parameters in passes.items()}


def places(small: ModelShape, element: int, cores: int) -> list[Served]:
    """This model and one of 8B on this CPU, and that on two GPUs in bfloat16."""
    rows, large = catalog(), shipped(EIGHT_BILLION)
    assert large is not None

    def machine(name: str, count: int = 1) -> step_time.Machine:
        row = rows[name]
        assert row.memory_bandwidth is not None
        flops = count * row.flops["bf16"]
        fitted = replace(step_time.BY_ENGINE[EngineName.TURBO], **row.efficiency)
        return step_time.Machine(count * row.memory_bandwidth, flops, flops, flops, float("inf"), 1.0, fitted)

    return [
        Served("135M on this CPU", machine("cpu", cores), small, element),
        Served("8B on this CPU", machine("cpu", cores), large, element),
        Served("8B on an L4", machine("l4"), large, 2),
        Served("8B on an H100", machine("h100"), large, 2),
    ]


def gain(
    verifications: Sequence[Verification], served: Served, requests: int, layers: float
) -> tuple[float, int]:
    """Tokens a second over those without drafts, of drafts of the length that gains most; and that length.

    Of each draft so many tokens are verified as pay by what the drafter claims. What is right beyond them is
    drafted again in the next step.
    """
    plain = served.seconds(requests, 0)
    steps = [served.seconds(requests, count) for count in range(MOST + 1)]
    seconds = {name: share * plain for name, share in served.shares(layers).items()}
    best = (1.0, 0)
    for length in range(1, MOST + 1):
        tokens = spent = 0.0
        for one in verifications:
            for more, took in steps_of(one, length, steps, seconds):
                tokens, spent = tokens + more, spent + took
        best = max(best, (tokens * plain / spent, length), key=itemgetter(0))  # of equal ones the shortest
    return best


def steps_of(
    one: Verification, length: int, steps: Sequence[float], seconds: Mapping[str, float]
) -> Iterator[tuple[int, float]]:
    """Tokens and seconds of each step that commits what one verification did, by drafts of at most `length`
    tokens; `steps`: of a step by its drafts; `seconds`: of a pass by drafter.
    """
    start = 0  # tokens of the draft before
    while True:
        before = one.claims[start - 1] if start else 1.0
        claims = [claim / before for claim in one.claims[start : start + length]]
        drafting = sum(
            seconds[name] * (passes if name == "heads" else max(0, min(passes - start, length)))
            for name, passes in one.passes.items()
        )
        count = _pays(claims, steps)
        took = min(one.accepted - start, count)
        yield 1 + took, steps[count] + drafting
        start += 1 + took
        if start > one.accepted:
            return


def _pays(claims: Sequence[float], steps: Sequence[float]) -> int:
    """So many tokens of the draft as make most tokens a second, by their claims."""
    promised, best, count = 1.0, 1.0 / steps[0], 0
    for number, claim in enumerate(claims, 1):
        promised += claim
        if promised / steps[number] > best:
            best, count = promised / steps[number], number
    return count
