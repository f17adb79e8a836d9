"""An answer as a table, as plain data for `-o json` and `-o yaml`, and words that the plot shares.

Names of the data are camelCase. Bytes are whole numbers, times seconds, money a string as in the API.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from decimal import Decimal
from enum import StrEnum
from typing import Any

from pydantic.alias_generators import to_camel
from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from turbo_operator import api
from turbo_operator.api.condition_state import ConditionState, sentence
from turbo_operator.api.constants import Placement
from turbo_operator.budget import Footprint
from turbo_operator.cli.plan_query import Answer
from turbo_operator.drafts.training import chosen
from turbo_operator.plan import Candidate, Choice, EvaluatedCandidate, Plan, Predicted
from turbo_operator.planner import OFF, money
from turbo_operator.planner.explanation.messages import count, hardware, time
from turbo_operator.planner.performance.memory import on_cpu

WIDTH = 200  # columns that a table may take at most
NUM_REJECTED = 8  # rows; -o json has all of them
COLUMNS = (
    "accelerator",
    "speculation",
    "replicas",
    "load",
    "TTFT",
    "TPOT",
    "tokens/s",
    "$/h",
    "$/1M",
    "reason",
)
NUMBERS = {*COLUMNS[2:-1], "difference"}
TRUST = {
    api.Provenance.ASSUMED: "rest on lengths or on an acceptance of drafts that are assumed, not measured",
    api.Provenance.ROOFLINE: "come from the step-time model and the catalog's figures",
    api.Provenance.CALIBRATED: "come from the step-time model, scaled by what a pod measured at its start",
    api.Provenance.MEASURED: "were measured",
}
_LEGEND = "TTFT is the time to the first token, TPOT the time per token after it."
_UNMEASURED = "The Turbo engine was not timed on a GPU yet: these are other engines' times. Measure it."
_SHARED_NODE = (
    "A share of a node of {} is paid. Whole nodes of {} would be {} $/h: plan with --billing-unit Node if "
    "you buy those, and install the chart with accelerators.billingUnit=Node."
)
UNKNOWN = "-"
_CANDIDATE = ("engine", "accelerator", "capacity_type", "tensor", "nodes", "data")
_CHOICE = (
    *("accelerators_per_replica", "method", "placement", "max_draft_tokens", "dtype", "max_model_len"),
    *("memory_bytes", "kv_cache_bytes", "host_memory_bytes"),
)
_USUAL = {api.EngineName.TURBO, api.CapacityType.ON_DEMAND}


def as_document(answer: Answer) -> dict[str, Any]:
    """One TurboDeployment's plan; `whatIf` holds those of changes, where any was asked for."""
    td, plan, trainer = answer.question.td, answer.plan, answer.trainer
    document = {
        "name": td.metadata.name,
        "model": answer.question.model,
        **_plan(plan),
        "withoutSpeculation": answer.undrafted and _plan(answer.undrafted),
        "nearest": plan.nearest and _rejected(plan.nearest),
        "rejected": [_rejected(row) for row in plan.rejected],
    }
    document |= serving_document(td)
    if trainer:
        choice = trainer.choice
        document["training"] = {
            "accelerator": choice and choice.accelerator.name,
            "costPerHour": choice and _money(choice.predicted.cost_per_hour),
            "message": trained_on(answer),
        }
    if answer.changes:
        document["whatIf"] = [
            {
                "change": change.setting,
                **_plan(change.plan),
                "differencePerHour": None if change.difference is None else signed(change.difference),
                "notes": list(change.notes),
            }
            for change in answer.changes
        ]
    return document


def _plan(plan: Plan) -> dict[str, Any]:
    return {
        "feasible": plan.choice is not None,
        "replicas": plan.replicas,
        "reason": str(plan.reason),
        "message": plan.detail,
        "choice": plan.choice and _choice(plan.choice),
    }


def _choice(choice: Choice) -> dict[str, Any]:
    fields, name = _fields(choice, *_CANDIDATE, *_CHOICE), choice.accelerator.name
    price = {"priceSource": choice.accelerator.price_source}
    return {**fields, "accelerator": name, **_predicted(choice.predicted), **price}


def _rejected(row: EvaluatedCandidate) -> dict[str, Any]:
    predicted = _predicted(row.predicted) if row.predicted else {}
    why = {"reason": str(row.reason), "message": row.detail}
    return {**_fields(row, *_CANDIDATE, "method", "replicas"), **predicted, **why}


def _fields(record: Choice | EvaluatedCandidate, *names: str) -> dict[str, Any]:
    values = {to_camel(name): getattr(record, name) for name in names}
    return {name: str(value) if isinstance(value, StrEnum) else value for name, value in values.items()}


def _predicted(predicted: Predicted) -> dict[str, Any]:
    return {
        "timeToFirstTokenSeconds": predicted.time_to_first_token,
        "timePerOutputTokenSeconds": predicted.time_per_output_token,
        "load": predicted.load,
        "tokensPerSecond": predicted.tokens_per_second,
        "capacityTokensPerSecond": predicted.capacity_tokens_per_second,
        "costPerHour": _money(predicted.cost_per_hour),
        "costPerMillionTokens": _money(predicted.cost_per_million_tokens),
        "provenance": str(predicted.provenance),
    }


def _money(amount: Decimal | None) -> str | None:
    return None if amount is None else money(amount)


def serving_document(td: api.TurboDeployment) -> dict[str, Any]:
    """Return both plans of the status as plain data; empty where they are the same."""
    plan, serving, rollout = td.status.plan, td.status.serving_plan, td.status.rollout
    if plan is None or serving is None or plan.hash == serving.hash:
        return {}
    plans = {"tried": plan.dump(), "serving": serving.dump()}
    for dumped in plans.values():
        dumped.pop("rejected", None)
    return {**plans, "rollout": rollout and rollout.dump()}


def serving_sentences(td: api.TurboDeployment) -> tuple[str, ...]:
    """Describe both plans with hash, reason and predictions; empty where they are the same."""
    plan, serving, rollout = td.status.plan, td.status.serving_plan, td.status.rollout
    if plan is None or serving is None or plan.hash == serving.hash:
        return ()
    stalled = td.status.condition(api.ConditionType.STALLED)
    state = "waits to take over" if stalled is not None and stalled.status == "True" else "takes over"
    if rollout is not None and rollout.reason == api.RolloutReason.ROLLED_BACK:
        state = f"was rolled back ({sentence(rollout.message) or 'its pods did not become ready.'})"
    ready = td.status.condition(api.ConditionType.READY)
    held_up = () if ready is None or ready.status == "True" else (f"{ready.reason}: {ready.message}",)
    return (
        f"Plan {plan.hash} {state}: {_described(plan)}",
        f"Plan {serving.hash} serves: {_described(serving)}",
        *(held_up if rollout is None or rollout.reason is None else ()),
    )


def _described(plan: api.PlanStatus) -> str:
    what = f"{plan.accelerator or 'an unknown accelerator'} with {plan.method or 'unknown'} drafts"
    figures = []
    if predicted := plan.predicted:
        named = {
            "per output token": predicted.time_per_output_token,
            "to the first": predicted.time_to_first_token,
            "$/h": predicted.cost_per_hour,
        }
        figures = [f"{value} {name}" for name, value in named.items() if value is not None]
    return f"{what}, as {plan.reason or 'unknown'}; predicted {', '.join(figures) or 'nothing'}."


def candidate(row: Choice | Candidate) -> str:
    """Name a replica's accelerators and what is unusual, like `h100 x8, data 4, Spot` or `h100 2 x 8`."""
    name = row.accelerator if isinstance(row.accelerator, str) else row.accelerator.name
    if row.nodes > 1:
        name += f" {row.nodes} x {row.tensor}"
    elif row.tensor * row.data > 1:
        name += f" x{row.tensor * row.data}"
    name += f", data {row.data}" if row.data > 1 else ""
    return ", ".join([name, *(str(word) for word in (row.engine, row.capacity_type) if word not in _USUAL)])


def trained_on(answer: Answer) -> str:
    """Say what a draft is trained on and what that costs at most, or why it is not; empty without one."""
    spec = answer.question.td.spec.speculation.training
    if spec is None or answer.trainer is None:
        return ""
    choice = chosen(answer.question.td, spec, answer.trainer, answer.question.shape)
    if isinstance(choice, ConditionState):
        return choice.message
    price, limit = choice.predicted.cost_per_hour, spec.max_cost
    cost = "" if price is None else f" for {money(price)} $/h"
    bound = "" if limit is None or not price else f", for {money(limit)} $ or {limit / price:.3g} h at most"
    return f"A draft is trained on {choice.accelerator.name}{cost}{bound}."


def duration(seconds: float | None) -> str:
    """Format seconds to three digits, like 23.4 ms or 1.25 s."""
    return UNKNOWN if seconds is None else time(seconds)


def signed(amount: Decimal) -> str:
    """Format a difference of money with its sign, like +1.25, -0.40 or 0.00."""
    sign = "+" if amount > 0 else "-" if amount < 0 else ""
    return f"{sign}{money(abs(amount))}"


class _Console(Console):
    """A console that leaves a reader's closed pipe to the command."""

    def on_broken_pipe(self) -> None:
        raise  # called while the BrokenPipeError is handled


def show(answer: Answer) -> None:
    """Print one answer."""
    # Tables are read by people and by `less`: a narrow terminal folds sentences and rows, and drops nothing.
    console = _Console(soft_wrap=True, highlight=False, width=max(WIDTH, Console().width))
    plan, question, near = answer.plan, answer.question, answer.plan.nearest
    rows = _shown(plan)
    table = _table(f"{question.td.metadata.name}: {question.model}", "", *COLUMNS)
    if plan.choice:
        table.add_row("*", *_chosen_cells(plan), style="bold")
    if near:  # which a row may repeat in other words
        table.add_row("~", *_rejected_cells(near))
        rows = tuple(
            row for row in rows if replace(row, detail=near.detail, predicted=near.predicted) != near
        )
    for row in rows:
        table.add_row("", *_rejected_cells(row))
    if table.row_count:
        console.print(table)
        console.print()
    else:
        console.print(table.title)
    sentences = [plan.detail]
    if plan.choice:
        provenance = plan.choice.predicted.provenance
        sentences.append(f"{provenance}: times {TRUST[provenance]}. {_LEGEND}")
        sentences += [_saving(plan.choice, answer.undrafted)] if answer.undrafted else []
        sentences += _caveats(plan.choice, plan.replicas)
    if near and near.detail not in plan.detail:  # what has no plan quotes it already
        sentences.append(f"~ {_sentence(near)}")
    sentences += [f"  {_sentence(row)}" for row in rows]
    if num_hidden := len(plan.rejected[NUM_REJECTED:]):
        sentences.append(f"  -o json lists {count(num_hidden, 'more candidate')}.")
    sentences += serving_sentences(question.td)
    if answer.trainer:
        sentences.append(trained_on(answer))
    for text in sentences:
        console.print(Text(text))
    if answer.changes:
        _show_changes(console, answer)


def _shown(plan: Plan) -> tuple[EvaluatedCandidate, ...]:
    """Select the rejected candidates to show: cheaper ones first, which people who pay look for."""
    price = _cost(plan.choice.predicted) if plan.choice else Decimal(0)
    first = [row for row in plan.rejected if _cost(row.predicted) < price][: NUM_REJECTED // 2]
    return (*first, *(row for row in plan.rejected if row not in first))[:NUM_REJECTED]


def _cost(predicted: Predicted | None) -> Decimal:
    cost = predicted.cost_per_hour if predicted else None
    return Decimal("inf") if cost is None else cost


def _saving(choice: Choice, undrafted: Plan) -> str:
    """Compare the cost of a plan with that of the same targets without drafts."""
    other, cost = undrafted.choice, choice.predicted.cost_per_hour
    if other is None:
        return "Without speculation no plan is feasible."
    without = other.predicted.cost_per_hour
    if without is None or cost is None or without <= cost:
        return "Without speculation the same targets would cost no more."
    replica = hardware(other.accelerator.name, other.tensor, other.nodes, other.data)
    pods = f"{count(undrafted.replicas, 'replica')} of {replica} for {money(without)} $/h"
    less = f"{money(without - cost)} $/h ({100 - 100 * cost / without:.0f} %)"
    return f"Without speculation the same targets take {pods}: speculation saves {less}."


def _caveats(choice: Choice, replicas: int) -> list[str]:
    """Say what the times and the price of a plan leave out."""
    row, used, notes = choice.accelerator, choice.accelerators_per_replica * replicas, []
    if _is_unmeasured(choice):
        notes.append(_UNMEASURED)
    is_share = " / " in (row.price_source or "") and not row.price_per_node
    bought = replace(row, price_per_node=True)
    whole = Footprint(bought, choice.capacity_type, choice.accelerators_per_replica)
    cost = whole.cost_per_hour(replicas) if is_share and row.count_per_node else None
    if cost is not None and whole.paid(replicas) != used:
        notes.append(_SHARED_NODE.format(row.count_per_node, row.name, money(cost)))
    return notes


def _is_unmeasured(choice: Choice) -> bool:
    is_modeled = choice.predicted.provenance in (api.Provenance.ASSUMED, api.Provenance.ROOFLINE)
    return is_modeled and choice.engine == api.EngineName.TURBO and not on_cpu(choice.accelerator)


def show_together(answers: Sequence[Answer]) -> None:
    """Say of several plans that none takes account of the others, and what they cost together."""
    if len(answers) < 2:
        return
    choices = [answer.plan.choice for answer in answers if answer.plan.choice]
    costs = [cost for choice in choices if (cost := choice.predicted.cost_per_hour) is not None]
    is_limited = any(answer.question.observed.supply is not None for answer in answers)
    room = ", so there may not be room for all" if is_limited else ""
    who = "they" if len(costs) == len(answers) else "those with a plan and a price"
    total = f" Together {who} cost {money(sum(costs, Decimal(0)))} $/h." if costs else ""
    print(f"\nEach is planned by itself, as if the others did not run{room}.{total}")


def _table(title: str, *headings: str) -> Table:
    table = Table(title=Text(title), title_justify="left", box=box.SIMPLE_HEAD, show_edge=False)
    for heading in headings:
        table.add_column(heading, no_wrap=True, justify="right" if heading in NUMBERS else "left")
    return table


def _show_changes(console: Console, answer: Answer) -> None:
    table = _table("What if", "change", *COLUMNS[:-2], "difference", *COLUMNS[-2:])
    changes = [(change.setting, change.plan, change.difference) for change in answer.changes]
    for name, plan, difference in (("none", answer.plan, None), *changes):
        cells = _chosen_cells(plan)
        more = UNKNOWN if difference is None else signed(difference)
        table.add_row(name, *cells[:-2], more, *cells[-2:])
    console.print()
    console.print(table)
    for change in answer.changes:
        choice, base = change.plan.choice, answer.plan.choice
        notes = [change.plan.detail] if choice is None else []
        if choice and _is_unmeasured(choice) and not (base and _is_unmeasured(base)):
            notes.append(_UNMEASURED)
        for note in (*notes, *change.notes):
            console.print(Text(f"  {change.setting}: {note}"))


def _chosen_cells(plan: Plan) -> list[str]:
    choice = plan.choice
    if choice is None:
        return ["no plan", UNKNOWN, UNKNOWN, *_figures(None), str(plan.reason)]
    drafts = OFF if choice.method == OFF else f"{choice.method}:{choice.max_draft_tokens}"
    drafts += _placed(choice)
    return [candidate(choice), drafts, str(plan.replicas), *_figures(choice.predicted), str(plan.reason)]


def _rejected_cells(row: EvaluatedCandidate) -> list[str]:
    replicas = UNKNOWN if row.replicas is None else str(row.replicas)
    return [
        candidate(row),
        f"{row.method}{_placed(row)}",
        replicas,
        *_figures(row.predicted),
        str(row.reason),
    ]


def _figures(predicted: Predicted | None) -> list[str]:
    if predicted is None:
        return [UNKNOWN] * 6
    rate, costs = predicted.tokens_per_second, (predicted.cost_per_hour, predicted.cost_per_million_tokens)
    return [
        _percent(predicted.load),
        duration(predicted.time_to_first_token),
        duration(predicted.time_per_output_token),
        UNKNOWN if rate is None else f"{rate:,.0f}" if rate >= 10 else f"{rate:.2g}",
        *(_money(cost) or UNKNOWN for cost in costs),
    ]


def _percent(share: float | None) -> str:
    return UNKNOWN if share is None else "< 1 %" if share < 0.005 else f"{100 * share:,.0f} %"


def _sentence(row: EvaluatedCandidate) -> str:
    return f"{candidate(row)}, {row.method}{_placed(row)}: {row.reason}. {row.detail}"


def _placed(row: Choice | EvaluatedCandidate) -> str:
    """Say where drafts are made that are not made with the model; a word to append."""
    return f" {row.placement}" if row.placement not in (None, Placement.COLOCATED) else ""
