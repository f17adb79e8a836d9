"""How a request ended, as its client saw it."""

from __future__ import annotations

import json
from typing import Any

import httpx

COMPLETIONS = "/v1/completions"
SERVED_NAME = "crowded"  # what the server is to call its model


def body(tokens: int, **rest: Any) -> dict[str, Any]:
    """A request for an answer of exactly so many tokens, in the fields that the server documents."""
    return {
        "model": SERVED_NAME,
        "prompt": "The kettle is on the table, and the cup",
        "max_tokens": tokens,
        "ignore_eos": True,
        "temperature": 1.0,
        **rest,
    }


async def completed(client: httpx.AsyncClient, wanted: dict[str, Any]) -> str:
    """`whole` for an answer of all tokens asked for, `told` for an error that says so (the status, or the
    last event of a stream), else what went wrong.
    """
    try:
        if wanted.get("stream"):
            return await _streamed(client, wanted)
        reply = await client.post(COMPLETIONS, json=wanted)
    except httpx.HTTPError as error:
        return f"lost: {type(error).__name__}"
    document = reply.json()
    if reply.status_code == 200:
        return "whole" if document["usage"]["completion_tokens"] == wanted["max_tokens"] else "cut"
    return "told" if document["error"]["message"] else f"a bare {reply.status_code}"


async def _streamed(client: httpx.AsyncClient, wanted: dict[str, Any]) -> str:
    asked = {**wanted, "stream_options": {"include_usage": True}}
    events: list[dict[str, Any]] = []
    async with client.stream("POST", COMPLETIONS, json=asked) as reply:
        if reply.status_code != 200:
            document = json.loads(await reply.aread())
            return "told" if document["error"]["message"] else f"a bare {reply.status_code}"
        async for line in reply.aiter_lines():
            if line == "data: [DONE]":
                return "whole" if _tokens(events) == wanted["max_tokens"] else "cut"
            if line.startswith("data: "):
                events.append(json.loads(line.removeprefix("data: ")))
    return "told" if events and "error" in events[-1] else "cut"


def _tokens(events: list[dict[str, Any]]) -> int:
    return sum(event["usage"]["completion_tokens"] for event in events if event.get("usage"))
