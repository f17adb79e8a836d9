"""A large body costs about what it takes to read it, whatever is wrong with it, and is not echoed."""

from __future__ import annotations

import contextlib
import json
import socket
import time
from typing import Any

import httpx
import pytest

from turbo_dev.server_process import PATIENCE
from turbo_runtime.contract.endpoints import MAX_BODY_BYTES
from turbo_runtime.protocol import ChatRequest, CompletionRequest, parse
from turbo_runtime.protocol.errors import ApiError
from turbo_runtime.server.admission import HeldBytes
from turbo_runtime.server.generation import BODY_SECONDS, FREE_BYTES
from turbo_runtime.server.service import BODIES_BYTES

MANY = 300_000
HELLO = {"role": "user", "content": "hello"}
CHAT: dict[str, Any] = {"model": "echo", "messages": [HELLO]}
TEXT: dict[str, Any] = {"model": "echo", "prompt": "hello"}


@pytest.mark.parametrize(
    ("param", "body"),
    [
        ("messages", {**CHAT, "messages": [1] * MANY}),
        ("messages[0]", {**CHAT, "messages": [1] * 4000}),
        ("messages", {**CHAT, "messages": [HELLO] * MANY}),
        ("messages[0].a0", {**CHAT, "messages": [{**HELLO, **{f"a{i}": 1 for i in range(MANY)}}]}),
        (
            "messages[0].tool_calls[0]",
            {**CHAT, "messages": [{"role": "assistant", "tool_calls": [1] * MANY}]},
        ),
        ("logit_bias", {**CHAT, "logit_bias": {f"a{i}": 1 for i in range(MANY)}}),
        ("metadata", {**CHAT, "metadata": {f"a{i}": 1 for i in range(MANY)}}),
        ("tools", {**CHAT, "tools": [1] * MANY}),
        ("stop", {**CHAT, "stop": [1] * MANY}),
        ("bad_words", {**CHAT, "bad_words": [1] * MANY}),
        ("stop_token_ids", {**CHAT, "stop_token_ids": ["a"] * MANY}),
        ("structured_outputs.choice[0]", {**CHAT, "structured_outputs": {"choice": [1] * MANY}}),
        ("stream_options.a0", {**CHAT, "stream": True, "stream_options": {f"a{i}": 1 for i in range(MANY)}}),
        ("prompt", {**TEXT, "prompt": ["a"] * MANY}),
        ("prompt", {**TEXT, "prompt": [[1]] * MANY}),
        ("prompt", {**TEXT, "prompt": [[1], "a"] * MANY}),
        ("stop[0]", {**TEXT, "stop": ["a" * MANY]}),
        ("bad_words[0]", {**TEXT, "bad_words": ["a" * MANY]}),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_the_first_of_many_problems_is_found_at_once(param: str, body: dict[str, Any]) -> None:
    model = ChatRequest if "messages" in body else CompletionRequest
    began = time.process_time()
    with pytest.raises(ApiError) as caught:
        parse(model, body)
    assert time.process_time() - began < 0.5
    assert (caught.value.status, caught.value.param) == (400, param)


@pytest.mark.parametrize(
    "body",
    [
        {**CHAT, "x" * MANY: 1},
        {**CHAT, "model": "x" * MANY},
        {**CHAT, "messages": [{**HELLO, "x" * MANY: 1}]},
        {**CHAT, "messages": [{"role": "user", "content": [{"type": "x" * MANY}]}]},
        {**CHAT, "messages": [{"role": "user", "content": [{"type": "text", "text": "a", "x" * MANY: 1}]}]},
        {**CHAT, "logit_bias": {"x" * MANY: 1}},
        {**CHAT, "chat_template_kwargs": {"x" * MANY: 1}},
    ],
    ids=["unknown", "model", "of a message", "type of a part", "of a part", "token", "template"],
)
def test_a_long_name_is_not_told_back(server: Any, body: dict[str, Any]) -> None:
    reply = httpx.post(f"{server.url}/v1/chat/completions", json=body, timeout=PATIENCE)
    assert reply.status_code in (400, 404)
    assert len(reply.content) < 1000
    assert "xxx..." in reply.text


def test_a_long_number_is_not_told_back(server: Any) -> None:
    body = json.dumps(CHAT)[:-1] + ', "top_p": 1' + "0" * MANY + ".0}"
    reply = httpx.post(f"{server.url}/v1/chat/completions", content=body, timeout=PATIENCE)
    assert reply.status_code == 400
    assert len(reply.content) < 1000


def asked(url: str, wanted: int, late: str, patience: float) -> httpx.Response:
    """The reply to `late`, asked for again until its status is the wanted one."""
    end = time.monotonic() + patience
    reply = httpx.post(f"{url}/v1/completions", content=late, timeout=PATIENCE)
    while reply.status_code != wanted and time.monotonic() < end:
        time.sleep(0.02)
        reply = httpx.post(f"{url}/v1/completions", content=late, timeout=PATIENCE)
    return reply


def test_many_large_bodies_are_refused_before_they_fill_the_memory(server: Any) -> None:
    """They are not admitted yet, so the limits on the queue know nothing of them."""
    address = httpx.URL(server.url)
    head = f"POST /v1/completions HTTP/1.1\r\nHost: a\r\nContent-Length: {MAX_BODY_BYTES}\r\n\r\n".encode()
    late = json.dumps({**TEXT, "prompt": "hello" * 400_000})
    refused, end = False, time.monotonic() + PATIENCE
    while not refused and time.monotonic() < end:  # on a busy machine the time of the first may be over
        with contextlib.ExitStack() as stack:
            for _ in range(BODIES_BYTES // (MAX_BODY_BYTES - FREE_BYTES)):  # all but the last byte of each
                client = stack.enter_context(socket.create_connection((address.host, address.port)))
                client.sendall(head + b" " * (MAX_BODY_BYTES - 1))
            reply = asked(server.url, 429, late, BODY_SECONDS)
            refused = reply.status_code == 429
            small = httpx.post(
                f"{server.url}/v1/completions", json={**TEXT, "max_tokens": 3}, timeout=PATIENCE
            )
    assert (reply.status_code, reply.headers["Retry-After"]) == (429, "1")
    assert "bytes of bodies" in reply.json()["error"]["message"]
    assert small.status_code == 200
    # until it knows that they have left
    reply = asked(server.url, 400, late, PATIENCE)
    assert reply.json()["error"]["code"] == "context_length_exceeded"


def test_a_tenant_with_large_bodies_leaves_the_others_room() -> None:
    bodies = HeldBytes(100)
    with bodies.account("greedy") as greedy, bodies.account("other") as other:
        greedy(100)
        other(50)  # its half, though the limit is reached
        with pytest.raises(ApiError, match="holds 150 bytes of bodies, of at most 100"):
            other(1)
        other(50)  # what it had was given back
        with pytest.raises(ApiError):
            greedy(1)
        greedy(50)
    with bodies.account("greedy") as greedy:
        greedy(100)
