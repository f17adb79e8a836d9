"""A reply with many logprobs is written beside the event loop, and has a bound."""

from __future__ import annotations

import asyncio
import json
import threading
from types import SimpleNamespace
from typing import Any

import httpx
import pytest
from hypothesis import given
from hypothesis import strategies as st

from turbo_dev.server_process import PATIENCE
from turbo_runtime.parsers import ParsedDelta
from turbo_runtime.server.reply import MAX_ENTRIES, Reply, format_sse, json_parts
from turbo_runtime.server.request_output import OutputDelta
from turbo_runtime.server.service import ThreadOffload

JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
)


@given(document=JSON, many=st.integers(0, 3 * MAX_ENTRIES))
def test_parts_are_the_document(document: Any, many: int) -> None:
    lists = {"long": [document] * many, "short": document}
    assert json.loads("".join(json_parts(lists))) == lists
    lazily = {"long": iter(lists["long"]), "short": document}
    assert json.loads("".join(json_parts(lazily))) == lists


def test_an_event_is_one_line_for_everybody() -> None:
    assert format_sse({"a": "\u2028\x85"}) == 'data: {"a":"\\u2028\\u0085"}\n\n'


def test_no_part_is_large() -> None:
    assert max(map(len, json_parts({"a": {"b": ["x"] * 10_000}}))) < 4 * MAX_ENTRIES + 2


@pytest.mark.parametrize("told", [True, False], ids=["logprobs", "none"])
async def test_logprobs_are_written_in_a_thread(told: bool) -> None:
    wrote: list[threading.Thread] = []

    class Outputs:
        params = SimpleNamespace(logprobs=1 if told else None, prompt_logprobs=None)
        request = SimpleNamespace(num_answers=1, params=(params,), wants_prompt_logprobs=False)

        def __enter__(self) -> None: ...
        def __exit__(self, *_: object) -> None: ...

        async def deltas(self) -> Any:
            yield OutputDelta(0, ParsedDelta(), "stop")

    class WatchedReply(Reply):
        id_prefix = object_type = event_type = ""

        def _content(self, delta: OutputDelta, *, whole: bool) -> dict[str, Any]:
            wrote.append(threading.current_thread())
            return {}

        def _opening_content(self, index: int) -> None: ...

        def _totals(self) -> dict[str, Any]:
            return {}

        def _head(self, object_type: str, choices: Any) -> dict[str, Any]:
            return {"choices": choices}

    model: Any = SimpleNamespace(tokenizer=SimpleNamespace(token_bytes=None))
    outputs: Any = Outputs()
    sent: list[Any] = []

    async def send(message: Any) -> None:
        sent.append(message)

    async def receive() -> Any:
        await asyncio.Event().wait()

    await WatchedReply(model, outputs, ThreadOffload(1))({"state": {}}, receive, send)
    (choice,) = json.loads(b"".join(message.get("body", b"") for message in sent))["choices"]
    assert choice == {"index": 0, "finish_reason": "stop", "stop_reason": None}
    assert dict(sent[0]["headers"])[b"content-type"] == b"application/json"
    assert [thread is threading.main_thread() for thread in wrote] == [not told]


def test_more_logprobs_than_are_told_at_once_are_refused(server: Any) -> None:
    body = {"model": "echo", "prompt": "ab", "n": 64, "logprobs": 20, "max_tokens": 1000}
    reply = httpx.post(f"{server.url}/v1/completions", json=body, timeout=PATIENCE)
    assert (reply.status_code, reply.json()["error"]["param"]) == (400, "logprobs")
    assert "1344000 logprobs" in reply.json()["error"]["message"]
