"""The choice: of the allowed accelerators the one that holds the model for least; the others with a reason.

Exhaustive over accelerator x drafting method; a handful of candidates. Ties are broken by a drafting method
before none, then by the order of `spec.accelerators.allowed`, then by name, so that the same input gives the
same plan.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from decimal import Decimal

from turbo_operator.api import (
    CapacityType,
    DType,
    EngineName,
    Mode,
    PlanReason,
    Provenance,
    Resources,
    TurboDeploymentSpec,
)
from turbo_operator.observed import Accelerator
from turbo_operator.planned import Choice, Plan, Predicted, Rejected
from turbo_operator.planner import explain, memory, overlay
from turbo_operator.planner.explain import OFF
from turbo_runtime.contract import ModelShape

SUFFIX = "Suffix"
TENSOR_DEGREES = (2, 4, 8)  # looked at only to say that more devices would do: the runtime serves on one
HOST_RESERVE = (
    4 * memory.GIB
)  # beside the weights on their way to a device: interpreter, tokenizer, page cache

# Which refusal comes closest to a plan, so that the condition names the one worth acting on.
NEAREST = (
    PlanReason.OVER_BUDGET,
    PlanReason.PRICE_UNKNOWN,
    PlanReason.OUT_OF_MEMORY,
    PlanReason.NOT_YET_SUPPORTED,
    PlanReason.NO_PROFILE,
)


@dataclass(frozen=True, slots=True)
class _Request:
    """What every candidate is measured against."""

    shape: ModelShape
    dtype: DType
    max_model_len: int
    replicas: int
    max_per_hour: Decimal | None
    price_matters: bool  # False where cost can change neither the choice nor its feasibility
    resources: Resources | None  # the template's, over those of the plan


def plan(
    spec: TurboDeploymentSpec, shape: ModelShape, accelerators: Mapping[str, Accelerator], replicas: int
) -> Plan:
    """The cheapest feasible plan for `replicas`, or none with the nearest one's reason.

    Prices are per replica, so the number of replicas never changes which candidate is cheapest, only whether
    the budget holds.
    """
    length = spec.model.max_model_len or shape.max_position
    if length > shape.max_position:
        detail = (
            f"spec.model.maxModelLen is {length}, but the model knows positions up to {shape.max_position}: "
            "write at most that, or leave it out."
        )
        return Plan(None, replicas, PlanReason.NOT_YET_SUPPORTED, detail)
    allowed = spec.accelerators.allowed if spec.accelerators else None
    names = allowed or tuple(sorted(accelerators))
    if not names:
        return Plan(
            None, replicas, PlanReason.NO_PROFILE, "There is no TurboAccelerator: create one to choose from."
        )
    budget = spec.cost.max_per_hour if spec.cost else None
    only_one = allowed is not None and len(allowed) == 1
    price_matters = not only_one or budget is not None
    resources = spec.template.resources if spec.template else None
    request = _Request(shape, spec.model.dtype, length, replicas, budget, price_matters, resources)
    fitting: list[Choice] = []
    rejected: list[Rejected] = []
    for name in names:
        for method, tokens in _methods(spec):
            outcome = _candidate(name, accelerators.get(name), method, tokens, request)
            if isinstance(outcome, Choice):
                fitting.append(outcome)
            else:
                rejected.append(outcome)
    # Failed candidates by how near they come, then by price, so that the first ones are worth reading.
    rejected.sort(
        key=lambda row: (NEAREST.index(PlanReason(row.reason)), _listed(accelerators, row.accelerator))
    )
    if not fitting:
        rows = _one_row_per_reason(rejected)
        nearest = rows[0]
        if nearest.reason == PlanReason.NO_PROFILE:
            there = ", ".join(sorted(accelerators)) or "none"
            return Plan(None, replicas, nearest.reason, f"{nearest.detail} There are: {there}.", rows)
        return Plan(None, replicas, nearest.reason, f"No plan is feasible. Nearest: {nearest.detail}", rows)
    # Sorting is stable: among equal prices the order of the names decides.
    ranked = sorted(fitting, key=lambda choice: (_price(choice), choice.method == OFF))
    best = ranked[0]
    losers = [_loser(best, choice) for choice in ranked[1:]]
    rows = _one_row_per_reason(losers + rejected)
    others = sum(choice.accelerator.name != best.accelerator.name for choice in fitting)
    return Plan(best, replicas, PlanReason.FEASIBLE, explain.chosen(best, replicas, others), rows)


def _methods(spec: TurboDeploymentSpec) -> tuple[tuple[str, int], ...]:
    """Drafting methods and their ceilings that the spec leaves open, the preferred one first."""
    speculation = spec.speculation
    off = (OFF, 0)
    if speculation.mode == Mode.DISABLED or speculation.max_draft_tokens == 0:
        return (off,)
    drafts = (SUFFIX, speculation.max_draft_tokens)
    return (drafts,) if speculation.mode == Mode.REQUIRED else (drafts, off)


def _candidate(
    name: str, accelerator: Accelerator | None, method: str, tokens: int, request: _Request
) -> Choice | Rejected:
    if accelerator is None:
        detail = f"There is no TurboAccelerator {name}: create it, or correct spec.accelerators.allowed."
        return Rejected(name, 1, method, PlanReason.NO_PROFILE, detail)
    cpu = memory.on_cpu(accelerator)
    dtype = _dtype(request, cpu)
    room = memory.usable(accelerator)
    need = memory.need(request.shape, dtype, request.max_model_len, tokens, 1, cpu)
    if need.total > room:
        return _too_small(accelerator, method, tokens, dtype, need, request)
    host_memory = accelerator.memory_bytes if cpu else 2 * need.weights + HOST_RESERVE
    contradiction = overlay.contradiction(request.resources, accelerator, host_memory)
    if contradiction:
        return Rejected(name, 1, method, PlanReason.NOT_YET_SUPPORTED, contradiction)
    price = accelerator.prices.get(CapacityType.ON_DEMAND)
    if price is None and request.price_matters:
        detail = (
            f"The price of {name} is unknown: write spec.pricing.perAcceleratorHour.onDemand on the "
            "TurboAccelerator, or allow only this one and set no budget."
        )
        return Rejected(name, 1, method, PlanReason.PRICE_UNKNOWN, detail)
    cost = None if price is None else price * request.replicas
    if cost is not None and request.max_per_hour is not None and cost > request.max_per_hour:
        pods = explain.count(request.replicas, "replica")
        detail = (
            f"{name} fits and costs {explain.money(cost)} $/h for {pods}, "
            f"above spec.cost.maxPerHour of {explain.money(request.max_per_hour)}."
        )
        return Rejected(name, 1, method, PlanReason.OVER_BUDGET, detail)
    pool = memory.kv_pool(accelerator, need)
    held = max(need.weights + pool + need.logits, need.loading)
    reserve = memory.CPU_RESERVE if cpu else memory.DEVICE_RESERVE
    return Choice(
        engine=EngineName.TURBO,
        accelerator=accelerator,
        capacity_type=CapacityType.ON_DEMAND,
        tensor=1,
        nodes=1,
        accelerators_per_replica=1,
        method=method,
        placement=None,
        max_draft_tokens=tokens,
        dtype=dtype,
        memory_bytes=held + reserve,
        max_model_len=request.max_model_len,
        kv_cache_bytes=pool,
        host_memory_bytes=host_memory,
        capacity=None,
        predicted=Predicted(None, None, None, None, cost, None, Provenance.ASSUMED),
    )


def _dtype(request: _Request, cpu: bool) -> str:
    """The runtime's word for what is computed in.

    On cores Auto is float32 whatever their flags: replicas on unlike nodes must give the same bytes, and
    bfloat16 is emulated on many. On a device it is bfloat16, unless the weights are stored in float32.
    """
    if request.dtype != DType.AUTO:
        return request.dtype.lower()
    return "float32" if cpu or request.shape.dtype == "float32" else "bfloat16"


def _too_small(
    accelerator: Accelerator, method: str, tokens: int, dtype: str, need: memory.Need, request: _Request
) -> Rejected:
    room = memory.usable(accelerator)
    longest = memory.longest_model_len(accelerator, request.shape, dtype, tokens)
    sentence = explain.out_of_memory(accelerator, need.total, room, longest, request.max_model_len)
    cpu = memory.on_cpu(accelerator)
    for tensor in TENSOR_DEGREES:
        share = memory.need(request.shape, dtype, request.max_model_len, tokens, tensor, cpu)
        if not cpu and request.shape.heads % tensor == 0 and share.total <= room:
            detail = (
                f"{sentence} {tensor} together would, but a replica on more than one is not supported yet."
            )
            return Rejected(accelerator.name, tensor, method, PlanReason.NOT_YET_SUPPORTED, detail)
    return Rejected(accelerator.name, 1, method, PlanReason.OUT_OF_MEMORY, sentence)


def _price(choice: Choice) -> Decimal:
    return choice.accelerator.prices.get(CapacityType.ON_DEMAND) or Decimal(
        0
    )  # unknown only where it is the one accelerator allowed


def _listed(accelerators: Mapping[str, Accelerator], name: str) -> Decimal:
    """The price of an accelerator for sorting: an unknown one comes last."""
    price = accelerators[name].prices.get(CapacityType.ON_DEMAND) if name in accelerators else None
    return Decimal("Infinity") if price is None else price


def _loser(best: Choice, other: Choice) -> Rejected:
    name = other.accelerator.name
    extra = _price(other) - _price(best)
    if extra > 0:
        cheaper = best.accelerator.name
        detail = f"{name} fits, and costs {explain.money(extra)} $/h more per replica than {cheaper}."
        return Rejected(name, other.tensor, other.method, PlanReason.DEARER, detail)
    if name == best.accelerator.name:
        detail = f"{name} fits at the same cost, but gives up what {best.method} drafts gain."
    else:
        detail = f"{name} fits at the same cost; {best.accelerator.name} comes first in the order of choice."
    return Rejected(name, other.tensor, other.method, PlanReason.NOT_PREFERRED, detail)


def _one_row_per_reason(rows: Sequence[Rejected]) -> tuple[Rejected, ...]:
    """The first row of each accelerator and reason: a second method that fails alike says nothing new."""
    kept: dict[tuple[str, str], Rejected] = {}
    for row in rows:
        kept.setdefault((row.accelerator, row.reason), row)
    return tuple(kept.values())
