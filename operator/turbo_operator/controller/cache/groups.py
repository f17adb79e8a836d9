"""Pods of replicas on several nodes, merged to one pod a replica. Pure.

A LeaderWorkerSet makes a leader, which answers, and workers. The replica is as ready as its leader, and is
held up by whichever of its pods is; it holds its accelerators until the last of them has ended.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import replace

from turbo_operator.snapshot import PodView


def merge_groups(pods: Iterable[PodView]) -> tuple[PodView, ...]:
    """Return one pod for each replica, in the order of their names."""
    single: list[PodView] = []
    groups: defaultdict[tuple[str, str], list[PodView]] = defaultdict(list)
    for pod in pods:
        if pod.group is None:
            single.append(pod)
        elif pod.is_present or pod.worker == 0:
            groups[pod.plan_hash, pod.group].append(pod)
    merged = [_merge(sorted(group, key=lambda pod: pod.worker)) for group in groups.values()]
    return tuple(sorted((*single, *merged), key=lambda pod: pod.name))


def _merge(group: Sequence[PodView]) -> PodView:
    leader = group[0]
    if leader.worker:  # the last of a group that ends, or is made again
        return replace(leader, ready=False, terminating=True)
    if leader.ready:
        return leader
    failing = next((pod for pod in group if pod.reason), leader)
    message = failing.message
    if failing is not leader:
        message = f"{failing.name}: {message or 'it left no message.'}"
    waiting = next((pod.pending_since for pod in group if pod.pending_since is not None), None)
    lacks = next((pod.lacks for pod in group if pod.lacks is not None), None)
    return replace(leader, reason=failing.reason, message=message, pending_since=waiting, lacks=lacks)
