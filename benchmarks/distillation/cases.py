"""Drafts that were trained, and runs of one domain's prompts with them."""

from __future__ import annotations

from collections.abc import Callable, Container, Sequence
from dataclasses import dataclass, replace

from turbo_runtime.distill.data.responses import Completion
from turbo_runtime.distill.evaluation.speedup_benchmark import WARM_UP, Run, ways
from turbo_runtime.distill.target import TargetModel
from turbo_runtime.drafters.heads import Heads, HeadsDrafter
from turbo_runtime.drafters.loader import ActiveDrafts


@dataclass(frozen=True)
class Trained:
    """A draft, and what it was learnt from."""

    heads: Heads
    answers: list[Completion]  # not those to prompts held out
    seconds: dict[str, float]

    @property
    def known(self) -> list[Completion]:
        """What is in the memory, as in that of a server that has said it."""
        return [one for one in self.answers if one.request.part == "training"]

    @property
    def warm_up(self) -> list[Completion]:
        """What is asked before the clock."""
        return [one for one in self.answers if one.request.part == "validation"][:WARM_UP]


def ways_of(served: TargetModel, trained: Trained) -> dict[str, Callable[[], ActiveDrafts]]:
    """No drafts, memory alone, and the heads in addition."""
    of = ways(lambda: ActiveDrafts("auto", HeadsDrafter(trained.heads, served.noise)))
    return {"none": of["none"], "memory": of["memory"], "heads": of["draft"]}


@dataclass(frozen=True)
class Case:
    """Runs of one domain's prompts with one draft."""

    domain: str
    temperature: float
    batch: int
    whole: bool  # answers that stand among those learnt from count too
    found: list[Run]
    same: list[bool]  # for each answer with drafts, see `same`

    def joined(self, found: Sequence[Run], same: list[bool]) -> Case:
        """With runs of further prompts, the ways that both have; `same` is that of these."""
        more = {(run.round, run.way): run for run in found}
        both = [total(run, more[run.round, run.way]) for run in self.found if (run.round, run.way) in more]
        return replace(self, whole=True, found=both, same=same)

    def ratios(self, way: str = "heads", over: str = "none") -> list[float]:
        speeds = {(run.round, run.way): run.speed for run in self.found}
        pairs = [
            (speed, speeds.get((number, over))) for (number, told), speed in speeds.items() if told == way
        ]
        return [speed / other for speed, other in pairs if other]


def same(found: Sequence[Run], told: Container[tuple[int, ...]]) -> list[bool]:
    """Of each answer with drafts, whether it is that without: of the same round, and among those `told` once
    before in other company.
    """
    plain = {run.round: run.answers for run in found if run.way == "none"}
    pairs = [zip(run.answers, plain[run.round], strict=True) for run in found if run.way != "none"]
    return [answer == wanted and answer in told for each in pairs for answer, wanted in each]


def total(run: Run, more: Run) -> Run:
    """One run of both's prompts."""
    return replace(
        run,
        answers=(*run.answers, *more.answers),
        seconds=run.seconds + more.seconds,
        drafts=run.drafts + more.drafts,
        accepted=run.accepted + more.accepted,
    )
