"""`--plot FILE`: cost against latency of every candidate, the frontier, the choice, target and budget."""

from __future__ import annotations

import colorsys
from collections.abc import Iterable, Sequence
from pathlib import Path
from textwrap import fill
from typing import Any

from matplotlib.axes import Axes  # which takes seconds: no other module imports it
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import FuncFormatter, LogLocator, NullLocator
from matplotlib.transforms import Bbox

from turbo_operator.api import OFF, PlanReason, TurboDeploymentSpec
from turbo_operator.api.requirements import Latency
from turbo_operator.cli.manifests import BadInputError
from turbo_operator.cli.output import candidate, duration
from turbo_operator.cli.plan_query import Answer
from turbo_operator.plan import Candidate, EvaluatedCandidate, Plan, Predicted
from turbo_operator.planner import money
from turbo_operator.planner.explanation.messages import count

PANEL = (10.0, 6.0)  # inches
FORMATS = (".png", ".svg", ".pdf")
NUM_NAMED = 6  # corners of the frontier that are named
APART = 1.15  # times the cost of the one below
LIGHTNESS = (0.28, 0.44)  # of neighbors in the legend, which shapes tell apart too
SHAPES = ("o", "s", "^", "D", "v", "P", "X", "p")
MARGIN = 4  # pixels around a name
# Where the name of a corner may stand, in points from it: first where nothing feasible is, below on the left.
PLACES = (
    *(((-7, -6), "right", "top"), ((7, 5), "left", "bottom")),
    *(((7, -6), "left", "top"), ((-7, 5), "right", "bottom")),
)
USUAL_PERCENTILE = Latency.model_fields["percentile"].default  # of what is predicted without a target
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
    named: list[tuple[Axes, Points, Points]] = []
    for axes, (answer, candidates) in zip(panels, answers, strict=True):
        if points := _points(answer.plan, candidates):
            about, corners = _panel(axes, answer, points)
            named.append((axes, corners, points))
        else:
            about = "no candidate has both a price and a speed, so there is nothing to draw"
            text = fill(answer.plan.detail, 100)
            axes.set_axis_off()
            axes.text(0.0, 0.95, text, transform=axes.transAxes, va="top", fontsize=10)
        name = f"{answer.question.td.metadata.name}: {answer.question.model}"
        axes.set_title(f"{name}\n{about}", loc="left", fontsize=10)
    drawn.draw_without_rendering()  # which says where all the rest is
    for each in named:
        _name(*each)
    return drawn


def frontier(points: Points) -> Points:
    """Return those that no other beats in both, the fastest first."""
    best: list[tuple[EvaluatedCandidate, Point]] = []
    for evaluated, place in sorted(points, key=lambda pair: pair[1]):
        if not best or place[1] < best[-1][1][1]:
            best.append((evaluated, place))
    return best


def _points(plan: Plan, candidates: Iterable[EvaluatedCandidate]) -> Points:
    """Place the candidates, the ringed one as the plan has it: it may run another number of replicas."""
    ringed = _ringed(plan)
    own = [] if ringed is None or _place(ringed) is None else [ringed]
    others = (row for row in candidates if not own or _identity(row) != _identity(own[0]))
    return [(row, place) for row in (*others, *own) if (place := _place(row)) is not None]


def _identity(row: Candidate) -> tuple[object, ...]:
    return row.accelerator, row.tensor, row.method, row.engine, row.capacity_type, row.nodes, row.data


def _place(row: EvaluatedCandidate) -> Point | None:
    """Return the place; None of what has no speed or costs nothing, since the axes are logarithmic."""
    if row.predicted is None:
        return None
    seconds, cost = row.predicted.time_per_output_token, row.predicted.cost_per_hour
    return None if seconds is None or not cost else (seconds, float(cost))


def _ringed(plan: Plan) -> EvaluatedCandidate | None:
    """Return the choice, else what comes nearest."""
    choice = plan.choice
    if choice is None:
        return plan.nearest
    kind = (choice.engine, choice.capacity_type, choice.nodes, choice.data)
    columns = (choice.tensor, choice.method, *kind)
    does: dict[str, Any] = {"replicas": plan.replicas, "predicted": choice.predicted}
    return EvaluatedCandidate(choice.accelerator.name, *columns, reason=PlanReason.FEASIBLE, **does)


def _panel(axes: Axes, answer: Answer, points: Points) -> tuple[str, Points]:
    """Draw a panel; return what it shows, for the title, and the corners to name."""
    spec = answer.question.td.spec
    legend = _scatter(axes, points)
    feasible = [pair for pair in points if pair[0].reason == PlanReason.FEASIBLE]
    best = frontier(feasible or points)
    seconds, costs = zip(*(place for _, place in best), strict=True)
    style, name = ("-", "frontier") if feasible else (":", "frontier, none feasible")
    legend += axes.step(seconds, costs, style, where="post", color=DARK, linewidth=1.2, label=name)
    legend += _draw_limits(axes, spec)
    about = _choice(axes, answer.plan)
    _axis(axes, spec)
    axes.legend(handles=legend, loc="upper left", bbox_to_anchor=(1.01, 1.0), fontsize=8, frameon=False)
    return about, _apart(best)


def _name(axes: Axes, corners: Points, points: Points) -> None:
    """Name the corners whose names have a place where they hide no point and no other name."""
    spots, taken = axes.transData.transform([place for _, place in points]), list[Bbox]()
    style: dict[str, Any] = {"textcoords": "offset points", "fontsize": 7, "color": DARK, "in_layout": False}
    for row, place in corners:
        words = candidate(row) if row.method == OFF else f"{candidate(row)}, {row.method}"
        for offset, across, up in PLACES:
            text = axes.annotate(words, place, offset, ha=across, va=up, **style)
            box = text.get_window_extent().padded(MARGIN)
            is_inside = axes.bbox.count_contains(box.corners()) == 4
            if is_inside and not box.count_contains(spots) and not box.count_overlaps(taken):
                taken.append(box)
                break
            text.remove()


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
        hue, lightness = 0.6 + number / len(names), LIGHTNESS[number % len(LIGHTNESS)]
        color, shape = colorsys.hls_to_rgb(hue, lightness, 0.8), SHAPES[number % len(SHAPES)]
        legend.append(Line2D([], [], linestyle="", marker=shape, color=color, label=name))
        own = [(evaluated.reason, place) for evaluated, place in points if evaluated.accelerator == name]
        hollow = {reason for reason, _ in own} - _SOLID
        for reasons, face, size in (
            ({PlanReason.NOT_YET_SUPPORTED}, [color], 12),
            (hollow, "none", 30),
            ({PlanReason.FEASIBLE}, [color], 46),
        ):
            if places := [place for reason, place in own if reason in reasons]:
                style: dict[str, Any] = {"facecolors": face, "edgecolors": color, "zorder": 3}
                seconds, costs = zip(*places, strict=True)
                axes.scatter(seconds, costs, marker=shape, s=size, **style)
    return legend


def _draw_limits(axes: Axes, spec: TurboDeploymentSpec) -> list[Line2D]:
    """Draw the target and the budget as lines: what is left of the one and below the other fits."""
    target = spec.targets.time_per_output_token if spec.targets else None
    budget, lines = spec.cost.max_per_hour if spec.cost else None, []
    style: dict[str, Any] = {"color": CHOSEN, "linewidth": 1.0}
    if target is not None:
        lines.append(axes.axvline(target.max.seconds, linestyle="--", label=f"target {target.max}", **style))
    if budget is not None:
        label = f"budget {money(budget)} $/h"
        lines.append(axes.axhline(float(budget), linestyle="-.", label=label, **style))
    return lines


def _choice(axes: Axes, plan: Plan) -> str:
    """Ring the choice, else the nearest miss, where it has a place; return its name for the title."""
    ringed = _ringed(plan)
    none = "" if plan.choice else f"no plan is feasible: {plan.reason}"
    place = ringed and _place(ringed)
    if place:
        axes.scatter(*place, 220, facecolors="none", edgecolors=CHOSEN, linewidths=2)
    if ringed is None or ringed.predicted is None or (none and not place):
        return none
    what = f"{none}; nearest" if none else "chosen"
    name = f"{candidate(ringed)}, {ringed.method}, {_does(ringed.replicas or 0, ringed.predicted)}"
    return f"{what}{' (ringed)' if place else ''}: {name}"


def _does(replicas: int, predicted: Predicted) -> str:
    cost = predicted.cost_per_hour
    price = "of unknown price" if cost is None else f"{money(cost)} $/h"
    pods, seconds = count(replicas, "replica"), predicted.time_per_output_token
    return f"{pods}, {price}, {duration(seconds)} per token"


def _axis(axes: Axes, spec: TurboDeploymentSpec) -> None:
    target = spec.targets.time_per_output_token if spec.targets else None
    percentile = target.percentile if target else USUAL_PERCENTILE
    axes.set_xlabel(f"time per output token, {percentile} % of requests")
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
