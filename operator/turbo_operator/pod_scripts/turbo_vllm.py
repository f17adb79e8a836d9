"""What Turbo adds to a pod of vLLM, as a file of a ConfigMap: draining without a failed request, and API keys
that may change while it runs.

A client that keeps its connection goes on to send requests to a pod that no load balancer names any more, and
vLLM fails each of them once it was told to end. So the pod's preStop hook runs this file: from then on every
answer closes its connection, and the hook returns when nothing is left to answer. A worker of a replica on
several nodes waits for its leader so. Of the standard library
alone: it runs in an image that is not Turbo's.
"""

from __future__ import annotations

import hashlib
import http.client
import json
import os
import re
import socket
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Awaitable, Callable, MutableMapping
from pathlib import Path
from typing import Any

Message = MutableMapping[str, Any]
Send = Callable[[Message], Awaitable[None]]

DRAINING = Path("/tmp/turbo-draining")  # noqa: S108  an emptyDir of the pod's own
KEYS_VARIABLE = "TURBO_API_KEY_FILE"  # path of the keys; unset: no key is required
MIN_KEY_LENGTH = 8
OPEN_PATHS = frozenset({"/health", "/ping", "/metrics", "/version"})
_BUSY = re.compile(r"^vllm:num_requests_(?:running|waiting)\{.*\} ([0-9.e+]+)$", re.MULTILINE)
_QUIET_SECONDS = 2.0  # for so long nothing must be under way: a connection may bring one request more
_READ_SECONDS = 10.0


def read_keys(path: Path) -> frozenset[bytes]:
    """Return the digests of a file's keys. The format is that of Turbo's server. Raises ValueError."""
    digests = set()
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), start=1):
        text = line.strip()
        if not text or text.startswith("#"):
            continue
        key = text.split(":", 1)[-1]
        if len(key) < MIN_KEY_LENGTH or any(letter.isspace() for letter in key):
            raise ValueError(f"line {number} of {path} holds no key of {MIN_KEY_LENGTH} characters or more")
        digests.add(hashlib.sha256(key.encode()).digest())
    if not digests:
        raise ValueError(f"{path} holds no key: write one a line, as name:key")
    return frozenset(digests)


class TurboMiddleware:
    """ASGI middleware, by `vllm serve --middleware`: requires API keys, closes connections while draining."""

    def __init__(self, app: Callable[..., Awaitable[None]]) -> None:
        DRAINING.unlink(missing_ok=True)  # of a server that was restarted in this pod
        self._app = app
        name = os.environ.get(KEYS_VARIABLE)
        self._path = Path(name) if name else None
        self._version: object = None
        self._keys: frozenset[bytes] = frozenset()
        if self._path is not None:
            self._keys, self._version = read_keys(self._path), self._path.stat().st_mtime_ns

    async def __call__(self, scope: Message, receive: Callable[[], Awaitable[Message]], send: Send) -> None:
        """Pass a request on, and its answer back."""

        async def close(message: Message) -> None:
            if message["type"] == "http.response.start" and DRAINING.exists():  # noqa: ASYNC240
                message = {**message, "headers": [*message.get("headers", ()), (b"connection", b"close")]}
            await send(message)

        answer = close if scope["type"] == "http" else send
        if scope["type"] == "lifespan" or self._may_pass(scope):
            await self._app(scope, receive, answer)
        elif scope["type"] == "http":
            await _refuse(answer)
        # a web socket that is not accepted is closed by the server

    def _may_pass(self, scope: Message) -> bool:
        if self._path is None or scope["path"] in OPEN_PATHS:
            return True
        self._read_again(self._path)
        given = dict(scope["headers"]).get(b"authorization", b"").removeprefix(b"Bearer ")
        return hashlib.sha256(given).digest() in self._keys

    def _read_again(self, path: Path) -> None:
        """Read keys that have changed; what holds none leaves those before in force."""
        try:
            version = path.stat().st_mtime_ns
            if version != self._version:
                self._version, self._keys = version, read_keys(path)
        except (OSError, ValueError) as error:
            print(f"The API keys read before stay in force: {error}.", file=sys.stderr)


async def _refuse(send: Send) -> None:
    error = {"message": "This server asks for an API key.", "type": "invalid_request_error", "code": 401}
    headers = [(b"content-type", b"application/json"), (b"www-authenticate", b"Bearer")]
    await send({"type": "http.response.start", "status": 401, "headers": headers})
    await send({"type": "http.response.body", "body": json.dumps({"error": error}).encode()})


def drain(
    metrics_url: str, delay_seconds: float, timeout_seconds: float, *, until_gone: bool = False
) -> None:
    """Wait until load balancers have taken the pod out and it has answered all that it took.

    With `until_gone`, for a worker: until its leader has ended, which is deleted only after the worker.
    """
    DRAINING.touch()
    time.sleep(delay_seconds)
    start = quiet_since = time.monotonic()
    while time.monotonic() < min(start + timeout_seconds, quiet_since + _QUIET_SECONDS):
        time.sleep(0.25)
        try:
            is_busy = _is_busy(metrics_url)
        except (ConnectionRefusedError, socket.gaierror):
            return  # there is no server any more, or no leader
        except (OSError, http.client.HTTPException):
            is_busy = True  # too busy to say
        if is_busy or until_gone:
            quiet_since = time.monotonic()


def _is_busy(metrics_url: str) -> bool:
    """Whether the page says that requests run or wait, or does not say."""
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    try:
        with opener.open(metrics_url, timeout=_READ_SECONDS) as answer:
            counts = _BUSY.findall(answer.read().decode())
    except urllib.error.HTTPError as error:
        error.close()
        return True
    except urllib.error.URLError as error:
        raise error.reason if isinstance(error.reason, OSError) else error from error
    return not counts or any(map(float, counts))


if __name__ == "__main__":
    drain(
        os.path.expandvars(sys.argv[1]),
        float(sys.argv[2]),
        float(sys.argv[3]),
        until_gone="LWS_LEADER_ADDRESS" in sys.argv[1],
    )
