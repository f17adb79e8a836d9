"""`turbo events NAME`: what happened to a TurboDeployment and to all that was made for it, pods included."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from pydantic.alias_generators import to_camel
from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from turbo_operator import resources
from turbo_operator.api import epoch
from turbo_operator.cli.manifests import BadInputError
from turbo_operator.cli.output import UNKNOWN, WIDTH
from turbo_operator.controller import kube

HEADINGS = ("last seen", "type", "reason", "object", "message")
_UNITS = (("d", 86400), ("h", 3600), ("m", 60), ("s", 1))


@dataclass(frozen=True, slots=True)
class Event:
    """One Event, of either API group, as `events.k8s.io/v1` has it."""

    last_seen: str | None  # RFC 3339
    type: str
    reason: str
    kind: str  # of what it regards
    name: str
    count: int
    message: str


def event_of(body: Mapping[str, Any]) -> Event:
    """Read an Event as the API server gives it; those of older clients have other fields."""
    regarding, series = body.get("regarding") or {}, body.get("series") or {}
    times = (
        series.get("lastObservedTime"),
        body.get("deprecatedLastTimestamp"),
        body.get("eventTime"),
        body["metadata"].get("creationTimestamp"),
    )
    return Event(
        next(filter(None, times), None),
        body.get("type") or "Normal",
        body.get("reason") or "",
        regarding.get("kind") or "",
        regarding.get("name") or "",
        series.get("count") or body.get("deprecatedCount") or 1,
        " ".join((body.get("note") or "").split()),
    )


def of_deployment(events: Iterable[Event], name: str, names: Iterable[str]) -> list[Event]:
    """Keep those about the TurboDeployment `name` and about what begins with its name, the latest last.

    A pod that has gone has no label any more, but it has its name. `names`: of all TurboDeployments of the
    namespace, of which the longest that fits has the object: `chat-eu` is no child of `chat`.
    """
    others = [other for other in names if other != name and _begins(other, name)]

    def is_own(event: Event) -> bool:
        if event.kind == "TurboDeployment":
            return event.name == name
        return _begins(event.name, name) and not any(_begins(event.name, other) for other in others)

    return sorted(
        filter(is_own, events), key=lambda event: epoch(event.last_seen) if event.last_seen else 0.0
    )


def _begins(name: str, with_name: str) -> bool:
    return name == with_name or name.startswith(f"{with_name}-")


def age(moment: str | None, now: float) -> str:
    """Say in one unit how long ago a moment was: `45s`, `12m`, `3h`, `2d`."""
    if moment is None:
        return UNKNOWN
    seconds = max(0, int(now - epoch(moment)))
    unit, size = next((each for each in _UNITS if seconds >= 2 * each[1]), _UNITS[-1])
    return f"{seconds // size}{unit}"


def table(events: Sequence[Event], now: float) -> Table:
    """Lay events out as kubectl does."""
    shown = Table(box=box.SIMPLE_HEAD, show_edge=False)
    for heading in HEADINGS:
        shown.add_column(heading, no_wrap=heading != "message", overflow="fold")
    for event in events:
        seen = age(event.last_seen, now) + (f" (x{event.count})" if event.count > 1 else "")
        regards = f"{event.kind.lower()}/{event.name}"
        shown.add_row(*map(Text, (seen, event.type, event.reason, regards, event.message)))
    return shown


def as_documents(events: Sequence[Event]) -> list[dict[str, Any]]:
    """Return events as plain data, in the API's names."""
    return [{to_camel(name): value for name, value in asdict(event).items()} for event in events]


def show(context: str | None, namespace: str | None, name: str, output: str) -> None:
    """Print them. Raises BadInputError."""
    try:
        asyncio.run(_show(context, namespace, name, output))
    except kube.KubeError as error:
        raise BadInputError(f"{error.message.rstrip('.')}.") from error


async def _show(context: str | None, namespace: str | None, name: str, output: str) -> None:
    async with kube.connect(context) as server:
        if not await server.serves(resources.TURBODEPLOYMENT):
            raise BadInputError("the cluster does not know TurboDeployment: install the chart first.")
        place = namespace or server.namespace
        bodies = await server.list_all(resources.TURBODEPLOYMENT, place)
        names = [body["metadata"]["name"] for body in bodies]
        events = of_deployment(map(event_of, await server.list_all(resources.EVENT, place)), name, names)
    if not events and name not in names:
        raise BadInputError(f"there is no TurboDeployment {name} in namespace {place}.")
    if output == "json":
        print(json.dumps(as_documents(events), indent=2))
        return
    console = Console(highlight=False)
    if not console.is_terminal:
        console.width = WIDTH
    console.print(table(events, time.time()) if events else f"There are no events of {name} any more.")
