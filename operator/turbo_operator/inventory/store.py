"""Nodes, quotas and what every pod holds, as watches have shown them; and the inventory last taken of them.

A pod is kept as a few amounts (as a dictionary it is 43 KB), and one that has ended not at all. One follower
per kind and namespace feeds it, first a list and then changes in their order, so what came last is newest.
Labels only claim whose a pod is: it is looked up as the inventory is taken. No method calls the API server.
"""

from __future__ import annotations

import logging
import re
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Set
from dataclasses import dataclass, replace
from decimal import ROUND_UP, Decimal
from typing import Any

from turbo_operator import api
from turbo_operator.inventory.supply import (
    Amounts,
    ClusterInventory,
    Node,
    Owner,
    PodUsage,
    Quota,
    take_stock,
)
from turbo_operator.snapshot import ENDED_PHASES, Accelerator

# Every form that Kubernetes takes; our own API (`api.quantity`) does with fewer.
_QUANTITY = re.compile(
    r"(?P<number>[+-]?(?:\d+\.?\d*|\.\d+))"
    r"(?:[eE](?P<exponent>[+-]?\d{1,9})|(?P<binary>[KMGTPE])i|(?P<decimal>[numkMGTPE]?))",
    re.ASCII,
)
_DECIMAL_EXPONENTS = {"": 0, "n": -9, "u": -6, "m": -3, "k": 3, "M": 6, "G": 9, "T": 12, "P": 15, "E": 18}
_BINARY_UNITS = {letter: 1024**power for power, letter in enumerate("KMGTPE", start=1)}
_LARGEST = Decimal(2**63 - 1)  # Kubernetes takes whatever is larger for this
_THOUSANDTH = Decimal("0.001")
_BINDING_TAINTS = {"NoSchedule", "NoExecute"}
# Scopes that every serving pod falls under: it has requests and no deadline. Others depend on its class.
_OUR_SCOPES = {"NotTerminating", "NotBestEffort"}

log = logging.getLogger(__name__)


def read_node(body: Mapping[str, Any]) -> Node:
    """Read a node."""
    meta, spec, status = body["metadata"], body.get("spec") or {}, body.get("status") or {}
    conditions = {(row["type"], row["status"]) for row in status.get("conditions") or ()}
    return Node(
        name=meta["name"],
        labels=dict(meta.get("labels") or {}),
        taints=tuple(
            {name: taint[name] for name in ("key", "value", "effect") if name in taint}
            for taint in spec.get("taints") or ()
            if taint["effect"] in _BINDING_TAINTS
        ),
        takes_pods=("Ready", "True") in conditions and not spec.get("unschedulable"),
        allocatable=read_amounts(status.get("allocatable"), "status.allocatable"),
    )


def read_pod(body: Mapping[str, Any]) -> PodUsage | None:
    """Read what a pod holds; None when it has ended."""
    meta, spec = body["metadata"], body.get("spec") or {}
    if (body.get("status") or {}).get("phase") in ENDED_PHASES:
        return None
    labels = meta.get("labels") or {}
    deployment = labels.get(api.LABEL_DEPLOYMENT)
    owner = Owner(meta["namespace"], deployment) if deployment else None
    return PodUsage(
        owner=owner.trainer if owner and labels.get(api.LABEL_ROLE) == api.ROLE_TRAIN else owner,
        node=spec.get("nodeName") or None,
        requests=_effective(spec, "requests"),
        limits=_effective(spec, "limits"),
        leaving="deletionTimestamp" in meta,
        accelerator=labels.get(api.LABEL_ACCELERATOR),
        capacity_type=labels.get(api.LABEL_CAPACITY_TYPE, api.CapacityType.ON_DEMAND),
    )


def read_quota(body: Mapping[str, Any]) -> Quota | None:
    """Read a ResourceQuota; None for one that serving pods may not fall under, by its scopes."""
    spec, status = body.get("spec") or {}, body.get("status") or {}
    if spec.get("scopeSelector") or not _OUR_SCOPES.issuperset(spec.get("scopes") or ()):
        return None
    hard, used = read_amounts(spec.get("hard"), "spec.hard"), read_amounts(status.get("used"), "status.used")
    return Quota(body["metadata"]["namespace"], hard, used)


def read_amounts(raw: Mapping[str, Any] | None, path: str) -> dict[str, int]:
    """Read quantities by resource in thousandths, rounded away from 0 as the API server does.

    ValueError names the field of one that is no quantity.
    """
    return {name: _thousandths(str(text), f"{path}.{name}") for name, text in (raw or {}).items()}


def _thousandths(text: str, path: str) -> int:
    parts = _QUANTITY.fullmatch(text)
    if parts is None:
        raise ValueError(f"{path}: {text!r} is no quantity: write it like 4, 400m or 1.5Gi")
    exponent = parts["exponent"] or _DECIMAL_EXPONENTS[parts["decimal"] or ""]
    # Bounded before any arithmetic: an exponent of nine digits is soon written and never computed.
    value = max(-_LARGEST, min(Decimal(f"{parts['number']}e{exponent}"), _LARGEST))
    if parts["binary"]:
        value = max(-_LARGEST, min(value * _BINARY_UNITS[parts["binary"]], _LARGEST))
    return int(value.quantize(_THOUSANDTH, ROUND_UP) * 1000)


def _effective(spec: Mapping[str, Any], part: str) -> dict[str, int]:
    """Count as the scheduler does: what runs together, or the largest before it, and the overhead."""
    sidecars: Amounts = {}  # that were started so far
    largest: Amounts = {}
    for container in spec.get("initContainers") or ():
        running = _sum((sidecars, _part(container, part, "spec.initContainers")))
        if container.get("restartPolicy") == "Always":
            sidecars = running
        largest = _larger(largest, running)
    containers = (_part(container, part, "spec.containers") for container in spec.get("containers") or ())
    total = _larger(largest, _sum((sidecars, *containers))) | _part(spec, part, "spec")
    return _sum((total, read_amounts(spec.get("overhead"), "spec.overhead")))


def _larger(one: Amounts, other: Amounts) -> dict[str, int]:
    return {name: max(one.get(name, 0), other.get(name, 0)) for name in one.keys() | other.keys()}


def _part(holder: Mapping[str, Any], part: str, path: str) -> dict[str, int]:
    return read_amounts((holder.get("resources") or {}).get(part), f"{path}.resources.{part}")


def _sum(parts: Iterable[Amounts]) -> dict[str, int]:
    total: Counter[str] = Counter()
    for part in parts:
        total.update(part)
    return dict(total)


READERS: Mapping[str, Callable[[Mapping[str, Any]], Any]] = {
    "Node": read_node,
    "Pod": read_pod,
    "ResourceQuota": read_quota,
}
KINDS = frozenset(READERS)


@dataclass(frozen=True, slots=True)
class _Unreadable:
    """An object that counts for nothing, kept so that it is logged once.

    A node without readable amounts has no room, and a pod holds nothing. A quota bounds no plan, which is
    safe: the API server enforces it, and its refusal is shown in the status. Taking it for a quota of 0 would
    take room from what serves already.
    """

    message: str


class InventoryStore:
    """Who holds what. `moved` is set by whatever may change the inventory, until it is taken again.

    `owner_of` says by uid whose a pod is, None for a stranger's.
    """

    def __init__(self, owner_of: Callable[[str], Owner | None]) -> None:
        self._owner_of = owner_of
        self.stock = ClusterInventory()
        self.moved = True
        # By kind and uid the namespace and what it comes to.
        self._objects: dict[str, dict[str, tuple[str | None, Any]]] = {kind: {} for kind in READERS}

    def put(self, kind: str, body: Mapping[str, Any], /) -> None:
        """Store a node, pod or quota as it is now."""
        uid, name, namespace = (body["metadata"].get(key) for key in ("uid", "name", "namespace"))
        try:
            value = READERS[kind](body)
        except ValueError as error:
            value = _Unreadable(str(error))
            if (namespace, value) != self._objects[kind].get(uid):
                details = {"object": f"{namespace}/{name}" if namespace else name}
                log.warning("%s is left out: %s", kind, error, extra=details)
        self._set(kind, uid, None if value is None else (namespace, value))

    def drop(self, kind: str, body: Mapping[str, Any], /) -> None:
        """Remove an object that is gone."""
        self._set(kind, body["metadata"]["uid"], None)

    def keep_only(self, kind: str, uids: Set[str], _version: str, namespace: str | None, /) -> None:
        """Drop what a full list of one namespace, or with None of all, does not show."""
        for uid, (where, _) in list(self._objects[kind].items()):
            if uid not in uids and namespace in (None, where):
                self._set(kind, uid, None)

    def take_stock(self, accelerators: Mapping[str, Accelerator]) -> ClusterInventory:
        """Take the inventory anew; returns the one before."""
        before = self.stock
        self.moved = False
        nodes, quotas = (
            [value for _, value in self._objects[kind].values() if not isinstance(value, _Unreadable)]
            for kind in ("Node", "ResourceQuota")
        )
        pods = [
            replace(pod, owner=owner) if (owner := self._owner_of(uid)) != pod.owner else pod
            for uid, (_, pod) in self._objects["Pod"].items()
            if not isinstance(pod, _Unreadable)
        ]
        self.stock = take_stock(accelerators, nodes, pods, quotas)
        return before

    def _set(self, kind: str, uid: str, value: tuple[str | None, Any] | None) -> None:
        if value == self._objects[kind].get(uid):
            return
        self.moved = True
        if value is None:
            del self._objects[kind][uid]
        else:
            self._objects[kind][uid] = value
