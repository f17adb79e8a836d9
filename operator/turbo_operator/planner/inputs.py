"""Inputs of the planner, built alike for the operator, `turbo plan` and `turbo explain`. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from decimal import Decimal

from turbo_operator import api
from turbo_operator.catalog import shapes
from turbo_operator.plan import Running
from turbo_operator.planner.performance.step_time import Calibration
from turbo_operator.resources import WORKLOADS
from turbo_operator.snapshot import Accelerator, DraftView, Snapshot, Supply
from turbo_runtime.contract.documents import ModelShape

# Names of a StatefulSet's revisions are labels of its pods: of the TurboDeployment's, 26 characters more.
MAX_GROUPED_NAME = 37
# A variant whose workload was deleted is made again from its frozen template.
VARIANT_KINDS = frozenset({*WORKLOADS, "ControllerRevision"})


@dataclass(frozen=True, slots=True)
class PlannerInputs:
    """All that a plan depends on but the time; equal ones have the same plan while no time is up."""

    spec: api.TurboDeploymentSpec
    shape: ModelShape
    catalog: Mapping[str, Accelerator]
    supply: Mapping[str, Supply] | None  # by accelerator; None bounds nothing
    running: Running | None
    # Ratios of measured step times to the model's, by engine and accelerator.
    calibrations: Mapping[tuple[str, str], Calibration]
    draft: ModelShape | None  # of speculation.draftModel, where its shape is shipped
    group_lack: str | None = None  # why no replica can be on several nodes, as the end of a sentence
    # Acceptance by position of the trained draft that pods of VLLM load; None: they load none, empty: it was
    # not evaluated.
    trained: tuple[float, ...] | None = None
    adapter_rank: int | None = None  # the largest of the adapters' ranks; None: not known
    adapter_modules: tuple[str, ...] = ()  # last parts of the names of all modules that they change

    def equals_but_for_counts(self, other: PlannerInputs) -> bool:
        """Whether the two differ at most in how many accelerators nodes have free and quotas leave."""
        mine, theirs = (
            {name: supply.unavailable_until for name, supply in (inputs.supply or {}).items()}
            for inputs in (self, other)
        )
        return mine == theirs and replace(self, supply=None) == replace(other, supply=None)


def build_inputs(td: api.TurboDeployment, shape: ModelShape, observed: Snapshot) -> PlannerInputs:
    """Build the inputs of a TurboDeployment from what is observed."""
    running = identify_running(find_plan_in_place(td, observed))
    # Also of what ran before: a plan that has left an accelerator for being slow would return to it at once.
    factors = {
        (row.engine, row.accelerator): Calibration(
            float(row.decode) * float(row.online), float(row.prefill) * float(row.online)
        )
        for row in td.status.calibrations
    }
    # No inspect Job reads a draft model, so only the shape of a shipped one is known. That of an EAGLE-3
    # draft follows from the model's.
    speculation = td.spec.speculation
    is_model = speculation.draft_model and speculation.method != api.Method.EAGLE3
    uri = speculation.draft_model.uri if speculation.draft_model and is_model else ""
    draft = shapes.shipped(uri.removeprefix("hf://")) if uri.startswith("hf://") else None
    trained = find_trained(td, observed)
    if trained is not None and running is not None:
        # What runs stays where nothing costs less: it shall not keep a draft out that is new.
        running = replace(running, method=api.Method.EAGLE3, placement=api.Placement.COLOCATED)
    seen = observed.accelerators, observed.supply
    acceptance = None if trained is None else trained.acceptance
    ranks = [adapter.rank for adapter in observed.model.adapters] if observed.model else []
    return PlannerInputs(
        within_budgets(with_measured_load(td), observed),
        shape,
        *seen,
        running,
        factors,
        draft,
        observed.group_lack or _long_name(td),
        trained=acceptance,
        adapter_rank=max(ranks, default=None),
        adapter_modules=observed.model.adapter_modules if observed.model else (),
    )


def with_measured_load(td: api.TurboDeployment) -> api.TurboDeploymentSpec:
    """Return the spec with the load that a Deployment was seen to have, wherever it states none itself."""
    spec, seen = td.spec, td.status.reference
    if not spec.plan_policy.recommends or seen is None or seen.requests_per_second is None:
        return spec
    stated = spec.workload or api.Workload()
    measured: dict[str, object] = {}
    if stated.requests_per_second is None and stated.concurrency is None:
        measured["requests_per_second"] = Decimal(seen.requests_per_second)
    for name in ("input_tokens", "output_tokens"):
        if getattr(stated, name) is None and getattr(seen, name):
            measured[name] = api.Lengths(mean=getattr(seen, name))
    return spec.model_copy(update={"workload": stated.model_copy(update=measured)}) if measured else spec


def without_speculation(inputs: PlannerInputs) -> PlannerInputs:
    """Ask for the same targets with no drafts, as though nothing ran yet."""
    speculation = api.Speculation(mode="Disabled")
    spec = inputs.spec.model_copy(update={"speculation": speculation})
    return replace(inputs, spec=spec, running=None)


def on_the_same(
    spec: api.TurboDeploymentSpec, accelerator: str, capacity_type: str, tensor: int, nodes: int
) -> api.TurboDeploymentSpec:
    """Return the spec with these accelerators alone, a replica divided over them in this way."""
    hardware = {"allowed": (accelerator,), "capacity_types": (capacity_type,)}
    return spec.model_copy(
        update={
            "accelerators": (spec.accelerators or api.Accelerators()).model_copy(update=hardware),
            "parallelism": (spec.parallelism or api.Parallelism()).model_copy(
                update={"tensor": tensor, "pipeline": nodes}
            ),
        }
    )


def pin(inputs: PlannerInputs) -> PlannerInputs | None:
    """Ask for the plan of what runs alone: how many replicas it takes now, and what it does. None where
    nothing runs.
    """
    running = inputs.running
    if running is None:
        return None
    spec = on_the_same(
        inputs.spec,
        running.accelerator,
        api.CapacityType(running.capacity_type),
        running.tensor,
        running.nodes,
    )
    is_off = running.method == api.OFF
    drafts = {"mode": "Disabled"} if is_off else {"mode": "Required", "method": running.method}
    same = {
        "engine": spec.engine.model_copy(update={"type": running.engine}),
        "speculation": spec.speculation.model_copy(update=drafts),
    }
    return replace(inputs, spec=spec.model_copy(update=same))


def within_budgets(spec: api.TurboDeploymentSpec, observed: Snapshot) -> api.TurboDeploymentSpec:
    """Return the spec with what TurboBudgets allow alone, where it leaves anything: what they refuse is said
    once it shall grow.
    """
    accelerators, allowed = spec.accelerators or api.Accelerators(), observed.allowance.allowed
    if allowed is None:
        return spec
    named = accelerators.allowed or tuple(sorted(observed.accelerators))
    left = tuple(name for name in named if name in allowed)
    if not left or left == accelerators.allowed:
        return spec
    return spec.model_copy(update={"accelerators": accelerators.model_copy(update={"allowed": left})})


def _long_name(td: api.TurboDeployment) -> str | None:
    """Say that the name is too long for replicas on several nodes, as the end of a sentence."""
    if len(td.metadata.name) <= MAX_GROUPED_NAME:
        return None
    return (
        f"a replica on more than one node needs a metadata.name of at most {MAX_GROUPED_NAME} characters, "
        f"and this has {len(td.metadata.name)}: choose a shorter one"
    )


def find_trained(td: api.TurboDeployment, observed: Snapshot) -> DraftView | None:
    """Return the trained draft that pods of VLLM load; None of another engine, or where none fits."""
    draft, digest = observed.draft, observed.model.digest if observed.model is not None else None
    method = td.spec.draft_method
    if draft is None or not td.spec.is_on_vllm or td.spec.speculation.draft_model is not None:
        return None
    return draft if (draft.method, draft.target_digest) == (method, digest) else None


def find_plan_in_place(td: api.TurboDeployment, observed: Snapshot) -> api.PlanStatus | None:
    """Find the plan of the status that has a variant: the latest, else the one that serves."""
    hashes = {child.plan_hash for child in observed.children if child.kind in VARIANT_KINDS} - {None}
    plans = (td.status.plan, td.status.serving_plan)
    return next((plan for plan in plans if plan is not None and plan.hash in hashes), None)


def identify_running(plan: api.PlanStatus | None) -> Running | None:
    """Identify the candidate of a plan in the status."""
    if plan is None or plan.accelerator is None:
        return None
    try:
        return Running(
            plan.accelerator,
            plan.tensor or 1,
            plan.method or api.OFF,
            api.EngineName(plan.engine or api.EngineName.TURBO),
            api.CapacityType(plan.capacity_type or api.CapacityType.ON_DEMAND),
            plan.nodes or 1,
            plan.data or 1,
            None if plan.placement is None else api.Placement(plan.placement),
        )
    except ValueError:  # written by another version, which knows more: then nothing speaks for what runs
        return None
