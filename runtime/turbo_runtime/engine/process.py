"""The engine process: load, check, send EngineReady, serve until Shutdown."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from pathlib import Path
from queue import Empty
from typing import TYPE_CHECKING, Protocol

from turbo_runtime.contract.config import RuntimeConfig
from turbo_runtime.engine.startup.environment import quiet_libraries, settle_threads
from turbo_runtime.messages import (
    Abort,
    EngineFailed,
    EngineReady,
    EngineStats,
    GenerationRequest,
    Shutdown,
    StepOutput,
)

if TYPE_CHECKING:
    from turbo_runtime.engine.loop import Engine

log = logging.getLogger(__name__)

MAX_MESSAGES = 64  # taken before a step, so that running requests need not wait for all new ones
REST_SECONDS = 0.5  # without a message, after which an idle engine does background work


class Inbox(Protocol):
    """The receiving end of a multiprocessing queue from the server."""

    def get(self, block: bool = True, timeout: float | None = None) -> GenerationRequest | Abort | Shutdown:
        """Wait for the next message; raises queue.Empty after `timeout` seconds."""

    def empty(self) -> bool:
        """Whether there is no message."""


class Outbox(Protocol):
    """The sending end of a multiprocessing queue to the server."""

    def put(self, item: EngineReady | StepOutput | EngineFailed, /) -> None:
        """Send without waiting."""


def run_engine(
    config: RuntimeConfig, inbox: Inbox, outbox: Outbox, tokenizer_dir: str, beat: Callable[[], None]
) -> None:
    """Run the engine process: export the tokenizer into `tokenizer_dir`, load the model, send EngineReady,
    then a StepOutput per step until Shutdown. A failure is sent as EngineFailed, one sentence, and ends the
    process.
    """
    settle_threads(config.threads)
    quiet_libraries()
    # these import torch
    from turbo_runtime.engine.startup.builder import start_engine
    from turbo_runtime.model_files.source import ModelError
    from turbo_runtime.models.loader import export_tokenizer, gguf_parsed_once

    try:
        start_time = time.monotonic()
        with gguf_parsed_once():
            tokenizer = export_tokenizer(config.model, config.revision, Path(tokenizer_dir))
            engine, ready = start_engine(config, start_time, tokenizer)
        outbox.put(ready)
        serve(engine, inbox, outbox, beat)
    except ModelError as error:
        outbox.put(EngineFailed(str(error)))
    except Exception as error:  # the process reports why it ends
        log.exception("the engine failed")
        outbox.put(EngineFailed(f"the engine failed: {type(error).__name__}: {error}"))


def serve(engine: Engine, inbox: Inbox, outbox: Outbox, beat: Callable[[], None]) -> None:
    """Take messages, compute, and send outputs until Shutdown; call `beat` in every iteration, also idle."""
    timeout = REST_SECONDS
    sent: EngineStats | None = None
    while True:
        beat()
        taken = 0
        # idle: wait for a message; busy: take what is there and compute on
        while engine.idle or (taken < MAX_MESSAGES and not inbox.empty()):
            beat()
            if engine.idle and (stats := engine.stats()) != sent:  # after an abort or background work
                outbox.put(StepOutput((), stats))
                sent = stats
            try:
                message = inbox.get(timeout=timeout)
            except Empty:
                engine.rest()
                # an audit goes on at once, but checks the inbox after each small step
                timeout = 0.0 if engine.audit.pending else REST_SECONDS
                continue
            if isinstance(message, Shutdown):
                return
            timeout = REST_SECONDS
            engine.accept(message)
            taken += 1
        step = engine.step()
        if step.events or step.stats != sent:  # not while it only waits for a grammar
            outbox.put(step)
            sent = step.stats
