"""Numbers and outcomes in words: the sentences of plans and of rejected candidates."""

from __future__ import annotations

from decimal import ROUND_HALF_UP, Decimal

from turbo_operator.observed import Accelerator
from turbo_operator.planned import Choice
from turbo_operator.planner.memory import GIB

OFF = "Off"


def money(amount: Decimal) -> str:
    """Dollars with two to four digits after the point, like 0.80 or 0.8048."""
    text = f"{amount.quantize(Decimal('0.0001'), ROUND_HALF_UP):f}"
    return text[:-2] + text[-2:].rstrip("0")


def gib(amount: int) -> str:
    """Bytes in GiB with one digit after the point; a small amount keeps two."""
    return f"{amount / GIB:.1f} GiB" if amount >= GIB else f"{amount / GIB:.2f} GiB"


def count(number: int, noun: str) -> str:
    """A number and its noun, like 1 replica or 3 replicas."""
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"


def drafting(method: str, max_draft_tokens: int) -> str:
    """How it speculates, in words."""
    return (
        "without speculation" if method == OFF else f"with {method} drafts of up to {max_draft_tokens} tokens"
    )


def chosen(choice: Choice, replicas: int, others: int) -> str:
    """Why this plan: what it takes and costs, and what it was measured against."""
    pods = count(replicas, "replica")
    if choice.predicted.cost_per_hour is None:
        cost = "its price is unknown, and no other accelerator is allowed that could cost less"
    elif others:
        cost = f"{money(choice.predicted.cost_per_hour)} $/h for {pods}, the least of what is feasible"
    else:
        cost = f"{money(choice.predicted.cost_per_hour)} $/h for {pods}, and no other accelerator is feasible"
    source = choice.accelerator.price_source
    told = f" (price: {source})" if source and choice.predicted.cost_per_hour is not None else ""
    how = drafting(choice.method, choice.max_draft_tokens)
    return (
        f"{choice.accelerator.name} {how} in {choice.dtype} takes "
        f"{gib(choice.memory_bytes)} of {gib(choice.accelerator.memory_bytes)}: {cost}{told}."
    )


def out_of_memory(accelerator: Accelerator, needed: int, room: int, longest: int, wanted: int) -> str:
    """Why one accelerator cannot hold the model, and what would help."""
    sentence = f"One replica needs {gib(needed)} and {accelerator.name} has {gib(room)} to give"
    if longest > 0:
        remedy = f"set spec.model.maxModelLen (now {wanted})"
        return f"{sentence}; requests of up to {longest} tokens would fit: {remedy}."
    return f"{sentence}: not even the weights and one short request fit."
