"""What the drafters that are measured here would gain for larger models and on other hardware.

How often they are right is measured here, every draft verified whole; how long steps and passes take is the
planner's model of step times, on this CPU with the factor that its own start-up measurement gives. A larger
model is taken to accept what this one does: its drafts are trained alike, and what it says repeats itself
neither more nor less.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass, replace
from operator import itemgetter
from typing import Any

from turbo_operator.api import EngineName, Method
from turbo_operator.catalog import catalog
from turbo_operator.catalog.shapes import shipped
from turbo_operator.planner.performance import memory, step_time
from turbo_operator.planner.performance.calibration import calibrate
from turbo_operator.planner.performance.speculation import layer_parameters, pass_share
from turbo_runtime.contract.documents import ModelShape, StepTime
from turbo_runtime.distill.data.responses import Completion
from turbo_runtime.distill.evaluation.speedup_benchmark import Bench
from turbo_runtime.distill.target import TargetModel
from turbo_runtime.drafters.autoregressive import AutoregressiveDrafter
from turbo_runtime.drafters.loader import ActiveDrafts
from turbo_runtime.messages import SamplingParams
from turbo_runtime.speculation.controller import DraftOutcome, GoodputController, StepTimes
from turbo_runtime.speculation.step_cost import StepShape

EIGHT_BILLION = "meta-llama/Llama-3.1-8B-Instruct"
CONTEXT = 512  # tokens
REQUESTS = (1, 32)  # together
FLOOR = 0.05  # chance of acceptance that a drafted token has at least
MOST = 16  # tokens of a draft


@dataclass(frozen=True)
class Verification:
    """A step of one request."""

    claims: tuple[float, ...]  # for each drafted token the chance that it and all before it are right
    accepted: int  # of them
    passes: Mapping[str, int]  # of drafters, by name


class Unpriced(GoodputController):
    """Verifies every draft whole, and keeps what came of it where one request runs."""

    def __init__(self, padded: Callable[[int], int], passes: Callable[[], Mapping[str, int]]) -> None:
        super().__init__(None, padded)
        self.verifications: list[Verification] = []
        self._passes, self._claims = passes, tuple[float, ...]()

    @property
    def asks(self) -> bool:
        return True

    def costly_pay(self, key: Hashable) -> bool:  # noqa: ARG002
        return True

    def min_acceptance(self, shape: StepShape, answers: int) -> float:  # noqa: ARG002
        return FLOOR

    def token_seconds(self, shape: StepShape, answers: int) -> float:  # noqa: ARG002
        return float("inf")

    def select_draft_lengths(
        self,
        acceptances: Sequence[Sequence[float]],
        shape: StepShape,  # noqa: ARG002
        answers: int,  # noqa: ARG002
        drafting: float,  # noqa: ARG002
    ) -> list[int]:
        self._claims = tuple(acceptances[0]) if acceptances else ()
        return [len(draft) for draft in acceptances]

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
    control = Unpriced(served.model.padded_rows, _count_passes(drafts))
    engine.speculation.control = control
    bench = Bench(engine, replace(params, max_draft_tokens=MOST))
    bench.remember(known)
    deque(bench.answer("", 0, warm_up, (), 1), 0)
    control.verifications.clear()
    deque(bench.answer("", 0, said, (), 1), 0)
    return control.verifications


def _count_passes(drafts: ActiveDrafts) -> Callable[[], dict[str, int]]:
    """Count from now on: what is returned gives the passes since it was called last, by drafter."""
    counts = dict.fromkeys(drafts.own, 0)

    def counted(name: str, run: Callable[..., Any]) -> Callable[..., Any]:
        def call(*arguments: Any) -> Any:
            counts[name] += 1
            return run(*arguments)

        return call

    for name, drafter in drafts.own.items():
        one: Any = drafter
        # heads draft all positions in one pass
        method = "guess" if isinstance(drafter, AutoregressiveDrafter) else "begin"
        setattr(one, method, counted(name, getattr(one, method)))

    def since() -> dict[str, int]:
        found = dict(counts)
        counts.update(dict.fromkeys(counts, 0))
        return found

    return since


@dataclass(frozen=True)
class Served:
    """A model on a device, `requests` at a time."""

    name: str
    machine: step_time.Machine
    shape: ModelShape
    element: int  # bytes of a weight
    factor: float  # of measured over predicted times

    def seconds(self, requests: int, drafts: int) -> float:
        """One step that verifies so many drafts of each request."""
        work = self.work()
        passed = step_time.decode_seconds(self.machine, work, float(requests), float(drafts), float(CONTEXT))
        return float(passed) * self.factor

    def work(self) -> step_time.ForwardCost:
        weights = memory.weights(self.shape, self.element)
        cache = memory.kv_bytes(self.shape, self.element, 1.0, CONTEXT)
        return step_time.build_work(self.shape, weights.dense, weights.expert, cache)

    def shares(self, layers: float) -> dict[str, float]:
        """One pass of each drafter over one of the model; `layers`: the share of those that draft alone."""
        head = self.shape.vocab_size * self.shape.hidden_size / layer_parameters(self.shape)
        return {
            "heads": pass_share(Method.TURBO_HEADS, self.shape),
            "eagle3": pass_share(Method.EAGLE3, self.shape),
            "model": layers + head / self.shape.layers,
        }


def places(small: ModelShape, element: int, cores: int, measured: Sequence[StepTime]) -> list[Served]:
    """This model where it was measured, and one of 8B there and on two GPUs in bfloat16."""
    rows, large = catalog(), shipped(EIGHT_BILLION)
    assert large is not None
    coefficients = step_time.BY_ENGINE[EngineName.TURBO]

    def machine(name: str, count: int = 1) -> step_time.Machine:
        row = rows[name]
        assert row.memory_bandwidth is not None
        flops = count * row.flops["bf16"]
        own = replace(coefficients, **row.efficiency)
        return step_time.Machine(count * row.memory_bandwidth, flops, flops, flops, float("inf"), 1.0, own)

    here = Served("135M on this CPU", machine("cpu", cores), small, element, 1.0)
    scale = calibrate(measured, here.machine, here.work())
    here = replace(here, factor=scale.decode if scale else 1.0)
    return [
        here,
        replace(here, name="8B on this CPU", shape=large),
        Served("8B on an L4", machine("l4"), large, 2, 1.0),
        Served("8B on an H100", machine("h100"), large, 2, 1.0),
    ]


def gain(
    verifications: Sequence[Verification], served: Served, requests: int, layers: float
) -> tuple[float, int]:
    """Tokens a second over those without drafts, of drafts of the length that gains most; and that length.

    Of each draft so many tokens are verified as pay by what the drafter claims.
    """
    plain = served.seconds(requests, 0)
    steps = [served.seconds(requests, count) for count in range(MOST + 1)]
    seconds = {name: share * plain for name, share in served.shares(layers).items()}
    best = (1.0, 0)
    for length in range(1, MOST + 1):
        tokens = spent = 0.0
        for one in verifications:
            drafting = sum(min(count, length) * seconds[name] for name, count in one.passes.items())
            count = _pays(one.claims[:length], steps)
            tokens += 1 + min(one.accepted, count)
            spent += steps[count] + drafting
        best = max(best, (tokens * plain / spent, length), key=itemgetter(0))  # of equal ones the shortest
    return best


def _pays(claims: Sequence[float], steps: Sequence[float]) -> int:
    """So many tokens of the draft as make most tokens a second, by their claims."""
    promised, best, count = 1.0, 1.0 / steps[0], 0
    for number, claim in enumerate(claims, 1):
        promised += claim
        if promised / steps[number] > best:
            best, count = promised / steps[number], number
    return count
