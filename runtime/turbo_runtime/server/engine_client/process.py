"""What runs in the engine's process before the engine itself does."""

from __future__ import annotations

import ctypes
import multiprocessing
import os
import signal
import threading
from collections.abc import Callable
from multiprocessing.queues import Queue
from typing import Any

from turbo_runtime.contract.config import RuntimeConfig

# (config, inbox, outbox, folder that the tokenizer is exported into, what to call at every turn of the loop),
# as `turbo_runtime.engine.process.run_engine` takes them
EngineMain = Callable[[RuntimeConfig, "Queue[Any]", "Queue[Any]", str, Callable[[], None]], None]


def turbo_engine(
    config: RuntimeConfig,
    inbox: Queue[Any],
    outbox: Queue[Any],
    tokenizer_dir: str,
    beat: Callable[[], None],
) -> None:
    """The engine proper, imported only in its own process: the server's stays free of torch."""
    from turbo_runtime.engine.process import run_engine

    run_engine(config, inbox, outbox, tokenizer_dir, beat)


def child_main(
    engine: EngineMain,
    config: RuntimeConfig,
    inbox: Queue[Any],
    outbox: Queue[Any],
    tokenizer_dir: str,
    beats: ctypes.c_uint64,
) -> None:
    """Run `engine` until it returns, or until the server process is gone. `beats`, in memory that the server
    shares, counts the turns of the engine's loop.
    """

    def beat() -> None:
        beats.value += 1

    # A terminal's Ctrl-C and a service manager's SIGTERM reach both processes; the server alone decides when
    # to stop.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    threading.Thread(target=_die_with_server, name="server watch", daemon=True).start()
    engine(config, inbox, outbox, tokenizer_dir, beat)


def _die_with_server() -> None:
    """A server that was killed sends no Stop, and an engine without it would hold its memory for ever."""
    server = multiprocessing.parent_process()
    assert server is not None
    server.join()
    os._exit(1)
