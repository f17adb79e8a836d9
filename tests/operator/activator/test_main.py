"""The life of an activator: it leaves in order."""

from __future__ import annotations

import asyncio
import contextlib
import signal
import socket
import sys
import time

import aiohttp

START = "import sys; from turbo_operator.cli.commands import activator; sys.exit(activator(sys.argv[1:]))"


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        return int(taken.getsockname()[1])


async def test_a_request_that_is_held_is_answered_before_its_server_ends_and_not_cut() -> None:
    port, admin_port, nothing = free_port(), free_port(), free_port()
    flags = (f"--port={port}", f"--admin-port={admin_port}", f"--router-url=http://127.0.0.1:{nothing}")
    times = ("--leave-seconds=0.5", "--drain-timeout=3")
    process = await asyncio.create_subprocess_exec(sys.executable, "-c", START, *flags, *times)
    try:
        async with asyncio.timeout(20.0), aiohttp.ClientSession() as client:
            while True:
                with contextlib.suppress(aiohttp.ClientConnectionError):
                    async with client.get(f"http://127.0.0.1:{admin_port}/ready") as answer:
                        assert answer.status == 200
                        break
                await asyncio.sleep(0.05)
            waiting = asyncio.create_task(client.post(f"http://127.0.0.1:{port}/v1/completions", json={}))
            async with client.get(f"http://127.0.0.1:{admin_port}/load?wait=5"):
                process.send_signal(signal.SIGTERM)
            told = time.monotonic()
            answer = await waiting
            assert (answer.status, answer.headers["Connection"]) == (503, "close")
            assert time.monotonic() - told > 1.0, "a replica may come until then"
            assert await process.wait() == 0
    finally:
        with contextlib.suppress(ProcessLookupError):
            process.kill()
        await process.wait()
