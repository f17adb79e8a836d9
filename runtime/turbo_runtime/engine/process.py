"""The engine as a process of its own: load, check, say Ready, serve until Stop."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from pathlib import Path
from queue import Empty
from typing import TYPE_CHECKING, Protocol

from turbo_runtime.contract.config import RuntimeConfig
from turbo_runtime.engine.startup.library_logging import quiet_libraries
from turbo_runtime.engine.startup.threads import settle_threads
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

MOST_MESSAGES = 64  # taken before a step: those who are served must not wait for all who come
REST_SECONDS = 0.5  # without a message, after which an idle engine sees to itself


class Inbox(Protocol):
    """What the server says: the receiving end of a multiprocessing queue."""

    def get(self, block: bool = True, timeout: float | None = None) -> GenerationRequest | Abort | Shutdown:
        """The next message; waits for one, `timeout` seconds at most, then raises queue.Empty."""

    def empty(self) -> bool:
        """Whether no message is there now."""


class Outbox(Protocol):
    """What the engine says: the sending end of a multiprocessing queue."""

    def put(self, item: EngineReady | StepOutput | EngineFailed, /) -> None:
        """Send without waiting."""


def run_engine(
    config: RuntimeConfig, inbox: Inbox, outbox: Outbox, tokenizer_dir: str, beat: Callable[[], None]
) -> None:
    """Main function of the engine process.

    Exports the tokenizer into `tokenizer_dir` first, then loads the model and sends Ready, then one Step per
    step until Stop comes. Whatever makes the engine unable to start or go on is sent as Failed, in one
    sentence, and ends the process.
    """
    settle_threads(config.threads)
    quiet_libraries()
    # torch comes in only here, after those
    from turbo_runtime.engine.startup.builder import start_engine
    from turbo_runtime.model_files.source import ModelError
    from turbo_runtime.models.gguf_cache import gguf_parsed_once
    from turbo_runtime.models.tokenizer import export_tokenizer

    try:
        began = time.monotonic()
        with gguf_parsed_once():
            tokenizer = export_tokenizer(config.model, config.revision, Path(tokenizer_dir))
            engine, ready = start_engine(config, began, tokenizer)
        outbox.put(ready)
        serve(engine, inbox, outbox, beat)
    except ModelError as error:
        outbox.put(EngineFailed(str(error)))
    except Exception as error:  # the last thing this process does is to say why
        log.exception("the engine failed")
        outbox.put(EngineFailed(f"the engine failed: {type(error).__name__}: {error}"))


def serve(engine: Engine, inbox: Inbox, outbox: Outbox, beat: Callable[[], None]) -> None:
    """Take messages, compute and tell, until Stop comes. `beat` is called at every turn, at rest too."""
    patience = REST_SECONDS
    told: EngineStats | None = None
    while True:
        beat()
        taken = 0
        # idle: wait for a message; busy: take what is there and compute on
        while engine.idle or (taken < MOST_MESSAGES and not inbox.empty()):
            beat()
            if engine.idle and (stats := engine.stats()) != told:  # a cancel or a rest changed it
                outbox.put(StepOutput((), stats))
                told = stats
            try:
                message = inbox.get(timeout=patience)
            except Empty:
                engine.rest()
                # an audit goes on at once, with a look into the inbox after each small step of it
                patience = 0.0 if engine.audit.pending else REST_SECONDS
                continue
            if isinstance(message, Shutdown):
                return
            patience = REST_SECONDS
            engine.accept(message)
            taken += 1
        step = engine.step()
        if step.events or step.stats != told:  # not while a grammar is waited for and nothing else is done
            outbox.put(step)
            told = step.stats
