"""The file that a pod of vLLM drains by, run as it runs there: by a server of ASGI, and as a program."""

from __future__ import annotations

import asyncio
import http.client
import os
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
import uvicorn

from turbo_operator.pod_scripts import turbo_vllm


async def answering(_: Any, receive: Any, send: Any) -> None:
    """An application that says yes."""
    await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"3")]})
    await send({"type": "http.response.body", "body": b"yes"})


@pytest.fixture
def draining(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    mark = tmp_path / "draining"
    monkeypatch.setattr(turbo_vllm, "DRAINING", mark)
    return mark


@pytest.fixture
def port(draining: Path) -> Iterator[int]:
    """Where a server with the middleware listens."""
    config = uvicorn.Config(turbo_vllm.TurboMiddleware(answering), port=0, lifespan="off", log_level="error")
    server = uvicorn.Server(config)
    thread = threading.Thread(target=lambda: asyncio.run(server.serve()), daemon=True)
    thread.start()
    while not server.started:
        time.sleep(0.01)
    yield server.servers[0].sockets[0].getsockname()[1]
    server.should_exit = True
    thread.join(10)


def test_a_client_keeps_its_connection_until_the_pod_drains(port: int, draining: Path) -> None:
    client = http.client.HTTPConnection("127.0.0.1", port, timeout=10)
    for expected in (None, None, "close"):
        if expected:
            draining.touch()
        client.request("GET", "/")
        answer = client.getresponse()
        assert answer.read() == b"yes"
        assert answer.getheader("connection") == expected
    assert client.sock is None, "and the next request goes where the load balancer says"


def test_a_server_that_starts_anew_in_its_pod_does_not_drain(draining: Path) -> None:
    draining.touch()
    turbo_vllm.TurboMiddleware(answering)
    assert not draining.exists()


class Page(BaseHTTPRequestHandler):
    """A page of metrics on which requests run until a time."""

    busy_until = 0.0
    failures = 0  # that come first

    def do_GET(self) -> None:
        if Page.failures:
            Page.failures -= 1
            self.send_error(503)
            return
        running = float(time.monotonic() < self.busy_until)
        page = f'# TYPE a gauge\nvllm:num_requests_running{{engine="0"}} {running}\n'
        page += 'vllm:num_requests_waiting{engine="0"} 0.0\nvllm:num_requests_waiting_by_reason{a="b"} 9.0\n'
        self.send_response(200)
        self.end_headers()
        self.wfile.write(page.encode())

    def log_message(self, *_: Any) -> None:
        """Say nothing."""


@pytest.fixture
def metrics() -> Iterator[str]:
    server = ThreadingHTTPServer(("127.0.0.1", 0), Page)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}/metrics"
    server.shutdown()
    server.server_close()


def test_the_hook_waits_for_what_is_under_way_and_no_longer(metrics: str) -> None:
    start = time.monotonic()
    Page.busy_until = start + 3.0
    program = [sys.executable, turbo_vllm.__file__, metrics, "0.5", "60"]
    subprocess.run(program, check=True, timeout=30)
    assert time.monotonic() - start >= 3.0
    turbo_vllm.DRAINING.unlink()


def test_a_page_that_cannot_be_read_or_says_nothing_is_no_sign_of_rest(
    metrics: str, draining: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:1")  # of the user's, to reach a hub
    Page.busy_until, Page.failures = time.monotonic() + 1.0, 3
    start = time.monotonic()
    turbo_vllm.drain(metrics, 0.0, 30.0)
    assert 2.5 <= time.monotonic() - start < 20.0
    turbo_vllm.drain(metrics.replace("metrics", "other"), 0.0, 0.1)
    turbo_vllm.drain("http://127.0.0.1:1/metrics", 0.0, 30.0)  # where nothing listens any more


def test_a_comment_is_no_key_and_a_short_one_neither(tmp_path: Path) -> None:
    path = tmp_path / "keys"
    path.write_text("# team keys, rotated\r\n\r\nalice:correct-horse\r\nbattery-staple\n")
    assert len(turbo_vllm.read_keys(path)) == 2
    for text in ("", "# nothing\n", "alice:short\n", "alice:two words here\n"):
        path.write_text(text)
        with pytest.raises(ValueError, match="key"):
            turbo_vllm.read_keys(path)


def test_keys_are_asked_for_and_may_change_while_it_runs(
    tmp_path: Path, draining: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "keys"
    path.write_text("alice:correct-horse\n")
    monkeypatch.setenv(turbo_vllm.KEYS_VARIABLE, str(path))
    server = turbo_vllm.TurboMiddleware(answering)

    def ask(key: str, at: str = "/v1/models") -> int:
        """The status of an answer."""
        sent: list[Any] = []

        async def send(message: Any) -> None:
            sent.append(message)

        headers = [(b"authorization", f"Bearer {key}".encode())] if key else []
        scope = {"type": "http", "path": at, "headers": headers}
        asyncio.run(server(scope, None, send))  # type: ignore[arg-type]
        return int(sent[0]["status"])

    given = ("correct-horse", "alice:correct-horse", "wrong-horse", "")
    assert [ask(key) for key in given] == [200, 401, 401, 401]
    assert ask("", "/health") == ask("", "/metrics") == 200
    path.write_text("bob:battery-staple\n")
    os.utime(path, ns=(1, 1))
    assert [ask("correct-horse"), ask("battery-staple")] == [401, 200]
    path.write_text("# none any more\n")
    os.utime(path, ns=(2, 2))
    assert ask("battery-staple") == 200, "keys that cannot be read leave those before in force"


def test_the_hook_ends_at_its_time_whatever_is_under_way(metrics: str, draining: Path) -> None:
    Page.busy_until = time.monotonic() + 60.0
    turbo_vllm.drain(metrics, 0.0, 1.0)
    assert draining.exists()
