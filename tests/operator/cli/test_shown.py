"""What `turbo plan` shows of the rejected candidates, and what it says of a GPU and of a shared node."""

from __future__ import annotations

from pathlib import Path

import pytest

from turbo_dev.plan_files import deployment, written
from turbo_operator.cli import commands, output

LLAMA = {
    "model": {"uri": "hf://meta-llama/Llama-3.1-8B-Instruct", "maxModelLen": 8192},
    "workload": {
        "inputTokens": {"mean": 600},
        "outputTokens": {"mean": 250},
        "requestsPerSecond": "4",
    },
    "targets": {"timePerOutputToken": {"max": "50ms"}},
}


def plan(tmp_path: Path, capsys: pytest.CaptureFixture[str], **spec: object) -> list[str]:
    assert commands.plan(["-f", written(tmp_path, deployment(**{**LLAMA, **spec}))]) == 0
    return capsys.readouterr().out.splitlines()


def test_candidates_that_cost_less_come_first_and_do_not_hide_the_others(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Found in a trial: the eight dearest stood there, and what a payer looks for was left out."""
    lines = plan(tmp_path, capsys)
    start = next(number for number, line in enumerate(lines) if line.startswith(" *"))
    reasons = [line.split()[-1] for line in lines[start:][:9]]
    half = output.NUM_REJECTED // 2
    assert reasons[0] == "Feasible"
    assert "HigherCost" not in reasons[1 : half + 1]
    assert set(reasons[half + 1 :]) == {"HigherCost"}


def test_a_plan_on_a_gpu_says_that_its_times_are_those_of_other_engines(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    text = "\n".join(plan(tmp_path, capsys))
    assert "The Turbo engine was not timed on a GPU yet" in text
    assert "The price is a share of a node of 8; whole nodes: " in text
    whole = "\n".join(plan(tmp_path, capsys, accelerators={"allowed": ["l40s"]}))
    assert "a share of a node" not in whole
