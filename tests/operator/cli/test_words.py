"""Candidates in the words of tables and plots."""

from __future__ import annotations

from turbo_operator.cli.output import candidate
from turbo_operator.plan import Candidate


def test_a_candidate_is_named_by_what_one_replica_is_made_of() -> None:
    assert name("h100", 1, 1, "Turbo", "OnDemand") == "h100"
    assert name("h100", 8, 1, "Turbo", "OnDemand") == "h100 x8"
    assert name("h100", 8, 2, "Turbo", "OnDemand") == "h100 2 x 8"
    assert name("l4", 1, 3, "VLLM", "Spot") == "l4 3 x 1, VLLM, Spot"


def name(accelerator: str, tensor: int, nodes: int, engine: str, capacity_type: str) -> str:
    return candidate(Candidate(accelerator, tensor, "Off", engine, capacity_type, nodes))
