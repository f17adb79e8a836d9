"""Candidates in the words of tables and plots."""

from __future__ import annotations

from turbo_operator.cli.formatting import candidate


def test_a_candidate_is_named_by_what_one_replica_is_made_of() -> None:
    assert candidate("h100", 1, 1, "Turbo", "OnDemand") == "h100"
    assert candidate("h100", 8, 1, "Turbo", "OnDemand") == "h100 x8"
    assert candidate("h100", 8, 2, "Turbo", "OnDemand") == "h100 2 x 8"
    assert candidate("l4", 1, 3, "VLLM", "Spot") == "l4 3 x 1, VLLM, Spot"
