"""The planner's step-time model against measurements that others have published.

Figures are errors in percent: the mean of |predicted / measured - 1| of time per output token, throughput,
saturated throughput and speed-up, the median of time to first token. Throughput of a row is its requests
times its answer over one request's time, TTFT + answer x TPOT, on both sides.

Two sets of coefficients: those that are shipped, unchanged; and refitted on half of the configurations, told
on the other half, the mean over six divisions (seen). What is new is left out whole of the fit: an
accelerator, a model. A refit is of the shipped coefficients and, for each pair of accelerator and engine, of
what a TurboAccelerator's `efficiency` may state of it; a new accelerator has the common ones. With three
points: the new accelerator's times, scaled by three measured rows of each deployment.
"""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from harness import HERE, Bar, arguments, finish, print_table
from measurements.deployed import GENERAL, Mask, Numbers
from measurements.endtoend import Rows, Times, end_to_end, predicted
from measurements.fit import OF_ENGINES, Fit, Joined, fit
from measurements.saturated import Saturated, saturated
from measurements.shipping import to_ship
from measurements.speculative import Speculative, speculative
from measurements.studies import calibrated, end_to_end_errors, halves, others, unseen

from turbo_operator.api import EngineName
from turbo_operator.catalog import catalog
from turbo_operator.planner.performance.step_time import BY_ENGINE, NAMES, Coefficients

BARS = {  # at most; a goal is a tenth less
    "tpot_seen": 14.0,
    "tpot_new_accelerator": 18.0,
    "tpot_3_points": 12.0,
    "throughput_seen": 15.0,
    "throughput_new_accelerator": 18.0,
    "throughput_3_points": 12.0,
    "ttft_median_seen": 21.0,
    "ttft_median_new_accelerator": 29.0,
    "ttft_median_3_points": 17.0,
    "saturated": 18.0,
    "saturated_70b_on_one_h100": 15.0,
    "speedup": 13.0,
}
GOAL = 0.9
STUDIES = ("seen", "new_accelerator", "new_model", "3_points")
FIGURES = ("tpot", "throughput", "ttft_median")


def main() -> int:
    """Read, fit, tell; exit status by the bars."""
    parser = arguments(__doc__ or "")
    parser.add_argument(
        "--data", type=Path, default=HERE / "data", help="a folder with perf/ and specdec/ tables"
    )
    parser.add_argument(
        "--coefficients", action="store_true", help="print what a fit on all rows would ship, and end"
    )
    options = parser.parse_args()
    rows_by_accelerator = catalog()
    served, left_out = end_to_end(options.data / "perf" / "silicon_e2e.csv", rows_by_accelerator)
    full, out = saturated(options.data / "perf" / "trtllm_max_throughput.csv", rows_by_accelerator)
    if options.coefficients:
        return _print_coefficients(served, full)
    drafting, not_drafting = speculative(
        options.data / "specdec" / "specdec_measured.csv", rows_by_accelerator
    )
    for name, table, reasons in (
        ("end to end", served, left_out),
        ("saturated", full, out),
        ("speculative", drafting, not_drafting),
    ):
        print(_counted(name, 0 if table is None else len(table), reasons), flush=True)
    figures: dict[str, float] = {}
    rows: list[dict[str, Any]] = []
    if served is not None:
        rows += _end_to_end(served, figures)
    if full is not None:
        rows += _saturated(full, figures)
    if drafting is not None:
        rows += _speculative(drafting, figures)
    if not figures:
        print(f"no row can be told: give --data a folder with perf/ and specdec/ tables, not {options.data}.")
        return 1
    print_table(
        [
            {
                "figure": name,
                "percent": figures[name],
                "bar": bar,
                "goal": GOAL * bar,
                "met": "goal" if figures[name] <= GOAL * bar else "bar" if figures[name] <= bar else "no",
            }
            for name, bar in BARS.items()
            if name in figures
        ]
    )
    untold = [name for name in BARS if name not in figures]
    if untold:
        print(f"not told, for want of rows: {', '.join(untold)}")
    bars = [Bar(name, at_most=bar) for name, bar in BARS.items() if name in figures]
    return finish("planner", figures, rows, bars, options)


def _counted(name: str, count: int, left_out: Counter[str]) -> str:
    reasons = ", ".join(f"{reason.strip()} {number}" for reason, number in left_out.most_common())
    return f"{name}: {count} rows; left out: {reasons or 'none'}"


def _end_to_end(rows: Rows, figures: dict[str, float]) -> list[dict[str, Any]]:
    """Errors [n, 3] by study, of the shipped coefficients and of refits; the table's lines by group."""

    def told(on: Rows, by: Fit) -> Numbers:
        return end_to_end_errors(on, predicted(on, by.coefficients(on)))

    shipped = predicted(rows, _shipped(rows))
    refit = {
        "seen": unseen(rows, halves(rows.words["configuration"]), fit, told),
        "new_accelerator": unseen(rows, others(rows.words["accelerator"]), fit, told),
        "new_model": unseen(rows, others(rows.words["model"]), fit, told),
        "3_points": _scaled(rows, _new_accelerator(rows)),
    }
    unchanged = {"seen": end_to_end_errors(rows, shipped), "3_points": _scaled(rows, shipped)}
    every = np.ones(len(rows), bool)
    for study, errors in refit.items():
        for name, value in _summary(errors, every).items():
            if not np.isnan(value):
                figures[f"{name}_{study}"] = round(value, 1)
    figures["rows"] = len(rows)
    return [
        _line(group, coefficients, which, errors)
        for group, which in _groups(rows)
        for coefficients, errors in (("shipped", unchanged), ("refit", refit))
    ]


def _shipped(rows: Rows) -> Coefficients:
    """What the product predicts each row with; engines that it does not plan for have the common set."""
    sets = [BY_ENGINE[EngineName.VLLM] if engine == "vllm" else GENERAL for engine in rows.words["engine"]]
    columns: dict[str, Any] = {name: np.array([getattr(it, name) for it in sets]) for name in NAMES}
    return Coefficients(**columns)


def _new_accelerator(rows: Rows) -> Times:
    """Times of each row by a fit that has not seen its accelerator."""
    first, token = np.full(len(rows), np.nan), np.full(len(rows), np.nan)
    for on in others(rows.words["accelerator"]):
        of = rows.take(~on)
        times = predicted(of, fit(rows.take(on)).coefficients(of))
        first[~on], token[~on] = times.first, times.token
    return Times(first, token)


def _scaled(rows: Rows, times: Times) -> Numbers:
    scaled, told = calibrated(rows, times)
    return np.asarray(np.where(told[:, None], end_to_end_errors(rows, scaled), np.nan))


def _groups(rows: Rows) -> Iterator[tuple[str, Mask]]:
    """All rows, then those of each family, engine and kind."""
    yield "all", np.ones(len(rows), bool)
    words = [rows.words[name] for name in ("family", "engine", "kind")]
    names = np.array([" ".join(each) for each in zip(*words, strict=True)])
    for name in np.unique(names):
        yield str(name), names == name


def _summary(errors: Numbers, which: Mask) -> dict[str, float]:
    """Percent by figure, of the rows that have been told; NaN where there are none."""
    told = 100.0 * errors[which][~np.isnan(errors[which]).any(axis=1)]
    if not len(told):
        return dict.fromkeys(FIGURES, np.nan)
    return dict(zip(FIGURES, (told[:, 0].mean(), told[:, 1].mean(), np.median(told[:, 2])), strict=True))


def _line(group: str, coefficients: str, which: Mask, errors: dict[str, Numbers]) -> dict[str, Any]:
    line: dict[str, Any] = {"rows of": group, "coefficients": coefficients, "rows": int(which.sum())}
    summaries = {study: _summary(errors[study], which) for study in STUDIES if study in errors}
    for figure in FIGURES:
        for study in STUDIES:
            value = summaries.get(study, {}).get(figure, np.nan)
            line[f"{figure}_{study}"] = "-" if np.isnan(value) else f"{value:.1f}"
    return line


def _saturated(rows: Saturated, figures: dict[str, float]) -> list[dict[str, Any]]:
    words = rows.words
    alone = (words["accelerator"] == "h100") & (words["accelerators"] == "1")
    groups = {
        "saturated": np.ones(len(rows), bool),
        "saturated_70b_on_one_h100": alone & (np.char.find(words["model"], "70B") >= 0),
    } | {f"saturated {kind}": words["kind"] == kind for kind in ("dense", "MoE")}
    return _one_figure(rows, groups, figures)


def _speculative(rows: Speculative, figures: dict[str, float]) -> list[dict[str, Any]]:
    return _one_figure(rows, {"speedup": np.ones(len(rows), bool)}, figures)


def _one_figure(
    rows: Saturated | Speculative, groups: dict[str, Mask], figures: dict[str, float]
) -> list[dict[str, Any]]:
    def told(on: Any, by: Fit) -> Numbers:
        return np.asarray(np.abs(on.predicted(by.coefficients(on)) / on.measured - 1.0)[:, None])

    refit = unseen(rows, halves(rows.words["configuration"]), fit, told)[:, 0]
    shipped = np.abs(rows.predicted(GENERAL) / rows.measured - 1.0)
    lines = []
    for name, which in groups.items():
        if not which.any():
            continue
        if name in BARS and not np.isnan(refit[which]).all():
            figures[name] = round(100.0 * float(np.nanmean(refit[which])), 1)
            figures[f"{name}_rows"] = int(which.sum())
        for coefficients, errors in (("shipped", shipped), ("refit", refit)):
            line = _line(name, coefficients, which, {})
            told_of = errors[which][~np.isnan(errors[which])]
            line["throughput_seen"] = f"{100.0 * told_of.mean():.1f}" if len(told_of) else "-"
            lines.append(line)
    return lines


def _print_coefficients(served: Rows | None, full: Saturated | None) -> int:
    if served is None or full is None:
        print("not both tables of perf/ have rows: give --data a folder where they do.")
        return 1
    common, of_engines = to_ship(Joined(served, full))
    print("common", common)
    for engine, it in of_engines.items():
        print(engine, {name: getattr(it, name) for name in OF_ENGINES})
    return 0


if __name__ == "__main__":
    sys.exit(main())
