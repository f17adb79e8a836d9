"""Plots of benchmark results, from the JSON files in benchmarks/results.

A result is what `make bench NAME=... ARGS="--json FILE"` writes. A figure says in its last line which machine
and day its numbers belong to.
"""

from __future__ import annotations

import hashlib
import io
import json
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from turbo_dev.paths import REPOSITORY

RESULTS = REPOSITORY / "benchmarks" / "results"
IMAGES = REPOSITORY / "docs" / "images"
_BLUE, _GREEN, _RED, _GRAY = "#3557b7", "#2f7d4a", "#b23a3a", "#8a93a6"
_STYLE: dict[Any, Any] = {
    "font.size": 10.5,
    "font.family": "DejaVu Sans",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "svg.hashsalt": "turbo",
    "svg.fonttype": "path",
}
Result = Mapping[str, Any]


def images() -> dict[Path, str]:
    """Every figure by the path of its image. One whose result is unchanged is returned as it is on disk."""
    texts = {}
    for name, (benchmark, plot) in FIGURES.items():
        source = (RESULTS / f"{benchmark}.json").read_text("utf-8")
        path = IMAGES / f"{name}.svg"
        mark = f"<!-- result sha256:{hashlib.sha256(source.encode()).hexdigest()} -->\n"
        current = path.read_text("utf-8") if path.is_file() else ""
        texts[path] = current if mark in current else draw(json.loads(source), plot) + mark
    return texts


def draw(result: Result, plot: Callable[[Figure, Result], None]) -> str:
    """Return the figure of one result as SVG."""
    with rc_context(_STYLE):
        figure = Figure(figsize=(8, 4.2), layout="constrained")
        plot(figure, result)
        figure.supxlabel(_provenance(result), fontsize=8, color=_GRAY)
        output = io.StringIO()
        figure.savefig(output, format="svg", metadata={"Date": None, "Creator": None})
    return re.sub(r"[ \t]+$", "", output.getvalue(), flags=re.M)


def _provenance(result: Result) -> str:
    machine = result["machine"]
    cores = f"{machine['threads']} of {machine['cores']} cores" if machine["threads"] else ""
    words = [f"benchmarks/{result['benchmark']}.py", machine["cpu"], cores, result["date"][:10]]
    return ", ".join(word for word in words if word)


_DOMAINS = {"json": "text to JSON", "maths": "math", "support": "support", "latex": "LaTeX"}


def _speedup(figure: Figure, result: Result) -> None:
    axes = figure.subplots()
    _speeds(axes, result, {"turbo k=0": "without drafts", "turbo": "with drafts, the same text"})
    axes.set_title("SmolLM2-135M on one CPU thread: the speedup depends on the text")


def _speedup_compared(figure: Figure, result: Result) -> None:
    left, right = figure.subplots(1, 2, width_ratios=(3, 2))
    competitors = {
        "no drafts, same engine": "plain",
        "vLLM 0.32": "vllm",
        "vLLM with n-grams": "vllm_ngram",
        "llama.cpp, float32": "llama_f32",
        "transformers": "transformers",
    }
    domains = ("json", "maths", "support")
    series = {
        label: [result["figures"][f"{domain}_of_{name}"] for domain in domains]
        for label, name in competitors.items()
    }
    _grouped_bars(left, [_DOMAINS[domain] for domain in domains], series, size=7.5)
    left.set_ylabel("Turbo's speed over theirs")
    left.legend(title="compared with", frameon=False, fontsize=8)
    _speeds(right, result, {"turbo": "Turbo, float32", "llama.cpp Q4_1": "llama.cpp, 4 bits"})
    figure.suptitle("SmolLM2-135M, one request at a time on one thread", fontsize=11)


def _speeds(axes: Axes, result: Result, names: Mapping[str, str]) -> None:
    speeds = {(row["who"], row["domain"]): row["tokens_per_s"] for row in result["rows"]}
    domains = [domain for domain in _DOMAINS if ("turbo", domain) in speeds]
    series = {label: [speeds[name, domain] for domain in domains] for name, label in names.items()}
    groups = [_DOMAINS[domain] for domain in domains]
    _grouped_bars(
        axes,
        groups,
        series,
        equal=None,
        form="{:.0f}",
        colors=(_GRAY, _BLUE)[:: 1 if "turbo k=0" in names else -1],
    )
    axes.set_ylabel("tokens per second")
    axes.legend(frameon=False, fontsize=9)


def _never_slower(figure: Figure, result: Result) -> None:
    axes = figure.subplots()
    kinds = {"random": "random tokens", "writing": "free writing", "misleading": "misleading prompts"}
    _grouped_bars(
        axes,
        list(kinds.values()),
        {
            f"{count} at a time": [result["figures"][f"{kind}_{count}_median"] for kind in kinds]
            for count in (1, 8, 32)
        },
        form="{:.2f}",
    )
    axes.set_ylim(0.8, 1.12)
    axes.set_ylabel("speed with drafts over without")
    axes.set_title("Worst case: text that drafts cannot guess (medians; the axis begins at 0.8)")
    axes.legend(frameon=False, ncols=3)


def _load(figure: Figure, result: Result) -> None:
    left, right = figure.subplots(1, 2)
    counts = (1, 8, 32, 64)
    figures = result["figures"]
    plain = [row["tokens_per_s"] for row in result["rows"] if row["drafting"] == "off"]
    names = [str(count) for count in counts]
    _grouped_bars(left, names, {"without drafts": plain}, equal=None, form="{:.0f}", colors=(_GRAY,))
    left.set_ylabel("tokens per second, without drafts")
    left.set_xlabel("requests at a time")
    _grouped_bars(right, names, {"speedup": [figures[f"speedup_{count}"] for count in counts]}, form="{:.2f}")
    right.set_ylabel("speed with drafts over without")
    right.set_xlabel("requests at a time")
    figure.suptitle("Mixed prompts, SmolLM2-135M, float32: batching leaves less for drafts to gain")


def _planner(figure: Figure, result: Result) -> None:
    axes = figure.subplots()
    cases = {
        "accelerator and engine seen": "seen",
        "accelerator never seen": "new_accelerator",
        "model never seen": "new_model",
        "scaled by three measured points": "3_points",
    }
    measures = {
        "time per output token": "tpot",
        "throughput": "throughput",
        "time to first token (median)": "ttft_median",
    }
    _grouped_bars(
        axes,
        list(measures),
        {
            label: [result["figures"][f"{measure}_{case}"] for measure in measures.values()]
            for label, case in cases.items()
        },
        equal=None,
    )
    axes.set_ylabel("absolute error in percent")
    rows = int(result["figures"]["rows"])
    axes.set_title(f"The planner against {rows:,} published measurements; lower is better")
    axes.legend(frameon=False, fontsize=9)


def _router(figure: Figure, result: Result) -> None:
    rows = {(row["what"], row["way"]): row for row in result["rows"]}
    panels = {
        "95 % of first tokens within, s\n(50 conversations)": ("50 conversations", "p95_ms", 1e-3, "{:.2f}"),
        "failed requests\n(a pod killed under load)": ("a pod killed", "failed", 1.0, "{:.0f}"),
        "output tokens per second\n(two real pods)": ("two real pods", "tokens_per_second", 1.0, "{:.0f}"),
        "median first token, ms\n(64 streams at a time)": ("64 streams", "p50_ms", 1.0, "{:.0f}"),
    }
    for axes, (title, (what, field, scale, form)) in zip(
        figure.subplots(1, len(panels)), panels.items(), strict=True
    ):
        series = {way: [rows[what, way][field] * scale] for way in ("Service", "router")}
        _grouped_bars(axes, [""], series, equal=None, form=form, colors=(_GRAY, _BLUE))
        axes.set_title(title, fontsize=9)
        axes.tick_params(labelsize=8)
    figure.legend(*axes.get_legend_handles_labels(), loc="outside lower right", ncols=2, frameon=False)
    figure.suptitle(
        "Conversations keep to their pods; many new streams at a time pay for the way", fontsize=11
    )


def _heads(figure: Figure, result: Result) -> None:
    axes = figure.subplots()
    domains = [domain for domain in _DOMAINS if f"{domain}_of_plain" in result["figures"]]
    _grouped_bars(
        axes,
        [_DOMAINS[domain] for domain in domains],
        {
            label: [result["figures"][f"{domain}_{key}"] for domain in domains]
            for label, key in {
                "memory, one at a time": "memory_of_plain",
                "memory and heads, one at a time": "of_plain",
                "memory, eight at a time": "memory_of_plain_8",
                "memory and heads, eight at a time": "of_plain_8",
            }.items()
        },
        form="{:.2f}",
    )
    axes.set_ylabel("speed over that without drafts")
    axes.set_title("What trained heads add to remembered outputs, SmolLM2-135M, bfloat16")
    axes.legend(frameon=False, fontsize=9)


def _grouped_bars(
    axes: Axes,
    groups: Sequence[str],
    series: Mapping[str, Sequence[float | None]],
    equal: float | None = 1.0,
    form: str = "{:.1f}",
    size: float = 8.5,
    colors: Sequence[str] = (_BLUE, _GREEN, "#a46a13", "#7a4fa3", _GRAY),
) -> None:
    """Bars with their values; a bar below `equal` is a losing case and drawn in red."""
    width = 0.8 / len(series)
    for index, (label, values) in enumerate(series.items()):
        places = [group + (index - (len(series) - 1) / 2) * width for group in range(len(groups))]
        heights = [value or 0.0 for value in values]
        bars = axes.bar(places, heights, width * 0.92, label=label, color=colors[index])
        for bar, value in zip(bars, values, strict=True):
            if value is None:
                continue
            loses = equal is not None and value < equal
            if loses:
                bar.set_edgecolor(_RED)
                bar.set_linewidth(1.8)
            axes.annotate(
                form.format(value),
                (bar.get_x() + bar.get_width() / 2, value),
                (0, -4 if loses else 0),
                textcoords="offset points",
                ha="center",
                va="top" if loses else "bottom",
                fontsize=size,
                color="white" if loses else "black",
            )
    if equal is not None:
        axes.axhline(equal, color=_RED, linewidth=0.9, linestyle="--", zorder=0)
    axes.set_xticks(range(len(groups)), groups)


FIGURES: dict[str, tuple[str, Callable[[Figure, Result], None]]] = {
    "speedup": ("speculation", _speedup),
    "speedup-compared": ("speculation_other_engines", _speedup_compared),
    "never-slower": ("never_slower", _never_slower),
    "load": ("load", _load),
    "heads": ("distill", _heads),
    "planner-error": ("planner", _planner),
    "router": ("router", _router),
}
