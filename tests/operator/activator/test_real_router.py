"""An activator in front of vLLM's own router, with pods that come and go."""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
import sys
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path

import aiohttp
from aiohttp import web

from turbo_dev.activators import listening
from turbo_operator.activator.proxy import Proxy, ProxyConfig
from turbo_operator.render.router import RECOVERY, SESSION_EXPIRY

PATH = "/v1/completions"
BODY = {"model": "m", "prompt": "1, 2,", "max_tokens": 4}


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        return int(taken.getsockname()[1])


@contextlib.asynccontextmanager
async def pod(name: str, port: int = 0) -> AsyncIterator[str]:
    """A server that answers with its name, after a while."""

    async def answer(request: web.Request) -> web.Response:
        if request.method == "GET":
            return web.Response()
        await asyncio.sleep(0.02)
        return web.json_response({"choices": [{"text": name}]})

    application = web.Application()
    application.router.add_route("*", "/{path:.*}", answer)
    async with listening(application, port, shutdown_timeout=0.1) as url:
        yield url


@dataclass(eq=False)
class Routed:
    """An activator, the router behind it, and a client."""

    url: str
    router_url: str
    client: aiohttp.ClientSession

    async def change(self, verb: str, pod_url: str) -> None:
        """Add or remove a pod, as the router's own discovery does."""
        async with self.client.post(f"{self.router_url}/{verb}_worker?url={pod_url}") as answer:
            assert answer.status == 200, await answer.text()

    async def ask(self, prompt: str = "1, 2,") -> str:
        async with self.client.post(self.url + PATH, json={**BODY, "prompt": prompt}) as answer:
            assert answer.status == 200, await answer.text()
            return str((await answer.json())["choices"][0]["text"])


@contextlib.asynccontextmanager
async def routed(session_seconds: int = 120) -> AsyncIterator[Routed]:
    port, metrics_port = free_port(), free_port()
    command = (Path(sys.executable).parent / "vllm-router", "--host=127.0.0.1", f"--port={port}")
    more = (
        f"--prometheus-port={metrics_port}",
        "--policy=sticky_least_loaded",
        "--log-level=error",
        *RECOVERY,
    )
    env = {**os.environ, SESSION_EXPIRY: str(session_seconds)}
    process = await asyncio.create_subprocess_exec(*map(str, command), *more, env=env)
    try:
        router_url = f"http://127.0.0.1:{port}"
        config = ProxyConfig(
            router_url=router_url,
            hold_seconds=60.0,
            max_held_requests=64,
            max_bytes=1 << 20,
            max_body_bytes=1 << 16,
        )
        async with (
            listening(Proxy(config).application(), shutdown_timeout=0.1) as url,
            aiohttp.ClientSession() as client,
        ):
            yield Routed(url, router_url, client)
    finally:
        process.terminate()
        await process.wait()


async def test_requests_wait_for_the_first_pod_and_none_fails_when_another_one_goes() -> None:
    async with routed() as it, pod("first") as first:
        waiting = [asyncio.create_task(it.ask()) for _ in range(8)]
        async with asyncio.timeout(30.0):
            while True:
                with contextlib.suppress(aiohttp.ClientConnectionError):
                    async with it.client.get(f"{it.router_url}/liveness") as answer:
                        if answer.status == 200:
                            break
                await asyncio.sleep(0.05)
        await asyncio.sleep(0.5)
        assert not any(task.done() for task in waiting)
        await it.change("add", first)
        assert await asyncio.gather(*waiting) == ["first"] * 8
        async with pod("second") as second:
            await it.change("add", second)
            # New conversations at once go to both, and each stays where it began.
            talks = [f"{number} bottles" for number in range(8)]
            pods = await asyncio.gather(*map(it.ask, talks))
            assert set(pods) == {"first", "second"}
            assert await asyncio.gather(*map(it.ask, talks)) == pods
            asking = [asyncio.create_task(it.ask(talk)) for talk in talks]
            await asyncio.sleep(0.01)
        answers = await asyncio.gather(*asking)  # the second one has gone in the middle
        assert "first" in answers
        assert {await it.ask(talk) for talk in talks} == {"first"}


async def test_a_new_pod_does_not_get_every_new_conversation_once_others_have_ended() -> None:
    """Found on a node: the pods before got none for ten minutes, and a canary nothing to compare with."""
    async with routed(session_seconds=1) as it, pod("before") as before, pod("new") as new:
        while True:
            with contextlib.suppress(aiohttp.ClientConnectionError):
                await it.change("add", before)
                break
            await asyncio.sleep(0.05)
        for number in range(200):  # more than are begun below
            await it.ask(f"{number} bottles")
        await it.change("add", new)
        numbers = iter(range(200, 400))
        async with asyncio.timeout(100.0):  # once a minute the router looks for those that have ended
            answer = "new"
            while answer == "new":
                await asyncio.sleep(1.0)
                answer = await it.ask(f"{next(numbers)} bottles")


async def test_the_only_pod_may_die_and_come_back_without_a_request_that_fails() -> None:
    """Found in review: the router says that it is ready, and does not use the pod for a while."""
    port = free_port()
    async with routed() as it:
        async with pod("before", port) as url:
            while True:
                with contextlib.suppress(aiohttp.ClientConnectionError):
                    await it.change("add", url)
                    break
                await asyncio.sleep(0.05)
            assert await it.ask() == "before"
        asking = [asyncio.create_task(it.ask(f"{number} bottles")) for number in range(8)]
        await asyncio.sleep(2.0)
        assert not any(task.done() for task in asking)
        async with it.client.get(f"{it.router_url}/readiness") as answer:
            assert answer.status == 200, "so that is no answer to whether a request can be sent"
        asking.append(asyncio.create_task(it.ask()))
        async with pod("after", port), asyncio.timeout(20.0):
            assert await asyncio.gather(*asking) == ["after"] * 9


async def test_nobody_adds_a_pod_through_it() -> None:
    async with routed() as it, pod("thief") as thief:
        for path in (f"/add_worker?url={thief}", f"/v1/..;/add_worker?url={thief}"):
            async with it.client.post(it.url + path) as answer:
                assert answer.status == 404
