"""Reads nodes, pods and quotas into the few bytes that supply is counted by. Pure."""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Callable, Mapping
from decimal import ROUND_UP, Decimal
from typing import Any

from turbo_operator import api
from turbo_operator.inventory.supply import SERVING_SCOPES, Node, Owner, PodUsage, Quota

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


def node(body: Mapping[str, Any]) -> Node:
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
        allocatable=amounts(status.get("allocatable"), "status.allocatable"),
    )


def holding(body: Mapping[str, Any]) -> PodUsage | None:
    """Read what a pod holds; None when it has ended."""
    meta, spec = body["metadata"], body.get("spec") or {}
    if (body.get("status") or {}).get("phase") in ("Succeeded", "Failed"):
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
        namespace=meta["namespace"],
        scopes=_scopes(body),
        overdue=overdue(meta),
    )


def _scopes(body: Mapping[str, Any]) -> frozenset[str]:
    """Return which of the scopes of serving pods a pod falls under."""
    lacking = set()
    if (body.get("spec") or {}).get("activeDeadlineSeconds") is not None:
        lacking.add("NotTerminating")
    if (body.get("status") or {}).get("qosClass") == "BestEffort":
        lacking.add("NotBestEffort")
    return SERVING_SCOPES - lacking if lacking else SERVING_SCOPES


def overdue(meta: Mapping[str, Any]) -> float:
    """Return when quotas stop counting a pod that was told to end, as Kubernetes does (QuotaV1Pod)."""
    if "deletionTimestamp" not in meta:
        return math.inf
    return api.epoch(meta["deletionTimestamp"]) + (meta.get("deletionGracePeriodSeconds") or 0)


def quota(body: Mapping[str, Any]) -> Quota | None:
    """Read a ResourceQuota; None for one that serving pods may not fall under, by its scopes."""
    spec = body.get("spec") or {}
    scopes = frozenset(spec.get("scopes") or ())
    if spec.get("scopeSelector") or not scopes <= SERVING_SCOPES:
        return None
    return Quota(body["metadata"]["namespace"], amounts(spec.get("hard"), "spec.hard"), scopes)


def amounts(raw: Mapping[str, Any] | None, path: str) -> dict[str, int]:
    """Read quantities by resource in thousandths, rounded away from 0 as the API server does.

    ValueError names the field of one that is no quantity.
    """
    return {name: _thousandths(str(text), f"{path}.{name}") for name, text in (raw or {}).items()}


def _thousandths(text: str, path: str) -> int:
    parts = _QUANTITY.fullmatch(text)
    if parts is None:
        raise ValueError(f"{path}: {text!r} is no quantity: write it like 4, 400m or 1.5Gi")
    exponent = parts["exponent"] or _DECIMAL_EXPONENTS[parts["decimal"] or ""]
    if parts["number"].startswith("-") and Decimal(parts["number"]):
        raise ValueError(f"{path}: {text!r} is below 0: write 0 or more, like 4, 400m or 1.5Gi")
    # Bounded before any arithmetic: an exponent of nine digits is soon written and never computed.
    value = max(-_LARGEST, min(Decimal(f"{parts['number']}e{exponent}"), _LARGEST))
    if parts["binary"]:
        value = max(-_LARGEST, min(value * _BINARY_UNITS[parts["binary"]], _LARGEST))
    return int(value.quantize(_THOUSANDTH, ROUND_UP) * 1000)


def _effective(spec: Mapping[str, Any], part: str) -> dict[str, int]:
    """Count as the scheduler does: what runs together, or the largest before it, and the overhead."""
    sidecars: Counter[str] = Counter()  # that were started so far
    largest: Counter[str] = Counter()
    for container in spec.get("initContainers") or ():
        running = sidecars + _part(container, part, "spec.initContainers")
        if container.get("restartPolicy") == "Always":
            sidecars = running
        largest |= running
    containers = (_part(container, part, "spec.containers") for container in spec.get("containers") or ())
    total = Counter({**(largest | sum(containers, sidecars)), **_part(spec, part, "spec")})
    return dict(total + Counter(amounts(spec.get("overhead"), "spec.overhead")))


def _part(holder: Mapping[str, Any], part: str, path: str) -> Counter[str]:
    return Counter(amounts((holder.get("resources") or {}).get(part), f"{path}.resources.{part}"))


READERS: Mapping[str, Callable[[Mapping[str, Any]], Any]] = {
    "Node": node,
    "Pod": holding,
    "ResourceQuota": quota,
}
