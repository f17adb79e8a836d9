"""`--plot FILE`: cost against latency of every candidate, the frontier, the choice, target and budget."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from textwrap import fill
from typing import Any

from matplotlib.axes import Axes  # which takes seconds: no other module imports it
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import FuncFormatter, LogLocator, NullLocator

from turbo_operator.api import PlanReason, TurboDeploymentSpec
from turbo_operator.cli.manifests import BadInputError
from turbo_operator.cli.output import candidate, duration
from turbo_operator.cli.plan_query import Answer
from turbo_operator.plan import EvaluatedCandidate, Plan, Predicted
from turbo_operator.planner import money
from turbo_operator.planner.explanation.messages import count

PANEL = (10.0, 6.0)  # inches
FORMATS = (".png", ".svg", ".pdf")
NUM_NAMED = 6  # corners of the frontier that are named
APART = 1.15  # times the cost of the one below
# Okabe and Ito's palette, which color-blind people can tell apart; with the shapes 56 accelerators.
COLORS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#666666")
SHAPES = ("o", "s", "^", "D", "v", "P", "X", "p")
DARK, CHOSEN = "#333333", "#C00000"
_SOLID = {PlanReason.NOT_YET_SUPPORTED, PlanReason.FEASIBLE}

Point = tuple[float, float]  # seconds per output token, dollars per hour
Points = Sequence[tuple[EvaluatedCandidate, Point]]


def draw(answers: Sequence[tuple[Answer, Sequence[EvaluatedCandidate]]], file: str) -> None:
    """Write one panel per answer and its candidates to `file`, in the format that its ending names."""
    if Path(file).suffix.lower() not in FORMATS:
        raise BadInputError(f"--plot {file}: end the name in .png, .svg or .pdf.")
    try:
        figure(answers).savefig(file, dpi=130)
    except OSError as error:
        raise BadInputError(f"--plot {file}: {error.strerror}.") from error


def figure(answers: Sequence[tuple[Answer, Sequence[EvaluatedCandidate]]]) -> Figure:
    """Draw the figure; an answer without any known price and speed shows its sentence instead."""
    drawn = Figure(figsize=(PANEL[0], PANEL[1] * len(answers)), layout="constrained")
    FigureCanvasAgg(drawn)  # no window, whatever the machine has
    panels = drawn.subplots(len(answers), 1, squeeze=False)[:, 0]
    for axes, (answer, candidates) in zip(panels, answers, strict=True):
        if points := _points(candidates):
            about = _panel(axes, answer, points)
        else:
            about = "no candidate has both a price and a speed, so there is nothing to draw"
            text = fill(answer.plan.detail, 100)
            axes.set_axis_off()
            axes.text(0.0, 0.95, text, transform=axes.transAxes, va="top", fontsize=10)
        name = f"{answer.question.td.metadata.name}: {answer.question.model}"
        axes.set_title(f"{name}\n{about}", loc="left", fontsize=10)
    return drawn


def frontier(points: Points) -> Points:
    """Return those that no other beats in both, the fastest first."""
    best: list[tuple[EvaluatedCandidate, Point]] = []
    for evaluated, place in sorted(points, key=lambda pair: pair[1]):
        if not best or place[1] < best[-1][1][1]:
            best.append((evaluated, place))
    return best


def _points(candidates: Iterable[EvaluatedCandidate]) -> Points:
    placed = (
        (evaluated, evaluated.predicted.time_per_output_token, evaluated.predicted.cost_per_hour)
        for evaluated in candidates
        if evaluated.predicted is not None
    )
    # the axes are logarithmic: what costs nothing has no place on them
    return [(row, (seconds, float(cost))) for row, seconds, cost in placed if seconds is not None and cost]


def _panel(axes: Axes, answer: Answer, points: Points) -> str:
    """Draw a panel; return what it shows, for the title."""
    spec = answer.question.td.spec
    legend = _scatter(axes, points)
    feasible = [pair for pair in points if pair[0].reason == PlanReason.FEASIBLE]
    best = frontier(feasible or points)
    seconds, costs = zip(*(place for _, place in best), strict=True)
    style, name = ("-", "frontier") if feasible else (":", "frontier, none feasible")
    legend += axes.step(seconds, costs, style, where="post", color=DARK, linewidth=1.2, label=name)
    for evaluated, place in _apart(best):
        axes.annotate(candidate(evaluated), place, (5, 5), textcoords="offset points", fontsize=7, color=DARK)
    _draw_limits(axes, spec)
    about = _choice(axes, answer.plan)
    _axis(axes, spec)
    axes.legend(handles=legend, loc="upper left", bbox_to_anchor=(1.01, 1.0), fontsize=8, frameon=False)
    return about


def _apart(corners: Points) -> Points:
    """Return a few corners, the cheapest first, whose names do not overlap."""
    apart: list[tuple[EvaluatedCandidate, Point]] = []
    for evaluated, place in reversed(corners):
        if not apart or place[1] >= apart[-1][1][1] * APART:
            apart.append((evaluated, place))
    return apart[:NUM_NAMED]


def _scatter(axes: Axes, points: Points) -> list[Line2D]:
    """Draw the candidates filled, hollow or small by whether they may be chosen; return the legend."""
    names = sorted({evaluated.accelerator for evaluated, _ in points})
    dark: dict[str, Any] = {"linestyle": "", "marker": "o", "color": DARK}
    legend = [
        Line2D([], [], label="feasible", **dark),
        Line2D([], [], label="misses what is asked", fillstyle="none", **dark),
        Line2D([], [], label="not supported yet", markersize=3, **dark),
    ]
    for number, name in enumerate(names):
        color, shape = COLORS[number % len(COLORS)], SHAPES[number % len(SHAPES)]
        legend.append(Line2D([], [], linestyle="", marker=shape, color=color, label=name))
        own = [(evaluated.reason, place) for evaluated, place in points if evaluated.accelerator == name]
        hollow = {reason for reason, _ in own} - _SOLID
        for reasons, face, size in (
            ({PlanReason.NOT_YET_SUPPORTED}, color, 12),
            (hollow, "none", 30),
            ({PlanReason.FEASIBLE}, color, 46),
        ):
            if places := [place for reason, place in own if reason in reasons]:
                style: dict[str, Any] = {"facecolors": face, "edgecolors": color, "zorder": 3}
                seconds, costs = zip(*places, strict=True)
                axes.scatter(seconds, costs, marker=shape, s=size, **style)
    return legend


def _draw_limits(axes: Axes, spec: TurboDeploymentSpec) -> None:
    """Draw the target and the budget as lines: what is left of the one and below the other fits."""
    target = spec.targets.time_per_output_token if spec.targets else None
    budget = spec.cost.max_per_hour if spec.cost else None
    style: dict[str, Any] = {"color": CHOSEN, "linestyle": "--", "linewidth": 1.0}
    words: dict[str, Any] = {"fontsize": 8, "color": CHOSEN}
    if target is not None:
        axes.axvline(target.max.seconds, **style)
        # upright, or it would run out of the panel where the target is at its edge
        beside: dict[str, Any] = {"xytext": (3, 0), "textcoords": "offset points", "rotation": 90}
        place, across = (target.max.seconds, 0.99), axes.get_xaxis_transform()
        axes.annotate(f"target {target.max}", place, xycoords=across, va="top", **beside, **words)
    if budget is not None:
        axes.axhline(float(budget), **style)
        text, across = f"budget {money(budget)} $/h", axes.get_yaxis_transform()
        # on the left, where what is fast and cheap would be
        axes.text(0.01, float(budget), text, transform=across, va="bottom", **words)


def _choice(axes: Axes, plan: Plan) -> str:
    """Ring the choice, else the nearest miss, where it has a place; return its name for the title."""
    choice, near = plan.choice, plan.nearest
    if choice is not None:
        chosen = "chosen (ringed)" if _ring(axes, choice.predicted) else "chosen"
        return f"{chosen}: {candidate(choice)}, {choice.method}, {_does(plan.replicas, choice.predicted)}"
    none = f"no plan is feasible: {plan.reason}"
    if near is None or near.predicted is None or not _ring(axes, near.predicted):
        return none
    does = _does(near.replicas or 0, near.predicted)
    return f"{none}; nearest (ringed): {candidate(near)}, {near.method}, {does}"


def _ring(axes: Axes, predicted: Predicted) -> bool:
    """Ring a place; return whether there is one."""
    seconds, cost = predicted.time_per_output_token, predicted.cost_per_hour
    if seconds is None or not cost:
        return False
    axes.scatter([seconds], [float(cost)], 220, facecolors="none", edgecolors=CHOSEN, linewidths=2)
    return True


def _does(replicas: int, predicted: Predicted) -> str:
    cost = predicted.cost_per_hour
    price = "of unknown price" if cost is None else f"{money(cost)} $/h"
    pods, seconds = count(replicas, "replica"), predicted.time_per_output_token
    return f"{pods}, {price}, {duration(seconds)} per token"


def _axis(axes: Axes, spec: TurboDeploymentSpec) -> None:
    target = spec.targets.time_per_output_token if spec.targets else None
    share = f", {target.percentile} % of requests" if target else ""
    axes.set_xlabel(f"time per output token{share}")
    axes.set_ylabel("US dollars per hour, all replicas")
    axes.set_xscale("log")
    axes.set_yscale("log")
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: duration(value)))
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.4g}"))
    for axis in (axes.xaxis, axes.yaxis):
        axis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0)))
        axis.set_minor_locator(NullLocator())
    axes.grid(color="#DDDDDD", linewidth=0.6)
    axes.set_axisbelow(True)
