"""A question to the planner, its answer, and `--what-if KEY=VALUE`: the same with one thing changed."""

from __future__ import annotations

import dataclasses
import difflib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from decimal import Decimal
from typing import Any

from turbo_operator import api, planner
from turbo_operator.cli.manifests import BadInputError
from turbo_operator.drafts import training
from turbo_operator.plan import EvaluatedCandidate, Plan
from turbo_operator.planner.performance.speculation import PRIORS
from turbo_operator.snapshot import Snapshot
from turbo_runtime.contract.documents import ModelShape


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

    def plan_without_speculation(self) -> Plan:
        """Plan the same targets with no drafts, as though nothing ran yet."""
        inputs = planner.build_inputs(self.td, self.shape, self.observed)
        return planner.plan(planner.without_speculation(inputs), self.now)

    def with_billing(self, per_node: bool) -> Question:
        """Return the question of somebody who buys nodes whole, or no node whole."""
        rows = self.observed.accelerators
        bought = {name: replace(row, price_per_node=per_node) for name, row in rows.items()}
        return replace(self, observed=replace(self.observed, accelerators=bought))

    def candidates(self) -> tuple[EvaluatedCandidate, ...]:
        """Return every candidate that could be predicted, for the plot."""
        return planner.frontier(planner.build_inputs(self.td, self.shape, self.observed), self.now)


@dataclass(frozen=True, slots=True)
class Change:
    """One --what-if and its plan."""

    setting: str
    plan: Plan
    difference: Decimal | None  # dollars per hour over the plan without it; None where either has no price
    notes: tuple[str, ...]  # sentences on what of it has no effect


@dataclass(frozen=True, slots=True)
class Answer:
    """The plan, that without its drafts, that of a training of them, and the plans under single changes."""

    question: Question
    plan: Plan
    undrafted: Plan | None = None  # where the plan is the cheapest by drafts that are assumed to gain
    trainer: Plan | None = None  # where one may begin
    changes: tuple[Change, ...] = ()
    problems: tuple[BadInputError, ...] = ()  # what is wrong with other changes


def ask(question: Question, what_if: Sequence[str] = ()) -> Answer:
    """Plan, and plan under each change that is one and breaks no rule."""
    plan, changes, problems = question.plan(), list[Change](), list[BadInputError]()
    for setting in what_if:
        try:
            changes.append(_change(question, plan, setting))
        except BadInputError as error:
            problems.append(error)
    undrafted = question.plan_without_speculation() if _saves(question, plan) else None
    return Answer(question, plan, undrafted, _trainer(question, plan), tuple(changes), tuple(problems))


def _saves(question: Question, plan: Plan) -> bool:
    """Whether drafts are assumed to gain, and the planner decides what that is worth in money."""
    spec, choice = question.td.spec, plan.choice
    if spec.plan_policy.objective != api.Objective.COST or spec.scaling_mode == api.ScalingMode.EXTERNAL:
        return False
    return choice is not None and choice.method in PRIORS and choice.predicted.cost_per_hour is not None


def _trainer(question: Question, plan: Plan) -> Plan | None:
    """Choose as the operator does once a training is due; None where none will begin."""
    td, observed, serving = question.td, question.observed, plan.choice
    spec = td.spec.speculation.training
    if spec is None or spec.suspend or td.spec.suspend or serving is None:
        return None
    if serving.method == api.OFF and not td.spec.is_on_vllm:
        return None
    if spec.trigger.speedup_below is None and training.fitting(td, observed):
        return None
    query = training.AcceleratorQuery(spec.accelerator_name or "", serving.dtype)
    return planner.plan(training.question(td, observed, question.shape, query), question.now)


def _change(question: Question, base: Plan, change: str) -> Change:
    document = changed(question.document, change)
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
    key, external = change.partition("=")[0], td.spec.scaling_mode == api.ScalingMode.EXTERNAL
    if key == "replicas" and not external:
        notes.append(unread_replicas(td))
    if key in ("minReplicas", "maxReplicas") and external:
        notes.append(f"spec.scaling.{key} is read under scaling.mode Planned or Metrics; this is External.")
    return Change(change, plan, difference, tuple(notes))


def unread_replicas(td: api.TurboDeployment) -> str:
    """Say that spec.replicas has no effect."""
    return f"spec.replicas is read under scaling.mode External alone, and this is {td.spec.scaling_mode}."


def _whole(value: str) -> int:
    try:
        return int(value)
    except ValueError as error:
        raise ValueError("write a whole number") from error


def _mean(value: str) -> dict[str, int]:
    return {"mean": _whole(value)}


def _names(value: str) -> list[str]:
    return [name.strip() for name in value.split(",")]


def _speculation(value: str) -> dict[str, str]:
    """Off, auto, required, or the name of a method that is then required."""
    modes = {"off": "Disabled", "auto": "Auto", "required": "Required"}
    methods = {method.lower(): str(method) for method in api.Method if method != api.Method.AUTO}
    word = value.lower()
    if word in methods:
        return {"mode": "Required", "method": methods[word]}
    if word not in modes:
        raise ValueError(f"write one of {', '.join((*modes, *methods))}")
    return {"mode": modes[word]}


# The field of each key below spec, and its reader; an empty value leaves the field out.
KNOBS: Mapping[str, tuple[str, Callable[[str], Any]]] = {
    "accelerators": ("accelerators.allowed", _names),
    "capacityTypes": ("accelerators.capacityTypes", _names),
    "maxPerReplica": ("accelerators.maxPerReplica", _whole),
    "maxTotal": ("accelerators.maxTotal", _whole),
    "tensor": ("parallelism.tensor", _whole),
    "pipeline": ("parallelism.pipeline", _whole),
    "data": ("parallelism.data", _whole),
    "engine": ("engine.type", str),
    "speculation": ("speculation", _speculation),
    "maxDraftTokens": ("speculation.maxDraftTokens", _whole),
    "dtype": ("model.dtype", str),
    "maxModelLen": ("model.maxModelLen", _whole),
    "requestsPerSecond": ("workload.requestsPerSecond", str),
    "concurrency": ("workload.concurrency", _whole),
    "inputTokens": ("workload.inputTokens", _mean),
    "outputTokens": ("workload.outputTokens", _mean),
    "timeToFirstToken": ("targets.timeToFirstToken", str),
    "timePerOutputToken": ("targets.timePerOutputToken", str),
    "tokensPerSecond": ("targets.tokensPerSecond", str),
    "maxPerHour": ("cost.maxPerHour", str),
    "maxPerMillionTokens": ("cost.maxPerMillionTokens", str),
    "objective": ("planPolicy.objective", str),
    "replicas": ("replicas", _whole),
    "minReplicas": ("scaling.minReplicas", _whole),
    "maxReplicas": ("scaling.maxReplicas", _whole),
}
_MAXIMA = {"timeToFirstToken", "timePerOutputToken"}  # a value sets `max` of the field, and keeps the rest
_REPLACED = {"requestsPerSecond": "workload.concurrency", "concurrency": "workload.requestsPerSecond"}


def changed(document: Mapping[str, Any], setting: str) -> dict[str, Any]:
    """Return the object under KEY=VALUE, of which an empty VALUE removes the field. Raises BadInputError."""
    key, equals, text = setting.partition("=")
    if not equals:
        raise BadInputError(f"--what-if {setting}: write KEY=VALUE, like speculation=off.")
    if key not in KNOBS:
        near = difflib.get_close_matches(key, KNOBS, n=1)
        hint = f"did you mean {near[0]}?" if near else f"the keys are {', '.join(KNOBS)}."
        raise BadInputError(f"--what-if {setting}: there is no key {key!r}; {hint}")
    path, read = KNOBS[key]
    try:
        value = read(text) if text else None
    except ValueError as error:
        raise BadInputError(f"--what-if {setting}: {error}.") from error
    if value is not None and key in _REPLACED:
        document = _with_value(document, f"spec.{_REPLACED[key]}", None)
    if value is not None and key in _MAXIMA:
        path += ".max"
    if key == "speculation" and value == {"mode": "Required"}:  # of what the file names; others replace it
        path, value = "speculation.mode", "Required"
    return _with_value(document, f"spec.{path}", value)


def _with_value(existing: object, path: str, value: Any) -> dict[str, Any]:
    """Return the fields with another value at a path; None leaves out what is there."""
    fields = dict(existing) if isinstance(existing, Mapping) else {}
    name, _, rest = path.partition(".")
    if value is None and (not rest or not isinstance(fields.get(name), Mapping)):
        if not rest:
            fields.pop(name, None)
        return fields
    fields[name] = _with_value(fields.get(name), rest, value) if rest else value
    return fields
