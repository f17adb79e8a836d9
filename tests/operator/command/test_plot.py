"""The plot shows cost against latency of every candidate, and the choice by name."""

from __future__ import annotations

from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from turbo_operator import cli
from turbo_operator.api import CapacityType, EngineName, PlanReason, Provenance
from turbo_operator.command import inputs, plot
from turbo_operator.command.question import ask, candidates
from turbo_operator.planned import Predicted, Weighed

TURBODEPLOYMENT = """
apiVersion: serving.turbo.dev/v1alpha1
kind: TurboDeployment
metadata: {name: chat}
spec:
  model: {uri: "hf://Qwen/Qwen3-8B", maxModelLen: 8192}
  workload: {requestsPerSecond: "4"}
  targets: {timePerOutputToken: {max: 60ms}}
  cost: {maxPerHour: "20"}
  accelerators: {allowed: [slow, fast]}
"""
ACCELERATOR = """
---
apiVersion: serving.turbo.dev/v1alpha1
kind: TurboAccelerator
metadata: {{name: {name}}}
spec:
  resourceName: nvidia.com/gpu
  memoryGiB: 80
  memoryBandwidthGBps: "{bandwidth}"
  tflops: {{bf16: "{tflops}"}}
  pricing: {{perAcceleratorHour: {{onDemand: "{price}"}}}}
"""


@pytest.fixture
def file(tmp_path: Path) -> str:
    path = tmp_path / "td.yaml"
    slow = ACCELERATOR.format(name="slow", bandwidth=1000, tflops=300, price="1.00")
    fast = ACCELERATOR.format(name="fast", bandwidth=4000, tflops=900, price="9.00")
    path.write_text(TURBODEPLOYMENT + slow + fast)
    return str(path)


def test_the_file_is_a_picture_and_the_answer_is_still_shown(
    file: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    picture = tmp_path / "plan.png"
    assert cli.plan(["-f", file, "--plot", str(picture)]) == 0
    assert picture.read_bytes().startswith(b"\x89PNG")
    assert "slow" in capsys.readouterr().out


def test_title_lines_and_points_say_what_was_asked_and_chosen(file: str) -> None:
    (question,) = inputs.from_files(inputs.given(file), None)
    found = ask(question)
    assert found.plan.choice is not None
    drawn = plot.figure([(found, candidates(question))])
    (axes,) = drawn.axes
    title = axes.get_title(loc="left")
    assert "chat" in title
    assert f"chosen (ringed): {found.plan.choice.accelerator.name}" in title
    words = {text.get_text().strip() for text in axes.texts}
    assert {"target 60ms", "budget 20.00 $/h"} <= words
    legend = axes.get_legend()
    assert legend is not None
    assert {"slow", "fast", "frontier"} <= {text.get_text() for text in legend.get_texts()}


@pytest.mark.parametrize(
    ("name", "said"), [("plan.xyz", "end the name in .png"), ("none/plan.png", "No such file")]
)
def test_a_file_that_cannot_be_written_is_bad_input(
    file: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], name: str, said: str
) -> None:
    assert cli.plan(["-f", file, "--plot", str(tmp_path / name)]) == 1
    shown = capsys.readouterr()
    assert said in shown.err
    assert shown.out == ""


def test_without_any_speed_there_is_nothing_to_draw(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    example = Path(__file__).parents[3] / "examples" / "smollm2.yaml"
    model = ["--model", "HuggingFaceTB/SmolLM2-135M-Instruct"]
    text = example.read_text().replace("name: cpu", "name: cores").replace("[cpu]", "[cores]")
    path = tmp_path / "td.yaml"
    path.write_text(text)
    assert cli.plan(["-f", str(path), *model, "--plot", str(tmp_path / "plan.png")]) == 1
    assert "has both a price and a speed" in capsys.readouterr().err


def weighed(place: tuple[float, float], reason: PlanReason) -> tuple[Weighed, tuple[float, float]]:
    predicted = Predicted(0.1, place[0], 1.0, 1.0, Decimal(place[1]), None, Provenance.ROOFLINE)
    each: Any = Weighed(EngineName.TURBO, "x", CapacityType.ON_DEMAND, 1, 1, "Off", 1, predicted, reason)
    return each, place


PLACES = st.lists(
    st.builds(
        weighed,
        st.tuples(st.floats(0.001, 1.0), st.integers(1, 9).map(float)),
        st.sampled_from([PlanReason.FEASIBLE, PlanReason.OVER_BUDGET]),
    ),
    max_size=12,
)


@given(PLACES)
def test_the_frontier_is_what_no_feasible_candidate_beats_in_both(
    points: list[tuple[Weighed, tuple[float, float]]],
) -> None:
    feasible = [place for each, place in points if each.reason == PlanReason.FEASIBLE]
    beaten = {
        place
        for place in feasible
        if any(o != place and o[0] <= place[0] and o[1] <= place[1] for o in feasible)
    }
    found = [place for _, place in plot.frontier(points)]
    assert set(found) == set(feasible) - beaten
    assert found == sorted(found)
