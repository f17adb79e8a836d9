"""Passes requests on to the router beside it, and holds those that no replica can take yet.

Only paths of the OpenAI API are passed on: the router has others, by which anybody could have it send prompts
and API keys elsewhere.
"""

from __future__ import annotations

import asyncio
import contextlib
import re
import time
from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from dataclasses import dataclass
from http import HTTPStatus
from typing import Any

import aiohttp
import prometheus_client
from aiohttp import web
from yarl import URL

from turbo_operator.activator import metrics
from turbo_operator.activator.errors import RequestError, too_large
from turbo_operator.activator.headers import ADDED, HOP_BY_HOP, NOT_PASSED_ON, passed_on
from turbo_operator.activator.report import LOAD_PATH, MAX_WAIT_SECONDS, METRICS_PATH, READY_PATH, ROUTER_PATH
from turbo_operator.activator.session import HEADER, session_of
from turbo_operator.activator.waiting_room import FullError, UnderWay, WaitingRoom
from turbo_runtime.contract.endpoints import HEALTH_PATH

PROBE_SECONDS = 0.2  # between two questions to the router whether a replica is there
PROBE_TIMEOUT = aiohttp.ClientTimeout(total=2.0)
# What was sent and not answered is sent again once a replica is there, but not for ever: it may be the cause.
MAX_LOST = 5
PAUSE_SECONDS = 0.25  # before a request is sent again, and twice as long each time that it was lost
READ_TIMEOUT_SECONDS = 60.0  # for the body of a request
MAX_HEADER_BYTES = 32 << 10
SERVER_OPTIONS: Mapping[str, Any] = {  # of who serves the application
    "access_log": None,
    "handler_cancellation": True,  # who leaves is not generated for
    "auto_decompress": False,
    "max_field_size": MAX_HEADER_BYTES,
}

# Of the vllm-router 0.1.17. It may say that it is ready, and answer that it has no replica: it has one, and
# does not use it for a while since requests to it have failed.
_LIVE, _HAS_REPLICAS = "/liveness", "/readiness"
_NO_REPLICA = (b"No available workers", b"No workers ")
_LOST = (b"Request failed: ", b"Failed to get response body: ")  # by the replica that it was sent to
# These answers come without a replica's work: who has no key keeps none of them.
_REFUSED = frozenset({401, 403, 404, 405, 413, 415, 422})
# As it was sent: what another decoder could read as another path is none of these.
_PASSED_ON = re.compile(r"/v1(/[A-Za-z0-9_:-][A-Za-z0-9_.:%-]*)+")


@dataclass(frozen=True, slots=True, kw_only=True)
class ProxyConfig:
    """Where requests are passed on to, and how many are held for how long."""

    router_url: str
    hold_seconds: float
    max_held_requests: int
    max_bytes: int  # of the bodies of all requests that are under way
    max_body_bytes: int


class Proxy:
    """Serves requests while its application runs."""

    def __init__(self, config: ProxyConfig, clock: Callable[[], float] = time.monotonic) -> None:
        self._config, self._clock = config, clock
        self.room = WaitingRoom(config.max_held_requests, config.max_bytes, clock())
        self.is_leaving = False  # its pod ends: clients are to connect to another one
        self.is_closing = False  # soon: nothing is held any more
        self._session: aiohttp.ClientSession
        self._probe: asyncio.Task[None] | None = None  # of the router, while requests are held
        self._holds = asyncio.Event()  # set while a request is held
        metrics.UNDER_WAY.labels("waiting").set_function(lambda: self.room.held)
        metrics.UNDER_WAY.labels("running").set_function(lambda: self.room.num_under_way - self.room.held)

    def application(self) -> web.Application:
        """Return what clients reach."""
        application = web.Application(client_max_size=self._config.max_body_bytes)
        application.router.add_route("*", "/{path:.*}", self._answer)
        application.cleanup_ctx.append(self._open_session)
        return application

    def administration(self) -> web.Application:
        """Return what the kubelet, the operator and Prometheus reach."""
        application = web.Application()
        application.router.add_get(LOAD_PATH, self._load)
        application.router.add_get(METRICS_PATH, self._metrics)
        application.router.add_get(READY_PATH, self._ready)
        application.router.add_get(ROUTER_PATH, self._router)
        return application

    async def _open_session(self, _: web.Application) -> AsyncIterator[None]:
        # An answer takes as long as it takes, and the router bounds that.
        timeout = aiohttp.ClientTimeout(total=None, sock_connect=5.0)
        async with aiohttp.ClientSession(
            connector=aiohttp.TCPConnector(limit=0),
            timeout=timeout,
            auto_decompress=False,
            cookie_jar=aiohttp.DummyCookieJar(),
            skip_auto_headers=ADDED,
            max_field_size=MAX_HEADER_BYTES,
        ) as self._session:
            yield
        if self._probe is not None:
            self._probe.cancel()

    async def _answer(self, request: web.Request) -> web.StreamResponse:
        if request.path == HEALTH_PATH:  # of this process: who asks for it wants no replica started
            return self._own(web.Response())
        try:
            if not _PASSED_ON.fullmatch(request.raw_path.partition("?")[0]):
                raise RequestError(
                    HTTPStatus.NOT_FOUND,
                    "not_found",
                    f"There is no {request.path} here: the OpenAI API is under /v1.",
                )
            with self._memory(self._num_bytes(request)):
                body = await self._read(request)
            with self._memory(len(body)), self._under_way() as under_way:
                async with await self._send(request, body, under_way) as upstream:
                    under_way.counts = request.method != "OPTIONS" and upstream.status not in _REFUSED
                    return await self._relay(request, upstream)
        except RequestError as error:
            metrics.REQUESTS.labels(str(error.status.value)).inc()
            return self._own(error.response())

    def _own(self, response: web.Response) -> web.Response:
        if self.is_leaving:
            response.force_close()
        return response

    def _num_bytes(self, request: web.Request) -> int:
        """Return what the body takes at most, before it is read; raises RequestError for too much."""
        most = self._config.max_body_bytes
        length = request.content_length if request.content_length is not None else most
        if length > most:
            raise too_large(most)
        return length if request.can_read_body else 0

    @contextlib.contextmanager
    def _memory(self, num_bytes: int) -> Iterator[None]:
        try:
            with self.room.memory(num_bytes):
                yield
        except FullError as error:
            message = "Requests under way take all the memory that there is for them. Try again later."
            raise RequestError(HTTPStatus.SERVICE_UNAVAILABLE, "overloaded", message) from error

    @contextlib.contextmanager
    def _under_way(self) -> Iterator[UnderWay]:
        with self.room.under_way(self._clock) as under_way:
            try:
                yield under_way
            finally:
                if under_way.held_seconds:
                    metrics.HOLD_SECONDS.observe(under_way.held_seconds)

    async def _read(self, request: web.Request) -> bytes:
        try:
            async with asyncio.timeout(READ_TIMEOUT_SECONDS):
                return await request.read()
        except web.HTTPRequestEntityTooLarge as error:
            raise too_large(self._config.max_body_bytes) from error
        except TimeoutError as error:
            message = f"The body of the request did not come within {READ_TIMEOUT_SECONDS:g} s."
            raise RequestError(HTTPStatus.REQUEST_TIMEOUT, "timeout", message) from error

    async def _send(self, request: web.Request, body: bytes, under_way: UnderWay) -> aiohttp.ClientResponse:
        """Send a request until a replica has answered it, or the time to hold it is over."""
        url = URL(self._config.router_url + request.raw_path, encoded=True)
        headers = passed_on(request.headers, NOT_PASSED_ON)
        session = session_of(body, request.headers.get("Authorization"))
        if session is not None:
            headers.setdefault(HEADER, session)
        clock, lost = asyncio.get_running_loop().time, 0
        begin = clock()  # of the time for which it is held: a replica that works on it holds it not
        while True:
            sent = clock()
            try:
                upstream = await self._session.request(
                    request.method, url, headers=headers, data=body or None, allow_redirects=False
                )
                if upstream.status < HTTPStatus.INTERNAL_SERVER_ERROR:
                    return upstream
                answer = await upstream.read()  # which is kept, to be passed on
                is_lost = answer.startswith(_LOST)
                if not is_lost and not answer.startswith(_NO_REPLICA):
                    return upstream
            except (aiohttp.ClientConnectorError, aiohttp.ConnectionTimeoutError):
                is_lost = False  # the router starts
            except (aiohttp.ClientConnectionError, aiohttp.ClientPayloadError):
                is_lost = True  # it has ended with what it was sent
            except aiohttp.ClientError as error:
                message = f"The router's answer cannot be read: {error}."
                raise RequestError(HTTPStatus.BAD_GATEWAY, "bad_answer", message) from error
            if is_lost:
                lost += 1
                begin += clock() - sent
            if lost == MAX_LOST:
                message = f"The request was sent {MAX_LOST} times, and each time its replica was lost."
                raise RequestError(HTTPStatus.BAD_GATEWAY, "replicas_failed", message)
            await self._until_replica(under_way, begin, PAUSE_SECONDS * 2**lost)

    async def _until_replica(self, under_way: UnderWay, begin: float, pause: float) -> None:
        """Hold a request, since `begin` on the loop's clock: for a pause, and until a replica is there."""
        seconds, clock = self._config.hold_seconds, asyncio.get_running_loop().time
        try:
            with self.room.hold(self._clock):
                self._holds.set()
                async with asyncio.timeout_at(begin + seconds):
                    await asyncio.sleep(pause)
                    if self._probe is None or self._probe.done():
                        self._probe = asyncio.create_task(self._probe_router())
                    await asyncio.shield(self._probe)
        except FullError as error:
            message = f"{self.room.held} requests wait for a replica, and no more are held. Try again later."
            raise RequestError(HTTPStatus.SERVICE_UNAVAILABLE, "overloaded", message) from error
        except TimeoutError as error:
            message = f"No replica was ready within {seconds:g} s. Try again later."
            raise RequestError(HTTPStatus.SERVICE_UNAVAILABLE, "no_replica", message) from error
        finally:
            under_way.held_seconds = clock() - begin
            if not self.room.held:
                self._holds.clear()
                if self._probe is not None:
                    self._probe.cancel()
                    self._probe = None  # the next one may come before it has ended

    async def _probe_router(self) -> None:
        while not self.is_closing:
            if await self._router_says(_HAS_REPLICAS):
                return
            await asyncio.sleep(PROBE_SECONDS)
        message = "This server ends, and no replica was ready before. Try again: another one takes over."
        raise RequestError(HTTPStatus.SERVICE_UNAVAILABLE, "no_replica", message)

    async def _router_says(self, path: str) -> bool:
        """Whether the router says so."""
        try:
            async with self._session.get(self._config.router_url + path, timeout=PROBE_TIMEOUT) as answer:
                return answer.status == HTTPStatus.OK
        except (aiohttp.ClientError, TimeoutError):
            return False

    async def _relay(self, request: web.Request, upstream: aiohttp.ClientResponse) -> web.StreamResponse:
        """Pass an answer on as it comes."""
        headers = passed_on(upstream.headers, HOP_BY_HOP)
        response = web.StreamResponse(status=upstream.status, reason=upstream.reason, headers=headers)
        if self.is_leaving:
            response.force_close()
        metrics.REQUESTS.labels(str(upstream.status)).inc()
        await response.prepare(request)
        try:
            if upstream.status >= HTTPStatus.INTERNAL_SERVER_ERROR:
                await response.write(await upstream.read())
            async for chunk in upstream.content.iter_any():
                await response.write(chunk)
        except aiohttp.ClientError:
            # Cut as well: an answer that ends in order would pass for a whole one.
            if request.transport is not None:
                request.transport.abort()
            return response
        await response.write_eof()
        return response

    async def _load(self, request: web.Request) -> web.Response:
        try:
            seconds = float(request.query.get("wait", "0"))
        except ValueError:
            seconds = -1.0
        if not 0.0 <= seconds <= MAX_WAIT_SECONDS:
            text = f"wait: write seconds between 0 and {MAX_WAIT_SECONDS:g}"
            return web.Response(status=HTTPStatus.BAD_REQUEST, text=text)
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                await self._holds.wait()
        return web.Response(text=self.room.report(self._clock()).to_json(), content_type="application/json")

    async def _metrics(self, _: web.Request) -> web.Response:
        page = prometheus_client.generate_latest()
        return web.Response(body=page, headers={"Content-Type": prometheus_client.CONTENT_TYPE_LATEST})

    async def _ready(self, _: web.Request) -> web.Response:
        return web.Response(status=HTTPStatus.SERVICE_UNAVAILABLE if self.is_leaving else HTTPStatus.OK)

    async def _router(self, _: web.Request) -> web.Response:
        is_alive = await self._router_says(_LIVE)
        return web.Response(status=HTTPStatus.OK if is_alive else HTTPStatus.SERVICE_UNAVAILABLE)
