"""Nodes, quotas and what every pod holds, as watches have shown them; and the stock last taken of them.

A pod is kept as a few amounts (as a dictionary it is 43 KB), and one that has ended not at all. One follower
per kind and namespace feeds it, first a list and then changes in their order, so what came last is newest. No
method calls the API server.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from turbo_operator.observed import Accelerator
from turbo_operator.stock import holdings
from turbo_operator.stock.supply import Stock, take_stock

Place = tuple[str | None, str]  # namespace and name

_READERS: Mapping[str, Callable[[Mapping[str, Any]], Any]] = {
    "Node": holdings.node,
    "Pod": holdings.holding,
    "ResourceQuota": holdings.quota,
}

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class _Unreadable:
    """Stands for an object that counts for nothing, so that it is told of once.

    A node without readable amounts has no room, and a pod holds nothing. A quota bounds no plan, which is
    safe: the API server enforces it, and its refusal is shown in the status. Taking it for a quota of 0 would
    take room from what serves already.
    """

    message: str


class Ledger:
    """Who holds what. `moved` is set by whatever may change the stock, until the stock is taken again."""

    def __init__(self) -> None:
        self.stock = Stock()
        self.moved = True
        self._kept: dict[str, dict[Place, Any]] = {kind: {} for kind in _READERS}

    def put(self, kind: str, body: Mapping[str, Any]) -> Place:
        """A node, pod or quota as it is now."""
        place = _place(body)
        try:
            value = _READERS[kind](body)
        except ValueError as error:
            value = _Unreadable(str(error))
            if value != self._kept[kind].get(place):
                log.warning(
                    "%s is left out: %s", kind, error, extra={"object": "/".join(filter(None, place))}
                )
        self._set(kind, place, value)
        return place

    def drop(self, kind: str, body: Mapping[str, Any]) -> None:
        """It is gone."""
        self._set(kind, _place(body), None)

    def keep_only(self, kind: str, there: set[Place], namespace: str | None) -> None:
        """Drop what a full list of one namespace, or with None of all, does not show."""
        for place in [place for place in self._kept[kind] if place not in there]:
            if namespace is None or place[0] == namespace:
                self._set(kind, place, None)

    def take_stock(self, accelerators: Mapping[str, Accelerator]) -> Stock:
        """Count anew; returns the stock as it was before."""
        before = self.stock
        self.moved = False
        nodes, pods, quotas = (
            [value for value in self._kept[kind].values() if not isinstance(value, _Unreadable)]
            for kind in _READERS
        )
        self.stock = take_stock(accelerators, nodes, pods, quotas)
        return before

    def _set(self, kind: str, place: Place, value: object | None) -> None:
        if value == self._kept[kind].get(place):
            return
        self.moved = True
        if value is None:
            del self._kept[kind][place]
        else:
            self._kept[kind][place] = value


def _place(body: Mapping[str, Any]) -> Place:
    return body["metadata"].get("namespace"), body["metadata"]["name"]
