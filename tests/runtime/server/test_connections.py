"""Connections that dawdle are dropped, old ones are asked to end, and a full queue says when to come back."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import time
from collections.abc import Iterator
from typing import Any

import httpx
import pytest
import uvicorn
from fastapi.responses import Response
from hypothesis import given
from hypothesis import strategies as st

from turbo_dev.server_process import PATIENCE
from turbo_runtime.server import connections
from turbo_runtime.server.admission import MAX_RETRY_SECONDS, estimate_seconds
from turbo_runtime.server.connections import (
    build_protocol,
    limit_connections,
    run_until_disconnect,
    send_whole,
)


async def hello(scope: Any, receive: Any, send: Any) -> None:
    await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"2")]})
    await send({"type": "http.response.body", "body": b"hi"})


async def serve(http: Any, app: Any = hello) -> tuple[uvicorn.Server, asyncio.Task[None], int]:
    listener = socket.create_server(("127.0.0.1", 0))
    server = uvicorn.Server(uvicorn.Config(app, http=http, log_level="error", lifespan="off"))
    server.capture_signals = _no_signals  # type: ignore[method-assign]
    return server, asyncio.create_task(server.serve([listener])), listener.getsockname()[1]


class _no_signals:  # noqa: N801
    def __enter__(self) -> None: ...
    def __exit__(self, *_: object) -> None: ...


@pytest.mark.parametrize(
    "sent",
    [
        b"",
        b"GET / HTTP/1.1\r\nHost: a\r\nX-Slow: ",
        b"GET / HTTP/1.1\r\nHost: a\r\n\r\nGET / HTTP/1.1\r\nX: ",
    ],
    ids=["nothing", "half a header", "half a header of the second request"],
)
async def test_headers_that_do_not_come_end_the_connection(
    monkeypatch: pytest.MonkeyPatch, sent: bytes
) -> None:
    monkeypatch.setattr(connections, "HEADER_SECONDS", 0.2)
    server, serving, port = await serve(build_protocol(0))
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write(sent)
    said = await asyncio.wait_for(reader.read(), 10)
    assert said.count(b"200 OK") == sent.count(b"\r\n\r\n")
    writer.close()
    server.should_exit = True
    await serving


async def test_a_connection_that_waits_between_requests_is_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(connections, "HEADER_SECONDS", 0.1)
    server, serving, port = await serve(build_protocol(0))
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    for _ in range(2):
        writer.write(b"GET / HTTP/1.1\r\nHost: a\r\n\r\n")
        assert b"hi" in await asyncio.wait_for(reader.readuntil(b"hi"), 10)
        await asyncio.sleep(0.3)
    writer.close()
    server.should_exit = True
    await serving


async def test_what_a_client_does_not_read_is_given_up_with_its_connection(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(connections, "STALL_SECONDS", 0.2)
    given_up = asyncio.Event()

    async def endless(scope: Any, receive: Any, send: Any) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": []})
        part = {"type": "http.response.body", "body": b"x" * 65536, "more_body": True}

        async def write() -> None:
            while True:
                await send(part)
                await asyncio.sleep(0)

        await run_until_disconnect(receive, write())
        given_up.set()

    server, serving, port = await serve(build_protocol(0), endless)
    _, writer = await asyncio.open_connection("127.0.0.1", port, limit=1)
    writer.write(b"GET / HTTP/1.1\r\nHost: a\r\n\r\n")
    await asyncio.wait_for(given_up.wait(), 20)
    writer.close()
    server.should_exit = True
    await asyncio.wait_for(serving, 20)  # nothing is left that it would wait for


async def test_a_whole_reply_that_a_client_does_not_read_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(connections, "STALL_SECONDS", 0.2)
    given_up = asyncio.Event()

    async def whole(scope: Any, receive: Any, send: Any) -> None:
        if await run_until_disconnect(receive, send_whole(send, Response(b"x" * (32 << 20)))) is None:
            given_up.set()

    server, serving, port = await serve(build_protocol(0), whole)
    with silent_client(port):
        await asyncio.wait_for(given_up.wait(), 20)
        server.should_exit = True
        await asyncio.wait_for(serving, 20)


@pytest.mark.parametrize("header", [[], [(b"connection", b"close")]], ids=["kept", "closed"])
async def test_a_connection_whose_last_reply_is_not_read_is_dropped(
    monkeypatch: pytest.MonkeyPatch, header: Any
) -> None:
    monkeypatch.setattr(connections, "STALL_SECONDS", 0.2)
    answered = asyncio.Event()

    async def at_once(scope: Any, receive: Any, send: Any) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": header})
        await send({"type": "http.response.body", "body": b"x" * (32 << 20)})
        answered.set()

    server, serving, port = await serve(build_protocol(0), at_once)
    with silent_client(port):
        await asyncio.wait_for(answered.wait(), 20)
        assert server.server_state.connections
        for _ in range(1000):
            if not server.server_state.connections:
                break
            await asyncio.sleep(0.02)
        assert not server.server_state.connections
    server.should_exit = True
    await asyncio.wait_for(serving, 20)


async def test_a_slow_reader_gets_all_of_a_whole_reply(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(connections, "STALL_SECONDS", 1.0)
    size = 16 << 20

    async def whole(scope: Any, receive: Any, send: Any) -> None:
        await send_whole(send, Response(b"x" * size))

    server, serving, port = await serve(build_protocol(0), whole)
    reader, writer = await asyncio.open_connection("127.0.0.1", port, limit=1 << 20)
    writer.write(b"GET / HTTP/1.1\r\nHost: a\r\n\r\n")
    head = await reader.readuntil(b"\r\n\r\n")
    assert f"content-length: {size}".encode() in head
    for _ in range(16):
        await asyncio.sleep(0.15)  # together longer than a client may take nothing
        await reader.readexactly(size // 16)
    writer.close()
    server.should_exit = True
    await asyncio.wait_for(serving, 20)


@contextlib.contextmanager
def silent_client(port: int) -> Iterator[None]:
    """Asks, and reads nothing."""
    with socket.socket() as client:
        client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        client.connect(("127.0.0.1", port))
        client.sendall(b"GET / HTTP/1.1\r\nHost: a\r\n\r\n")
        yield


async def test_beyond_the_limit_idle_connections_go_and_only_probes_get_through(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(connections, "SPARE_CONNECTIONS", 1)
    done = asyncio.Event()

    async def slow(scope: Any, receive: Any, send: Any) -> None:
        if scope["path"] in ("/slow", "/load"):
            await done.wait()
        await hello(scope, receive, send)

    async def ask(path: str) -> asyncio.StreamReader:
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        writers.append(writer)
        writer.write(f"GET {path} HTTP/1.1\r\nHost: a\r\n\r\n".encode() if path else b"")
        await asyncio.sleep(0.05)
        return reader

    writers: list[asyncio.StreamWriter] = []
    server, serving, port = await serve(build_protocol(0, 2), limit_connections(slow, lambda: False))
    idle, silent = await ask("/"), await ask("")
    first = await ask("/slow")
    assert (await idle.read()).endswith(b"hi")  # answered, and closed for the new one
    second = await ask("/slow")
    assert await silent.read() == b""
    probe = await ask("/ready")
    assert b"200 OK" in (said := await probe.read())
    assert b"connection: close" in said
    refused = await ask("/v1/completions")
    assert b"503 Service Unavailable" in (said := await refused.read())
    assert b"connection: close" in said
    assert b"All connections of this server are in use" in said
    await ask("/load")  # keeps the spare one
    with contextlib.suppress(ConnectionError):
        assert await (await ask("/ready")).read() == b""
    done.set()
    for reader in (first, second):
        assert b"hi" in await reader.readuntil(b"hi")
    for writer in writers:
        writer.close()
    server.should_exit = True
    await asyncio.wait_for(serving, 20)


def test_an_old_connection_is_asked_to_end_with_its_next_answer(launch: Any) -> None:
    server = launch("--connection-seconds=0.5")
    with httpx.Client() as client:
        assert "connection" not in client.get(f"{server.url}/health").headers
        time.sleep(0.7)  # the jitter is a fifth
        assert client.get(f"{server.url}/health").headers["connection"] == "close"
        assert "connection" not in client.get(f"{server.url}/health").headers  # a new one


def test_a_request_that_takes_too_long_is_ended_and_its_answers_are_cancelled(launch: Any) -> None:
    server = launch("--request-timeout-seconds=0.5")
    body = {"model": "echo", "prompt": "hold", "max_tokens": 900}
    reply = httpx.post(f"{server.url}/v1/completions", json=body, timeout=PATIENCE)
    assert (reply.status_code, reply.json()["error"]["code"]) == (408, "request_timeout")
    assert reply.headers["x-should-retry"] == "false"
    streamed = httpx.post(f"{server.url}/v1/completions", json={**body, "stream": True}, timeout=PATIENCE)
    assert "request_timeout" in streamed.text.split("\n\n")[-2]
    assert "Abort(" in server.engine_log.read_text()
    load = httpx.get(f"{server.url}/load").json()
    assert load["running_requests"] + load["waiting_requests"] == 0


@given(gap=st.floats(0.01, 10), count=st.integers(2, 64), places=st.integers(1, 50))
def test_a_client_comes_back_when_places_should_be_free(gap: float, count: int, places: int) -> None:
    departures, now = [number * gap for number in range(count)], count * gap
    wait = estimate_seconds(departures, places, now)
    assert 1 <= wait <= MAX_RETRY_SECONDS
    if 1 < places * gap < MAX_RETRY_SECONDS - 1:
        assert places * gap - 1e-6 <= wait < places * gap + 1.001
    assert estimate_seconds(departures, places, now + 100) >= wait  # nothing has left since


def test_nothing_known_is_a_second() -> None:
    assert estimate_seconds([], 5, 100.0) == 1
