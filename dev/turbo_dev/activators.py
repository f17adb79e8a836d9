"""An activator in front of a router of which a test says what it has and answers."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass, field, replace
from typing import Any

import aiohttp
from aiohttp import web

from turbo_operator.activator.proxy import SERVER_OPTIONS, Proxy, ProxyConfig
from turbo_operator.activator.report import Traffic

CONFIG = ProxyConfig(
    router_url="", hold_seconds=20.0, max_held_requests=2, max_bytes=1000, max_body_bytes=600
)
PATH = "/v1/completions"
Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


@dataclass(eq=False)
class Router:
    """A router of which a test says whether it has a replica, and what that answers."""

    has_replica: bool = True
    answer: Handler | None = None
    refuses: int = 0  # so many requests while it says that it is ready
    seen: list[tuple[str, str, dict[str, str], bytes]] = field(default_factory=list)

    async def serve(self, request: web.Request) -> web.StreamResponse:
        """Answer as vllm-router 0.1.17 does."""
        if request.path == "/readiness":
            return web.Response(status=200 if self.has_replica else 503)
        if request.path == "/liveness":
            return web.Response(text="OK")
        if not self.has_replica or self.refuses > 0:
            self.refuses -= 1
            return web.Response(status=503, text="No available workers (all circuits open or unhealthy)")
        headers = {name.lower(): value for name, value in request.headers.items()}
        self.seen.append((request.method, request.raw_path, headers, await request.read()))
        if self.answer is not None:
            return await self.answer(request)
        return web.json_response({"id": "it"}, headers={"X-Request-Id": headers.get("x-request-id", "new")})


@contextlib.asynccontextmanager
async def listening(
    application: web.Application, port: int = 0, shutdown_timeout: float = 5.0, **options: Any
) -> AsyncIterator[str]:
    """Serve an application on loopback; its URL."""
    runner = web.AppRunner(application, shutdown_timeout=shutdown_timeout, **options)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", port).start()
    try:
        yield f"http://127.0.0.1:{runner.addresses[0][1]}"
    finally:
        await runner.cleanup()


@dataclass(eq=False)
class Activator:
    """One that runs, with the router behind it."""

    router: Router
    proxy: Proxy
    url: str
    admin: str
    client: aiohttp.ClientSession

    async def post(self, path: str = PATH, **options: Any) -> tuple[int, str]:
        """Ask as a client; status and text of the answer."""
        if "data" not in options:
            options["json"] = {"prompt": "hi"}
        async with self.client.post(self.url + path, **options) as answer:
            return answer.status, await answer.text()

    async def traffic(self, wait: float = 0.0) -> Traffic:
        """Ask as the operator does."""
        async with self.client.get(f"{self.admin}/load?wait={wait}") as answer:
            return Traffic.from_json(await answer.text())

    async def held(self, number: int) -> None:
        """Return once so many requests are held."""
        async with asyncio.timeout(5.0):
            while (await self.traffic()).waiting != number:  # noqa: ASYNC110  of requests of its own
                await asyncio.sleep(0.01)


@contextlib.asynccontextmanager
async def running(router: Router, port: int = 0, **changes: Any) -> AsyncIterator[Activator]:
    """Run an activator in front of `router`, which listens on `port`; `changes` are of CONFIG."""
    behind = web.Application(client_max_size=1 << 24)
    behind.router.add_route("*", "/{path:.*}", router.serve)
    async with listening(behind, port, **SERVER_OPTIONS) as router_url:
        proxy = Proxy(replace(CONFIG, router_url=router_url, **changes))
        async with (
            listening(proxy.application(), **SERVER_OPTIONS) as url,
            listening(proxy.administration()) as admin,
            aiohttp.ClientSession() as client,
        ):
            yield Activator(router, proxy, url, admin, client)
