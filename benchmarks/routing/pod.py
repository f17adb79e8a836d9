"""A pod that takes as long as a model would, without one: `python -m routing.pod --speed 1`.

Its prompts cost what its prefix cache does not hold, its outputs a fixed time per token, and of more requests
than it decodes together some wait. It prints its port once it listens.
"""

from __future__ import annotations

import argparse
import asyncio
import json
from collections import OrderedDict

from aiohttp import web

PREFILL_TOKENS_PER_SECOND = 4000.0  # of speed 1
SECONDS_PER_TOKEN = 0.04
CACHE_TOKENS = 16_000  # about a third of what the conversations of the benchmark come to
BLOCK = 16  # characters, each as a token


class Pod:
    """One emulated pod."""

    def __init__(self, speed: float, slots: int) -> None:
        """`speed` 1 is that of the constants; of `slots` requests, all decode together."""
        self._speed = speed
        self._slots = asyncio.Semaphore(slots)
        self._blocks: OrderedDict[int, None] = OrderedDict()  # the least recently used first
        self.prompt_tokens = self.cached_tokens = 0

    def look_up(self, prompt: str) -> int:
        """Tokens of the prompt that were not in the cache, and are now."""
        held, chain, known = 0, 0, True
        for start in range(0, len(prompt) - BLOCK + 1, BLOCK):
            chain = hash((chain, prompt[start : start + BLOCK]))
            known = known and chain in self._blocks
            held += BLOCK if known else 0
            self._blocks[chain] = None
            self._blocks.move_to_end(chain)
        while len(self._blocks) * BLOCK > CACHE_TOKENS:
            self._blocks.popitem(last=False)
        self.prompt_tokens += len(prompt)
        self.cached_tokens += held
        return len(prompt) - held

    async def complete(self, request: web.Request) -> web.StreamResponse:
        """Answer with `max_tokens` tokens, as a stream or whole."""
        body = json.loads(await request.read())
        async with self._slots:
            missing = self.look_up(body["prompt"])
            await asyncio.sleep(missing / PREFILL_TOKENS_PER_SECOND / self._speed)
            if not body.get("stream"):
                await asyncio.sleep(body["max_tokens"] * SECONDS_PER_TOKEN / self._speed)
                return web.json_response({"choices": [{"index": 0, "text": "a" * body["max_tokens"]}]})
            response = web.StreamResponse(headers={"Content-Type": "text/event-stream"})
            await response.prepare(request)
            for _ in range(body["max_tokens"]):
                await response.write(b'data: {"choices": [{"index": 0, "text": "a"}]}\n\n')
                await asyncio.sleep(SECONDS_PER_TOKEN / self._speed)
            await response.write(b"data: [DONE]\n\n")
        return response

    async def count(self, _: web.Request) -> web.Response:
        """Tokens of prompts so far, and those of them that were in the cache."""
        return web.json_response([self.prompt_tokens, self.cached_tokens])


async def main() -> None:
    """Serve until the process is ended."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--speed", type=float, default=1.0)
    parser.add_argument("--slots", type=int, default=8)
    flags = parser.parse_args()
    pod = Pod(flags.speed, flags.slots)
    application = web.Application()
    application.router.add_post("/v1/completions", pod.complete)
    application.router.add_get("/count", pod.count)
    application.router.add_get("/{path:.*}", lambda _: asyncio.sleep(0, web.Response()))
    runner = web.AppRunner(application, access_log=None, handler_cancellation=True)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    print(runner.addresses[0][1], flush=True)
    await asyncio.Event().wait()


if __name__ == "__main__":
    asyncio.run(main())
