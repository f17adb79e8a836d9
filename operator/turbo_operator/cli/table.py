"""An answer as a table: the choice, the rejected candidates, and sentences."""

from __future__ import annotations

from dataclasses import replace

from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from turbo_operator.api import Provenance
from turbo_operator.cli import serving
from turbo_operator.cli.formatting import UNKNOWN, candidate, dollars, duration, rate, signed
from turbo_operator.cli.plan_query import Answer, Change
from turbo_operator.plan import Choice, Plan, Predicted, Rejected
from turbo_operator.planner import OFF
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
    plan, question = answer.plan, answer.question
    rows = plan.rejected[:NUM_REJECTED]
    table = _table(f"{question.td.metadata.name}: {question.model}", "", *COLUMNS)
    if plan.choice:
        table.add_row("*", *_chosen(plan.choice, plan), style="bold")
    if plan.nearest:
        table.add_row("~", *_rejected(plan.nearest))
    if near := plan.nearest:  # which a row may repeat in other words
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
    console.print(Text(plan.detail))
    if plan.choice:
        provenance = plan.choice.predicted.provenance
        console.print(Text(f"{provenance}: times {TRUST[provenance]}. {_LEGEND}"))
    if plan.nearest and plan.nearest.detail not in plan.detail:  # what has no plan quotes it already
        console.print(Text(f"~ {_sentence(plan.nearest)}"))
    for row in rows:
        console.print(Text(f"  {_sentence(row)}"))
    left = len(plan.rejected[NUM_REJECTED:])
    if left:
        console.print(Text(f"  -o json also has {count(left, 'candidate')} more."))
    for line in serving.sentences(question.td):
        console.print(Text(line))
    if answer.training:
        console.print(Text(answer.training.detail))
    if answer.changes:
        _show_changes(console, plan, answer.changes)


def _table(title: str, *headings: str) -> Table:
    table = Table(title=Text(title), title_justify="left", box=box.SIMPLE_HEAD, show_edge=False)
    for heading in headings:
        table.add_column(heading, no_wrap=True, justify="right" if heading in NUMBERS else "left")
    return table


def _show_changes(console: Console, base: Plan, changes: tuple[Change, ...]) -> None:
    table = _table("What if", "change", *COLUMNS[:-2], "difference", *COLUMNS[-2:])
    for name, plan, difference in (
        ("none", base, None),
        *((change.asked, change.plan, change.difference) for change in changes),
    ):
        cells = _chosen(plan.choice, plan)
        more = UNKNOWN if difference is None else signed(difference)
        table.add_row(name, *cells[:-2], more, *cells[-2:])
    console.print()
    console.print(table)
    for change in changes:
        if change.plan.choice is None:
            console.print(Text(f"  {change.asked}: {change.plan.detail}"))
        for note in change.notes:
            console.print(Text(f"  {change.asked}: {note}"))


def _chosen(choice: Choice | None, plan: Plan) -> list[str]:
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
    return [
        duration(predicted.time_to_first_token),
        duration(predicted.time_per_output_token),
        rate(predicted.tokens_per_second),
        dollars(predicted.cost_per_hour),
        dollars(predicted.cost_per_million_tokens),
    ]


def _sentence(row: Rejected) -> str:
    return f"{candidate(row)}, {row.method}: {row.reason}. {row.detail}"
