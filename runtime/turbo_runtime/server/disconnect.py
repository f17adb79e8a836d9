"""Clients that leave while something is made for them."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from typing import Any, TypeVar

from starlette.types import Receive

Made = TypeVar("Made")


async def unless_client_leaves(
    receive: Receive, work: Coroutine[Any, Any, Made], *ends: asyncio.Future[Any]
) -> Made | None:
    """The result of `work`, or None when the client closed the connection or one of `ends` came first; `work`
    is then cancelled.
    """
    task = asyncio.create_task(work)
    leaving = asyncio.create_task(_client_left(receive))
    try:
        await asyncio.wait({task, leaving, *ends}, return_when=asyncio.FIRST_COMPLETED)
        return task.result() if task.done() else None
    finally:
        for unfinished in (task, leaving):
            unfinished.cancel()
        await asyncio.wait({task, leaving})


async def _client_left(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass
