"""The life of a server process: bind, load, serve, drain, end."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import socket
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import uvicorn

from turbo_runtime.capture.recorder import Capture
from turbo_runtime.capture.settings import CaptureError
from turbo_runtime.contract.config import RuntimeConfig
from turbo_runtime.server.api_keys import ApiKeys
from turbo_runtime.server.app import build_app
from turbo_runtime.server.connections import IDLE_SECONDS, Farewell, protocol
from turbo_runtime.server.engine_client.client import STOP_SECONDS, EngineClient
from turbo_runtime.server.engine_client.process import EngineMain, turbo_engine
from turbo_runtime.server.service import Phase, Service
from turbo_runtime.server.thread_offload import still_running
from turbo_runtime.version import turbo_version

FAREWELL_SECONDS = 2  # for error replies to reach their clients when the server ends early


def run_server(config: RuntimeConfig, engine: EngineMain = turbo_engine) -> int:
    """Serve until a signal or until the engine dies.

    Returns the exit status: 0 after a drain, 1 when the port cannot be had or the engine failed, 128 +
    signal number
    when a second signal cut the drain short.
    """
    try:
        keys = None if config.api_keys is None else ApiKeys(Path(config.api_keys))
    except ValueError as error:
        say(f"turbo serve: {error}")
        return 1
    try:
        capture = None if config.capture is None else Capture(Path(config.capture))
    except CaptureError as error:
        say(f"turbo serve: --capture: {error}.")
        return 1
    try:
        listener = _listen(config.host, config.port)
    except OSError as error:
        say(f"turbo serve: cannot listen on {config.host}:{config.port}: {error.strerror or error}.")
        return 1
    with tempfile.TemporaryDirectory(prefix="turbo-tokenizer-") as tokenizer_dir:
        status = asyncio.run(_serve(config, engine, keys, capture, listener, Path(tokenizer_dir)))
    if capture is not None:
        capture.close()
    if still_running():
        # A thread amid a tokenizer's own code cannot be ended in order, and its result is for nobody.
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)
    return status


def say(sentence: str) -> None:
    """Tell whoever watches the terminal or the pod's log."""
    print(sentence, file=sys.stderr, flush=True)


class _Uvicorn(uvicorn.Server):
    """uvicorn without its signal handlers: draining is ours."""

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield


async def _serve(
    config: RuntimeConfig,
    engine_main: EngineMain,
    keys: ApiKeys | None,
    capture: Capture | None,
    listener: socket.socket,
    tokenizer_dir: Path,
) -> int:
    signals = _signals()
    engine = EngineClient(config, engine_main, str(tokenizer_dir))
    service = Service(config, engine, keys, capture)
    http = _Uvicorn(
        uvicorn.Config(
            Farewell(build_app(service), lambda: service.draining),
            http=protocol(config.connection_seconds),
            log_level="warning",
            access_log=False,
            lifespan="off",
            ws="none",
            timeout_keep_alive=IDLE_SECONDS,
        )
    )
    say(
        f"turbo {turbo_version()}: loading {config.model}; "
        f"listening on {_url(listener)}, ready when the model is."
    )
    engine.start()
    serving = asyncio.create_task(http.serve(sockets=[listener]))
    loading = asyncio.create_task(_load(service, tokenizer_dir, listener))
    patience = STOP_SECONDS
    try:
        status = await _until_stopped(service, signals, loading)
        if status > 128:  # who has signalled twice does not wait for the engine to end in order
            patience = 0.0
    finally:
        loading.cancel()
        http.should_exit = True
        http.config.timeout_graceful_shutdown = FAREWELL_SECONDS
        await serving
        await engine.stop(patience)
    return status


async def _load(service: Service, tokenizer_dir: Path, listener: socket.socket) -> None:
    model = await service.load(tokenizer_dir)
    facts = model.facts
    say(
        f"Model loaded in {facts.load_seconds:.1f} s on {facts.device} as {facts.dtype}, "
        f"{model.context} tokens of context."
    )
    promise = "the same bytes" if facts.guarantee == "bytes" else "the same distribution"
    reason = f"; {facts.law_reason}" if facts.law_reason else ""
    say(
        f"Start-up check took {facts.check_seconds:.1f} s; guarantee on this machine: {facts.guarantee} "
        f"({promise} with speculation and without{reason})."
    )
    if facts.step_times:
        points = ", ".join(
            f"{each.rows} x {each.tokens} tokens after {each.context} in {each.seconds * 1e3:.1f} ms"
            for each in facts.step_times
        )
        say(f"Micro-benchmark took {facts.measure_seconds:.1f} s; one pass over {points}.")
    say(f"Ready: the OpenAI API is at {_url(listener)}/v1, the model's name is {model.name}.")


async def _until_stopped(
    service: Service, signals: asyncio.Queue[signal.Signals], loading: asyncio.Task[None]
) -> int:
    """Wait for the first of: a failure to load, the engine's end, a signal; then drain if there is
    something to drain.
    """
    ended = service.engine.ended
    signalled = asyncio.create_task(signals.get())
    await _first(ended, signalled, loading)
    if loading.done():
        loading.result()  # an exception here is a bug or a broken tokenizer: its traceback is the log
        await _first(ended, signalled)
    if ended.done():
        say(f"turbo serve: {ended.result()}")
        return 1
    draining = asyncio.create_task(_drain(service, quick=signalled.result() is signal.SIGINT))
    again = asyncio.create_task(signals.get())
    await _first(ended, draining, again)
    if draining.done():
        draining.result()
        return 0
    draining.cancel()
    if ended.done():
        say(f"turbo serve: {ended.result()}")
        return 1
    say("Stopping now.")
    service.cut_short("The server was stopped before this answer was complete.")
    return 128 + again.result()


async def _drain(service: Service, quick: bool) -> None:
    """Leave the load balancers, then finish what runs. `quick` skips the first: someone at a terminal has
    no load balancer.
    """
    loop = asyncio.get_running_loop()
    config = service.config
    deadline = loop.time() + max(config.drain_seconds, config.endpoint_seconds)
    if not quick:
        service.phase = Phase.LEAVING
        say(
            f"Draining: taking requests for {config.endpoint_seconds:g} s more, "
            "then finishing those that run."
        )
        await asyncio.sleep(config.endpoint_seconds)
    service.phase = Phase.CLOSED
    say(f"Finishing {service.admitted} running answers.")
    with contextlib.suppress(TimeoutError):  # what is cut is said below
        async with asyncio.timeout_at(deadline):
            await service.places.empty.wait()
    if service.admitted:
        say(f"{service.admitted} answers were not complete after {config.drain_seconds:g} s and are cut.")
        service.cut_short(
            f"The server shut down and this answer was not complete after {config.drain_seconds:g} s."
        )
    say("Drained.")


async def _first(*futures: asyncio.Future[Any]) -> None:
    await asyncio.wait(futures, return_when=asyncio.FIRST_COMPLETED)


def _signals() -> asyncio.Queue[signal.Signals]:
    """SIGTERM and SIGINT as they come, in place of their default actions."""
    loop = asyncio.get_running_loop()
    queue: asyncio.Queue[signal.Signals] = asyncio.Queue()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, queue.put_nowait, number)
    return queue


def _listen(host: str, port: int) -> socket.socket:
    family, _, _, _, address = socket.getaddrinfo(
        host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
    )[0]
    listener = socket.socket(family, socket.SOCK_STREAM)
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(address)
        listener.listen(1024)
    except OSError:
        listener.close()
        raise
    return listener


def _url(listener: socket.socket) -> str:
    host, port = listener.getsockname()[:2]
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"
