"""What Turbo brings into a pod of vLLM, as a file of a ConfigMap: it ends without losing a request.

A client that keeps its connection goes on to send requests to a pod that no load balancer names any more, and
vLLM fails each of them once it was told to end. So the pod's preStop hook runs this file: from then on every
answer closes its connection, and the hook returns when nothing is left to answer. Of the standard library
alone: it runs in an image that is not Turbo's.
"""

from __future__ import annotations

import re
import sys
import time
import urllib.request
from collections.abc import Awaitable, Callable, MutableMapping
from pathlib import Path
from typing import Any

Message = MutableMapping[str, Any]
Send = Callable[[Message], Awaitable[None]]

DRAINING = Path("/tmp/turbo-draining")  # noqa: S108  an emptyDir of the pod's own
_BUSY = re.compile(r"^vllm:num_requests_(?:running|waiting)\{.*\} ([0-9.e+]+)$", re.MULTILINE)
_QUIET_SECONDS = 2.0  # for so long nothing must be under way: a connection may bring one request more


class CloseConnections:
    """ASGI middleware, by `vllm serve --middleware`: once the pod drains, an answer closes its connection."""

    def __init__(self, app: Callable[..., Awaitable[None]]) -> None:
        DRAINING.unlink(missing_ok=True)  # of a server that was restarted in this pod
        self._app = app

    async def __call__(self, scope: Message, receive: Callable[[], Awaitable[Message]], send: Send) -> None:
        """Pass a request on, and its answer back."""

        async def close(message: Message) -> None:
            if message["type"] == "http.response.start" and DRAINING.exists():  # noqa: ASYNC240
                message = {**message, "headers": [*message.get("headers", ()), (b"connection", b"close")]}
            await send(message)

        await self._app(scope, receive, close if scope["type"] == "http" else send)


def drain(metrics_url: str, delay_seconds: float, timeout_seconds: float) -> None:
    """Wait until load balancers have taken the pod out and it has answered all that it took."""
    DRAINING.touch()
    time.sleep(delay_seconds)
    give_up = time.monotonic() + timeout_seconds
    quiet_since = time.monotonic()
    while time.monotonic() < min(give_up, quiet_since + _QUIET_SECONDS):
        time.sleep(0.25)
        with urllib.request.urlopen(metrics_url, timeout=10) as answer:  # noqa: S310  of the pod's own port
            page = answer.read().decode()
        if sum(map(float, _BUSY.findall(page))):
            quiet_since = time.monotonic()


if __name__ == "__main__":
    drain(sys.argv[1], float(sys.argv[2]), float(sys.argv[3]))
