"""What runs now costs and puts out: shared by conditions, fields and metrics. Pure."""

from __future__ import annotations

from collections import defaultdict
from decimal import Decimal

from turbo_operator.budget import labeled_footprint
from turbo_operator.snapshot import PodView, Snapshot, TrainPod

FRESH_SECONDS = 60.0  # a load that was read longer ago says nothing of now


def cost_per_hour(observed: Snapshot) -> Decimal | None:
    """Return US dollars per hour of pods that hold accelerators; None where a price is not known."""
    groups: defaultdict[tuple[str | None, str, int], list[PodView | TrainPod]] = defaultdict(list)
    for pod in observed.pods:
        if pod.is_present and pod.pending_since is None:
            groups[pod.accelerator, pod.capacity_type, pod.accelerators].append(pod)
    for trainer in observed.trainings:
        if trainer.runs:
            groups[trainer.accelerator, trainer.capacity_type, trainer.accelerators].append(trainer)
    total = Decimal(0)
    for pods in groups.values():  # together, since whole nodes may be bought
        footprint = labeled_footprint(pods[0], observed.accelerators)
        cost = footprint.cost_per_hour(len(pods)) if footprint is not None else None
        if cost is None:
            return None
        total += cost
    return total


def cost_per_million_tokens(cost: Decimal | None, tokens_per_second: float | None) -> Decimal | None:
    """Return US dollars of a million output tokens at that rate; None where nothing is put out."""
    if cost is None or not tokens_per_second:
        return None
    return cost / Decimal(tokens_per_second) / 3600 * 1_000_000


def tokens_per_second(observed: Snapshot, now: float) -> float | None:
    """Return output tokens per second of all pods that answer; None where one has not reported lately."""
    rates = [
        pod.load.tokens_per_second if pod.load is not None and now - pod.load.at <= FRESH_SECONDS else None
        for pod in observed.pods
        if pod.is_present and pod.ready
    ]
    known = [rate for rate in rates if rate is not None]
    return sum(known) if known and len(known) == len(rates) else None
