"""Clients that connect, cancel, send garbage and bodies that are too long, and at times ask.

Every status that a client was sent is counted. A client that never hears anything within its patience counts
as `silent`.
"""

from __future__ import annotations

import asyncio
import random
from collections import Counter
from collections.abc import Awaitable, Callable
from typing import Any

import httpx

from crowd.outcomes import COMPLETIONS, SERVED_NAME, body

CLIENTS, ACTIONS = 200, 10
PATIENCE_SECONDS = 300.0
TOO_LONG = 5 << 20  # bytes, above the server's limit
_WRONG_FIELDS: tuple[dict[str, Any], ...] = (
    {"prompt": 3},
    {"prompt": [[]]},
    {"prompt": [-1]},
    {"prompt": [10**9]},
    {"prompt": "x", "max_tokens": -1},
    {"prompt": "x", "max_tokens": "many"},
    {"prompt": "x", "temperature": 1e308},
    {"prompt": "x", "top_p": None, "seed": 2**70},
    {"prompt": "x", "n": 10**6},
    {"prompt": "x", "logit_bias": {"x": "y"}},
    {"prompt": "x", "stop": ["a"] * 99},
    {"prompt": "word " * 9000},
    {"prompt": "x", "structured_outputs": {"regex": "("}},
    {"prompt": "x", "response_format": {"type": "json_schema", "json_schema": {"schema": {"type": 7}}}},
    {"prompt": "x", "surprise": True},
)
# those that name the model get as far as the field that is wrong
_WRONG: tuple[Any, ...] = (
    {},
    [],
    "text",
    {"prompt": "x"},
    {"model": "another", "prompt": "x"},
    *({"model": SERVED_NAME, **fields} for fields in _WRONG_FIELDS),
)
_GARBAGE = (
    b"\x00\xff\xfe\r\n\r\n",
    b"GET\r\n\r\n",
    b"POST /v1/completions HTTP/1.1\r\nHost: x\r\nContent-Length: 20\r\n\r\n{",
    b"POST /v1/completions HTTP/1.1\r\nHost: x\r\nContent-Length: -3\r\n\r\n",
    b"POST /v1/completions HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n",
    b"GET / HTTP/9.9\r\n" + b"a: b\r\n" * 2000 + b"\r\n",
)


async def unruly(url: str, clients: int = CLIENTS, seed: int = 1) -> Counter[str]:
    """What all clients together were sent, by status; and how many went away by themselves."""
    counts: Counter[str] = Counter()
    limits = httpx.Limits(max_connections=None, max_keepalive_connections=50)
    async with httpx.AsyncClient(base_url=url, timeout=PATIENCE_SECONDS, limits=limits) as client:
        await asyncio.gather(
            *(_client(client, url, random.Random(f"{seed}-{n}"), counts) for n in range(clients))
        )
    return counts


async def _client(client: httpx.AsyncClient, url: str, chance: random.Random, counts: Counter[str]) -> None:
    actions: tuple[Callable[[], Awaitable[str]], ...] = (
        lambda: _ask(client, chance),
        lambda: _leave_stream(client, chance),
        lambda: _leave_early(client, chance),
        lambda: _wrong(client, chance),
        lambda: _text(client, chance),
        lambda: _garbage(url, chance),
        lambda: _too_long(client),
    )
    for _ in range(ACTIONS):
        try:
            counts[await chance.choice(actions)()] += 1
        except httpx.TimeoutException:
            counts["silent"] += 1
        except httpx.HTTPError:  # the server closed: after a body that it will not read, say
            counts["closed"] += 1


async def _ask(client: httpx.AsyncClient, chance: random.Random) -> str:
    return str((await client.post(COMPLETIONS, json=body(chance.randint(1, 12)))).status_code)


async def _leave_stream(client: httpx.AsyncClient, chance: random.Random) -> str:
    wanted = body(100, stream=True, n=chance.randint(1, 2))
    async with client.stream("POST", COMPLETIONS, json=wanted) as reply:
        if reply.status_code == 200:
            async for _ in reply.aiter_lines():
                if chance.random() < 0.3:
                    return "left"
    return str(reply.status_code)


async def _leave_early(client: httpx.AsyncClient, chance: random.Random) -> str:
    try:
        reply = await client.post(COMPLETIONS, json=body(100), timeout=chance.uniform(0.01, 1.0))
    except httpx.TimeoutException:
        return "left"
    return str(reply.status_code)


async def _wrong(client: httpx.AsyncClient, chance: random.Random) -> str:
    return str((await client.post(COMPLETIONS, json=chance.choice(_WRONG))).status_code)


async def _text(client: httpx.AsyncClient, chance: random.Random) -> str:
    content = chance.choice([b"{", b"", b"[" * 50_000, b'{"prompt": NaN}', chance.randbytes(100)])
    path = chance.choice([COMPLETIONS, "/v1/chat/completions", "/v1/nothing", "/metrics"])
    return str((await client.post(path, content=content)).status_code)


async def _too_long(client: httpx.AsyncClient) -> str:
    reply = await client.post(COMPLETIONS, content=b'{"prompt": "' + b"a" * TOO_LONG + b'"}')
    return str(reply.status_code)


async def _garbage(url: str, chance: random.Random) -> str:
    address = httpx.URL(url)
    reader, writer = await asyncio.open_connection(address.host, address.port)
    try:
        writer.write(chance.choice(_GARBAGE))
        await writer.drain()
        line = await asyncio.wait_for(reader.readline(), chance.uniform(0.1, 2.0))
    except TimeoutError:
        return "left"
    except ConnectionError:
        return "closed"
    finally:
        writer.close()
    return line.split()[1].decode() if line else "closed"
