"""Variants of a simulated rollout: Deployments, their pods, and what a replica holds and costs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from decimal import Decimal
from functools import cache

from turbo_operator.api import CapacityType
from turbo_operator.budget import Footprint
from turbo_operator.rollout import Step, VariantState
from turbo_operator.snapshot import Accelerator

PRICES = {"a100": Decimal(2), "h100": Decimal(3), "l40s": Decimal(1)}
SIZES = {"a100": 1, "h100": 1, "l40s": 2}  # accelerators of a replica


@dataclass(slots=True)
class Pod:
    """One pod of a variant."""

    placed: bool = False
    age: int = 0  # ticks since a node took it
    ready: bool = False
    hung: bool = False
    ending: int | None = None  # ticks until it is gone


@dataclass(slots=True)
class Deployment:
    """One variant."""

    accelerator: str
    starts_in: int | None  # ticks after which a pod is ready; None: never
    replicas: int = 0
    exists: bool = True
    pods: list[Pod] = field(default_factory=list)
    seen: bool = True  # whether its controller has seen the replicas
    counted: int = 0  # available replicas, as its controller wrote them
    silent_since: float | None = None

    @property
    def alive(self) -> list[Pod]:
        """Pods that are there to stay."""
        return [pod for pod in self.pods if pod.ending is None]


@cache
def footprint(accelerator: str) -> Footprint:
    """What one replica holds."""
    row = Accelerator(
        accelerator,
        "nvidia.com/gpu",
        Decimal(1),
        1 << 30,
        prices={CapacityType.ON_DEMAND: PRICES[accelerator]},
    )
    return Footprint(row, CapacityType.ON_DEMAND, SIZES[accelerator])


def variant(name: str, replicas: int, available: int | None = None, **more: object) -> VariantState:
    """One whose pods, those that are available or all, answer; of an A100 each."""
    ready = replicas if available is None else available
    pods = {"pods": replicas, "footprint": footprint("a100")} | more
    return VariantState(name, replicas, ready, **pods)  # type: ignore[arg-type]


def states_after(states: Sequence[VariantState], step: Step) -> tuple[VariantState, ...]:
    """The states as they are at once after the step: nothing else has happened yet."""
    by_hash = {state.plan_hash: state for state in states}
    found = [state for state in states if state.plan_hash not in step.replicas and state.pods]
    for variant in step.variants:
        old = by_hash.get(variant.plan_hash) or VariantState(variant.plan_hash, exists=False)
        found.append(
            VariantState(
                variant.plan_hash,
                variant.replicas,
                min(old.available, variant.replicas),
                old.ending,
                True,
                old.footprint,
                old.silent_since,
                old.unschedulable,
                old.pods,
                old.seen and old.exists and old.replicas == variant.replicas,
                min(old.ready, variant.replicas),
            )
        )
    return tuple(found)
