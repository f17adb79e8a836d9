"""An answer as a table: the choice, the rejected candidates, and sentences."""

from __future__ import annotations

from dataclasses import replace

from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from turbo_operator.api import Provenance
from turbo_operator.cli import output
from turbo_operator.cli.output import UNKNOWN, candidate, duration, signed
from turbo_operator.cli.plan_query import Answer
from turbo_operator.plan import Plan, Predicted, Rejected
from turbo_operator.planner import OFF, money
from turbo_operator.planner.explanation.messages import count

WIDTH = 200  # columns that a table may take at most
NUM_REJECTED = 8  # rows; -o json has all of them
COLUMNS = ("accelerator", "speculation", "replicas", "TTFT", "TPOT", "tokens/s", "$/h", "$/1M", "reason")
NUMBERS = {*COLUMNS[2:-1], "difference"}
TRUST = {
    Provenance.ASSUMED: "rest on lengths or on an acceptance of drafts that are assumed, not measured",
    Provenance.ROOFLINE: "come from the step-time model and the catalogue's figures",
    Provenance.CALIBRATED: "come from the step-time model, scaled by what a pod measured at its start",
    Provenance.MEASURED: "were measured",
}
_LEGEND = "TTFT is the time to the first token, TPOT the time per token after it."


class _Console(Console):
    """A console that leaves a reader's closed pipe to the command."""

    def on_broken_pipe(self) -> None:
        raise  # called while the BrokenPipeError is handled


def show(answer: Answer) -> None:
    """Print one answer."""
    # Tables are read by people and by `less`: a narrow terminal folds sentences and rows, and drops nothing.
    console = _Console(soft_wrap=True, highlight=False, width=max(WIDTH, Console().width))
    plan, question, near = answer.plan, answer.question, answer.plan.nearest
    rows = plan.rejected[:NUM_REJECTED]
    table = _table(f"{question.td.metadata.name}: {question.model}", "", *COLUMNS)
    if plan.choice:
        table.add_row("*", *_chosen(plan), style="bold")
    if near:  # which a row may repeat in other words
        table.add_row("~", *_rejected(near))
        rows = tuple(
            row for row in rows if replace(row, detail=near.detail, predicted=near.predicted) != near
        )
    for row in rows:
        table.add_row("", *_rejected(row))
    if table.row_count:
        console.print(table)
        console.print()
    else:
        console.print(table.title)
    sentences = [plan.detail]
    if plan.choice:
        provenance = plan.choice.predicted.provenance
        sentences.append(f"{provenance}: times {TRUST[provenance]}. {_LEGEND}")
    if near and near.detail not in plan.detail:  # what has no plan quotes it already
        sentences.append(f"~ {_sentence(near)}")
    sentences += [f"  {_sentence(row)}" for row in rows]
    if left := len(plan.rejected[NUM_REJECTED:]):
        sentences.append(f"  -o json also has {count(left, 'candidate')} more.")
    sentences += output.serving_sentences(question.td)
    if answer.trainer:
        sentences.append(output.trained_on(answer))
    for sentence in sentences:
        console.print(Text(sentence))
    if answer.changes:
        _show_changes(console, answer)


def _table(title: str, *headings: str) -> Table:
    table = Table(title=Text(title), title_justify="left", box=box.SIMPLE_HEAD, show_edge=False)
    for heading in headings:
        table.add_column(heading, no_wrap=True, justify="right" if heading in NUMBERS else "left")
    return table


def _show_changes(console: Console, answer: Answer) -> None:
    table = _table("What if", "change", *COLUMNS[:-2], "difference", *COLUMNS[-2:])
    changes = [(change.asked, change.plan, change.difference) for change in answer.changes]
    for name, plan, difference in (("none", answer.plan, None), *changes):
        cells = _chosen(plan)
        more = UNKNOWN if difference is None else signed(difference)
        table.add_row(name, *cells[:-2], more, *cells[-2:])
    console.print()
    console.print(table)
    for change in answer.changes:
        for note in (*([change.plan.detail] if change.plan.choice is None else []), *change.notes):
            console.print(Text(f"  {change.asked}: {note}"))


def _chosen(plan: Plan) -> list[str]:
    choice = plan.choice
    if choice is None:
        return ["no plan", UNKNOWN, UNKNOWN, *_figures(None), str(plan.reason)]
    drafts = OFF if choice.method == OFF else f"{choice.method}:{choice.max_draft_tokens}"
    return [candidate(choice), drafts, str(plan.replicas), *_figures(choice.predicted), str(plan.reason)]


def _rejected(row: Rejected) -> list[str]:
    replicas = UNKNOWN if row.replicas is None else str(row.replicas)
    return [candidate(row), row.method, replicas, *_figures(row.predicted), str(row.reason)]


def _figures(predicted: Predicted | None) -> list[str]:
    if predicted is None:
        return [UNKNOWN] * 5
    rate = predicted.tokens_per_second
    return [
        duration(predicted.time_to_first_token),
        duration(predicted.time_per_output_token),
        UNKNOWN if rate is None else f"{rate:,.0f}" if rate >= 10 else f"{rate:.2g}",
        *(
            UNKNOWN if cost is None else money(cost)
            for cost in (predicted.cost_per_hour, predicted.cost_per_million_tokens)
        ),
    ]


def _sentence(row: Rejected) -> str:
    return f"{candidate(row)}, {row.method}: {row.reason}. {row.detail}"
