"""`turbo top`: what the TurboDeployments of a cluster do and cost now, as their statuses say."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from decimal import Decimal
from typing import Any

from pydantic import ValidationError
from pydantic.alias_generators import to_camel
from rich import box
from rich.console import Console
from rich.live import Live
from rich.table import Table
from rich.text import Text

from turbo_operator import resources
from turbo_operator.api.status import ObservedMetrics, PlanStatus, TurboDeploymentStatus
from turbo_operator.cli.manifests import BadInputError
from turbo_operator.cli.output import UNKNOWN, WIDTH
from turbo_operator.controller import kube


@dataclass(frozen=True, slots=True)
class Usage:
    """One TurboDeployment; figures as its status has them, None where they are not known."""

    namespace: str
    name: str
    ready_replicas: int
    desired_replicas: int | None
    plan: str | None  # engine, accelerator and drafting method of what serves, else of what is planned
    tokens_per_second: str | None
    speedup: str | None
    acceptance_length: str | None
    cost_per_hour: str | None
    cost_per_million_tokens: str | None
    targets: str | None  # reason of the condition TargetsMet
    reason: str | None  # of the condition Ready
    message: str | None


# Headings of figures, and where a row has them.
_FIGURES = {
    "tokens/s": "tokens_per_second",
    "speedup": "speedup",
    "acceptance": "acceptance_length",
    "$/h": "cost_per_hour",
    "$/1M": "cost_per_million_tokens",
}
_SUMMED = ("tokens/s", "$/h")
HEADINGS = ("namespace", "name", "ready", "plan", *_FIGURES, "targets", "status")


def usage_of(body: Mapping[str, Any]) -> Usage:
    """Read an object as the API server gives it; a status that another version wrote may be unreadable."""
    try:
        status = TurboDeploymentStatus.model_validate(body.get("status") or {})
    except ValidationError:
        status = TurboDeploymentStatus()
    plan = status.serving_plan or status.plan or PlanStatus()
    observed = status.observed or ObservedMetrics()
    ready, targets = status.condition("Ready"), status.condition("TargetsMet")
    return Usage(
        body["metadata"]["namespace"],
        body["metadata"]["name"],
        status.ready_replicas,
        status.desired_replicas,
        " ".join(filter(None, (plan.engine, plan.accelerator, plan.method))) or None,
        observed.tokens_per_second,
        observed.speedup,
        observed.acceptance_length,
        observed.cost_per_hour,
        observed.cost_per_million_tokens,
        targets.reason if targets else None,
        ready.reason if ready else None,
        ready.message if ready else None,
    )


def total(amounts: Iterable[str | None]) -> str | None:
    """Sum what is known; None where nothing is."""
    known = [Decimal(amount) for amount in amounts if amount is not None]
    return str(sum(known, Decimal(0))) if known else None


def by_cost(rows: Iterable[Usage]) -> list[Usage]:
    """Sort the most expensive first: a long list may end below the terminal."""
    return sorted(rows, key=lambda row: (-Decimal(row.cost_per_hour or 0), row.namespace, row.name))


def table(rows: Sequence[Usage]) -> Table:
    """Lay the rows out, with a sum above several."""
    shown = Table(box=box.SIMPLE_HEAD, show_edge=False)
    for heading in HEADINGS:
        is_number = heading in (*_FIGURES, "ready")
        shown.add_column(heading, no_wrap=True, justify="right" if is_number else "left")
    if len(rows) > 1:
        sums = {name: total(getattr(row, _FIGURES[name]) for row in rows) or UNKNOWN for name in _SUMMED}
        sums |= {"name": "together", "ready": str(sum(row.ready_replicas for row in rows))}
        shown.add_row(*(sums.get(heading, "") for heading in HEADINGS))
        shown.add_section()
    for row in rows:
        ready = f"{row.ready_replicas}/{UNKNOWN if row.desired_replicas is None else row.desired_replicas}"
        figures = (getattr(row, name) for name in _FIGURES.values())
        cells = (row.namespace, row.name, ready, row.plan, *figures, row.targets, row.reason)
        shown.add_row(*(Text(UNKNOWN if cell is None else cell) for cell in cells))
    return shown


def as_documents(rows: Sequence[Usage]) -> list[dict[str, Any]]:
    """Return the rows as plain data, in the API's names."""
    return [{to_camel(name): value for name, value in asdict(row).items()} for row in rows]


def show(context: str | None, namespace: str | None, *, everywhere: bool, output: str, every: float) -> None:
    """Print once, or on a terminal every few seconds until interrupted (`every` 0: once). Raises
    BadInputError.
    """
    try:
        asyncio.run(_show(context, namespace, everywhere, output, every))
    except kube.KubeError as error:
        raise BadInputError(f"{error.message.rstrip('.')}.") from error
    except KeyboardInterrupt:  # how it ends
        print()


async def _show(
    context: str | None, namespace: str | None, everywhere: bool, output: str, every: float
) -> None:
    console = Console(highlight=False)
    if not console.is_terminal:
        console.width = WIDTH
    async with kube.connect(context) as server:
        if not await server.serves(resources.TURBODEPLOYMENT):
            raise BadInputError("the cluster does not know TurboDeployment: install the chart first.")
        place = None if everywhere else namespace or server.namespace

        async def rows() -> list[Usage]:
            return by_cost(map(usage_of, await server.list_all(resources.TURBODEPLOYMENT, place)))

        if output == "json":
            print(json.dumps(as_documents(await rows()), indent=2))
        elif every and console.is_terminal:
            with Live(console=console, screen=True, auto_refresh=False) as live:
                shown = _screen(await rows(), place)
                while True:
                    live.update(shown, refresh=True)
                    await asyncio.sleep(every)
                    try:
                        shown = _screen(await rows(), place)
                    except kube.KubeError as error:  # it may be back soon
                        shown = Text(f"{error.message.rstrip('.')}; trying again")
        else:
            console.print(_screen(await rows(), place))


def _screen(rows: Sequence[Usage], place: str | None) -> Table | Text:
    where = "this cluster" if place is None else f"namespace {place}"
    return table(rows) if rows else Text(f"There is no TurboDeployment in {where}.")
