"""What `turbo plan` says that drafts save."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from turbo_dev.plan_files import deployment, written
from turbo_operator.cli import commands

DRAFT = {"method": "EAGLE3", "draftModel": {"uri": "pvc://drafts/eagle3"}}
BUSY: dict[str, Any] = {
    "model": {"uri": "hf://deepseek-ai/DeepSeek-R1-Distill-Qwen-32B", "maxModelLen": 8192},
    "speculation": DRAFT,
    "accelerators": {"allowed": ["a100-80gb", "h100"]},
    "workload": {"inputTokens": {"mean": 600}, "outputTokens": {"mean": 1800}, "requestsPerSecond": "6.67"},
    "targets": {"timePerOutputToken": {"max": "25ms"}},
}


def said(folder: Path, capsys: pytest.CaptureFixture[str], **changes: Any) -> tuple[str, Any]:
    """What is printed, and `withoutSpeculation` of -o json."""
    file = written(folder, deployment(**{**BUSY, **changes}))
    assert commands.plan(["-f", file]) == 0
    shown = capsys.readouterr().out
    assert commands.plan(["-f", file, "-o", "json"]) == 0
    return shown, json.loads(capsys.readouterr().out)[0]["withoutSpeculation"]


@pytest.mark.parametrize("mode", ["Auto", "Required"])
def test_the_saving_is_against_the_plan_of_the_same_spec_with_speculation_disabled(
    mode: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shown, without = said(tmp_path, capsys, speculation={**DRAFT, "mode": mode})
    assert (
        "Without speculation the same targets take 6 replicas of 2 x h100 for 82.56 $/h: speculation saves "
        "41.28 $/h (50 %)."
    ) in shown
    file = written(tmp_path, deployment(**{**BUSY, "speculation": {"mode": "Disabled"}}))
    assert commands.plan(["-f", file, "-o", "json"]) == 0
    (disabled,) = json.loads(capsys.readouterr().out)
    assert without == {name: disabled[name] for name in without}


def test_drafts_that_save_no_money_are_said_to_save_none(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shown, without = said(tmp_path, capsys, workload={}, scaling={"mode": "Planned"}, targets={})
    assert "Without speculation the same targets would cost no more." in shown
    assert without["choice"]["method"] == "Off"


def test_targets_that_only_drafts_reach_are_said_to_have_no_other_plan(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shown, without = said(tmp_path, capsys, targets={"timePerOutputToken": {"max": "6ms"}})
    assert "Without speculation no plan is feasible." in shown
    assert (without["feasible"], without["reason"]) == (False, "TargetUnreachable")


@pytest.mark.parametrize(
    "changes",
    [
        {"speculation": {"method": "NGram"}, "engine": {"type": "VLLM"}},
        {"speculation": {"mode": "Disabled"}},
        {"planPolicy": {"objective": "Latency"}, "cost": {"maxPerHour": "60"}},
        {"scaling": {"mode": "External"}, "replicas": 3},
    ],
    ids=["no gain is assumed of the drafts", "there are none", "cost is not the objective", "others scale"],
)
def test_nothing_is_said_to_be_saved_where(
    changes: dict[str, Any], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shown, without = said(tmp_path, capsys, **changes)
    assert ("Without speculation" in shown, without) == (False, None)
