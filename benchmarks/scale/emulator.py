"""Answers for every pod of KWOK at once: `python -m scale.emulator [--busy] [--garbage KIND]`.

KWOK gives pods addresses of loopback, so that one socket hears the reads of all of them. Idle pods report no
requests; busy ones some, that come and go with their tokens, each pod with a phase of its own.
"""

from __future__ import annotations

import argparse
import math
import time
from dataclasses import replace

from aiohttp import web

from turbo_runtime.contract.documents import Load
from turbo_runtime.contract.endpoints import LOAD_PATH, PORT

IDLE = Load(0, 0, 0, 0, 0.0, 100_000, 0, 0, 0, 0, "bitwise", draining=False, max_num_seqs=32)
TOKENS_PER_SECOND = 300.0
PERIOD_SECONDS = 120.0
GARBAGE = {
    "text": "<html>502 Bad Gateway</html>",
    "numbers": replace(IDLE, running_requests=-(10**30), kv_cache_usage=1e308).to_json(),
    "nothing": "",
}


def report(address: str, seconds: float, *, is_busy: bool) -> Load:
    """What the pod at an address reports, so long after the emulator has started."""
    if not is_busy:
        return IDLE
    turn, phase = 2.0 * math.pi, hash(address) % 100 / 100.0
    share = 0.5 + 0.4 * math.sin(turn * (seconds / PERIOD_SECONDS + phase))
    requests = round(16 * share)
    # The same share of the most that it generates in a second, over all seconds.
    swing = math.cos(turn * phase) - math.cos(turn * (seconds / PERIOD_SECONDS + phase))
    generated = int(TOKENS_PER_SECOND * (0.5 * seconds + 0.4 * PERIOD_SECONDS / turn * swing))
    return replace(
        IDLE,
        running_requests=requests,
        running_tokens=requests * 400,
        kv_cache_usage=requests * 400 / IDLE.kv_cache_tokens,
        drafts=generated // 4,
        draft_tokens=generated,
        accepted_tokens=generated // 2,
        generated_tokens=generated,
        generation_seconds=seconds,
        baseline_generation_seconds=1.5 * seconds,
        speedup=1.5,
    )


def main() -> None:
    """Serve until killed."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--busy", action="store_true")
    parser.add_argument("--garbage", choices=sorted(GARBAGE), help="what all answer instead")
    options, start = parser.parse_args(), time.monotonic()

    async def load(request: web.Request) -> web.Response:
        transport = request.transport
        address = transport.get_extra_info("sockname")[0] if transport is not None else ""
        text = report(address, time.monotonic() - start, is_busy=options.busy).to_json()
        text = GARBAGE.get(options.garbage, text)
        return web.Response(text=text, content_type="application/json")

    app = web.Application()
    app.router.add_get(LOAD_PATH, load)
    web.run_app(app, host="0.0.0.0", port=PORT, print=None, access_log=None)


if __name__ == "__main__":
    main()
