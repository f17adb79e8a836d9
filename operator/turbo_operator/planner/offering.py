"""One candidate with one capacity type in plain values, as plans and sentences have it. Pure."""

from __future__ import annotations

from dataclasses import dataclass

from turbo_operator.api import PlanReason
from turbo_operator.budget import Footprint
from turbo_operator.plan import EvaluatedCandidate, Predicted, Running
from turbo_operator.planner.capabilities import Engine
from turbo_operator.planner.explanation import messages
from turbo_operator.planner.performance.speculation import SpeculationOption


@dataclass(frozen=True, slots=True, kw_only=True)
class Offering(Footprint):
    """One candidate with one capacity type, in plain values: what one replica holds, its host apart."""

    place: int  # of the candidate
    engine: Engine
    draft: SpeculationOption
    tensor: int
    data: int

    @property
    def hardware(self) -> str:
        """The accelerators of one replica, in words."""
        return messages.hardware(self.accelerator.name, self.tensor, self.nodes, self.data)

    @property
    def identity(self) -> Running:
        """What distinguishes it from any other in the status."""
        return Running(*self._columns, placement=self.draft.placement)

    @property
    def _columns(self) -> tuple[str, int, str, str, str, int, int]:
        """The fields of a `plan.Candidate`."""
        name, method, engine = self.accelerator.name, self.draft.method, self.engine.name
        return name, self.tensor, method, engine, self.capacity_type, self.nodes, self.data

    def describe(
        self, reason: PlanReason, detail: str, replicas: int, predicted: Predicted | None
    ) -> EvaluatedCandidate:
        """Return this as the plan reports it; `predicted` is what its replicas do."""
        return EvaluatedCandidate(
            *self._columns,
            reason=reason,
            detail=detail,
            replicas=replicas,
            predicted=predicted,
            placement=self.draft.placement,
        )
