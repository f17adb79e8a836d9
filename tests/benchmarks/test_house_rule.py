"""What every benchmark does with its figures: a file, bars that fail it by name, a last line."""

from __future__ import annotations

import json
import subprocess
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from harness import Bar, arguments, finish

ROOT = Path(__file__).parents[2]
FIGURES = {"speedup": 1.5, "errors_pct": 4.0}
ROWS = [{"who": "turbo", "seconds": 0.123456}, {"who": "other", "seconds": 12}]
BARS = [Bar("speedup", at_least=1.5), Bar("errors_pct", at_most=4.0)]
MISSED = [Bar("speedup", at_least=2.0), Bar("errors_pct", at_most=5.0), Bar("errors_pct", at_most=3.0)]


def test_met_bars_end_a_run_well_and_its_last_line_is_the_figures(capsys: pytest.CaptureFixture[str]) -> None:
    assert finish("made", FIGURES, ROWS, BARS, arguments("").parse_args([])) == 0
    told = capsys.readouterr()
    assert [line.split() for line in told.out.splitlines()] == [
        ["who", "seconds"],
        ["turbo", "0.123"],
        ["other", "12"],
        ["made:", "speedup=1.5", "errors_pct=4"],
    ]
    assert told.err == ""


def test_rows_of_several_kinds_share_one_table(capsys: pytest.CaptureFixture[str]) -> None:
    rows = [{"who": "turbo", "seconds": 2.0}, {"who": "other", "gain": 3}]
    finish("made", FIGURES, rows, [], arguments("").parse_args([]))
    lines = capsys.readouterr().out.splitlines()
    assert [line.split() for line in lines[:3]] == [
        ["who", "seconds", "gain"],
        ["turbo", "2"],
        ["other", "3"],
    ]


def test_each_missed_bar_is_named_and_fails_the_run_which_says_its_figures_all_the_same(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    file = tmp_path / "made.json"
    assert finish("made", FIGURES, [], MISSED, arguments("").parse_args(["--json", str(file)])) == 1
    told = capsys.readouterr()
    assert told.err.splitlines() == [
        "BAR MISSED: speedup is 1.5, the bar is at least 2",
        "BAR MISSED: errors_pct is 4, the bar is at most 3",
    ]
    assert told.out == "made: speedup=1.5 errors_pct=4\n"
    assert json.loads(file.read_text())["figures"] == FIGURES


def test_the_file_says_on_which_machine_when_and_of_which_commit(tmp_path: Path) -> None:
    file = tmp_path / "made.json"
    options = arguments("").parse_args(["--json", str(file), "--threads", "3"])
    finish("made", FIGURES, ROWS, BARS, options)
    written = json.loads(file.read_text())
    assert (written["benchmark"], written["figures"], written["rows"]) == ("made", FIGURES, ROWS)
    assert written["machine"]["cpu"]
    assert written["machine"]["threads"] == 3
    assert timedelta() <= datetime.now(UTC) - datetime.fromisoformat(written["date"]) < timedelta(minutes=5)
    head = subprocess.run(
        ["git", "describe", "--always", "--dirty"], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert written["commit"] == (head.stdout.strip() or None)


def test_the_data_of_all_benchmarks_take_less_than_10_megabytes() -> None:
    files = [file for file in (ROOT / "benchmarks" / "data").rglob("*") if file.is_file()]
    assert 0 < sum(file.stat().st_size for file in files) < 10_000_000
