"""Labels of serving pods that somebody edits are put back: by them the Service selects pods, and the status
counts what they cost. Pods whose ReplicaSet lost them get the label by which it adopts them.

The ReplicaSet of a variant has another name, and another label in its selector, where the one before was
still being deleted as it was made. Its pods come from the same template.
"""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Mapping
from typing import Any

from turbo_operator import api
from turbo_operator.controller.cache.pods import LABEL_TEMPLATE_HASH
from turbo_operator.controller.cache.store import Cache, Key, Place
from turbo_operator.controller.kube import ConflictError, GoneError, Kube, KubeError, RefusedError
from turbo_operator.resources import POD
from turbo_operator.snapshot import AcceleratorLabels, PodView

MAX_LOOK_SECONDS = 3.0  # that one look patches pods for
MAX_WAIT_SECONDS = 60.0  # between two patches of a pod whose label does not stay

# When a pod may be patched again, how often it was, and why it was refused.
Attempt = tuple[float, int, RefusedError | None]
Attempts = dict[str, Attempt]  # by pod
log = logging.getLogger(__name__)


async def restore_labels(
    api: Kube, cache: Cache, key: Key, uid: str, attempts: Attempts, refusals: dict[Place, RefusedError]
) -> float:
    """Patch the pods of the TurboDeployment `uid`; the seconds until one may be patched again.

    From the third time on a pod waits, longer each time: somebody may set a label back as often. Adds to
    `refusals` what was refused, in this look or before. Raises the first KubeError once all were tried.
    """
    start, wait_seconds = time.monotonic(), math.inf
    failure: KubeError | None = None
    for name in attempts.keys() - {pod.name for pod in cache.pods.of(key, uid)}:
        del attempts[name]
    none: Attempt = (0.0, 0, None)
    # The longest due first: those whose patches take long or fail keep no other from its turn.
    for pod, labels in sorted(_lost(cache, key, uid), key=lambda item: attempts.get(item[0].name, none)[0]):
        now, (due, times, refusal) = time.monotonic(), attempts.get(pod.name, none)
        is_late = now - start > MAX_LOOK_SECONDS
        if now < due or is_late:
            wait_seconds = min(wait_seconds, max(due - now, MAX_LOOK_SECONDS if is_late else 0.0))
            refusals |= {(POD.kind, pod.name): refusal} if refusal is not None else {}
            continue
        times, refusal = 0 if now - due > MAX_WAIT_SECONDS else times, None
        pause = min(2.0 ** min(times - 2, 6), MAX_WAIT_SECONDS) if times > 2 else 0.0
        patch = {"metadata": {"resourceVersion": pod.orphan, "labels": labels}}
        try:
            await api.merge(POD, key.namespace, pod.name, patch)
            log.info("relabeled", extra={"object": str(key), "kind": POD.kind, "child": pod.name})
        except (GoneError, ConflictError):  # ended or adopted meanwhile: its event is on its way
            pass
        except RefusedError as error:
            refusals[POD.kind, pod.name] = refusal = error
        except KubeError as error:
            failure = failure or error
        attempts[pod.name] = time.monotonic() + pause, times + 1, refusal
    if failure is not None:
        raise failure
    return wait_seconds


def _lost(cache: Cache, key: Key, uid: str) -> list[tuple[PodView, Mapping[str, Any]]]:
    """List the pods that lack labels, and these; None removes one."""
    views = (child.view for child in cache.children(key, uid).values())
    plans = {view.plan_hash: view for view in views if view.kind == "ControllerRevision"}
    adoptable = {pod.name: value for pod, value in cache.pods.adoptable(key, uid)}
    lost: list[tuple[PodView, Mapping[str, Any]]] = []
    for pod in cache.pods.of(key, uid):
        if not isinstance(pod, PodView) or not pod.is_serving:
            continue
        own = plans.get(pod.plan_hash)
        labels: dict[str, str | None] = {api.LABEL_OWNER_UID: uid} if pod.owner_uid != uid else {}
        if own is not None and own.accelerator is not None and _price(pod) != _price(own):
            labels |= _price(own)
        if pod.name in adoptable:
            labels[LABEL_TEMPLATE_HASH] = adoptable[pod.name]
        if labels:
            lost.append((pod, labels))
    return lost


def _price(labeled: AcceleratorLabels) -> dict[str, str | None]:
    return {
        api.LABEL_ACCELERATOR: labeled.accelerator,
        api.LABEL_ACCELERATOR_COUNT: str(labeled.accelerators),
        api.LABEL_CAPACITY_TYPE: str(labeled.capacity_type),
        **({api.LABEL_NODES: str(labeled.nodes)} if labeled.nodes > 1 else {}),
    }
