"""Follows the Deployments that plans are recommended for: reads them, their pods and their pods' metrics, and
writes nothing.

Lists, and no watches: there are few, and of the whole cluster's Deployments the others concern nobody.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import aiohttp

from turbo_operator import metrics
from turbo_operator.api import DeploymentRef, ReferenceStatus, epoch
from turbo_operator.controller.cache.store import Cache, Key
from turbo_operator.controller.kube import Kube, KubeError
from turbo_operator.controller.load import vllm_load
from turbo_operator.controller.load.scraper import MAX_PAGE_BYTES, NUM_CONNECTIONS, get_text
from turbo_operator.inventory.billing import billed_as
from turbo_operator.inventory.store import InventoryStore
from turbo_operator.inventory.usage import holding
from turbo_operator.reference import Counters, LoadTracker, MeasuredLoad, Reference
from turbo_operator.resources import CHILDREN, POD
from turbo_operator.snapshot import ENDED_PHASES
from turbo_runtime.contract.endpoints import METRICS_PATH

log = logging.getLogger(__name__)


@dataclass(eq=False)
class ReferenceWatch:
    """Keeps `cache.references` fresh, every `period` seconds. `timeout` is of one pod's answer, in seconds;
    `wake` is called with a TurboDeployment whose Deployment has changed; `clock` gives seconds since the
    epoch.
    """

    cache: Cache
    inventory: InventoryStore
    api: Kube
    period: float
    timeout: float
    wake: Callable[[Key], None]
    clock: Callable[[], float]
    _trackers: dict[Key, tuple[str, LoadTracker]] = field(default_factory=dict)  # by what they are of
    _turns: asyncio.Semaphore = field(default_factory=lambda: asyncio.Semaphore(NUM_CONNECTIONS))

    async def run(self) -> None:
        """Follow until cancelled."""
        connector, timeout = aiohttp.TCPConnector(limit=0), aiohttp.ClientTimeout(total=self.timeout)
        async with aiohttp.ClientSession(connector=connector, timeout=timeout) as session:
            while True:
                wanted = {key: ref for key, body in self.cache.deployments.items() if (ref := _ref_of(body))}
                for key in self.cache.references.keys() - wanted.keys():
                    self.cache.drop_reference(key)
                    self.inventory.moved = True
                    self._trackers.pop(key, None)
                await asyncio.gather(*(self._look(session, key, ref) for key, ref in wanted.items()))
                await asyncio.sleep(self.period)

    async def _look(self, session: aiohttp.ClientSession, key: Key, ref: DeploymentRef) -> None:
        """Read one Deployment; what cannot be read now is as it was."""
        try:
            async with self._turns:
                body = await self.api.find(CHILDREN["Deployment"], key.namespace, ref.name)
                selector = _selector(body["spec"]["selector"]) if body is not None else ""
                query = [("labelSelector", selector)]
                pods = await self.api.list_all(POD, key.namespace, query) if body is not None else []
        except KubeError as error:
            log.warning("Deployment %s cannot be read: %s", ref.name, error, extra={"object": str(key)})
            return
        if body is None:
            self._trackers.pop(key, None)
            said = f"There is no Deployment {ref.name} in namespace {key.namespace}."
            self._put(key, Reference(ref.name, said), frozenset())
            return
        present = [pod for pod in pods if (pod.get("status") or {}).get("phase") not in ENDED_PHASES]
        counters = await self._read(session, present, ref.port)
        owner, tracker = self._trackers.get(key, ("", None))
        if tracker is None or owner != body["metadata"]["uid"]:
            tracker = LoadTracker(self._remembered(key, ref.name))
            self._trackers[key] = body["metadata"]["uid"], tracker
        tracker.add(self.clock(), counters, [pod["metadata"]["name"] for pod in present])
        self._put(key, self._describe(body, present, len(counters), tracker.busiest), _uids(present))

    async def _read(
        self, session: aiohttp.ClientSession, pods: list[dict[str, Any]], port: int
    ) -> dict[str, Counters]:
        """Read the counters of pods that answer, by name."""
        ready = {pod["metadata"]["name"]: pod["status"]["podIP"] for pod in pods if _is_ready(pod)}
        found = await asyncio.gather(*(self._read_pod(session, ip, port) for ip in ready.values()))
        return {name: each for name, each in zip(ready, found, strict=True) if each is not None}

    async def _read_pod(self, session: aiohttp.ClientSession, ip: str, port: int) -> Counters | None:
        try:
            async with self._turns:
                page = await get_text(session, ip, port, METRICS_PATH, MAX_PAGE_BYTES)
            counters = Counters.of(vllm_load.parse(page))
        except (aiohttp.ClientError, TimeoutError, ValueError, ArithmeticError, OSError) as error:
            metrics.SCRAPES.labels("failed").inc()
            log.debug("the load of the pod at %s is unknown: %r", ip, error)
            return None
        metrics.SCRAPES.labels("ok").inc()
        return counters

    def _describe(
        self,
        body: Mapping[str, Any],
        pods: list[dict[str, Any]],
        answering: int,
        load: MeasuredLoad | None,
    ) -> Reference:
        accelerators, unidentified, placed = self.cache.accelerators_by_name(), None, []
        for pod in pods:
            node = self.inventory.node((pod.get("spec") or {}).get("nodeName") or "")
            if node is None:
                continue
            try:
                usage = holding(pod)
            except ValueError:  # amounts that are none: it holds nothing, as the inventory says
                usage = None
            labels = billed_as(usage, node, accelerators) if usage is not None else None
            if labels is None:
                unidentified = unidentified or node.name
            else:
                placed.append(labels)
        return Reference(
            body["metadata"]["name"],
            replicas=body["spec"].get("replicas", 1),
            ready=sum(map(_is_ready, pods)),
            placed=tuple(placed),
            unidentified=unidentified,
            answering=answering,
            load=load,
        )

    def _remembered(self, key: Key, name: str) -> MeasuredLoad | None:
        """Return the busiest window that the status tells of."""
        status = (self.cache.deployments.get(key) or {}).get("status") or {}
        try:
            last = ReferenceStatus.model_validate(status.get("reference") or {})
            rate = float(last.requests_per_second or "nan")
        except ValueError:  # there is none, or it is of another version
            return None
        if last.name != name or not rate > 0 or not last.busiest_time:
            return None
        return MeasuredLoad(rate, last.input_tokens or 1, last.output_tokens or 1, epoch(last.busiest_time))

    def _put(self, key: Key, new: Reference, uids: frozenset[str]) -> None:
        if key not in self.cache.deployments:
            return
        before = self.cache.references.get(key)
        if self.cache.put_reference(key, new, uids):
            self.inventory.moved = True  # what its pods hold is free for the plan
        if new != before:
            self.wake(key)


def _ref_of(body: Mapping[str, Any]) -> DeploymentRef | None:
    """Return the Deployment that a TurboDeployment names; None where it names none, or is wrong."""
    policy = (body.get("spec") or {}).get("planPolicy") or {}
    ref = policy.get("deploymentRef")
    if policy.get("apply") != "Recommend" or not isinstance(ref, Mapping):
        return None
    try:
        return DeploymentRef.model_validate(ref)
    except ValueError:  # stored before a rule was: its status says so
        return None


def _selector(selector: Mapping[str, Any]) -> str:
    """Write a LabelSelector as a query has it."""
    words = {"In": "{0} in ({1})", "NotIn": "{0} notin ({1})", "Exists": "{0}", "DoesNotExist": "!{0}"}
    terms = [f"{key}={value}" for key, value in (selector.get("matchLabels") or {}).items()]
    rows = selector.get("matchExpressions") or ()
    pairs = ((row, ",".join(row.get("values") or ())) for row in rows)
    return ",".join([*terms, *(words[row["operator"]].format(row["key"], values) for row, values in pairs)])


def _is_ready(pod: Mapping[str, Any]) -> bool:
    status = pod.get("status") or {}
    conditions = {(row["type"], row["status"]) for row in status.get("conditions") or ()}
    return ("Ready", "True") in conditions and bool(status.get("podIP"))


def _uids(pods: list[dict[str, Any]]) -> frozenset[str]:
    return frozenset(pod["metadata"]["uid"] for pod in pods)
