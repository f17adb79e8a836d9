"""`turbo cost`: what TurboDeployments hold and pay for now, by namespace, model or a label."""

from __future__ import annotations

import asyncio
import csv
import json
import sys
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from decimal import Decimal
from typing import Any

from pydantic import ValidationError
from pydantic.alias_generators import to_camel
from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from turbo_operator import resources
from turbo_operator.api import (
    LABEL_DEPLOYMENT,
    InvalidObject,
    TurboDeploymentStatus,
    parse_accelerator,
)
from turbo_operator.budget import cost_of, labeled_footprint
from turbo_operator.cli.manifests import BadInputError
from turbo_operator.cli.output import UNKNOWN, WIDTH
from turbo_operator.controller import kube
from turbo_operator.controller.cache.projection import pod as project
from turbo_operator.planner import money
from turbo_operator.snapshot import ENDED_PHASES, Accelerator, AcceleratorLabels, JobPod, PodView, TrainPod

Body = Mapping[str, Any]
_ZERO = Decimal(0)


@dataclass(frozen=True, slots=True)
class Cost:
    """US dollars per hour; None where a price is not known. `used`, `idle` and `training` add up to what the
    accelerators cost that pods hold.
    """

    deployments: int = 0
    accelerators: int = 0  # that pods hold
    planned: Decimal | None = _ZERO  # by the plans
    used: Decimal | None = _ZERO  # of pods that answer
    idle: Decimal | None = _ZERO  # of those that start or end, and the rest of nodes that are bought whole
    training: Decimal | None = _ZERO
    saved: Decimal | None = _ZERO  # by speculation, where that was measured

    def __add__(self, other: Cost) -> Cost:
        """Add up; what is not known stays so."""
        amounts = (_sum(getattr(self, name), getattr(other, name)) for name in AMOUNTS)
        return Cost(self.deployments + other.deployments, self.accelerators + other.accelerators, *amounts)


def _sum(one: Decimal | None, other: Decimal | None) -> Decimal | None:
    return None if one is None or other is None else one + other


AMOUNTS = ("planned", "used", "idle", "training", "saved")


def cost_of_deployment(body: Body, pods: Iterable[Body], accelerators: Mapping[str, Accelerator]) -> Cost:
    """Return what one TurboDeployment costs; `pods` are those with its label."""
    holding = [view for view in map(project, pods) if _holds(view)]
    serving: list[AcceleratorLabels] = [view for view in holding if isinstance(view, PodView)]
    training: list[AcceleratorLabels] = [view for view in holding if isinstance(view, TrainPod)]
    total, spent = cost_of(serving, accelerators), cost_of(training, accelerators)
    prices = [_price(view, accelerators) for view in serving if isinstance(view, PodView) and view.ready]
    used = None if total is None or None in prices else sum((price or _ZERO for price in prices), _ZERO)
    planned, saved = _of_status(body)
    return Cost(
        1,
        sum(view.accelerators for view in (*serving, *training)),
        planned,
        used,
        None if total is None or used is None else total - used,
        spent,
        saved,
    )


def _holds(view: PodView | JobPod) -> bool:
    return view.accelerator is not None and view.pending_since is None and view.phase not in ENDED_PHASES


def _price(view: AcceleratorLabels, accelerators: Mapping[str, Accelerator]) -> Decimal | None:
    """Return what the accelerators of one pod cost, whoever has the rest of its node."""
    footprint = labeled_footprint(view, accelerators)
    price = footprint.accelerator.prices.get(footprint.capacity_type)
    return None if price is None else price * view.accelerators


def _of_status(body: Body) -> tuple[Decimal | None, Decimal | None]:
    """Read what the plan costs and what is saved; what another version wrote may be unreadable."""
    try:
        status = TurboDeploymentStatus.model_validate(body.get("status") or {})
    except ValidationError:
        return None, None
    if status.reference is not None:  # a plan that is for somebody to read costs and saves nothing yet
        return _ZERO, _ZERO
    saved = Decimal(status.saving.per_hour) if status.saving is not None else _ZERO
    if status.plan is None or not status.desired_replicas:
        return _ZERO, saved
    cost = status.plan.predicted.cost_per_hour if status.plan.predicted is not None else None
    return None if cost is None else Decimal(cost), saved


def grouping(by: str) -> Callable[[Body], str]:
    """Return what names the group of a TurboDeployment. Raises BadInputError."""
    if by == "namespace":
        return lambda body: str(body["metadata"]["namespace"])
    if by == "model":
        return lambda body: str(((body.get("spec") or {}).get("model") or {}).get("uri", UNKNOWN))
    kind, _, label = by.partition("=")
    if kind != "label" or not label:
        raise BadInputError(f"--by {by}: write namespace, model, or label=KEY, like label=team.")

    def of_label(body: Body) -> str:
        template = ((body.get("spec") or {}).get("podTemplate") or {}).get("metadata") or {}
        for labels in (template.get("labels") or {}, body["metadata"].get("labels") or {}):
            if label in labels:
                return str(labels[label])
        return UNKNOWN

    return of_label


def costs_by(
    group_of: Callable[[Body], str],
    deployments: Iterable[Body],
    pods: Iterable[Body],
    accelerators: Mapping[str, Accelerator],
) -> dict[str, Cost]:
    """Add up by group, the most expensive first."""
    owned: defaultdict[tuple[str, str], list[Body]] = defaultdict(list)
    for body in pods:
        meta = body["metadata"]
        owned[meta["namespace"], (meta.get("labels") or {}).get(LABEL_DEPLOYMENT, "")].append(body)
    groups: defaultdict[str, Cost] = defaultdict(Cost)
    for body in deployments:
        place = body["metadata"]["namespace"], body["metadata"]["name"]
        groups[group_of(body)] += cost_of_deployment(body, owned[place], accelerators)
    return dict(sorted(groups.items(), key=lambda row: (-_held(row[1]), row[0])))


def _held(cost: Cost) -> Decimal:
    return sum((amount or _ZERO for amount in (cost.used, cost.idle, cost.training)), _ZERO)


def table(heading: str, groups: Mapping[str, Cost]) -> Table:
    """Lay the groups out, with a sum below several."""
    shown = Table(box=box.SIMPLE_HEAD, show_edge=False)
    shown.add_column(heading, no_wrap=True)
    for name in ("deployments", "accelerators", *(f"{each} $/h" for each in AMOUNTS)):
        shown.add_column(name, justify="right", no_wrap=True)
    for name, cost in groups.items():
        shown.add_row(Text(name), *_cells(cost))
    if len(groups) > 1:
        shown.add_section()
        shown.add_row("together", *_cells(sum(groups.values(), Cost())))
    return shown


def _cells(cost: Cost) -> list[str]:
    return [str(cost.deployments), str(cost.accelerators), *(_shown(getattr(cost, name)) for name in AMOUNTS)]


def _shown(amount: Decimal | None) -> str:
    return UNKNOWN if amount is None else money(amount)


def as_documents(heading: str, groups: Mapping[str, Cost]) -> list[dict[str, Any]]:
    """Return the groups as plain data; an amount that is not known is null."""
    return [
        {
            heading: name,
            "deployments": cost.deployments,
            "accelerators": cost.accelerators,
            **{
                to_camel(f"{each}_per_hour"): None
                if (amount := getattr(cost, each)) is None
                else money(amount)
                for each in AMOUNTS
            },
        }
        for name, cost in groups.items()
    ]


def show(context: str | None, namespace: str | None, *, everywhere: bool, by: str, output: str) -> None:
    """Print what TurboDeployments cost now. Raises BadInputError."""
    group_of = grouping(by)
    try:
        seen = asyncio.run(_read(context, namespace, everywhere))
    except kube.KubeError as error:
        raise BadInputError(f"{error.message.rstrip('.')}.") from error
    place, deployments, pods, accelerators = seen
    heading = by.partition("=")[2] or by
    groups = costs_by(group_of, deployments, pods, accelerators)
    documents = as_documents(heading, groups)
    if output == "json":
        print(json.dumps(documents, indent=2))
    elif output == "csv":
        names = list(as_documents(heading, {"": Cost()})[0])
        writer = csv.DictWriter(sys.stdout, names, lineterminator="\n")
        writer.writeheader()
        writer.writerows(documents)
    else:
        console = Console(highlight=False)
        if not console.is_terminal:
            console.width = WIDTH
        where = "this cluster" if place is None else f"namespace {place}"
        console.print(table(heading, groups) if groups else f"There is no TurboDeployment in {where}.")


async def _read(
    context: str | None, namespace: str | None, everywhere: bool
) -> tuple[str | None, Sequence[Body], Sequence[Body], dict[str, Accelerator]]:
    async with kube.connect(context) as server:
        if not await server.serves(resources.TURBODEPLOYMENT):
            raise BadInputError("the cluster does not know TurboDeployment: install the chart first.")
        place = None if everywhere else namespace or server.namespace
        deployments = await server.list_all(resources.TURBODEPLOYMENT, place)
        pods = await server.list_all(resources.POD, place, [("labelSelector", LABEL_DEPLOYMENT)])
        rows = {}
        for body in await server.list_all(resources.TURBOACCELERATOR, None):
            try:
                row = Accelerator.of(parse_accelerator(body))
            except InvalidObject:  # of another version: it has no price here
                continue
            rows[row.name] = row
        return place, deployments, pods, rows
