"""The router and its activator against a plain Service.

What the way through them adds to the time to first token, at one stream and at 64 at once. What affinity is
worth: 50 conversations on four unequal emulated pods at 70 % of what they carry. What a pod costs that is
killed under load. And with two real pods of engine Turbo, what it does for output tokens per second, where
prefix caches and the memory of the suffix drafter stay whole.

Emulated pods take a model's time and do not compute; all else is real: processes, HTTP, vllm-router and
`turbo activator`. A Service is any pod at random for each connection, as kube-proxy does it.
"""

from __future__ import annotations

import asyncio
import signal
import sys
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

import httpx
from harness import Bar, arguments, finish, prompts
from routing.clients import Outcome, Talk, streams, talk
from routing.pod import PREFILL_TOKENS_PER_SECOND, SECONDS_PER_TOKEN
from routing.real import converse
from routing.ways import Way, pods, router, service

from turbo_dev.model import ensure
from turbo_dev.progress import step
from turbo_dev.server_process import ServerProcess

BARS = (
    Bar("failed_by_router", at_most=0),
    Bar("hit_rate_over_service", at_least=1.5),
    Bar("p95_over_service", at_most=1.0),
    Bar("added_p50_ms_at_1", at_most=10.0),
    Bar("gain_with_real_pods", at_least=1.0),
)
SPEEDS, SLOTS = (1.0, 1.0, 0.7, 0.5), 8
TOKENS, OPENING, TURN, MAX_LENGTH = 16, 400, 100, 3000
LOAD = 0.7


def main() -> int:
    """Run all parts; exit status by the bars."""
    parser = arguments(__doc__ or "")
    parser.add_argument("--quick", action="store_true", help="a tenth of it: for development")
    options = parser.parse_args()
    scale = 0.1 if options.quick else 1.0
    rows: list[dict[str, Any]] = []
    figures: dict[str, float] = {}
    _overhead(scale, rows, figures)
    _affinity(scale, rows, figures)
    _kill(scale, rows, figures)
    _real(scale, rows, figures)
    return finish("router", figures, rows, BARS, options)


@contextmanager
def _ways(urls: Sequence[str]) -> Iterator[dict[str, Way]]:
    """The ways to pods by name."""
    with ExitStack() as stack:
        yield {
            "Service": service(urls),
            "router alone": stack.enter_context(router(urls, with_activator=False)),
            "router": stack.enter_context(router(urls)),
        }


def _overhead(scale: float, rows: list[dict[str, Any]], figures: dict[str, float]) -> None:
    """Time to first token by each way, in rounds by turns: the machine is the same for all."""
    with pods([1.0] * 4, 64) as started, _ways([url for url, _ in started]) as ways:
        for number, requests in ((1, 20), (64, 2)):
            found = {name: Outcome() for name in ways}
            with step(f"time to first token at {number} streams", "1 min"):
                for _ in range(max(1, round(10 * scale))):
                    for name, way in ways.items():
                        outcome = asyncio.run(streams(way, number, requests, 8))
                        found[name].first_tokens += outcome.first_tokens
                        found[name].failed += outcome.failed
            for name, outcome in found.items():
                rows.append(_row(f"{number} streams", name, outcome))
                for share in (50, 99):
                    added = outcome.percentile(share / 100) - found["Service"].percentile(share / 100)
                    if name == "router":
                        figures[f"added_p{share}_ms_at_{number}"] = 1000 * added


def _turns_per_second() -> float:
    """70 % of what the pods carry where no prompt is in a cache: so the Service is not overloaded."""
    prompt = (OPENING + MAX_LENGTH) / 2 / PREFILL_TOKENS_PER_SECOND
    return LOAD * sum(SLOTS * speed / (prompt + TOKENS * SECONDS_PER_TOKEN) for speed in SPEEDS)


def _affinity(scale: float, rows: list[dict[str, Any]], figures: dict[str, float]) -> None:
    plan = Talk(50, _turns_per_second(), 120 * scale, OPENING, TURN, TOKENS, MAX_LENGTH)
    hits, late = {}, {}
    for name in ("Service", "router"):
        with step(f"50 conversations by the {name}", "2 min"), pods(SPEEDS, SLOTS) as started:
            urls = [url for url, _ in started]
            with _ways(urls) as ways:
                outcome = asyncio.run(talk(ways[name], plan, seed=1))
            counts = [httpx.get(f"{url}/count").json() for url in urls]
        hits[name] = sum(cached for _, cached in counts) / sum(tokens for tokens, _ in counts)
        late[name] = outcome.percentile(0.95)
        rows.append(_row("50 conversations", name, outcome, hit_rate=hits[name]))
    figures["hit_rate"], figures["hit_rate_of_service"] = hits["router"], hits["Service"]
    figures["hit_rate_over_service"] = hits["router"] / hits["Service"]
    figures["p95_over_service"] = late["router"] / late["Service"]


def _kill(scale: float, rows: list[dict[str, Any]], figures: dict[str, float]) -> None:
    """Requests for whole answers, so that a lost one can be made good; of streams, some have begun."""
    for name in ("Service", "router"):
        plan = Talk(50, _turns_per_second(), 60 * scale, OPENING, TURN, TOKENS, MAX_LENGTH, stream=False)
        with step(f"a pod killed under load by the {name}", "1 min"), pods(SPEEDS, SLOTS) as started:

            async def kill(pod: Any = started[1][1]) -> None:
                pod.send_signal(signal.SIGKILL)

            with _ways([url for url, _ in started]) as ways:
                outcome = asyncio.run(talk(ways[name], plan, 2, kill))
        rows.append(_row("a pod killed", name, outcome))
        figures[f"failed_by_{name.lower()}"] = outcome.failed


def _real(scale: float, rows: list[dict[str, Any]], figures: dict[str, float]) -> None:
    rates = {}
    openings = [row["prompt"] for row in prompts()]
    for name in ("Service", "router"):
        with step(f"two real pods by the {name}", "3 min"), _servers(2) as urls, _ways(urls) as ways:
            done = converse(ways[name], openings[:8], turns=max(2, round(6 * scale)))
            hits = [_prefix_hits(url) for url in urls]
        rates[name] = done.tokens / done.seconds
        hit_rate = sum(hit for hit, _ in hits) / sum(asked for _, asked in hits)
        outcome = Outcome(done.first_tokens, done.failed)
        rows.append(_row("two real pods", name, outcome, hit_rate=hit_rate, tokens_per_second=rates[name]))
    figures["gain_with_real_pods"] = rates["router"] / rates["Service"]


@contextmanager
def _servers(number: int) -> Iterator[list[str]]:
    """Real servers of one thread each."""
    flags = ("--host=127.0.0.1", "--port=0", "--threads=1", "--max-model-len=2048", "--kv-cache-gib=0.3")
    command = [sys.executable, "-m", "turbo_cli", "serve", str(ensure()), "--served-model-name=m", *flags]
    servers: list[ServerProcess] = []
    try:
        for _ in range(number):
            servers.append(ServerProcess(command))
            servers[-1].wait_for("Ready: ", 180)
        yield [server.url for server in servers]
    finally:
        for server in servers:
            server.close()


def _prefix_hits(url: str) -> tuple[float, float]:
    """Tokens of prompts that were in the cache, and all of them."""
    page = httpx.get(f"{url}/metrics").text.splitlines()

    def total(name: str) -> float:
        return sum(float(line.split()[-1]) for line in page if line.startswith(f"vllm:{name}_total"))

    return total("prefix_cache_hits"), total("prefix_cache_queries")


def _row(
    what: str,
    way: str,
    outcome: Outcome,
    hit_rate: float | None = None,
    tokens_per_second: float | None = None,
) -> dict[str, Any]:
    return {
        "what": what,
        "way": way,
        "answered": len(outcome.first_tokens),
        "failed": outcome.failed,
        "p50_ms": 1000 * outcome.percentile(0.5),
        "p95_ms": 1000 * outcome.percentile(0.95),
        "p99_ms": 1000 * outcome.percentile(0.99),
        "hit_rate": hit_rate if hit_rate is not None else "",
        "tokens_per_second": tokens_per_second if tokens_per_second is not None else "",
    }


if __name__ == "__main__":
    sys.exit(main())
