"""A question to the planner and its answer: one path, wherever the object comes from."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from decimal import Decimal
from typing import Any

from turbo_operator import api, planner
from turbo_operator.cli import whatif
from turbo_operator.cli.errors import BadInputError
from turbo_operator.cli.formatting import trained_on
from turbo_operator.drafts import training
from turbo_operator.plan import Choice, EvaluatedCandidate, Plan
from turbo_operator.snapshot import Snapshot
from turbo_runtime.contract.model import ModelShape


@dataclass(frozen=True, slots=True)
class Question:
    """A TurboDeployment and all that its plan depends on."""

    document: Mapping[str, Any]
    td: api.TurboDeployment  # the document, parsed
    model: str  # what the shape was read from
    shape: ModelShape
    observed: Snapshot  # accelerators, their supply, what runs
    now: float  # seconds since the epoch

    def plan(self) -> Plan:
        """Plan it."""
        return planner.plan(planner.build_inputs(self.td, self.shape, self.observed), self.now)

    def candidates(self) -> tuple[EvaluatedCandidate, ...]:
        """Return every candidate that could be predicted, for the plot."""
        return planner.frontier(planner.build_inputs(self.td, self.shape, self.observed), self.now)


@dataclass(frozen=True, slots=True)
class Answer:
    """The plan, what a training of its draft would run on, and the plans under single changes."""

    question: Question
    plan: Plan
    training: TrainedOn | None = None  # where one may begin
    changes: tuple[Change, ...] = ()


@dataclass(frozen=True, slots=True)
class TrainedOn:
    """What a training of the draft would run on."""

    choice: Choice | None
    detail: str  # a sentence


@dataclass(frozen=True, slots=True)
class Change:
    """One --what-if and its plan."""

    asked: str
    plan: Plan
    difference: Decimal | None  # dollars per hour over the plan without it; None where either has no price
    notes: tuple[str, ...]  # sentences on what of it has no effect


def ask(question: Question, what_if: Sequence[str] = ()) -> Answer:
    """Plan, and plan under each change. Raises BadInputError for a change that is none or breaks a rule."""
    plan = question.plan()
    changes = tuple(_change(question, plan, change) for change in what_if)
    return Answer(question, plan, _training(question, plan), changes)


def _training(question: Question, plan: Plan) -> TrainedOn | None:
    """Choose as the operator does once a training is due; None where none will begin."""
    td, observed, serving = question.td, question.observed, plan.choice
    spec = td.spec.speculation.training
    if spec is None or spec.suspend or td.spec.suspend:
        return None
    if serving is None or serving.method == api.OFF:
        return None
    if spec.trigger.speedup_below is None and training.fitting(observed):
        return None
    query = training.AcceleratorQuery(spec.accelerator_name or "", training.dtype(serving))
    trainer = planner.plan(training.question(td, observed, question.shape, query), question.now)
    return TrainedOn(trainer.choice, trained_on(spec, trainer))


def _change(question: Question, base: Plan, change: str) -> Change:
    document = whatif.changed(question.document, change)
    try:
        td = api.parse(document)
    except api.InvalidObject as error:
        raise BadInputError(f"--what-if {change}: {error}.") from error
    plan = dataclasses.replace(question, document=document, td=td).plan()
    before, after = (p.choice.predicted.cost_per_hour if p.choice else None for p in (base, plan))
    difference = None if before is None or after is None else after - before
    allowed = (td.spec.accelerators.allowed or ()) if td.spec.accelerators else ()
    unknown = [name for name in allowed if name not in question.observed.accelerators]
    notes = [f"there is no TurboAccelerator {name}." for name in unknown if name not in plan.detail]
    return Change(change, plan, difference, (*notes, *_unread(change, td)))


def _unread(change: str, td: api.TurboDeployment) -> list[str]:
    """Note a change of a number of replicas that the policy does not read."""
    key = change.partition("=")[0]
    external = td.spec.scaling_mode == api.ScalingMode.EXTERNAL
    if key == "replicas" and not external:
        return [unread_replicas(td)]
    if key in ("minReplicas", "maxReplicas") and external:
        return [f"spec.scaling.{key} is read under scaling.mode Planned or Metrics, and this is External."]
    return []


def unread_replicas(td: api.TurboDeployment) -> str:
    """Say that spec.replicas has no effect."""
    return f"spec.replicas is read under scaling.mode External alone, and this is {td.spec.scaling_mode}."
