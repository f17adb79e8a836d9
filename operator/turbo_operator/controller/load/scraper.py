"""The only client of engines: reads the load of every pod that serves, and the progress of every one that
trains or fetches a model, a small document, every few seconds.

A pod that does not answer in time, or answers what is no load or with a redirect, keeps its last load, which
grows old: silence is never a load of zero.
"""

from __future__ import annotations

import asyncio
import logging
from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass, field
from http import HTTPStatus

import aiohttp

from turbo_operator import metrics
from turbo_operator.api import EngineName, ScalingMode
from turbo_operator.controller.cache.store import Cache, Key
from turbo_operator.controller.load import vllm_load
from turbo_operator.snapshot import PodView, ReportingPod
from turbo_runtime.contract.documents import PROGRESS_PATH, JobProgress, Load
from turbo_runtime.contract.endpoints import LOAD_PATH, METRICS_PATH, PORT

NUM_CONNECTIONS = 64  # pods asked at the same time
MAX_BYTES = 64 * 1024  # of an answer; a load has a few hundred
MAX_PAGE_BYTES = 1 << 20  # of a page of metrics; vLLM's has some 50 thousand for each of its engines

log = logging.getLogger(__name__)


@dataclass(eq=False)
class Scraper:
    """Keeps the loads in `cache` fresh: every `period` seconds, `timeout` seconds for one pod's answer.

    `wake` is called with every TurboDeployment for which a load decides something; `clock` gives seconds
    since the epoch.
    """

    cache: Cache
    period: float
    timeout: float
    wake: Callable[[Key], None]
    clock: Callable[[], float]
    _reported: set[Key] = field(default_factory=set)
    # Before a request's time begins to count: of connections that are waited for, those of pods that do not
    # answer would use up the time of all others.
    _turns: asyncio.Semaphore = field(default_factory=lambda: asyncio.Semaphore(NUM_CONNECTIONS))

    async def run(self) -> None:
        """Scrape until cancelled."""
        connector, timeout = aiohttp.TCPConnector(limit=0), aiohttp.ClientTimeout(total=self.timeout)
        async with aiohttp.ClientSession(connector=connector, timeout=timeout) as session:
            while True:
                await self.scrape(session)
                await asyncio.sleep(self.period)

    async def scrape(self, session: aiohttp.ClientSession) -> None:
        """Read every pod once."""
        pods = self.cache.pods.reporting()
        answers = await asyncio.gather(*(self._read(session, pod) for _, pod in pods))
        by_deployment: defaultdict[Key, list[Load]] = defaultdict(list)
        news: set[Key] = set()
        for (key, pod), answer in zip(pods, answers, strict=True):
            if answer is not None and isinstance(answer[1], Load):
                by_deployment[key].append(answer[1])
            if answer is not None and self.cache.pods.put_report(key, pod.name, *answer):
                news.add(key)
        self._report(by_deployment)
        for key in sorted(news | {key for key in by_deployment if self._follows_load(key)}):
            self.wake(key)

    def _follows_load(self, key: Key) -> bool:
        scaling = (self.cache.deployments.get(key) or {}).get("spec", {}).get("scaling", {})
        return bool(scaling.get("mode") == ScalingMode.METRICS)

    async def _read(
        self, session: aiohttp.ClientSession, pod: PodView | ReportingPod
    ) -> tuple[float, Load | JobProgress] | None:
        """Read a pod's report; when it answered (epoch seconds), and what."""
        try:
            report = await self._fetch(session, pod)
        except (aiohttp.ClientError, TimeoutError, ValueError, ArithmeticError, OSError) as error:
            metrics.SCRAPES.labels("failed").inc()
            log.debug("the report of pod %s is unknown: %r", pod.name, error)
            return None
        metrics.SCRAPES.labels("ok").inc()
        return self.clock(), report

    async def _fetch(self, session: aiohttp.ClientSession, pod: PodView | ReportingPod) -> Load | JobProgress:
        """Fetch a pod's report from where its engine has it."""
        if isinstance(pod, ReportingPod):
            return JobProgress.from_json(await self._get(session, pod, PROGRESS_PATH))
        if pod.engine == EngineName.VLLM:
            return vllm_load.parse(await self._get(session, pod, METRICS_PATH, MAX_PAGE_BYTES))
        return Load.from_json(await self._get(session, pod, LOAD_PATH))

    async def _get(
        self,
        session: aiohttp.ClientSession,
        pod: PodView | ReportingPod,
        path: str,
        max_bytes: int = MAX_BYTES,
    ) -> str:
        async with self._turns:
            return await get_text(session, pod.ip or "", PORT, path, max_bytes)

    def _report(self, loads: dict[Key, list[Load]]) -> None:
        """Set the sums per TurboDeployment as gauges; one that nobody answers for has none."""
        for key in self._reported - loads.keys():
            metrics.DEPLOYMENT_REQUESTS.remove_by_labels({"namespace": key.namespace, "name": key.name})
        for key, known in loads.items():
            labels = metrics.DEPLOYMENT_REQUESTS.labels
            labels(key.namespace, key.name, "running").set(sum(load.running_requests for load in known))
            labels(key.namespace, key.name, "waiting").set(sum(load.waiting_requests for load in known))
        self._reported = set(loads)


async def get_text(
    session: aiohttp.ClientSession, ip: str, port: int, path: str, max_bytes: int = MAX_BYTES
) -> str:
    """Get a text of a pod; ValueError where it is none, or longer than that."""
    host = f"[{ip}]" if ":" in ip else ip
    # A redirect would lead to where the operator may go, and whoever chose the pod's image may not.
    async with session.get(f"http://{host}:{port}{path}", allow_redirects=False) as answer:
        if answer.status != HTTPStatus.OK:
            raise ValueError(f"its status is {answer.status}")
        return await _text(answer, max_bytes)


async def _text(answer: aiohttp.ClientResponse, max_bytes: int) -> str:
    """Read the body; ValueError when it is longer than any load: the pod's image is the user's choice."""
    body = bytearray()
    async for chunk in answer.content.iter_chunked(MAX_BYTES):
        body += chunk
        if len(body) > max_bytes:
            raise ValueError(f"an answer of more than {max_bytes} bytes is no load")
    return body.decode()
