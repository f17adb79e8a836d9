"""The plot shows cost against latency of every candidate, and the choice by name."""

from __future__ import annotations

from collections.abc import Sequence
from decimal import Decimal
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from matplotlib.axes import Axes

from turbo_dev.plan_files import EXAMPLES
from turbo_operator.api import PlanReason, Provenance
from turbo_operator.cli import commands, inputs, plot
from turbo_operator.cli.plan_query import Question, ask
from turbo_operator.plan import EvaluatedCandidate, Predicted

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
  memory: 80Gi
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
    assert commands.plan(["-f", file, "--plot", str(picture)]) == 0
    assert picture.read_bytes().startswith(b"\x89PNG")
    assert "slow" in capsys.readouterr().out


def read(file: str, *changes: tuple[str, str]) -> Question:
    path = Path(file)
    for before, after in changes:
        assert before in path.read_text()
        path.write_text(path.read_text().replace(before, after))
    [question] = inputs.from_files(inputs.given([file]), None).questions
    return question


def panel(question: Question) -> Axes:
    (axes,) = plot.figure([(ask(question), question.candidates())]).axes
    return axes


def explained(axes: Axes) -> list[str]:
    legend = axes.get_legend()
    assert legend is not None
    return [text.get_text() for text in legend.get_texts()]


def places(axes: Axes, *, ringed: bool) -> set[tuple[float, float]]:
    """Where rings are, or marks."""
    return {
        (round(float(seconds), 6), round(float(cost), 4))
        for marks in axes.collections
        if (marks.get_sizes()[0] > 100) == ringed
        for seconds, cost in marks.get_offsets()
    }


def test_title_lines_and_points_say_what_was_asked_and_chosen(file: str) -> None:
    question = read(file)
    found = ask(question)
    assert found.plan.choice is not None
    axes = panel(question)
    title = axes.get_title(loc="left")
    assert "chat" in title
    assert f"chosen (ringed): {found.plan.choice.accelerator.name}" in title
    assert {"slow", "fast", "frontier", "target 60ms", "budget 20.00 $/h"} <= set(explained(axes))


def test_where_nothing_is_feasible_the_nearest_is_ringed_and_corners_are_named(file: str) -> None:
    axes = panel(read(file, ('maxPerHour: "20"', 'maxPerHour: "0.10"')))
    assert "nearest (ringed): slow, VLLM, Off, 1 replica, 1.00 $/h" in axes.get_title(loc="left")
    assert {"slow", "fast"} <= {text.get_text().split(",")[0].split(" x")[0] for text in axes.texts}


@pytest.mark.parametrize(
    "changes",
    [
        [],
        [("60ms", "20ms"), ('"20"', '"3"')],
        [
            ("60ms", "15ms"),
            ('"20"', '"100"'),
            ("spec:\n  model", "spec:\n  planPolicy: {objective: Latency}\n  model"),
        ],
    ],
)
def test_the_ring_is_around_a_mark(file: str, changes: Sequence[tuple[str, str]]) -> None:
    """Found in a trial: what comes nearest runs another number of replicas than its mark was drawn for."""
    axes = panel(read(file, *changes))
    assert len(places(axes, ringed=True)) == 1
    assert places(axes, ringed=True) <= places(axes, ringed=False)


def test_names_hide_no_mark_and_no_other_name() -> None:
    axes = panel(read(str(EXAMPLES / "r1-distill-qwen-32b.yaml")))
    boxes = [text.get_window_extent() for text in axes.texts]
    assert len(boxes) > 3
    for number, box in enumerate(boxes):
        assert not box.count_contains(axes.transData.transform(list(places(axes, ringed=False))))
        assert not box.count_overlaps(boxes[:number])


@pytest.mark.parametrize(
    ("target", "share"), [("60ms", 95), ("60ms, percentile: 99", 99), (None, 95)], ids=str
)
def test_the_axis_says_of_how_many_requests_a_time_is(file: str, target: str | None, share: int) -> None:
    written = "targets: {timePerOutputToken: {max: 60ms}}"
    axes = panel(read(file, (written, written.replace("60ms", target) if target else "targets: {}")))
    assert axes.get_xlabel() == f"time per output token, {share} % of requests"


def test_no_two_accelerators_share_a_color_or_neighbors_a_shape(file: str) -> None:
    """With more of them than a palette has, colors came twice."""
    names = [f"more-{number}" for number in range(17)]
    rows = (ACCELERATOR.format(name=name, bandwidth=2000, tflops=600, price="2.00") for name in names)
    listed = [("[slow, fast]", f"[{', '.join(names)}]"), ('"20"', '"0.01"')]
    Path(file).write_text(Path(file).read_text() + "".join(rows))
    question = read(file, *listed)
    assert {each.reason for each in question.candidates()} == {PlanReason.BUDGET_EXCEEDED}
    legend = panel(question).get_legend()
    assert legend is not None
    looks = [
        (line.get_color(), line.get_marker()) for line in legend.get_lines() if str(line.get_label()) in names
    ]
    assert len({color for color, _ in looks}) == len(names)
    assert all(one[1] != other[1] for one, other in pairwise(looks))


@pytest.mark.parametrize(
    ("name", "said"), [("plan.xyz", "end the name in .png"), ("none/plan.png", "No such file")]
)
def test_a_file_that_cannot_be_written_is_bad_input(
    file: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], name: str, said: str
) -> None:
    assert commands.plan(["-f", file, "--plot", str(tmp_path / name)]) == 1
    shown = capsys.readouterr()
    assert said in shown.err
    assert shown.out == ""


def test_without_any_speed_the_plot_says_why_it_is_empty(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    example = Path(__file__).parents[3] / "examples" / "smollm2.yaml"
    model = ["--model", "HuggingFaceTB/SmolLM2-135M-Instruct"]
    text = example.read_text().replace("name: cpu", "name: cores").replace("[cpu]", "[cores]")
    path = tmp_path / "td.yaml"
    path.write_text(text)
    assert commands.plan(["-f", str(path), *model, "--plot", str(tmp_path / "plan.svg")]) == 0
    assert "Feasible" in capsys.readouterr().out
    assert (tmp_path / "plan.svg").stat().st_size > 0


def weighed(place: tuple[float, float], reason: PlanReason) -> tuple[EvaluatedCandidate, tuple[float, float]]:
    predicted = Predicted(0.1, place[0], 1.0, 1.0, Decimal(place[1]), None, Provenance.ROOFLINE)
    each: Any = EvaluatedCandidate("x", 1, "Off", reason=reason, replicas=1, predicted=predicted)
    return each, place


PLACES = st.lists(
    st.builds(
        weighed,
        st.tuples(st.floats(0.001, 1.0), st.integers(1, 9).map(float)),
        st.just(PlanReason.FEASIBLE),
    ),
    max_size=12,
)


@given(PLACES)
def test_the_frontier_is_what_no_candidate_beats_in_both(
    points: list[tuple[EvaluatedCandidate, tuple[float, float]]],
) -> None:
    places = [place for _, place in points]
    beaten = {
        place for place in places if any(o != place and o[0] <= place[0] and o[1] <= place[1] for o in places)
    }
    found = [place for _, place in plot.frontier(points)]
    assert set(found) == set(places) - beaten
    assert found == sorted(found)
