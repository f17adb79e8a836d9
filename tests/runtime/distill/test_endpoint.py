"""Answers of another server: its tokens where it tells them, else its text; a busy one is waited for."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest

from turbo_runtime.client.client import Server
from turbo_runtime.distill import target
from turbo_runtime.distill.data.responses import TokenizedPrompt
from turbo_runtime.distill.recipe import DistillError, TransientError
from turbo_runtime.distill.target import Endpoint
from turbo_runtime.messages import SamplingParams

ASKED = [
    TokenizedPrompt("training", "d", (first, 2, 3), choice, 0.7 * choice)
    for first in (7, 9)
    for choice in (0, 1)
]
LAW = SamplingParams(seed=5, max_tokens=8)
END = {"choices": [{"text": "", "finish_reason": "stop"}]}
Answer = Callable[[dict[str, Any]], tuple[int, list[dict[str, Any]] | dict[str, Any]]]


class Scripted(ThreadingHTTPServer):
    """Answers `POST /v1/completions` as told, and keeps what it was asked."""

    def __init__(self, answer: Answer) -> None:
        self.answer, self.bodies = answer, list[dict[str, Any]]()
        super().__init__(("127.0.0.1", 0), _Handler)
        threading.Thread(target=self.serve_forever, daemon=True).start()


class _Handler(BaseHTTPRequestHandler):
    server: Scripted

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        self.server.bodies.append(body)
        status, told = self.server.answer(body)
        self.send_response(status)
        self.end_headers()
        if isinstance(told, dict):
            self.wfile.write(json.dumps(told).encode())
        else:
            for event in told:
                self.wfile.write(f"data: {json.dumps(event)}\n\n".encode())
            self.wfile.write(b"data: [DONE]\n\n")

    def log_message(self, format: str, *args: Any) -> None:  # noqa: A002
        pass


@pytest.fixture
def serve() -> Iterator[Callable[[Answer], Scripted]]:
    started: list[Scripted] = []

    def start(answer: Answer) -> Scripted:
        started.append(Scripted(answer))
        return started[-1]

    yield start
    for server in started:
        server.shutdown()
        server.server_close()


def ask(server: Scripted) -> list[tuple[int, ...]]:
    at = Server.at(f"http://127.0.0.1:{server.server_address[1]}")
    return Endpoint(at, "m", lambda text: tuple(text.encode())).answer(ASKED, LAW)


def test_tokens_that_are_told_are_taken_as_they_are(serve: Callable[[Answer], Scripted]) -> None:
    def answer(body: dict[str, Any]) -> tuple[int, list[dict[str, Any]]]:
        said = [body["prompt"][0], body["seed"], int(body["temperature"] * 10)]
        return 200, [*({"choices": [{"text": "x", "token_ids": [each]}]} for each in said), END]

    server = serve(answer)
    assert ask(server) == [(7, 5, 0), (7, 6, 7), (9, 5, 0), (9, 6, 7)]
    assert all(body["return_token_ids"] and body["max_tokens"] == 8 for body in server.bodies)
    # said, since a server fills in what it is not told from the model's own settings
    assert all(
        (body["repetition_penalty"], body["min_p"], body["top_k"]) == (1.0, 0.0, 0) for body in server.bodies
    )


def test_of_a_server_that_tells_no_tokens_the_text_is_taken(serve: Callable[[Answer], Scripted]) -> None:
    def answer(body: dict[str, Any]) -> tuple[int, Any]:
        if "return_token_ids" in body:
            return 400, {"error": {"message": "There is no parameter 'return_token_ids'."}}
        return 200, [{"choices": [{"text": "ab"}]}, {"choices": [{"text": "c"}]}, END, {"choices": []}]

    assert ask(serve(answer)) == [(97, 98, 99)] * 4


def test_a_busy_server_is_asked_again(
    serve: Callable[[Answer], Scripted], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(target, "_PAUSES", (0.01, 0.01, 0.01, 0.01))
    lock, refused = threading.Lock(), [429, 503, 429]

    def answer(_: dict[str, Any]) -> tuple[int, Any]:
        with lock:
            status = refused.pop() if refused else 200
        told = [{"choices": [{"text": "a"}]}, END]
        return status, told if status == 200 else {"error": {"message": "busy"}}

    assert ask(serve(answer)) == [(97,)] * 4


@pytest.mark.parametrize("status", [503, 200])
def test_a_server_that_stays_away_or_breaks_answers_off_may_come_back(
    serve: Callable[[Answer], Scripted], monkeypatch: pytest.MonkeyPatch, status: int
) -> None:
    monkeypatch.setattr(target, "_PAUSES", (0.01,))
    cut: list[dict[str, Any]] = [{"choices": [{"text": "a", "finish_reason": "abort"}]}]
    server = serve(lambda _: (status, cut if status == 200 else {"error": {"message": "Loading."}}))
    with pytest.raises(TransientError, match=r"Loading\.|its finish_reason is abort"):
        ask(server)


def test_a_refusal_is_told_in_the_servers_own_words(serve: Callable[[Answer], Scripted]) -> None:
    server = serve(lambda _: (400, {"error": {"message": "The prompt is too long."}}))
    with pytest.raises(DistillError, match=r"a prompt is not answered: The prompt is too long\.") as refused:
        ask(server)
    assert not isinstance(refused.value, TransientError)
    assert len(server.bodies) <= len(ASKED)
