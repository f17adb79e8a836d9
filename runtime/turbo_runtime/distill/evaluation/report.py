"""The report of a distillation: one HTML file, its plots within it."""

from __future__ import annotations

import html
import io
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from turbo_runtime.atomic_write import write_whole
from turbo_runtime.distill.evaluation.acceptance import Evaluation
from turbo_runtime.distill.evaluation.record import DomainRecord, Record
from turbo_runtime.distill.progress import spell

_LEGEND = (
    '<p class="small">Speeds are of this machine, over the same prompts without drafts; <i>before</i> drafts '
    "from memory alone, <i>after</i> with these heads beside it. Prompts were held out; answers that stand "
    "word for word among those learnt from are left out, but for the last column.</p>"
)
Plot = Callable[[Axes], None]

REPORT_FILE = "report.html"
_BEFORE, _AFTER = "#9aa5b1", "#2563eb"
_STYLE = """
body { font: 16px/1.5 system-ui, sans-serif; color: #1f2933 }
body { max-width: 60rem; margin: 2rem auto; padding: 0 1rem }
table { border-collapse: collapse; margin: 1rem 0 } th, td { padding: .3rem .8rem; text-align: right }
th:first-child, td:first-child { text-align: left } tr { border-bottom: 1px solid #d9e2ec }
svg { max-width: 100%; height: auto } p.small { color: #52606d; font-size: .9rem }
"""


def write_report(folder: Path, record: Record, model: str) -> None:
    """`report.html` beside the artefact."""
    write_whole(folder / REPORT_FILE, render(record, model, folder.name))


def render(record: Record, model: str, name: str) -> str:
    """The whole page."""
    body = [
        f"<h1>{html.escape(name)}</h1>",
        f"<p>A draft for {html.escape(model)}, learnt from the model's own answers: "
        + ", ".join(f"{count} {part}" for part, count in record.answers.items())
        + f"; {record.left_out} answers were left out, since they loop or end at once.</p>",
        "<h2>What it brings</h2>",
        _table(record),
        _LEGEND,
        _svg([partial(_gains, each, found) for each, found in record.domains.items() if found.gains]),
        "<h2>How far it sees</h2>",
        _svg([partial(_positions, record)]),
        "<h2>How it was learnt</h2>",
        _svg([partial(_losses, record), partial(_judged, record)]),
        f"<p>{', '.join(f'{stage} {spell(took)}' for stage, took in record.seconds.items())}.</p>",
    ]
    return (
        f'<!doctype html><html lang="en"><meta charset="utf-8"><title>{html.escape(name)}</title>'
        f"<style>{_STYLE}</style>{''.join(body)}</html>\n"
    )


def _table(record: Record) -> str:
    batches = sorted({gain.batch for found in record.domains.values() for gain in found.gains})
    head = ["domain", "answers", "acceptance length"]
    head += [f"{batch} at a time, {when}" for batch in batches for when in ("before", "after")]
    head += ["acceptance length, seen ones too"]
    rows = []
    for domain, found in record.domains.items():
        gains = {gain.batch: gain for gain in found.gains}
        cells = [domain, str(found.unseen.answers), _length(found.unseen)]
        for batch in batches:
            gain = gains.get(batch)
            cells += ["", ""] if gain is None else [f"{gain.before:.2f}", f"{gain.after:.2f}"]
        rows.append([*cells, _length(found.whole)])
    lines = ["".join(f"<td>{html.escape(cell)}</td>" for cell in row) for row in rows]
    titles = "".join(f"<th>{html.escape(title)}</th>" for title in head)
    return f"<table><tr>{titles}</tr>{''.join(f'<tr>{line}</tr>' for line in lines)}</table>"


def _length(found: Evaluation) -> str:
    return "-" if found.acceptance_length is None else f"{found.acceptance_length:.2f}"


def _svg(plots: Sequence[Plot]) -> str:
    """The plots side by side, two in a row."""
    if not plots:
        return ""
    rows = -(-len(plots) // 2)
    with rc_context({"text.parse_math": False}):  # a domain may have a dollar in its name
        return _drawn(plots, rows)


def _drawn(plots: Sequence[Plot], rows: int) -> str:
    figure = Figure(figsize=(9, 3.2 * rows), layout="constrained")
    for at, plot in enumerate(plots, 1):
        plot(figure.add_subplot(rows, min(2, len(plots)), at))
    text = io.StringIO()
    figure.savefig(text, format="svg", metadata={"Date": None})
    return text.getvalue().partition("<!DOCTYPE")[2].partition(">")[2]  # an HTML page has its own


def _gains(domain: str, found: DomainRecord, axes: Axes) -> None:
    for shift, (label, colour, values) in enumerate(
        (
            ("from memory alone", _BEFORE, [gain.before for gain in found.gains]),
            ("with heads", _AFTER, [gain.after for gain in found.gains]),
        )
    ):
        bars = axes.bar(
            [at + 0.4 * shift for at in range(len(values))], values, 0.38, color=colour, label=label
        )
        axes.bar_label(bars, fmt="%.2f", fontsize=8)
    axes.set_xticks([at + 0.2 for at in range(len(found.gains))], [str(gain.batch) for gain in found.gains])
    axes.axhline(1, color="#1f2933", linewidth=0.8)
    axes.set(title=domain, xlabel="requests at a time", ylabel="speed over no drafts")
    axes.legend(fontsize=8)


def _positions(record: Record, axes: Axes) -> None:
    for domain, found in record.domains.items():
        shares = found.unseen.acceptance_per_position
        axes.plot(
            range(1, len(shares) + 1), shares, marker="o", label=f" {domain}"
        )  # one that begins with _ would be left out
    axes.set(xlabel="drafted token", ylabel="accepted, all before it being so", ylim=(0, 1))
    axes.set_xticks(range(1, 1 + max(len(f.unseen.acceptance_per_position) for f in record.domains.values())))
    axes.legend(fontsize=8)


def _losses(record: Record, axes: Axes) -> None:
    axes.plot(range(1, len(record.losses) + 1), record.losses, color=_BEFORE)
    axes.set(title="loss", xlabel="epoch")


def _judged(record: Record, axes: Axes) -> None:
    axes.plot(range(1, len(record.judged) + 1), record.judged, color=_AFTER)
    axes.plot([record.best + 1], [record.judged[record.best]], "o", color=_AFTER)
    axes.set(title="acceptance length on answers set apart; the dot is kept", xlabel="epoch")
