"""The life of a server process: bind, load, serve, drain, end."""

from __future__ import annotations

import asyncio
import contextlib
import os
import resource
import signal
import socket
import sys
import tempfile
from pathlib import Path
from typing import Any

import uvicorn

from turbo_runtime.capture.recorder import Capture, CaptureError
from turbo_runtime.contract.config import RuntimeConfig
from turbo_runtime.server.admission import ApiKeys
from turbo_runtime.server.app import build_app
from turbo_runtime.server.connections import (
    IDLE_SECONDS,
    SPARE_CONNECTIONS,
    build_protocol,
    limit_connections,
)
from turbo_runtime.server.engine_client import STOP_SECONDS, EngineClient, EngineMain
from turbo_runtime.server.service import Phase, Service, has_running_threads
from turbo_runtime.version import turbo_version

OWN_FILES = 128  # that a server has open, but for its connections
ERROR_REPLY_SECONDS = 2  # for error replies to reach their clients when the server ends early


def run_server(config: RuntimeConfig, engine: EngineMain | None = None) -> int:
    """Serve until a signal or the engine's death. Returns the exit status: 0 after a drain, 1 when the port
    cannot be had or the engine failed, 128 + signal number when a second signal cut the drain short.
    """
    try:
        keys = None if config.api_key_file is None else ApiKeys(Path(config.api_key_file))
        capture = None if config.capture_config is None else Capture(Path(config.capture_config))
        listener = _listen(config.host, config.port)
    except CaptureError as error:
        return _fail(f"--capture-config: {error}.")
    except ValueError as error:
        return _fail(str(error))
    except OSError as error:
        return _fail(f"cannot listen on {config.host}:{config.port}: {error.strerror or error}.")
    _allow_files(config.max_connections + SPARE_CONNECTIONS + OWN_FILES)
    if keys is None:
        _log(
            "No --api-key-file: all clients are one tenant, and share cached prompts and remembered outputs, "
            "which response times reveal."
        )
    with tempfile.TemporaryDirectory(prefix="turbo-tokenizer-") as tokenizer_dir:
        status = asyncio.run(_serve(config, engine, keys, capture, listener, Path(tokenizer_dir)))
    if capture is not None:
        capture.close()
    if has_running_threads():
        # A thread in a tokenizer's own code cannot be ended in order, and nobody waits for its result.
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)
    return status


def _allow_files(count: int) -> None:
    """Raise the limit of open files, as far as the system lets."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    allowed = count if hard == resource.RLIM_INFINITY else min(count, hard)
    if soft != resource.RLIM_INFINITY and soft < allowed:
        resource.setrlimit(resource.RLIMIT_NOFILE, (allowed, hard))
    if allowed < count:
        _log(f"The system allows {allowed} open files, and --max-connections needs {count}: lower it.")


def _log(message: str) -> None:
    print(message, file=sys.stderr, flush=True)


def _fail(message: str) -> int:
    _log(f"turbo serve: {message}")
    return 1


async def _serve(
    config: RuntimeConfig,
    engine_main: EngineMain | None,
    keys: ApiKeys | None,
    capture: Capture | None,
    listener: socket.socket,
    tokenizer_dir: Path,
) -> int:
    signals: asyncio.Queue[signal.Signals] = asyncio.Queue()
    for number in (signal.SIGTERM, signal.SIGINT):  # in place of their default actions
        asyncio.get_running_loop().add_signal_handler(number, signals.put_nowait, number)
    engine = EngineClient(config, engine_main, str(tokenizer_dir))
    service = Service(config, engine, keys, capture)
    http = uvicorn.Server(
        uvicorn.Config(
            limit_connections(build_app(service), lambda: service.is_draining),
            http=build_protocol(config.connection_seconds, config.max_connections),
            log_level="warning",
            access_log=False,
            lifespan="off",
            ws="none",
            timeout_keep_alive=IDLE_SECONDS,
        )
    )
    # the server drains by itself
    http.capture_signals = contextlib.nullcontext  # type: ignore[method-assign, assignment]
    host, port = listener.getsockname()[:2]
    url = f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"
    _log(f"turbo {turbo_version()}: loading {config.model}; listening on {url}, ready when the model is.")
    engine.start()
    serving = asyncio.create_task(http.serve(sockets=[listener]))
    loading = asyncio.create_task(_load(service, tokenizer_dir, url))
    timeout_seconds = STOP_SECONDS
    try:
        status = await _run_until_stopped(service, signals, loading)
        if status > 128 or not loading.done():  # an engine that loads reads no message to end in order
            timeout_seconds = 0.0
    finally:
        loading.cancel()
        http.should_exit = True
        http.config.timeout_graceful_shutdown = ERROR_REPLY_SECONDS
        await serving
        await engine.stop(timeout_seconds)
    return status


async def _load(service: Service, tokenizer_dir: Path, url: str) -> None:
    model = await service.load(tokenizer_dir)
    info = model.info
    _log(
        f"Model loaded in {info.load_seconds:.1f} s on {info.device} as {info.dtype}, "
        f"{model.context} tokens of context."
    )
    promise = "the same bytes" if info.guarantee == "bitwise" else "the same distribution"
    reason = f"; {info.guarantee_reason}" if info.guarantee_reason else ""
    _log(
        f"Start-up checks took {info.check_seconds:.1f} s; guarantee on this machine: {info.guarantee} "
        f"({promise} with speculation and without{reason})."
    )
    if info.step_times:
        points = ", ".join(
            f"{point.rows} x {point.tokens} tokens after {point.context} in {point.seconds * 1e3:.1f} ms"
            for point in info.step_times
        )
        _log(f"Micro-benchmark took {info.measure_seconds:.1f} s; one pass over {points}.")
    adapters = "".join(f", {name} an adapter's" for name in service.names[1:])
    _log(f"Ready: the OpenAI API is at {url}/v1, the model's name is {model.name}{adapters}.")


async def _run_until_stopped(
    service: Service, signals: asyncio.Queue[signal.Signals], loading: asyncio.Task[None]
) -> int:
    """Wait for a failure to load, the engine's end or a signal; after a signal drain."""
    ended = service.engine.ended
    first_signal = asyncio.create_task(signals.get())
    await _wait_first(ended, first_signal, loading)
    if loading.done():
        loading.result()  # an exception here is a bug or a broken tokenizer: its traceback is the log
        await _wait_first(ended, first_signal)
    if ended.done():
        return _fail(ended.result())
    if not loading.done():
        _log("Stopped before the model was loaded.")
        return 0
    draining = asyncio.create_task(_drain(service, at_terminal=first_signal.result() is signal.SIGINT))
    second_signal = asyncio.create_task(signals.get())
    await _wait_first(ended, draining, second_signal)
    if draining.done():
        draining.result()
        return 0
    draining.cancel()
    if ended.done():
        return _fail(ended.result())
    _log("Stopping now.")
    service.cut_short("The server was stopped before this answer was complete.")
    return 128 + second_signal.result()


async def _drain(service: Service, at_terminal: bool) -> None:
    """Leave the load balancers, of which a terminal has none, then finish what runs."""
    loop = asyncio.get_running_loop()
    config = service.config
    deadline = loop.time() + max(config.drain_timeout_seconds, config.shutdown_delay_seconds)
    if not at_terminal:
        service.phase = Phase.LEAVING
        _log(
            f"Draining: taking requests for {config.shutdown_delay_seconds:g} s more, "
            "then finishing those that run."
        )
        await asyncio.sleep(config.shutdown_delay_seconds)
    service.phase = Phase.CLOSED
    _log(f"Finishing {service.slots.answers} running answers.")
    with contextlib.suppress(TimeoutError):  # reported below
        async with asyncio.timeout_at(deadline):
            await service.slots.empty.wait()
    if service.slots.answers:
        seconds = f"{config.drain_timeout_seconds:g} s"
        _log(f"{service.slots.answers} answers were not complete after {seconds} and are cut.")
        service.cut_short(f"The server shut down and this answer was not complete after {seconds}.")
    _log("Drained.")


async def _wait_first(*futures: asyncio.Future[Any]) -> None:
    await asyncio.wait(futures, return_when=asyncio.FIRST_COMPLETED)


def _listen(host: str, port: int) -> socket.socket:
    family, *_, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)[0]
    listener = socket.socket(family, socket.SOCK_STREAM)
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(address)
        listener.listen(1024)
    except OSError:
        listener.close()
        raise
    return listener
