"""What a run records of its draft, how it was trained and how fast it is; and the report, one HTML file with
its plots within.
"""

from __future__ import annotations

import html
import io
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from textwrap import fill
from typing import TYPE_CHECKING

from turbo_runtime.distill.data.responses import Completion
from turbo_runtime.distill.evaluation.speedup_benchmark import Speedup
from turbo_runtime.distill.progress import spell
from turbo_runtime.distill.workspace import EVALUATION_FILE
from turbo_runtime.files import write_whole

if TYPE_CHECKING:  # pictures alone need it, and it takes long to import
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_MIN_ANSWERS = 20  # that figures are to rest on
_MIN_RATIO = 0.98  # of the speed with memory alone: less is no accident of measuring
REPORT_FILE = "report.html"
_LEGEND = (
    '<p class="small">Speedups are of this machine, over the same prompts without drafts; <i>before</i> '
    "drafts from memory alone, <i>after</i> with this draft in addition. Prompts were held out; answers that "
    "stand word for word among those learned from are left out, but for the last column.</p>"
)
_TITLE_COLUMNS = 45  # characters that fit above one of two plots
_BEFORE, _AFTER = "#9aa5b1", "#2563eb"
_STYLE = """
body { font: 16px/1.5 system-ui, sans-serif; color: #1f2933 }
body { max-width: 60rem; margin: 2rem auto; padding: 0 1rem }
table { border-collapse: collapse; margin: 1rem 0 } th, td { padding: .3rem .8rem; text-align: right }
th:first-child, td:first-child { text-align: left } tr { border-bottom: 1px solid #d9e2ec }
svg { max-width: 100%; height: auto } p.small { color: #52606d; font-size: .9rem }
"""


@dataclass(frozen=True, slots=True)
class Evaluation:
    """Acceptance over some responses, of whose tokens the first and the last are never drafted."""

    answers: int
    tokens: int
    acceptance_per_position: tuple[float, ...]  # of a draft's token, all before it being right
    acceptance_length: float | None  # tokens of a verification of whole drafts, its own one included


@dataclass(frozen=True, slots=True)
class DomainRecord:
    """The evaluation on one domain's held-out prompts."""

    unseen: Evaluation  # without responses that stand word for word among the training data
    whole: Evaluation
    measured_on: str  # digest of the unseen responses and their prompts
    speedups: tuple[Speedup, ...] = ()  # measured on the unseen


@dataclass(frozen=True, slots=True)
class Record:
    """The outcome of one run."""

    method: str
    domains: Mapping[str, DomainRecord]
    answers: Mapping[str, int]  # by part of the prompts, looping ones left out
    left_out: int  # responses that loop or end at once
    losses: tuple[float, ...]  # by epoch
    judged: tuple[float, ...]  # acceptance length in validation, by epoch
    best: int  # epoch, from 0
    seconds: Mapping[str, float]  # by stage, but for what was lost with a run that was killed

    def write(self, folder: Path, model: str) -> None:
        """Write it and its report into the folder of the checkpoint of a draft for `model`."""
        write_whole(folder / EVALUATION_FILE, json.dumps(asdict(self), indent=2, sort_keys=True) + "\n")
        write_whole(folder / REPORT_FILE, render(self, model, folder.name))

    def summary(self) -> list[str]:
        """Summarize for the terminal: a line for each domain."""
        lines = [f"{domain}: {'; '.join(_sentences(record))}" for domain, record in self.domains.items()]
        if self.left_out:
            total = self.left_out + sum(self.answers.values())
            loops = f"{self.left_out} of {total} answers say one thing over and over or end at once"
            lines.insert(0, f"{loops}: they are left out")
        return lines


def _sentences(record: DomainRecord) -> list[str]:
    length, count = record.unseen.acceptance_length, record.unseen.answers
    if not count:
        return ["every answer held out stands among those learned from; give more prompts to measure it"]
    sentences = [f"acceptance length {length or 0:.2f} over {count} answers held out"]
    if record.speedups:
        sentence = "{0.after:.2f} times as fast at {0.batch} ({0.before:.2f} from memory alone)"
        sentences.append(", ".join(sentence.format(speedup) for speedup in record.speedups))
    slower = [str(item.batch) for item in record.speedups if item.after < _MIN_RATIO * item.before]
    if slower:
        sentences.append(f"at {', '.join(slower)} memory alone is faster")
    if count < _MIN_ANSWERS:
        sentences.append(f"{count} are few to measure on: give more prompts")
    return sentences


def evaluate(pairs: Sequence[tuple[Completion, Sequence[int]]], heads: int) -> Evaluation:
    """Evaluate responses, each with the tokens accepted of a draft behind each of its tokens but the last."""
    reached, right = [0] * heads, [0] * heads
    verifications = committed = 0
    for _, counts in pairs:
        at = 0
        while at < len(counts):  # as decoding goes: the next draft begins behind what was accepted
            accepted, rest = counts[at], len(counts) - at  # of tokens that are still to come
            for position in range(min(heads, rest - 1, accepted + 1)):
                reached[position] += 1
                right[position] += position < accepted
            committed += accepted + 1
            verifications += 1
            at += accepted + 1
    return Evaluation(
        len(pairs),
        sum(len(completion.tokens) for completion, _ in pairs),
        tuple(r / n if n else 0.0 for r, n in zip(right, reached, strict=True)),
        committed / verifications if verifications else None,
    )


def render(record: Record, model: str, name: str) -> str:
    """Render the whole page."""
    body = [
        f"<h1>{html.escape(name)}</h1>",
        f"<p>A draft for {html.escape(model)}, learned from the model's own answers: "
        + ", ".join(f"{count} {part}" for part, count in record.answers.items())
        + f"; {record.left_out} answers were left out, since they loop or end at once.</p>",
        "<h2>Speedup</h2>",
        _table(record),
        _LEGEND,
        _svg(*(partial(_plot_speedups, *item) for item in record.domains.items() if item[1].speedups)),
        "<h2>Acceptance by position</h2>",
        _svg(partial(_plot_positions, record)),
        "<h2>Loss and acceptance length by epoch</h2>",
        _svg(partial(_plot_losses, record), partial(_plot_acceptance_lengths, record)),
        f"<p>{', '.join(f'{stage} {spell(seconds)}' for stage, seconds in record.seconds.items())}.</p>",
    ]
    return (
        f'<!doctype html><html lang="en"><meta charset="utf-8"><title>{html.escape(name)}</title>'
        f"<style>{_STYLE}</style>{''.join(body)}</html>\n"
    )


def _table(record: Record) -> str:
    batches = sorted({speedup.batch for domain in record.domains.values() for speedup in domain.speedups})
    head = ["domain", "answers", "acceptance length"]
    head += [f"speedup at {batch}, {when}" for batch in batches for when in ("before", "after")]
    head += ["acceptance length, seen ones too"]
    rows = []
    for name, domain in record.domains.items():
        speedups = {speedup.batch: speedup for speedup in domain.speedups}
        cells = [name, str(domain.unseen.answers), _length(domain.unseen)]
        for batch in batches:
            speedup = speedups.get(batch)
            cells += ["", ""] if speedup is None else [f"{speedup.before:.2f}", f"{speedup.after:.2f}"]
        rows.append([*cells, _length(domain.whole)])
    lines = ["".join(f"<td>{html.escape(cell)}</td>" for cell in row) for row in rows]
    titles = "".join(f"<th>{html.escape(title)}</th>" for title in head)
    return f"<table><tr>{titles}</tr>{''.join(f'<tr>{line}</tr>' for line in lines)}</table>"


def _length(evaluation: Evaluation) -> str:
    return "-" if evaluation.acceptance_length is None else f"{evaluation.acceptance_length:.2f}"


def _svg(*plots: Callable[[Axes], None]) -> str:
    if not plots:
        return ""
    from matplotlib import rc_context

    text = io.StringIO()
    with rc_context({"text.parse_math": False}):  # a domain may have a dollar in its name
        draw(plots).savefig(text, format="svg", metadata={"Date": None})
    return text.getvalue().partition("<!DOCTYPE")[2].partition(">")[2]  # an HTML page has its own


def draw(plots: Sequence[Callable[[Axes], None]]) -> Figure:
    """Draw the plots side by side, two in a row."""
    from matplotlib.figure import Figure

    rows = -(-len(plots) // 2)
    figure = Figure(figsize=(9, 3.2 * rows), layout="constrained")
    for number, plot in enumerate(plots, 1):
        plot(figure.add_subplot(rows, min(2, len(plots)), number))
    return figure


def _plot_speedups(name: str, domain: DomainRecord, axes: Axes) -> None:
    before, after = [item.before for item in domain.speedups], [item.after for item in domain.speedups]
    series = (("from memory alone", _BEFORE, before), ("with this draft", _AFTER, after))
    for shift, (label, color, speedups) in enumerate(series):
        places = [number + 0.4 * shift for number in range(len(speedups))]
        axes.bar_label(axes.bar(places, speedups, 0.38, color=color, label=label), fmt="%.2f", fontsize=8)
    axes.set_xticks(
        [number + 0.2 for number in range(len(before))], [str(speedup.batch) for speedup in domain.speedups]
    )
    axes.axhline(1, color="#1f2933", linewidth=0.8)
    axes.set(xlabel="requests at a time", ylabel="speedup")
    axes.set_title(fill(name, _TITLE_COLUMNS), fontsize=10)
    axes.legend(fontsize=8)


def _plot_positions(record: Record, axes: Axes) -> None:
    curves = {name: domain.unseen.acceptance_per_position for name, domain in record.domains.items()}
    for name, shares in curves.items():
        # the space: a label that begins with _ would be left out
        axes.plot(range(1, len(shares) + 1), shares, marker="o", label=f" {name}")
    axes.set(xlabel="position in the draft", ylabel="acceptance, all before accepted", ylim=(0, 1))
    axes.set_xticks(range(1, 1 + max(map(len, curves.values()))))
    axes.legend(fontsize=8)


def _plot_losses(record: Record, axes: Axes) -> None:
    axes.plot(range(1, len(record.losses) + 1), record.losses, color=_BEFORE)
    axes.set(xlabel="epoch", ylabel="training loss")


def _plot_acceptance_lengths(record: Record, axes: Axes) -> None:
    axes.plot(range(1, len(record.judged) + 1), record.judged, color=_AFTER)
    axes.plot([record.best + 1], [record.judged[record.best]], "o", color=_AFTER)
    axes.set_title("on prompts set apart; the dot is kept", fontsize=10)
    axes.set(xlabel="epoch", ylabel="acceptance length")
