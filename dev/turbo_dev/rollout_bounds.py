"""How many replicas, accelerators and dollars a rollout may come to, and whether it has. Pure.

A check takes what the operator has made of the cluster (`now`: Deployments, Jobs) and what others had made of
it (`seen`: specs, pods, nodes, quotas), and says what is wrong, or None.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from decimal import Decimal
from typing import Any

from turbo_dev.audit_timeline import Key, PodState, State, Workload, price_of


def wanted(state: State, owner: Key) -> int:
    """Replicas that are asked for, by the spec or where that leaves it to the operator, by the status."""
    body = state.deployments.get(owner)
    if body is None or body["spec"].get("suspend"):
        return 0
    spec = body["spec"]
    if "workload" in spec or (spec.get("scaling") or {}).get("mode") not in (None, "External"):
        return int((body.get("status") or {}).get("desiredReplicas") or 0)
    return int(spec.get("replicas", 1))


def max_surge(state: State, owner: Key) -> int:
    """Replicas that may be there in addition while a plan takes over."""
    written = rollout_of(state, owner).get("maxSurge")
    return 1 if written is None else int(written)


def rollout_of(state: State, owner: Key) -> Mapping[str, Any]:
    """What is written in spec.rollout."""
    return (state.deployments[owner]["spec"].get("rollout") or {}) if owner in state.deployments else {}


def stays_in_surge(now: State, seen: State, owner: Key, _: None) -> str | None:
    """Replicas of all variants together stay within wanted + maxSurge."""
    variants = [each for each in now.variants(owner).values() if not each.is_canary]
    total, most = sum(each.replicas for each in variants), wanted(seen, owner) + max_surge(seen, owner)
    if total <= most:
        return None
    asked = ", ".join(f"{each.name} for {each.replicas}" for each in variants)
    return f"Replicas asked for are {total} ({asked}), and at most {most} may be."


def claims(now: State, seen: State, owner: Key, more: int = 0) -> list[tuple[Workload | PodState, int]]:
    """What holds accelerators or will: by Deployment and Job the pods that are asked for or there, and the
    pods that end, until they are gone. `more` is added to the newest Deployment.
    """
    found: list[tuple[Workload | PodState, int]] = []
    pods = [pod for pod in seen.pods_of(owner) if not pod.ended]
    for (kind, _), workload in now.workloads.items():
        if workload.owner != owner:
            continue
        active = sum(pod.is_active and pod.workload == (kind, workload.name) for pod in pods)
        found.append((workload, max(workload.replicas, active)))
    if more and found:
        found.append((found[-1][0], more))
    there = {
        (kind, workload.name) for (kind, _), workload in now.workloads.items() if workload.owner == owner
    }
    found += [(pod, 1) for pod in pods if pod.terminating or pod.workload not in there]
    return found


def _held(now: State, seen: State, owner: Key, more: int = 0) -> int:
    return sum(holder.devices.count * number for holder, number in claims(now, seen, owner, more))


def _cost(now: State, seen: State, owner: Key, more: int = 0) -> Decimal:
    found = claims(now, seen, owner, more)
    return sum((price_of(seen, holder.devices) * number for holder, number in found), Decimal(0))


def stays_in_total(now: State, seen: State, owner: Key, _: None, more: int = 0) -> str | None:
    """Accelerators stay within accelerators.maxTotal."""
    if owner not in seen.deployments:
        return None
    most = (seen.deployments[owner]["spec"].get("accelerators") or {}).get("maxTotal")
    held = _held(now, seen, owner, more)
    if most is None or held <= int(most):
        return None
    return f"Its pods hold or ask for {held} accelerators, and maxTotal is {most}: {_told(now, seen, owner)}."


def stays_in_budget(now: State, seen: State, owner: Key, _: None, more: int = 0) -> str | None:
    """Dollars stay within cost.maxPerHour."""
    if owner not in seen.deployments:
        return None
    most = (seen.deployments[owner]["spec"].get("cost") or {}).get("maxPerHour")
    cost = _cost(now, seen, owner, more)
    if most is None or cost <= Decimal(most):
        return None
    return f"Its pods cost {cost} $/h, and maxPerHour is {most}: {_told(now, seen, owner)}."


def stays_in_quota(now: State, seen: State, owner: Key, _: None, more: int = 0) -> str | None:
    """By resource, what it asks for and what pods of all others of the namespace hold. What those ask for and
    have no pods of yet is nobody's: the API server gives it to whoever comes first.
    """
    for hard in [hard for (namespace, _), hard in seen.quotas.items() if namespace == owner[0]]:
        for name, most in hard.items():
            resource = name.removeprefix("requests.")
            if resource in ("cpu", "memory", "pods") or not name.startswith("requests."):
                continue
            held = _held_of(now, seen, owner, resource, more) + sum(
                _held_of(_without_asking(now, other), seen, other, resource, 0)
                for other in seen.deployments
                if other[0] == owner[0] and other != owner
            )
            if held > int(most):
                return (
                    f"Pods of its namespace hold or ask for {held} {resource}, and the quota is {most}: "
                    f"{_told(now, seen, owner)}."
                )
    return None


def _without_asking(now: State, owner: Key) -> State:
    """The same with Deployments that ask for nothing: what is left are pods."""
    asked = {
        place: replace(each, replicas=0) if each.owner == owner else each
        for place, each in now.workloads.items()
    }
    return replace(now, workloads=asked)


def _held_of(now: State, seen: State, owner: Key, resource: str, more: int) -> int:
    """Of one resource."""
    return sum(
        holder.devices.count * number
        for holder, number in claims(now, seen, owner, more)
        if (seen.accelerators.get(holder.devices.accelerator or "") or {"spec": {}})["spec"].get(
            "resourceName"
        )
        == resource
    )


def _told(now: State, seen: State, owner: Key) -> str:
    found = [f"{number} of {holder.name}" for holder, number in claims(now, seen, owner) if number]
    return ", ".join(found) or "none"


def has_room(state: State, owner: Key, more: int) -> bool:
    """Whether bounds, quota and nodes leave accelerators for `more` replicas beside the wanted ones.

    Measured as if all variants together had the wanted replicas: those that a surge has begun count as begun.
    """
    base = _at_rest(state, owner)
    within = (stays_in_total, stays_in_budget, stays_in_quota)
    return all(law(base, base, owner, None, more) is None for law in within) and _has_nodes(base, owner, more)


def _at_rest(state: State, owner: Key) -> State:
    """The state with one variant alone, the newest, and all it wants."""
    variants = list(state.variants(owner).values())
    if not variants:
        return state
    newest = variants[-1]
    workloads = {
        key: each for key, each in state.workloads.items() if each.owner != owner or each.name == newest.name
    }
    workloads["Deployment", (owner[0], newest.name)] = replace(newest, replicas=wanted(state, owner))
    pods = {key: pod for key, pod in state.pods.items() if pod.owner != owner}
    return replace(state, workloads=workloads, pods=pods)


def _has_nodes(state: State, owner: Key, more: int) -> bool:
    """Whether the nodes of a Fixed accelerator have as many; an Elastic one grows."""
    variants = list(state.variants(owner).values())
    if not variants:
        return True
    newest = variants[-1]
    body = state.accelerators.get(newest.devices.accelerator or "")
    if body is None or body["spec"].get("provisioning", "Fixed") == "Elastic":
        return True
    resource, selector = body["spec"]["resourceName"], body["spec"].get("nodeSelector") or {}
    nodes = [
        node
        for node in state.nodes.values()
        if selector.items() <= (node["metadata"].get("labels") or {}).items()
    ]
    there = sum(int(((node.get("status") or {}).get("allocatable") or {}).get(resource, 0)) for node in nodes)
    name = newest.devices.accelerator
    held = sum(
        holder.devices.count * number
        for other in state.deployments
        for holder, number in (
            claims(state, state, owner, more)
            if other == owner
            else claims(_without_asking(state, other), state, other)
        )
        if holder.devices.accelerator == name
    )
    return held <= there
