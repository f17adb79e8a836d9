"""Numbers and outcomes in words: the sentences of a plan. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from decimal import ROUND_HALF_UP, Decimal

from turbo_operator.api import OFF, CapacityType, Method, Objective, Placement
from turbo_operator.plan import Choice, Predicted
from turbo_operator.planner.capabilities import describe_engine_lack
from turbo_operator.planner.performance.memory import gib, on_cpu
from turbo_operator.planner.performance.speculation import PRIORS
from turbo_operator.planner.requirements import ADAPTER_RANK, Requirements

BEST = {Objective.COST: "least", Objective.LATENCY: "fastest", Objective.THROUGHPUT: "most"}


def money(amount: Decimal) -> str:
    """Format dollars with two to four digits after the point, like 0.80 or 0.8048."""
    text = f"{amount.quantize(Decimal('0.0001'), ROUND_HALF_UP):f}"
    return text[:-2] + text[-2:].rstrip("0")


def time(seconds: float) -> str:
    """Format a time in ms below ten seconds, else in s, with about three digits."""
    return f"{seconds * 1000:.3g} ms" if seconds < 0.9995 else f"{seconds:.3g} s"


def rate(amount: float) -> str:
    """Format a number with about three digits, without an exponent."""
    return f"{amount:.0f}" if amount >= 100 else f"{amount:.3g}"


def count(number: int, noun: str) -> str:
    """Format a number and its noun, like 1 replica or 3 replicas."""
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"


def hardware(name: str, tensor: int, nodes: int, data: int = 1) -> str:
    """Format one replica's accelerators, like h100, 8 x h100, 8 x h100 in 4 data-parallel groups or 8 x h100
    on each of 2 nodes.
    """
    node = name if tensor * data == 1 else f"{tensor * data} x {name}"
    node += "" if data == 1 else f" in {data} data-parallel groups"
    return node if nodes == 1 else f"{node} on each of {nodes} nodes"


def paid_as(capacity_type: CapacityType) -> str:
    """Format a capacity type in parentheses; nothing for the usual one."""
    return "" if capacity_type == CapacityType.ON_DEMAND else f" ({capacity_type})"


def join(parts: Sequence[str], word: str = "and") -> str:
    """Join parts of a sentence with commas and a last `word`."""
    return parts[0] if len(parts) == 1 else f"{', '.join(parts[:-1])} {word} {parts[-1]}"


def chosen(choice: Choice, replicas: int, alone: bool, best_of_all: bool, requirements: Requirements) -> str:
    """Explain the plan: what it takes, does and costs, and what it was compared with.

    `best_of_all` is False where several nodes, which come last, might do better.
    """
    pods, capacity, predicted = count(replicas, "replica"), choice.capacity, choice.predicted
    cost, source = predicted.cost_per_hour, choice.accelerator.price_source
    if cost is None:
        paid = "its price is unknown, and no other accelerator is allowed that could cost less"
    else:
        best = f"the {BEST[requirements.objective]} of what is feasible"
        best += "" if best_of_all else " on one node"
        if alone:
            only = "is allowed" if len(requirements.accelerators.allowed or ()) == 1 else "is feasible"
            best = f"and no other accelerator {only}"
        paid = f"{money(cost)} $/h for {pods}, {best}"
        paid += f" (price: {source})" if source else ""
    drafts = f"with {choice.method} drafts of up to {count(choice.max_draft_tokens, 'token')}{place(choice)}"
    replica = hardware(choice.accelerator.name, choice.tensor, choice.nodes, choice.data)
    sentence = (
        f"{replica}{paid_as(choice.capacity_type)} "
        f"{'without speculation' if choice.method == OFF else drafts} in {choice.dtype} takes "
        f"{gib(choice.memory_bytes)} of {gib(choice.accelerator.memory_bytes)}: {paid}."
    )
    token, first = predicted.time_per_output_token, predicted.time_to_first_token
    if capacity is None or token is None or first is None:
        return sentence + adapters(choice.method, requirements)
    assumed = _method_lack(choice, requirements)
    if choice.method not in (OFF, *PRIORS):
        assumed += f" What {choice.method} drafts gain depends on the text and is not counted."
    assumed += assumes(choice.method, requirements) + adapters(choice.method, requirements)
    if choice.nodes > 1:
        assumed += " A replica on several nodes needs LeaderWorkerSet in the cluster."
    if choice.data > 1:
        assumed += " While one data-parallel group reads a prompt, the others are taken to wait."
    latency = f"{time(token)} per output token and {time(first)} to the first"
    if requirements.unloaded:
        tokens = f"one replica yields at most {rate(capacity.tokens_per_second)} tokens/s"
        return f"{sentence} A request alone on a replica: {latency}; {tokens}.{assumed}"
    requests, percent = rate(capacity.requests_per_second), round(100 * (predicted.load or 0.0))
    share = f" ({percent} % of the capacity)" if 1 <= percent <= 100 else ""
    at_load = f"At the planned load{share}: {latency}."
    return f"{sentence} One replica takes {requests} requests/s. {at_load}{assumed}"


def drafting(method: str) -> str:
    """What an offering drafts with, behind its hardware."""
    return "without speculation" if method == OFF else f"with {method} drafts"


def place(choice: Choice) -> str:
    """Say where drafts are made, unless it is where the model is; words to append."""
    if choice.placement == Placement.SEPARATE:
        return " from an accelerator of their own"
    return f" from {count(choice.draft_cores, 'core')} of the host" if choice.draft_cores else ""


def _method_lack(choice: Choice, requirements: Requirements) -> str:
    """Say why a method that the spec names is not used, as a sentence to append; empty where it is."""
    spec = requirements.inputs.spec
    method = spec.speculation.method
    if choice.method != OFF or method in (None, OFF):
        return ""
    lack = describe_engine_lack(spec, choice.engine, method, is_on_cpu=on_cpu(choice.accelerator))
    return f" It has no {method} drafts: {lack}." if lack else ""


def prior(method: str) -> str:
    """Format what is assumed of drafts of a method, and where that is from."""
    known = PRIORS[method]
    tokens = f"{known.acceptance_length} tokens per step of {count(known.depth, 'draft')}"
    return f"{tokens}, the least of {known.source}"


def assumes(method: str, requirements: Requirements) -> str:
    """What nobody stated or measured and times rest on, as a sentence to append; empty without any."""
    demand, workload = requirements.demand, requirements.inputs.spec.workload
    stated = (workload and workload.input_tokens, workload and workload.output_tokens)
    lengths = (f"{demand.prompt.mean:.0f} input tokens", f"{demand.output.mean:.0f} output tokens")
    parts = [f"a mean of {each}" for each, own in zip(lengths, stated, strict=True) if own is None]
    if method == Method.EAGLE3 and requirements.inputs.trained:
        parts += ["that the draft is as often right as in its evaluation"]
    elif method in PRIORS:
        parts += [prior(method)]
    return f" This assumes {join(parts)}." if parts else ""


def adapters(method: str, requirements: Requirements) -> str:
    """What adapters decide, as sentences to append; empty without any."""
    spec, rank = requirements.inputs.spec, requirements.inputs.adapter_rank
    if not spec.adapters:
        return ""
    ranks = f"of rank {rank} at most" if rank else f"taken to be of rank {ADAPTER_RANK}"
    sentence = f" Memory has room for {count(len(spec.adapters), 'adapter')} {ranks}; the time that they add"
    sentence += " to a step is not counted."
    drafted = " Drafts are of the base model: requests for an adapter accept fewer."
    return sentence + (drafted if method in PRIORS else "")


def short(needed: float, requirements: Requirements) -> str:
    """Report that somebody decided on fewer replicas than the load needs."""
    if not requirements.external or needed <= requirements.inputs.spec.replicas:
        return ""
    if not requirements.demand.has_load:
        return " spec.replicas is 0, so nothing runs; other candidates are told for one replica."
    return f" The load needs {needed:.0f}, spec.replicas is {requirements.inputs.spec.replicas}."


def misses(requirements: Requirements, predicted: Predicted) -> list[str]:
    """List what is above a bound of the requirements, each with how far."""
    demand, parts = requirements.demand, []
    for field, bound, value in (
        ("timePerOutputToken", demand.time_per_output_token, predicted.time_per_output_token),
        ("timeToFirstToken", demand.time_to_first_token, predicted.time_to_first_token),
    ):
        if bound is not None and value is not None and value > bound.seconds:
            excess = f"{time(value - bound.seconds)} ({time(value)} of {time(bound.seconds)})"
            parts.append(f"miss spec.targets.{field} by {excess}")
    for field, limit, cost in (
        ("maxPerHour", requirements.cost.max_per_hour, predicted.cost_per_hour),
        ("maxPerMillionTokens", requirements.cost.max_per_million_tokens, predicted.cost_per_million_tokens),
    ):
        if limit is not None and cost is not None and cost > limit:
            excess = f"{money(cost - limit)} $ ({money(cost)} of {money(limit)} $)"
            parts.append(f"miss spec.cost.{field} by {excess}")
    return parts
