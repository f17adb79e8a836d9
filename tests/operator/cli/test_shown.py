"""What `turbo plan` shows of the rejected candidates, and what it says of a GPU and of a shared node."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest

from turbo_dev.plan_files import deployment, written
from turbo_operator.cli import commands, output

LLAMA: dict[str, Any] = {
    "model": {"uri": "hf://meta-llama/Llama-3.1-8B-Instruct", "maxModelLen": 8192},
    "workload": {
        "inputTokens": {"mean": 600},
        "outputTokens": {"mean": 250},
        "requestsPerSecond": "4",
    },
    "targets": {"timePerOutputToken": {"max": "50ms"}},
    "engine": {"type": "Turbo"},
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
    dearer = reasons.index("HigherCost")
    assert 1 < dearer <= half + 1
    assert set(reasons[dearer:]) == {"HigherCost"}


@pytest.mark.parametrize(
    ("workload", "targets", "share"),
    [
        ({"requestsPerSecond": "4"}, {}, r"At the planned load \((\d+) % of the capacity\): "),
        ({"requestsPerSecond": "0.001"}, {}, r"At the planned load: "),
        ({}, {"tokensPerSecond": "500"}, r"At the planned load \((\d+) % of the capacity\): "),
    ],
)
def test_a_plan_says_which_share_of_its_capacity_the_load_takes(
    workload: dict[str, str],
    targets: dict[str, str],
    share: str,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    lengths = {name: LLAMA["workload"][name] for name in ("inputTokens", "outputTokens")}
    spec = {"workload": lengths | workload, "targets": LLAMA["targets"] | targets}
    found = re.search(share, "\n".join(plan(tmp_path, capsys, **spec)))
    assert found
    assert all(1 <= int(percent) <= 100 for percent in found.groups())


def test_more_load_than_somebody_has_replicas_for_is_no_share(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    spec = {"workload": LLAMA["workload"] | {"requestsPerSecond": "60"}, "scaling": {"mode": "External"}}
    text = "\n".join(plan(tmp_path, capsys, **spec, accelerators={"allowed": ["h100"]}))
    assert "of the capacity" not in text


def test_a_plan_on_a_gpu_says_that_its_times_are_those_of_other_engines(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    text = "\n".join(plan(tmp_path, capsys))
    assert "The Turbo engine was not timed on a GPU yet" in text
    assert "not timed" not in "\n".join(plan(tmp_path, capsys, engine={"type": "VLLM"}))
    share = "\n".join(plan(tmp_path, capsys, accelerators={"allowed": ["h100"]}))
    assert "A share of a node of 8 is paid. Whole nodes of " in share
    whole = "\n".join(plan(tmp_path, capsys, accelerators={"allowed": ["l40s"]}))
    assert "share of a node" not in whole


def column(lines: list[str], name: str) -> list[str]:
    """The cells of a column of the first table, its numbers aligned on the right."""
    head, _, *rows = lines[1:]
    end = head.index(name) + len(name)
    cells = [row[:end].rsplit("  ", 1)[-1].strip() for row in rows]
    return cells[: cells.index("")] if "" in cells else cells


@pytest.mark.parametrize(
    ("rate", "loads"), [("4", r"[1-9]\d? %|100 %|-"), ("0.0001", r"< 1 %|-"), (None, r"-")], ids=str
)
def test_the_table_shows_how_much_of_the_capacity_the_load_takes(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], rate: str | None, loads: str
) -> None:
    workload = {**LLAMA["workload"], "requestsPerSecond": rate}
    lines = plan(tmp_path, capsys, workload={key: each for key, each in workload.items() if each})
    shown = column(lines, "load")
    assert len(shown) > output.NUM_REJECTED
    assert [cell for cell in shown if not re.fullmatch(loads, cell)] == []
    share = re.search(r"\((\d+ %) of the capacity\)", "\n".join(lines))
    assert shown[0] == (share[1] if share else "-" if rate is None else "< 1 %")


def test_a_load_above_the_capacity_is_shown_as_it_is(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    spec = {"workload": LLAMA["workload"] | {"requestsPerSecond": "60"}, "scaling": {"mode": "External"}}
    (share,) = column(plan(tmp_path, capsys, **spec, accelerators={"allowed": ["h100"]}), "load")[:1]
    assert int(share.removesuffix(" %")) > 100


def test_a_change_to_the_engine_that_was_not_timed_on_a_gpu_says_so(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    said = "engine=Turbo: The Turbo engine was not timed on a GPU yet"
    file = written(tmp_path, deployment(**{**LLAMA, "engine": {}}))
    assert commands.plan(["-f", file, "--what-if", "engine=Turbo"]) == 0
    assert said in capsys.readouterr().out
    assert commands.plan(["-f", written(tmp_path, deployment(**LLAMA)), "--what-if", "engine=Turbo"]) == 0
    assert said not in capsys.readouterr().out, "the plan itself has said it"
