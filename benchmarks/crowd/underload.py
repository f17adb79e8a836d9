"""What becomes of requests that a server has taken in when something happens to it."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any

import httpx

from crowd.outcomes import completed
from turbo_runtime.contract import endpoints
from turbo_runtime.contract.documents import Load

ARRIVAL_SECONDS = 30.0
PATIENCE_SECONDS = 180.0


async def under_load(
    url: str, wanted: Sequence[dict[str, Any]], strike: Callable[[], None], within: float = ARRIVAL_SECONDS
) -> Counter[str]:
    """How requests end that were taken in before `strike()`. Raises TimeoutError if they are not all in the
    engine at one time within so many seconds.
    """
    async with httpx.AsyncClient(base_url=url, timeout=PATIENCE_SECONDS, limits=httpx.Limits()) as client:
        asked = [asyncio.create_task(completed(client, one)) for one in wanted]
        inside = 0
        try:
            async with asyncio.timeout(within):
                while inside < len(asked):
                    load = Load.from_json((await client.get(endpoints.LOAD_PATH)).text)
                    inside = load.running_requests + load.waiting_requests
                    await asyncio.sleep(0.05)
        except TimeoutError:
            ended = Counter(task.result() for task in asked if task.done())
            for task in asked:
                task.cancel()
            await asyncio.gather(*asked, return_exceptions=True)
            told = ", ".join(f"{count} {how}" for how, count in ended.items()) or "none has ended"
            raise TimeoutError(
                f"{inside} of {len(asked)} requests are in the engine after {within:g} s; {told}"
            ) from None
        strike()
        return Counter(await asyncio.gather(*asked))
