"""The crowd of clients that the demo sends: what it counts, and how it ends."""

from __future__ import annotations

import json
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from turbo_dev import crowd

NUMBER = 3


class Server(ThreadingHTTPServer):
    """An OpenAI API that answers as `reply` says, once `open` is set."""

    daemon_threads = True
    reply: tuple[int, bytes]

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.asked: list[dict[str, Any]] = []
        self.open = threading.Event()
        self.open.set()
        self.answers("stop")

    def answers(self, reason: str) -> None:
        self.reply = 200, json.dumps({"choices": [{"finish_reason": reason}]}).encode()


class _Handler(BaseHTTPRequestHandler):
    server: Server

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["content-length"])))
        self.server.asked.append({"path": self.path, **body})
        self.server.open.wait()
        status, text = self.server.reply
        self.send_response(status)
        self.end_headers()
        self.wfile.write(text)

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def server() -> Iterator[Server]:
    with Server() as one:
        threading.Thread(target=one.serve_forever, daemon=True).start()
        yield one
        one.open.set()
        one.shutdown()


@pytest.fixture
def clients(server: Server) -> Iterator[subprocess.Popen[str]]:
    """As the pod runs it: from its source, on a bare interpreter."""
    source = Path(crowd.__file__).read_text(encoding="utf-8")
    url = f"http://127.0.0.1:{server.server_port}/v1"
    command = [sys.executable, "-I", "-S", "-c", source, url, "smollm2", str(NUMBER)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        yield process
        process.kill()


def tallies(process: subprocess.Popen[str]) -> Iterator[dict[str, Any]]:
    assert process.stdout is not None
    for line in process.stdout:
        yield json.loads(line)


def test_clients_ask_again_and_again_and_whole_answers_are_counted(
    server: Server, clients: subprocess.Popen[str]
) -> None:
    seen = next(tally for tally in tallies(clients) if tally["answered"] > 2 * NUMBER)
    assert (seen["failed"], seen["error"], seen["done"]) == (0, None, False)
    asked = server.asked[0]
    assert (asked["path"], asked["model"]) == ("/v1/chat/completions", "smollm2")
    assert asked["messages"][0]["role"] == "user"


@pytest.mark.parametrize(
    ("reply", "error"),
    [
        ((503, b"loading"), "status 503: loading"),
        ((200, b"no json"), "JSONDecodeError"),
        ((200, b"{}"), "KeyError"),
        ((200, b'{"choices": [{"finish_reason": null}]}'), "the answer ended with None"),
    ],
)
def test_whatever_is_no_whole_answer_is_a_failure_with_its_reason(
    server: Server, clients: subprocess.Popen[str], reply: tuple[int, bytes], error: str
) -> None:
    server.reply = reply
    assert any(error in (tally["error"] or "") and tally["failed"] for tally in tallies(clients))


def test_told_to_stop_they_wait_for_the_answers_under_way(
    server: Server, clients: subprocess.Popen[str]
) -> None:
    told = tallies(clients)
    next(tally for tally in told if tally["answered"])
    server.open.clear()
    while next(told)["answered"] != len(server.asked) - NUMBER:
        pass
    clients.terminate()
    next(told)
    server.open.set()
    last = list(told)[-1]
    assert last == {"answered": len(server.asked), "failed": 0, "error": None, "done": True}
    assert clients.wait() == 0
