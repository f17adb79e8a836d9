"""Numbers and outcomes in words: the sentences of plans and of rejected candidates."""

from __future__ import annotations

from collections.abc import Sequence
from decimal import ROUND_HALF_UP, Decimal

from turbo_operator.api import CapacityType
from turbo_operator.api.constants import OFF
from turbo_operator.plan import Choice, Predicted
from turbo_operator.planner.demand import Bound
from turbo_operator.planner.performance.memory import GIB
from turbo_operator.planner.request import Requirements
from turbo_operator.snapshot import Accelerator

PRICE_FIELDS = {
    CapacityType.ON_DEMAND: "onDemand",
    CapacityType.SPOT: "spot",
    CapacityType.RESERVED: "reserved",
}


def money(amount: Decimal) -> str:
    """Dollars with two to four digits after the point, like 0.80 or 0.8048."""
    text = f"{amount.quantize(Decimal('0.0001'), ROUND_HALF_UP):f}"
    return text[:-2] + text[-2:].rstrip("0")


def gib(amount: float) -> str:
    """Bytes in GiB with one digit after the point; a small amount keeps two."""
    return f"{amount / GIB:.1f} GiB" if amount >= GIB else f"{amount / GIB:.2f} GiB"


def time(seconds: float) -> str:
    """A time in ms below ten seconds, else in s, with about three digits."""
    return f"{seconds * 1000:.3g} ms" if seconds < 0.9995 else f"{seconds:.3g} s"


def rate(amount: float) -> str:
    """A number of about three digits, without an exponent."""
    return f"{amount:.0f}" if amount >= 100 else f"{amount:.3g}"


def count(number: int, noun: str) -> str:
    """A number and its noun, like 1 replica or 3 replicas."""
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"


def hardware(name: str, tensor: int, nodes: int) -> str:
    """One replica's accelerators, like h100, 8 x h100 or 2 nodes of 8 x h100."""
    each = name if tensor == 1 else f"{tensor} x {name}"
    return each if nodes == 1 else f"{nodes} nodes of {each}"


def paid_as(kind: CapacityType) -> str:
    """A capacity type in parentheses after what is paid so; nothing of the usual one."""
    return "" if kind == CapacityType.ON_DEMAND else f" ({kind})"


def drafting(method: str, max_draft_tokens: int) -> str:
    """How it speculates, in words."""
    return (
        "without speculation" if method == OFF else f"with {method} drafts of up to {max_draft_tokens} tokens"
    )


def chosen(choice: Choice, replicas: int, alone: bool, request: Requirements) -> str:
    """Why this plan: what it takes, does and costs, and what it was measured against."""
    pods = count(replicas, "replica")
    cost = choice.predicted.cost_per_hour
    if cost is None:
        paid = "its price is unknown, and no other accelerator is allowed that could cost less"
    elif alone:
        paid = f"{money(cost)} $/h for {pods}, and no other accelerator is feasible"
    else:
        paid = f"{money(cost)} $/h for {pods}, the {request.best} of what is feasible"
    source = choice.accelerator.price_source
    told = f" (price: {source})" if source and cost is not None else ""
    how = drafting(choice.method, choice.max_draft_tokens)
    kind = paid_as(choice.capacity_type)
    what = hardware(choice.accelerator.name, choice.tensor, choice.nodes)
    return (
        f"{what}{kind} {how} in {choice.dtype} takes "
        f"{gib(choice.memory_bytes)} of {gib(choice.accelerator.memory_bytes)}: {paid}{told}."
        f"{_does(choice, request)}"
    )


def short(wanted: float, request: Requirements) -> str:
    """That somebody decided on fewer replicas than the load needs."""
    if not request.external or wanted <= request.fixed:
        return ""
    if not request.loaded:
        return " spec.replicas is 0, so nothing runs; other candidates are told for one replica."
    return f" The load needs {wanted:.0f}, spec.replicas is {request.fixed}."


def _does(choice: Choice, request: Requirements) -> str:
    """What one replica does."""
    does, predicted = choice.capacity, choice.predicted
    token, first = predicted.time_per_output_token, predicted.time_to_first_token
    if does is None or token is None or first is None:
        return ""
    if request.unloaded:
        return (
            f" A request alone on a replica: {time(token)} per output token and {time(first)} to the first; "
            f"one replica yields at most {rate(does.tokens_per_second)} tokens/s."
        )
    return (
        f" One replica takes {rate(does.requests_per_second)} requests/s; at the planned load "
        f"{time(token)} per output token and {time(first)} to the first."
    )


def out_of_memory(accelerator: Accelerator, needed: float, room: float, longest: int, wanted: int) -> str:
    """Why one accelerator cannot hold the model, and what would help."""
    sentence = f"One replica needs {gib(needed)} and {accelerator.name} has {gib(room)} to give"
    if longest > 0:
        remedy = f"set spec.model.maxModelLen (now {wanted})"
        return f"{sentence}; requests of up to {longest} tokens would fit: {remedy}."
    return f"{sentence}: not even the weights and one short request fit."


def price_unknown(name: str, kind: CapacityType) -> str:
    """What to write where a price is missing."""
    field = f"spec.pricing.perAcceleratorHour.{PRICE_FIELDS[kind]}"
    if kind == CapacityType.ON_DEMAND:
        return (
            f"The price of {name} is unknown: write {field} on the TurboAccelerator, or allow only this one "
            "and set no budget."
        )
    return f"The {kind} price of {name} is unknown: write {field} on the TurboAccelerator."


def no_profile(name: str, tensor: int) -> str:
    """What to write where a speed is missing."""
    fields = "spec.memoryBandwidthGBps and spec.tflops"
    if tensor > 1:
        fields += ", spec.interconnectGBps and spec.networkGBps"
    return (
        f"How fast {name} is cannot be told: write {fields} on the TurboAccelerator, or leave workload, "
        "latency and throughput targets out."
    )


def misses(request: Requirements, predicted: Predicted) -> list[str]:
    """What is above a bound of the request, each with how far."""
    found = []
    for field, bound, value in (
        ("timePerOutputToken", request.demand.time_per_output_token, predicted.time_per_output_token),
        ("timeToFirstToken", request.demand.time_to_first_token, predicted.time_to_first_token),
    ):
        if bound is not None and value is not None and value > bound.seconds:
            found.append(_miss(field, bound, value))
    for field, most, cost in (
        ("maxPerHour", request.max_per_hour, predicted.cost_per_hour),
        ("maxPerMillionTokens", request.max_per_million, predicted.cost_per_million_tokens),
    ):
        if most is not None and cost is not None and cost > most:
            found.append(
                f"miss spec.cost.{field} by {money(cost - most)} $ ({money(cost)} of {money(most)} $)"
            )
    return found


def _miss(field: str, bound: Bound, value: float) -> str:
    by = time(value - bound.seconds)
    return f"miss spec.targets.{field} by {by} ({time(value)} of {time(bound.seconds)})"


def joined(parts: Sequence[str]) -> str:
    """Parts of a sentence with commas and an `and`."""
    return parts[0] if len(parts) == 1 else f"{', '.join(parts[:-1])} and {parts[-1]}"
