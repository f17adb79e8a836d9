"""An activator without a replica: what it holds, for how long, and what it sends again."""

from __future__ import annotations

import asyncio
import json
import socket
import time
from dataclasses import replace

import aiohttp
import pytest
from aiohttp import web

from turbo_dev.activators import CONFIG, PATH, Activator, Router, listening, running
from turbo_operator.activator.metrics import HOLD_SECONDS
from turbo_operator.activator.proxy import Proxy


async def test_a_request_is_held_until_there_is_a_replica() -> None:
    async with running(Router(has_replica=False)) as activator:
        waiting = asyncio.create_task(activator.post())
        await activator.held(1)
        traffic = await activator.traffic()
        assert (traffic.running, traffic.idle_seconds) == (0, 0.0)
        activator.router.has_replica = True
        assert (await waiting)[0] == 200
        await activator.held(0)
        assert len(activator.router.seen) == 1
        since = (await activator.traffic()).held_seconds
        assert since is not None


async def test_one_that_comes_as_the_last_one_is_given_up_is_held_all_the_same() -> None:
    """Found in review: it waited for a question to the router that had just been called off."""
    async with running(Router(has_replica=False)) as activator:
        for _ in range(20):
            leaving = asyncio.create_task(activator.post())
            await activator.held(1)
            coming = asyncio.create_task(activator.post())
            leaving.cancel()
            await asyncio.sleep(0.01)
            activator.router.has_replica = True
            assert (await coming)[0] == 200
            activator.router.has_replica = False
            await activator.held(0)


async def test_who_asks_for_the_load_learns_at_once_that_a_request_is_held() -> None:
    async with running(Router(has_replica=False)) as activator:
        asking = asyncio.create_task(activator.traffic(wait=30.0))
        await asyncio.sleep(0.05)
        waiting = asyncio.create_task(activator.post())
        async with asyncio.timeout(5.0):
            assert (await asking).waiting == 1
        activator.router.has_replica = True
        await waiting


@pytest.mark.parametrize("wait", ["-1", "nan", "61", "x"])
async def test_nobody_waits_for_the_load_without_an_end(wait: str) -> None:
    async with (
        running(Router()) as activator,
        activator.client.get(f"{activator.admin}/load?wait={wait}") as answer,
    ):
        assert answer.status == 400


async def test_more_requests_than_may_be_held_are_sent_back_with_a_time_to_try_again() -> None:
    async with running(Router(has_replica=False)) as activator:
        waiting = [asyncio.create_task(activator.post()) for _ in range(2)]
        await activator.held(2)
        async with activator.client.post(activator.url + PATH, json={}) as answer:
            assert (answer.status, answer.headers["Retry-After"]) == (503, "10")
            assert (await answer.json())["error"]["code"] == "overloaded"
        activator.router.has_replica = True
        assert [status for status, _ in await asyncio.gather(*waiting)] == [200, 200]


async def test_a_request_is_held_no_longer_than_it_may_be() -> None:
    async with running(Router(has_replica=False), hold_seconds=0.3) as activator:
        status, text = await activator.post()
        assert (status, json.loads(text)["error"]["code"]) == (503, "no_replica")
        assert (await activator.traffic()).waiting == 0


async def test_a_router_that_says_it_is_ready_and_uses_no_replica_yet_is_asked_again() -> None:
    async with running(Router(refuses=8)) as activator:
        assert (await activator.post())[0] == 200


async def test_the_time_for_which_a_replica_works_on_a_request_is_not_that_for_which_it_is_held() -> None:
    lost = 2

    async def gone(_: web.Request) -> web.StreamResponse:
        nonlocal lost
        lost -= 1
        await asyncio.sleep(1.0)
        return web.Response(status=500, text="Request failed: x") if lost >= 0 else web.Response(text="whole")

    def observed() -> tuple[float, float]:
        samples = {sample.name: sample.value for sample in next(iter(HOLD_SECONDS.collect())).samples}
        name = "turbo_activator_hold_seconds"
        return samples[f"{name}_count"], samples[f"{name}_sum"]

    async with running(Router(answer=gone)) as activator:
        number, seconds = observed()
        start = time.monotonic()
        assert await activator.post() == (200, "whole")
        took = time.monotonic() - start
        more, longer = observed()
        assert more == number + 1
        assert 1.5 <= longer - seconds <= took - 3.0, "two pauses, and three seconds of work"


async def test_what_was_sent_to_a_pod_that_is_gone_is_sent_again() -> None:
    lost = 2

    async def gone(_: web.Request) -> web.StreamResponse:
        nonlocal lost
        lost -= 1
        text = "Request failed: error sending request for url (http://10.0.0.1:8000/v1/completions)"
        return web.Response(status=500, text=text) if lost >= 0 else web.Response(text="whole")

    async with running(Router(answer=gone)) as activator:
        assert await activator.post() == (200, "whole")
        assert len(activator.router.seen) == 3


async def test_a_router_that_starts_again_costs_no_request() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
    proxy = Proxy(replace(CONFIG, router_url=f"http://127.0.0.1:{port}"))
    async with (
        listening(proxy.application()) as url,
        listening(proxy.administration()) as admin,
        aiohttp.ClientSession() as client,
    ):
        activator = Activator(Router(), proxy, url, admin, client)
        waiting = asyncio.create_task(activator.post())
        await activator.held(1)
        async with client.get(f"{admin}/router") as answer:
            assert answer.status == 503
        async with running(activator.router, port):
            assert (await waiting)[0] == 200
            async with client.get(f"{admin}/router") as answer:
                assert answer.status == 200


async def test_a_request_that_ends_every_replica_is_not_sent_without_an_end() -> None:
    async def die(request: web.Request) -> web.StreamResponse:
        assert request.transport is not None
        request.transport.abort()
        return web.Response()

    async with running(Router(answer=die)) as activator:
        status, text = await activator.post()
        assert (status, json.loads(text)["error"]["code"]) == (502, "replicas_failed")
        assert len(activator.router.seen) == 5


async def test_those_that_wait_are_answered_before_their_server_ends() -> None:
    async with running(Router(has_replica=False)) as activator:
        waiting = asyncio.create_task(activator.client.post(activator.url + PATH, json={}))
        await activator.held(1)
        activator.proxy.is_leaving = True
        await asyncio.sleep(0.5)
        assert not waiting.done(), "a replica may come until then"
        activator.proxy.is_closing = True
        answer = await waiting
        assert (answer.status, answer.headers["Connection"]) == (503, "close")
        assert answer.headers["Retry-After"] == "10"
