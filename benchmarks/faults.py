"""A real server under clients that behave badly, under SIGTERM, and with its engine killed.

200 clients connect, cancel, send garbage and too much, beside requests that schemathesis makes of the OpenAPI
document: enough of them are answered, no status is 500 or more but 503, and no block is held afterwards. (The
engine looks at its books whenever it is idle and ends if they do not add up, which `/health` would show.)
SIGTERM under load: every request that was taken in is answered to its last token, and the exit status is 0.
The engine process killed under load: every client is told, the server ends with 1 for its supervisor to see,
and a new one answers.
"""

from __future__ import annotations

import asyncio
import os
import re
import signal
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import httpx
from crowd.generated import generated
from crowd.outcomes import COMPLETIONS, SERVED_NAME, body
from crowd.underload import under_load
from crowd.unruly import unruly
from harness import Bar, arguments, finish

from turbo_dev.model import ensure
from turbo_dev.progress import step
from turbo_dev.server_process import ServerProcess
from turbo_runtime.contract import endpoints
from turbo_runtime.contract.documents import Load
from turbo_runtime.engine.process import REST_SECONDS

BARS = (
    Bar("answered_unruly", at_least=50),
    Bar("answered_generated", at_least=20),
    Bar("statuses_500_and_up", at_most=0),  # 503 aside
    Bar("silent", at_most=0),
    Bar("kv_cache_held", at_most=0),
    Bar("alive_afterwards", at_least=1),
    Bar("lost_at_sigterm", at_most=0),
    Bar("exit_status_at_sigterm", at_most=0),
    Bar("untold_at_engine_death", at_most=0),
    Bar("answered_after_restart", at_least=1),
)
EACH, QUICK_EACH = 60, 8  # generated requests of a kind to an operation
STREAMS, WHOLES, LOAD_TOKENS = 24, 24, 40
IDLE_SECONDS = 120.0


def main() -> int:
    """Run all parts; exit status by the bars."""
    parser = arguments(__doc__ or "")
    parser.add_argument("--quick", action="store_true", help="few generated requests: for development")
    options = parser.parse_args()
    rows: list[dict[str, Any]] = []
    figures: dict[str, float] = {}
    wanted = [body(LOAD_TOKENS, stream=n < STREAMS) for n in range(STREAMS + WHOLES)]
    with _server(options.threads) as server:
        with step("unruly clients", "2 min"):
            counts = asyncio.run(unruly(server.url))
        with step("requests that schemathesis makes", "3 min"):
            made = generated(server.url, QUICK_EACH if options.quick else EACH)
        rows += _rows("unruly clients", counts) + _rows("generated requests", made)
        both = counts + made
        figures["requests"] = both.total()
        figures["answered_unruly"] = counts["200"]
        figures["answered_generated"] = sum(
            n for outcome, n in made.items() if re.fullmatch("POST .* 200", outcome)
        )
        figures["statuses_500_and_up"] = sum(
            n for outcome, n in both.items() if re.fullmatch("(.* )?5(?!03)..", outcome)
        )
        figures["silent"] = both["silent"]
        figures["kv_cache_held"] = _held_when_idle(server.url)
        # Idle so long, the engine has looked into its books, and has ended if they are wrong.
        time.sleep(2 * REST_SECONDS)
        figures["alive_afterwards"] = httpx.get(server.url + endpoints.HEALTH_PATH).status_code == 200
        with step("SIGTERM under load", "1 min"):
            ended = asyncio.run(
                under_load(server.url, wanted, lambda: server.process.send_signal(signal.SIGTERM))
            )
        figures["exit_status_at_sigterm"] = abs(server.exit_status())
    rows += _rows("requests at SIGTERM", ended)
    figures["lost_at_sigterm"] = ended.total() - ended["whole"]
    with _server(options.threads) as server:
        with step("the engine killed under load", "1 min"):
            pid = server.engine_pid()
            ended = asyncio.run(under_load(server.url, wanted, lambda: os.kill(pid, signal.SIGKILL)))
        rows += _rows("requests as the engine dies", {**ended, f"server status {server.exit_status()}": 1})
        figures["untold_at_engine_death"] = ended.total() - ended["told"] - ended["whole"]
        figures["told_at_engine_death"] = ended["told"]
    with step("a new server"), _server(options.threads) as server:
        reply = httpx.post(server.url + COMPLETIONS, json=body(4), timeout=60)
        figures["answered_after_restart"] = reply.status_code == 200
    bars = [bar for bar in BARS if not (options.quick and bar.figure == "answered_generated")]
    return finish("faults", figures, rows, bars, options)


@contextmanager
def _server(threads: int | None) -> Iterator[ServerProcess]:
    """`turbo serve` of the real model, ready; its limits are low, so that they are met."""
    command = [
        *(sys.executable, "-m", "turbo_cli", "serve", str(ensure())),
        *(f"--served-model-name={SERVED_NAME}", "--host=127.0.0.1", "--port=0"),
        *("--max-model-len=256", "--kv-cache-gib=0.2"),
        *(
            "--max-num-seqs=24",
            "--max-queued-requests=60",
            "--request-timeout-seconds=60",
            "--shutdown-delay-seconds=1",
        ),
        *([f"--threads={threads}"] if threads else []),
    ]
    server = ServerProcess(command)
    try:
        with step("start the server", "20 s"):
            server.wait_for("Ready: ", 180)
        yield server
    finally:
        server.close()


def _held_when_idle(url: str) -> float:
    """The used share of the KV cache once nothing runs or waits; prefixes that nobody uses do not count."""
    give_up = time.monotonic() + IDLE_SECONDS
    while True:
        load = Load.from_json(httpx.get(url + endpoints.LOAD_PATH).text)
        running = load.running_requests + load.waiting_requests
        late = time.monotonic() > give_up
        if running and late:
            raise TimeoutError(f"{running} requests are still there {IDLE_SECONDS:g} s after the last client")
        if not running and (late or not load.kv_cache_usage):
            return load.kv_cache_usage
        time.sleep(0.2)


def _rows(what: str, counts: dict[str, int]) -> list[dict[str, Any]]:
    return [{"what": what, "outcome": outcome, "count": count} for outcome, count in sorted(counts.items())]


if __name__ == "__main__":
    sys.exit(main())
