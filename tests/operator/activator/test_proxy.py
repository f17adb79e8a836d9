"""An activator in front of a router: what it passes on, and what it never does."""

from __future__ import annotations

import asyncio
import gzip
import json
from http import HTTPStatus

import aiohttp
import pytest
from aiohttp import web
from yarl import URL

from turbo_dev.activators import PATH, Router, running
from turbo_operator.activator import proxy as proxy_module


async def test_a_request_and_its_answer_pass_as_they_are() -> None:
    async with running(Router()) as activator:
        headers = {"Authorization": "Bearer key", "X-Request-Id": "mine", "Connection": "keep-alive"}
        url = URL(f"{activator.url}{PATH}?a=%2Fb", encoded=True)
        async with activator.client.post(url, data=b"{ }", headers=headers) as answer:
            assert (answer.status, answer.headers["X-Request-Id"]) == (200, "mine")
            assert await answer.json() == {"id": "it"}
    ((method, path, seen, body),) = activator.router.seen
    assert (method, path, body) == ("POST", f"{PATH}?a=%2Fb", b"{ }")
    assert (seen["authorization"], seen["x-request-id"]) == ("Bearer key", "mine")
    assert "x-session-id" not in seen


async def test_a_conversation_is_named_for_the_router_unless_its_client_has_named_it() -> None:
    async with running(Router()) as activator:
        for headers in ({}, {}, {"x-session-id": "mine"}):
            await activator.post(headers=headers)
    first, second, third = (seen["x-session-id"] for _, _, seen, _ in activator.router.seen)
    assert first == second != third == "mine"


@pytest.mark.parametrize(
    "path",
    [
        *(
            "/add_worker?url=http://evil",
            "/remove_worker",
            "/list_workers",
            "/flush_cache",
            "/readiness",
            "/",
        ),
        *("/v1", "/v1/", "/v1/../add_worker", "/v1/%2e%2e/add_worker", "/v1//add_worker", "//v1/models"),
        *("/v1/.%2e/add_worker", "/v1/x/..", "/v1\\..\\add_worker", "http://evil/v1/models", "/V1/models"),
    ],
)
async def test_what_is_no_path_of_the_openai_api_never_reaches_the_router(path: str) -> None:
    """The paths as they are written: a client of a library would make others of them."""
    async with running(Router()) as activator:
        host, port = activator.url.removeprefix("http://").split(":")
        reader, writer = await asyncio.open_connection(host, int(port))
        writer.write(
            f"POST {path} HTTP/1.1\r\nHost: x\r\nContent-Length: 0\r\nConnection: close\r\n\r\n".encode()
        )
        answer = await reader.read()
        writer.close()
        assert answer.split()[1] in (b"404", b"400")
        assert activator.router.seen == []


async def test_health_is_its_own_and_starts_nothing() -> None:
    async with running(Router(has_replica=False)) as activator:
        await asyncio.sleep(0.3)
        async with activator.client.get(f"{activator.url}/health") as answer:
            assert answer.status == 200
        traffic = await activator.traffic()
        assert (traffic.held_seconds, traffic.idle_seconds > 0.3) == (None, True)


async def test_bodies_take_no_more_memory_than_they_may() -> None:
    async with running(Router(has_replica=False)) as activator:
        assert (await activator.post(data=b"x" * 601))[0] == HTTPStatus.REQUEST_ENTITY_TOO_LARGE
        waiting = asyncio.create_task(activator.post(data=b"x" * 600))
        await activator.held(1)
        assert (await activator.post(data=b"x" * 600))[0] == HTTPStatus.SERVICE_UNAVAILABLE
        activator.router.has_replica = True
        assert (await waiting)[0] == 200
        assert (await activator.post(data=b"x" * 600))[0] == 200, "its memory is free again"


async def test_what_a_replica_answers_is_passed_on_errors_too() -> None:
    async def full(_: web.Request) -> web.StreamResponse:
        return web.Response(status=503, text="queue full", headers={"Retry-After": "3"})

    async with running(Router(answer=full)) as activator:
        async with activator.client.post(activator.url + PATH, json={}) as answer:
            assert (answer.status, answer.headers["Retry-After"]) == (503, "3")
            assert await answer.text() == "queue full"
        assert len(activator.router.seen) == 1


async def test_a_stream_passes_as_it_comes() -> None:
    following = asyncio.Event()

    async def stream(request: web.Request) -> web.StreamResponse:
        response = web.StreamResponse(headers={"Content-Type": "text/event-stream"})
        await response.prepare(request)
        await response.write(b"data: 1\n\n")
        await following.wait()
        await response.write(b"data: 2\n\n")
        return response

    async with (
        running(Router(answer=stream)) as activator,
        activator.client.post(activator.url + PATH, json={}) as answer,
    ):
        assert answer.headers["Content-Type"] == "text/event-stream"
        assert await answer.content.readany() == b"data: 1\n\n"
        assert (await activator.traffic()).running == 1
        following.set()
        assert await answer.content.read() == b"data: 2\n\n"


async def test_an_answer_that_is_cut_behind_it_is_no_whole_one_for_the_client() -> None:
    async def cut(request: web.Request) -> web.StreamResponse:
        response = web.StreamResponse()
        await response.prepare(request)
        await response.write(b"data: 1\n\n")
        await asyncio.sleep(0.05)
        assert request.transport is not None
        request.transport.abort()
        return response

    async with running(Router(answer=cut)) as activator:
        with pytest.raises(aiohttp.ClientPayloadError):
            await activator.post()


async def test_who_leaves_is_not_generated_for_any_more() -> None:
    begun, ended = asyncio.Event(), asyncio.Event()

    async def endless(request: web.Request) -> web.StreamResponse:
        begun.set()
        try:
            await asyncio.sleep(60.0)
        finally:
            ended.set()
        return web.Response()

    async with running(Router(answer=endless)) as activator:
        leaving = asyncio.create_task(activator.post())
        await begun.wait()
        leaving.cancel()
        async with asyncio.timeout(5.0):
            await ended.wait()


async def test_a_packed_body_passes_packed_and_no_header_is_added_or_left_that_is_of_one_connection() -> None:
    body = gzip.compress(b'{"prompt": "hi"}')
    async with running(Router()) as activator:
        host, port = activator.url.removeprefix("http://").split(":")
        reader, writer = await asyncio.open_connection(host, int(port))
        head = f"POST {PATH} HTTP/1.1\r\nHost: x\r\nContent-Length: {len(body)}\r\n"
        more = f"Content-Encoding: gzip\r\nConnection: close, X-Hop\r\nX-Hop: 1\r\nX-Long: {'x' * 20000}\r\n"
        writer.write(f"{head}{more}\r\n".encode() + body)
        assert (await reader.read()).split()[1] == b"200"
        writer.close()
    ((_, _, seen, got),) = activator.router.seen
    assert got == body
    assert seen["content-encoding"] == "gzip"
    assert set(seen) == {"host", "content-length", "content-encoding", "x-long"}


async def test_an_answer_that_cannot_be_read_is_a_bad_gateway() -> None:
    async def odd(request: web.Request) -> web.StreamResponse:
        assert request.transport is not None
        request.transport.write(b"HTTP/1.1 banana\r\n\r\n")
        await asyncio.sleep(0.1)
        return web.Response()

    async with running(Router(answer=odd)) as activator:
        status, text = await activator.post()
        assert (status, json.loads(text)["error"]["code"]) == (502, "bad_answer")


async def test_a_body_takes_memory_before_it_has_come_and_does_not_take_for_ever(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(proxy_module, "READ_TIMEOUT_SECONDS", 2.0)
    async with running(Router()) as activator:
        host, port = activator.url.removeprefix("http://").split(":")
        reader, writer = await asyncio.open_connection(host, int(port))
        writer.write(f"POST {PATH} HTTP/1.1\r\nHost: x\r\nContent-Length: 600\r\n\r\n".encode())
        await asyncio.sleep(0.1)
        assert (await activator.post(data=b"x" * 600))[0] == HTTPStatus.SERVICE_UNAVAILABLE
        assert (await reader.readline()).split()[1] == b"408"
        writer.close()
        assert (await activator.post(data=b"x" * 600))[0] == 200


@pytest.mark.parametrize(("status", "counts"), [(200, True), (400, True), (401, False), (404, False)])
async def test_who_is_refused_keeps_no_replica(status: int, counts: bool) -> None:
    async def answer(_: web.Request) -> web.StreamResponse:
        return web.Response(status=status)

    async with running(Router(answer=answer)) as activator:
        await asyncio.sleep(1.0)
        await activator.post()
        traffic = await activator.traffic()
        assert (traffic.idle_seconds < 1.0, traffic.held_seconds) == (counts, None)


async def test_one_that_leaves_asks_clients_to_connect_anew_and_is_not_ready() -> None:
    async with running(Router()) as activator:
        async with activator.client.get(f"{activator.admin}/ready") as answer:
            assert answer.status == 200
        activator.proxy.is_leaving = True
        async with activator.client.get(f"{activator.admin}/ready") as answer:
            assert answer.status == 503
        async with activator.client.post(activator.url + PATH, json={}) as answer:
            assert (answer.status, answer.headers["Connection"]) == (200, "close")


async def test_it_counts_for_prometheus() -> None:
    async with running(Router(has_replica=False)) as activator:

        async def page() -> dict[str, float]:
            async with activator.client.get(f"{activator.admin}/metrics") as answer:
                lines = (await answer.text()).splitlines()
            return {
                name: float(value)
                for name, value in (line.rsplit(" ", 1) for line in lines if line[0] != "#")
            }

        answered = 'turbo_activator_requests_total{code="200"}'
        waits, held = (
            'turbo_activator_requests_under_way{state="waiting"}',
            "turbo_activator_hold_seconds_count",
        )
        before = await page()
        waiting = asyncio.create_task(activator.post())
        await activator.held(1)
        assert (await page())[waits] == 1
        activator.router.has_replica = True
        await waiting
        after = await page()
    assert after[waits] == 0
    assert after[answered] == before.get(answered, 0) + 1
    assert after[held] == before[held] + 1
