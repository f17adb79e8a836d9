"""The life of an activator: listen, pass requests on, leave in order."""

from __future__ import annotations

import asyncio
import signal
import sys

from aiohttp import web

from turbo_operator.activator.proxy import SERVER_OPTIONS, Proxy, ProxyConfig

KEEP_ALIVE_SECONDS = 75.0  # between two requests: longer than clients keep a connection by themselves
CLOSE_SECONDS = 5.0  # before the end, in which those that are held are answered


async def serve(
    config: ProxyConfig, port: int, admin_port: int, leave_seconds: float, drain_seconds: float
) -> int:
    """Serve until a signal; then for `leave_seconds` take requests of whoever has not seen yet that this pod
    leaves, and finish those under way within `drain_seconds`. A second signal ends it at once.

    Returns the exit status; raises OSError where a port is taken.
    """
    signals: asyncio.Queue[signal.Signals] = asyncio.Queue()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, signals.put_nowait, number)
    proxy = Proxy(config)
    clients = web.AppRunner(
        proxy.application(),
        **SERVER_OPTIONS,
        keepalive_timeout=KEEP_ALIVE_SECONDS,
        shutdown_timeout=drain_seconds,
    )
    administration = web.AppRunner(proxy.administration(), access_log=None, shutdown_timeout=1.0)
    for runner, on in ((administration, admin_port), (clients, port)):
        await runner.setup()
        await web.TCPSite(runner, None, on).start()
    print(f"turbo activator: passing requests on to {config.router_url}.", file=sys.stderr, flush=True)
    await signals.get()
    proxy.is_leaving = True
    leaving = asyncio.create_task(_leave(clients, leave_seconds))
    until_close = leave_seconds + max(drain_seconds - CLOSE_SECONDS, drain_seconds / 2)
    asyncio.get_running_loop().call_later(until_close, setattr, proxy, "is_closing", True)
    again = asyncio.create_task(signals.get())
    await asyncio.wait({leaving, again}, return_when=asyncio.FIRST_COMPLETED)
    if not leaving.done():
        return 128 + again.result()
    leaving.result()
    await administration.cleanup()
    return 0


async def _leave(clients: web.AppRunner, seconds: float) -> None:
    await asyncio.sleep(seconds)
    await clients.cleanup()
