"""Clients: streams at once, and conversations that come back with all that was said."""

from __future__ import annotations

import asyncio
import math
import random
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field

import aiohttp

from .ways import Way

TIMEOUT = aiohttp.ClientTimeout(total=120.0)
DONE = b"data: [DONE]"


@dataclass
class Outcome:
    """Of the requests of one run: seconds to the first token of each answered one, and how many failed."""

    first_tokens: list[float] = field(default_factory=list)
    failed: int = 0

    def percentile(self, share: float) -> float:
        """Seconds; infinite where nothing was answered."""
        ordered = sorted(self.first_tokens) or [math.inf]
        return ordered[min(len(ordered) - 1, int(share * len(ordered)))]


async def ask(
    session: aiohttp.ClientSession, way: Way, prompt: str, tokens: int, outcome: Outcome, stream: bool = True
) -> None:
    """One request over a connection of its own, never repeated."""
    body = {"model": "m", "prompt": prompt, "max_tokens": tokens, "stream": stream}
    start, first, last = time.perf_counter(), 0.0, b""
    try:
        async with session.post(f"{way()}/v1/completions", json=body) as answer:
            async for line in answer.content:
                if line.strip():
                    first, last = first or time.perf_counter() - start, line
            is_whole = answer.status == 200 and (not stream or last.startswith(DONE))
    except (aiohttp.ClientError, TimeoutError):
        is_whole = False
    if is_whole:
        outcome.first_tokens.append(first)
    else:
        outcome.failed += 1


async def streams(way: Way, number: int, requests: int, tokens: int) -> Outcome:
    """`number` clients, each with so many requests one after the other."""
    outcome = Outcome()

    async def client(index: int) -> None:
        for turn in range(requests):
            await ask(session, way, f"{index:04d} {turn:04d} " * 8, tokens, outcome)

    async with _session() as session:
        await asyncio.gather(*(client(index) for index in range(number)))
    return outcome


@dataclass(frozen=True)
class Talk:
    """Conversations: how many there are, how often one goes on, and for how long in all."""

    conversations: int
    turns_per_second: float  # of all together
    seconds: float
    opening: int  # characters of each one's own beginning
    turn: int  # characters that each turn adds
    tokens: int  # of an output
    max_length: int  # characters after which one begins anew
    stream: bool = True


async def talk(
    way: Way, plan: Talk, seed: int, meanwhile: Callable[[], Awaitable[None]] | None = None
) -> Outcome:
    """Turns at random times, whatever became of those before: a crowd that does not slow down with the pods.

    `meanwhile` runs after a third of the time.
    """
    dice, outcome = random.Random(seed), Outcome()
    opening = [f"{seed}/{index} ".ljust(plan.opening, "x") for index in range(plan.conversations)]
    history, idle, running = list(opening), set(range(plan.conversations)), set()

    async def turn(index: int) -> None:
        history[index] += f"{len(history[index])} ".ljust(plan.turn, "y")
        if len(history[index]) > plan.max_length:
            history[index] = opening[index]
        await ask(session, way, history[index], plan.tokens, outcome, plan.stream)
        idle.add(index)

    async with _session() as session:
        start, at = time.perf_counter(), 0.0
        while at < plan.seconds:
            at += dice.expovariate(plan.turns_per_second)
            await asyncio.sleep(max(0.0, start + at - time.perf_counter()))
            if meanwhile is not None and at > plan.seconds / 3:
                await meanwhile()
                meanwhile = None
            if idle:
                index = dice.choice(sorted(idle))
                idle.discard(index)
                task = asyncio.create_task(turn(index))
                running.add(task)
                task.add_done_callback(running.discard)
        await asyncio.gather(*running)
    return outcome


def _session() -> aiohttp.ClientSession:
    connector = aiohttp.TCPConnector(limit=0, force_close=True)
    return aiohttp.ClientSession(connector=connector, timeout=TIMEOUT)
