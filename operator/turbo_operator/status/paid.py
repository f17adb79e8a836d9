"""What runs now costs and puts out: shared by conditions, figures and metrics. Pure."""

from __future__ import annotations

from collections import Counter
from decimal import Decimal

from turbo_operator.api import CapacityType, label_value
from turbo_operator.budget import Footprint
from turbo_operator.observed import Accelerator, Observed, PodView
from turbo_operator.rollout import ENDED

FRESH_SECONDS = 60.0  # a load that was read longer ago says nothing of now


def is_there(pod: PodView) -> bool:
    """Whether it is a serving pod that has not ended."""
    return bool(pod.plan_hash) and pod.phase not in ENDED


def cost_per_hour(observed: Observed) -> Decimal | None:
    """US dollars per hour of the pods that hold accelerators, one that trains included; None where one's
    price is not known.
    """
    by_label = {label_value(name): row for name, row in observed.accelerators.items()}
    held = Counter(
        (pod.accelerator, pod.capacity_type, pod.accelerators)
        for pod in observed.pods
        if is_there(pod) and pod.pending_since is None
    )
    held.update(
        (pod.accelerator, pod.capacity_type, pod.accelerators) for pod in observed.trainings if pod.runs
    )
    total = Decimal(0)
    for (name, capacity_type, accelerators), pods in held.items():
        cost = _cost(by_label.get(name or ""), capacity_type, accelerators, pods)
        if cost is None:
            return None
        total += cost
    return total


def _cost(row: Accelerator | None, capacity_type: str, accelerators: int, pods: int) -> Decimal | None:
    known = next((each for each in CapacityType if each == capacity_type), None)
    return None if row is None or known is None else Footprint(row, known, accelerators).cost_per_hour(pods)


def cost_per_million_tokens(cost: Decimal | None, tokens_per_second: float | None) -> Decimal | None:
    """US dollars of a million output tokens at that rate; None where nothing is put out."""
    if cost is None or not tokens_per_second:
        return None
    return cost / Decimal(tokens_per_second) / 3600 * 1_000_000


def tokens_per_second(observed: Observed, now: float) -> float | None:
    """Output tokens of all pods that answer; None where one of them has not said its load lately."""
    rates = [
        pod.load.tokens_per_second if pod.load is not None and now - pod.load.at <= FRESH_SECONDS else None
        for pod in observed.pods
        if is_there(pod) and pod.ready
    ]
    known = [rate for rate in rates if rate is not None]
    return sum(known) if known and len(known) == len(rates) else None
