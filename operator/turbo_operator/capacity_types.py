"""Which nodes a pod may go to for its capacity type, for the scheduler and the inventory alike. Pure.

Labels that autoscalers and clouds write, or those that the TurboAccelerator names, identify the nodes. A node
that is neither spot nor reserved is on demand.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from itertools import product
from typing import Any, Literal, NamedTuple

from turbo_operator.api import CapacityType
from turbo_operator.snapshot import Accelerator

Selectors = Mapping[CapacityType, Mapping[str, str]]

# Karpenter's come first: of terms that exclude one another it provisions for the first that it can.
LABELS: Mapping[CapacityType, tuple[tuple[str, tuple[str, ...]], ...]] = {
    CapacityType.SPOT: (
        ("karpenter.sh/capacity-type", ("spot",)),
        ("eks.amazonaws.com/capacityType", ("SPOT",)),  # of managed node groups
        ("cloud.google.com/gke-spot", ("true",)),
        ("cloud.google.com/gke-preemptible", ("true",)),
        ("cloud.google.com/gke-provisioning", ("spot", "preemptible")),
        ("kubernetes.azure.com/scalesetpriority", ("spot",)),
        ("kubernetes.azure.com/priority", ("spot",)),
        ("node.kubernetes.io/lifecycle", ("spot",)),  # by convention, of self-managed nodes
    ),
    CapacityType.RESERVED: (
        ("karpenter.sh/capacity-type", ("reserved",)),
        ("eks.amazonaws.com/capacityType", ("CAPACITY_BLOCK",)),
    ),
}
# Taints that the same clouds put on the nodes: AKS on all of them, GKE on those that it provisions itself.
TAINTS: Mapping[CapacityType, tuple[tuple[str, str], ...]] = {
    CapacityType.SPOT: (
        ("kubernetes.azure.com/scalesetpriority", "spot"),
        ("cloud.google.com/gke-spot", "true"),
    )
}


class Requirement(NamedTuple):
    """A NodeSelectorRequirement."""

    key: str
    operator: Literal["In", "NotIn"]
    values: tuple[str, ...]

    def is_met_by(self, labels: Mapping[str, str]) -> bool:
        """Whether a node with such labels meets it; one without the key meets NotIn."""
        return (labels.get(self.key) in self.values) == (self.operator == "In")


Term = tuple[Requirement, ...]  # all of which a node must meet


@dataclass(frozen=True, slots=True)
class Constraint:
    """What a pod requires of its node for its capacity type."""

    terms: tuple[Term, ...]  # of which a node must meet one
    tolerations: tuple[Mapping[str, str], ...]
    selectors: Selectors  # of the TurboAccelerator's own, those that the terms are made of

    def is_met_by(self, labels: Mapping[str, str]) -> bool:
        """Whether a node with such labels may take the pod, its taints apart."""
        return any(all(requirement.is_met_by(labels) for requirement in term) for term in self.terms)

    @property
    def affinity(self) -> dict[str, Any]:
        """The same as a pod's affinity."""
        terms = [
            {"matchExpressions": [row._asdict() | {"values": list(row.values)} for row in term]}
            for term in self.terms
        ]
        required = "requiredDuringSchedulingIgnoredDuringExecution"
        return {"nodeAffinity": {required: {"nodeSelectorTerms": terms}}}


def build_constraint(accelerator: Accelerator, capacity_type: CapacityType) -> Constraint:
    """Build what pods on this accelerator require; its own selector replaces the table."""
    own = accelerator.capacity_selectors
    if capacity_type in own:
        return Constraint(_identify(own, capacity_type), (), {capacity_type: own[capacity_type]})
    if capacity_type == CapacityType.ON_DEMAND:
        others = [term for kind in LABELS for term in _identify(own, kind)]
        # None of these terms is met where of each a requirement fails.
        terms = tuple(tuple(row._replace(operator="NotIn") for row in unmet) for unmet in product(*others))
        return Constraint(terms, (), {kind: own[kind] for kind in LABELS if kind in own})
    tolerations = tuple(
        {"key": key, "operator": "Equal", "value": value, "effect": "NoSchedule"}
        for key, value in TAINTS.get(capacity_type, ())
    )
    return Constraint(_identify(own, capacity_type), tolerations, {})


class NodeClassifier:
    """A classifier of nodes by capacity type for one accelerator, which reads equal labels once."""

    def __init__(self, accelerator: Accelerator) -> None:
        self.constraints = {kind: build_constraint(accelerator, kind) for kind in CapacityType}
        terms = (term for constraint in self.constraints.values() for term in constraint.terms)
        self._keys = sorted({requirement.key for term in terms for requirement in term})
        self._known: dict[tuple[str | None, ...], frozenset[CapacityType]] = {}

    def classify(self, labels: Mapping[str, str]) -> frozenset[CapacityType]:
        """Return the capacity types whose pods a node with such labels may take, its taints apart."""
        values = tuple(map(labels.get, self._keys))
        if values not in self._known:
            self._known[values] = frozenset(
                kind for kind, constraint in self.constraints.items() if constraint.is_met_by(labels)
            )
        return self._known[values]


def _identify(own: Selectors, capacity_type: CapacityType) -> tuple[Term, ...]:
    """Return the terms of which nodes of a capacity type meet one."""
    if capacity_type in own:
        return (tuple(Requirement(key, "In", (value,)) for key, value in own[capacity_type].items()),)
    return tuple((Requirement(key, "In", values),) for key, values in LABELS[capacity_type])
