"""What each drafter brings, alone and with others: tokens of a verified draft, and the speed over no drafts.

Prompts whose answers share a run of `RUN` tokens with anything learned from are near-copies: there the memory
does best. They are told apart from the new ones.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from token_runs import runs_of_tokens

from turbo_dev.progress import say
from turbo_runtime.distill.data.responses import Completion
from turbo_runtime.distill.evaluation.speedup_benchmark import Run, runs
from turbo_runtime.distill.target import TargetModel
from turbo_runtime.drafters.eagle3 import load_eagle3
from turbo_runtime.drafters.heads import Heads, HeadsDrafter
from turbo_runtime.drafters.loader import ActiveDrafts
from turbo_runtime.drafters.model import load_first_layers
from turbo_runtime.messages import SamplingParams

from .cases import Case, Trained, same
from .larger_models import REQUESTS, Served, Verification, gain, verify_whole

LAYERS = 8  # of the 30 of SmolLM2-135M
BESIDE_MEMORY = ("memory_heads", "memory_eagle3", "together")


@dataclass(frozen=True)
class Part:
    """The near-copies of a domain's prompts, or the new ones."""

    new: bool
    case: Case
    verifications: Mapping[str, Sequence[Verification]] = field(default_factory=dict)  # by way


def drafters(served: TargetModel, heads: Heads, eagle3: Path) -> dict[str, Callable[[], ActiveDrafts]]:
    """Every way to draft. Only `memory` remembers where a name does not say so."""

    def of_heads() -> HeadsDrafter:
        return HeadsDrafter(heads, served.noise)

    def of_eagle3() -> Any:
        return load_eagle3(eagle3, served.target, served.noise)

    def of_layers() -> Any:
        return load_first_layers(LAYERS, served.target, served.noise)

    return {
        "none": lambda: ActiveDrafts("off"),
        "memory": lambda: ActiveDrafts("suffix"),
        "heads": lambda: ActiveDrafts("heads", of_heads()),
        "eagle3": lambda: ActiveDrafts("eagle3", eagle3=of_eagle3()),
        "first_layers": lambda: ActiveDrafts("model", model=of_layers()),
        "memory_heads": lambda: ActiveDrafts("auto", of_heads()),
        "memory_eagle3": lambda: ActiveDrafts("auto", eagle3=of_eagle3()),
        "together": lambda: ActiveDrafts("auto", of_heads(), eagle3=of_eagle3(), model=of_layers()),
    }


def is_new(answer: Completion, known: frozenset[tuple[int, ...]]) -> bool:
    """Whether the answer shares no run of `RUN` tokens with what was learned from."""
    return known.isdisjoint(runs_of_tokens(answer.tokens))


def runs_of(learned: Iterable[Completion]) -> frozenset[tuple[int, ...]]:
    """All runs of `RUN` tokens in prompts and answers."""
    return frozenset(run for one in learned for run in runs_of_tokens(one.text))


def measure(
    served: TargetModel,
    domain: str,
    said: Sequence[Completion],
    trained: Trained,
    eagle3: Path,
    params: SamplingParams,
    rounds: int,
) -> Iterator[Part]:
    """One request at a time. A part of fewer prompts than rounds has no figures."""
    learned, expected = runs_of(trained.answers), frozenset(one.tokens for one in said)
    for new in (False, True):
        part = [one for one in said if is_new(one, learned) == new]
        what = "new" if new else "near-copies"
        if len(part) < rounds:
            say(f"   {domain}: {len(part)} prompts are {what}: too few to be measured")
            continue
        say(f"   {domain}, {what}: {len(part)} prompts, {sum(len(one.tokens) for one in part)} tokens")
        ways = drafters(served, trained.heads, eagle3)
        found = list(runs(served, ways, part, trained.known, trained.warm_up, params, 1, rounds))
        case = Case(domain, params.temperature, 1, whole=False, found=found, same=same(found, expected))
        say(f"   {domain}, {what}: {_summary(case)}")
        verifications = {
            way: verify_whole(served, create, part, trained.known, trained.warm_up, params)
            for way, create in ways.items()
            if way != "none"
        }
        yield Part(new, case, verifications)


def _ways(case: Case) -> list[str]:
    return list(dict.fromkeys(run.way for run in case.found if run.way != "none"))


def _summary(case: Case) -> str:
    return ", ".join(f"{way} {statistics.median(case.ratios(way)):.2f}" for way in _ways(case))


def acceptance_length(found: Sequence[Run], way: str) -> float:
    """Tokens of a step that verified a draft."""
    drafts = sum(run.drafts for run in found if run.way == way)
    return 1 + sum(run.accepted for run in found if run.way == way) / drafts if drafts else 1.0


def figures(parts: Sequence[Part]) -> dict[str, float]:
    """Medians over rounds; `_new`: of prompts that are no near-copies."""
    found: dict[str, float] = {
        "by_drafter_compared": sum(len(part.case.same) for part in parts),
        "by_drafter_differing": sum(part.case.same.count(False) for part in parts),
    }
    for part in parts:
        domain, case, end = part.case.domain, part.case, "_new" if part.new else "_near"
        ways = _ways(case)
        for way in ways:
            found[f"{domain}_{way}_of_plain{end}"] = round(statistics.median(case.ratios(way)), 3)
            found[f"{domain}_{way}_acceptance_length{end}"] = round(acceptance_length(case.found, way), 2)
            if way in BESIDE_MEMORY:
                of_memory = statistics.median(case.ratios(way, "memory"))
                found[f"{domain}_{way}_of_memory{end}"] = round(of_memory, 3)
    return found


def rows(parts: Sequence[Part]) -> list[dict[str, Any]]:
    """A row for each part and way."""
    return [
        {
            "domain": part.case.domain,
            "prompts": sum(len(run.answers) for run in part.case.found if run.way == "none"),
            "new": part.new,
            "drafts": way,
            "tokens_per_draft": acceptance_length(part.case.found, way),
            "drafted_steps": sum(run.drafts for run in part.case.found if run.way == way),
            "times": statistics.median(ratios),
            "from": min(ratios),
            "to": max(ratios),
        }
        for part in parts
        for way in _ways(part.case)
        for ratios in [part.case.ratios(way)]
    ]


def gains(parts: Sequence[Part], places: Sequence[Served], layers: float) -> list[dict[str, Any]]:
    """What each drafter would gain, in each place: a row for each, and for so many requests
    together; `layers`: the share of a model's layers that `first_layers` draft with.
    """
    return [
        {
            "domain": part.case.domain,
            "new": part.new,
            "drafts": way,
            "served": served.name,
            "together": requests,
            "gain": round(times, 2),
            "draft_tokens": length,
        }
        for part in parts
        for way, verifications in part.verifications.items()
        for served in places
        for requests in REQUESTS
        for times, length in [gain(verifications, served, requests, layers)]
    ]
