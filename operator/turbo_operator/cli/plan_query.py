"""What is asked of the planner, and its answer: one path, wherever the object comes from."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from decimal import Decimal
from typing import Any

from turbo_operator import api
from turbo_operator.cli import whatif
from turbo_operator.cli.errors import BadInputError
from turbo_operator.cli.formatting import trained_on
from turbo_operator.drafts import training
from turbo_operator.plan import Choice, EvaluatedCandidate, Plan
from turbo_operator.planner.inputs import compute_plan, frontier_of, plan_of
from turbo_operator.snapshot import Snapshot
from turbo_runtime.contract.model import ModelShape


@dataclass(frozen=True, slots=True)
class Question:
    """A TurboDeployment and all that its plan depends on."""

    document: Mapping[str, Any]
    td: api.TurboDeployment  # the document, parsed
    model: str  # what the shape was read from
    shape: ModelShape
    observed: Snapshot  # accelerators, what there is of them, what runs
    now: float  # seconds since the epoch


@dataclass(frozen=True, slots=True)
class Answer:
    """The plan, what a training of its draft would run on, and the plans that single changes would give."""

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
    """One --what-if and what comes of it."""

    asked: str
    plan: Plan
    difference: Decimal | None  # dollars per hour over the plan without it; None where either has no price
    notes: tuple[str, ...]  # sentences on what of it says nothing


def ask(question: Question, what_if: Sequence[str] = ()) -> Answer:
    """The plan, and those under each change; BadInputError where a change is no change or breaks a rule."""
    plan = _plan(question)
    changes = tuple(_change(question, plan, asked) for asked in what_if)
    return Answer(question, plan, _training(question, plan), changes)


def _training(question: Question, plan: Plan) -> TrainedOn | None:
    """As the operator asks once a training is due; None where none will begin."""
    td, observed, serving = question.td, question.observed, plan.choice
    wanted = td.spec.speculation.training
    if wanted is None or not wanted.enabled or td.spec.suspend:
        return None
    if serving is None or serving.method == api.OFF:
        return None
    if wanted.trigger.gain_below is None and training.fitting(observed):
        return None
    ask = training.AcceleratorQuery(wanted.accelerator or "", training.dtype(serving))
    found = compute_plan(training.question(td, observed, question.shape, ask), question.now)
    return TrainedOn(found.choice, trained_on(wanted, found))


def _change(question: Question, base: Plan, asked: str) -> Change:
    document = whatif.changed(question.document, asked)
    try:
        td = api.parse(document)
    except api.InvalidObject as error:
        raise BadInputError(f"--what-if {asked}: {error}.") from error
    plan = _plan(dataclasses.replace(question, document=document, td=td))
    unknown = [name for name in _allowed(td) if name not in question.observed.accelerators]
    notes = [f"there is no TurboAccelerator {name}." for name in unknown if name not in plan.detail]
    return Change(asked, plan, _difference(base, plan), (*notes, *_unread(asked, td)))


def _unread(asked: str, td: api.TurboDeployment) -> list[str]:
    """A sentence where the change is to a number of replicas that the policy does not read."""
    key = asked.partition("=")[0]
    external = td.spec.scaling_policy == api.ScalingPolicy.EXTERNAL
    if key == "replicas" and not external:
        return [unread_replicas(td)]
    if key in ("minReplicas", "maxReplicas") and external:
        return [f"spec.scaling.{key} is read under scaling.policy Planned or Metrics, and this is External."]
    return []


def unread_replicas(td: api.TurboDeployment) -> str:
    """That spec.replicas is somebody else's to decide."""
    return f"spec.replicas is read under scaling.policy External alone, and this is {td.spec.scaling_policy}."


def _allowed(td: api.TurboDeployment) -> tuple[str, ...]:
    return (td.spec.accelerators.allowed or ()) if td.spec.accelerators else ()


def _plan(question: Question) -> Plan:
    return plan_of(question.td, question.shape, question.observed, question.now)


def _difference(base: Plan, other: Plan) -> Decimal | None:
    before, after = cost_per_hour(base), cost_per_hour(other)
    return None if before is None or after is None else after - before


def candidates(question: Question) -> tuple[EvaluatedCandidate, ...]:
    """Every candidate that could be predicted, for the plot."""
    return frontier_of(question.td, question.shape, question.observed, question.now)


def cost_per_hour(plan: Plan) -> Decimal | None:
    """Dollars per hour of all replicas; None without a plan or a price."""
    return plan.choice.predicted.cost_per_hour if plan.choice else None
