"""Following activators on loopback: only who may scale to zero is asked, and a request is known at once."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from typing import Any

import aiohttp
from aiohttp import web

from turbo_operator.activator.proxy import Proxy, ProxyConfig
from turbo_operator.activator.report import ADMIN_PORT
from turbo_operator.api import GROUP
from turbo_operator.controller.cache.pods import Root
from turbo_operator.controller.cache.store import Cache, Key
from turbo_operator.controller.load.traffic_watch import TrafficWatch
from turbo_runtime.contract.endpoints import PORT

KEY = Key("team", "chat")
CONFIG = ProxyConfig(
    router_url="http://127.0.0.1:1", hold_seconds=20.0, max_held_requests=9, max_bytes=99, max_body_bytes=99
)


def router_pod(name: str, address: str) -> dict[str, Any]:
    owner = {"kind": "ReplicaSet", "name": "chat-router-1", "uid": "rs", "controller": True}
    labels = {f"{GROUP}/deployment": KEY.name, f"{GROUP}/role": "router"}
    meta = {"namespace": KEY.namespace, "name": name, "uid": name, "resourceVersion": "1", "labels": labels}
    status = {"phase": "Running", "podIP": address, "conditions": [{"type": "Ready", "status": "True"}]}
    return {"metadata": {**meta, "ownerReferences": [owner]}, "status": status}


def cache_of(min_replicas: int, **scaling: Any) -> Cache:
    cache = Cache()
    meta = {"namespace": KEY.namespace, "name": KEY.name, "uid": "td", "resourceVersion": "1"}
    spec = {"scaling": {"minReplicas": min_replicas, **scaling}}
    cache.put_deployment({"kind": "TurboDeployment", "metadata": meta, "spec": spec})
    cache.pods.put_root("rs", Root(KEY, "td", "", routes=True))
    cache.pods.put(router_pod("r", "127.0.0.61"))
    return cache


@contextlib.asynccontextmanager
async def activator(address: str, idle: float = 0.0) -> AsyncIterator[str]:
    """An activator without any replica, idle for so many seconds; its URL."""
    proxy = Proxy(CONFIG)
    proxy.room.last_seen -= idle
    sites = ((proxy.administration(), ADMIN_PORT), (proxy.application(), PORT))
    runners = [web.AppRunner(site, access_log=None, handler_cancellation=True) for site, _ in sites]
    for runner, (_, port) in zip(runners, sites, strict=True):
        await runner.setup()
        await web.TCPSite(runner, address, port).start()
    try:
        yield f"http://{address}:{PORT}"
    finally:
        for runner in runners:
            await runner.cleanup()


@contextlib.asynccontextmanager
async def following(cache: Cache, period: float = 30.0) -> AsyncIterator[asyncio.Queue[Key]]:
    woken: asyncio.Queue[Key] = asyncio.Queue()
    watch = TrafficWatch(cache, period, 5.0, woken.put_nowait, lambda: 100.0)
    task = asyncio.create_task(watch.run())
    try:
        yield woken
    finally:
        task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await task


async def test_that_a_request_waits_is_known_long_before_the_period_is_over() -> None:
    cache = cache_of(0)
    async with (
        activator("127.0.0.61") as url,
        following(cache) as woken,
        aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=5.0)) as client,
    ):
        async with asyncio.timeout(0.9):
            assert await woken.get() == KEY, "what is not known yet is asked for without a wait"
        await asyncio.sleep(1.2)
        assert woken.empty()
        request = asyncio.create_task(client.post(f"{url}/v1/completions", data=b"{}"))
        async with asyncio.timeout(5.0):
            assert await woken.get() == KEY
        request.cancel()
    (pod,) = cache.pods.routers(KEY)
    assert pod.traffic is not None
    assert (pod.traffic.at, pod.traffic.traffic.waiting) == (100.0, 1)


async def test_an_idle_one_is_read_once_a_period_and_a_silent_one_tried_again() -> None:
    cache = cache_of(0)
    async with following(cache, period=0.2) as woken:
        await asyncio.sleep(0.3)
        assert woken.empty()
        async with activator("127.0.0.61"), asyncio.timeout(10.0):
            assert await woken.get() == KEY
            (first,) = cache.pods.routers(KEY)
            while cache.pods.routers(KEY) == [first]:  # noqa: ASYNC110  of another task
                await asyncio.sleep(0.05)
            assert woken.empty(), "that it is as idle as before changes nothing"


async def test_one_that_has_been_idle_for_long_enough_is_looked_at_while_a_replica_is_ready() -> None:
    cache = cache_of(0, idleAfter="10s")
    cache.pods.put_root("d", Root(KEY, "td", "v1"))
    async with (
        activator("127.0.0.61", idle=11.0),
        following(cache, period=0.1) as woken,
        asyncio.timeout(10.0),
    ):
        await woken.get()
        await asyncio.sleep(1.5)
        assert woken.empty(), "there is no replica"
        pod = router_pod("a", "127.0.0.62")
        pod["metadata"] |= {"labels": {f"{GROUP}/deployment": KEY.name, f"{GROUP}/role": "serving"}}
        pod["metadata"]["ownerReferences"][0]["uid"] = "d"
        cache.pods.put(pod)
        assert await woken.get() == KEY


async def test_a_period_beyond_what_an_activator_waits_for_is_cut() -> None:
    """Found in review: it was answered 400 each time, and nobody slept or was woken."""
    cache = cache_of(0)
    async with (
        activator("127.0.0.61") as url,
        following(cache, period=90.0) as woken,
        aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=5.0)) as client,
        asyncio.timeout(10.0),
    ):
        await woken.get()
        await asyncio.sleep(1.5)
        request = asyncio.create_task(client.post(f"{url}/v1/completions", data=b"{}"))
        assert await woken.get() == KEY
        request.cancel()


async def test_who_keeps_a_replica_is_not_asked_and_who_is_gone_no_longer() -> None:
    async with activator("127.0.0.61"), following(cache_of(1), period=0.1) as woken:
        await asyncio.sleep(0.5)
        assert woken.empty()
    cache = cache_of(0)
    async with activator("127.0.0.61"), following(cache, period=0.1) as woken:
        assert await woken.get() == KEY
        cache.pods.drop(router_pod("r", "127.0.0.61"))
        await asyncio.sleep(1.5)  # it looks for pods every second
        cache.pods.put(router_pod("r", "127.0.0.61"))
        assert await woken.get() == KEY, "as one that is new"
