"""The engine process: load, check, send EngineReady, serve until Shutdown."""

from __future__ import annotations

import gc
import logging
import os
import threading
import time
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from queue import Empty
from typing import TYPE_CHECKING, Any, NoReturn

from turbo_runtime.contract.config import RuntimeConfig
from turbo_runtime.engine.threads import settle_threads
from turbo_runtime.messages import EngineFailed, EngineStats, Shutdown, StepOutput

if TYPE_CHECKING:
    from multiprocessing.queues import Queue

    from turbo_runtime.engine.loop import Engine

log = logging.getLogger(__name__)

MAX_MESSAGES = 64  # taken before a step, so that running requests need not wait for all new ones
FLUSH_SECONDS = 2.0  # for a last message to be written
REST_SECONDS = 0.5  # without a message, after which an idle engine does background work
_YOUNG_OBJECTS = 20_000  # before a collection; more than a step over hundreds of requests holds at a time


def freeze_heap() -> None:
    """Exempt all objects that exist from garbage collection, as vLLM does: a full pass over those of the
    libraries stalls a step for tens of milliseconds. Collect the others seldom: what a step makes is in no
    cycles and ends with it.
    """
    gc.collect()
    gc.freeze()
    gc.set_threshold(_YOUNG_OBJECTS)


def quiet_libraries() -> None:
    """Turn off the advice and progress bars of libraries, before transformers is imported: its GGUF loader
    draws its bar with tqdm itself, which reads its environment once. Errors still come.
    """
    os.environ["TQDM_DISABLE"] = "1"
    from huggingface_hub.utils.tqdm import disable_progress_bars
    from transformers.utils import logging as transformers_logging

    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()
    disable_progress_bars()


def run_engine(
    config: RuntimeConfig, inbox: Queue[Any], outbox: Queue[Any], tokenizer_dir: str, beat: Callable[[], None]
) -> None:
    """Export the tokenizer into `tokenizer_dir`, load, send EngineReady, and serve; or send EngineFailed."""
    # of the machine: those of a pod may become fewer while it runs
    if (config.threads or 0) > (machine := os.cpu_count() or 1):
        outbox.put(EngineFailed(f"--threads={config.threads}: this machine has {machine} cores; lower it"))
        return
    cores = len(os.sched_getaffinity(0))
    if (ranks := config.tensor_parallel_size) > 1:
        threads = config.threads or cores
        config = replace(config, threads=max(1, threads // ranks))
    settled = settle_threads(config.threads, ranks)
    quiet_libraries()
    # these import torch
    from turbo_runtime.engine.startup.builder import start_engine
    from turbo_runtime.model_files.hub_cache import note_commit
    from turbo_runtime.model_files.inspector import inspect_model
    from turbo_runtime.model_files.source import ModelError
    from turbo_runtime.models.loader import export_tokenizer, gguf_parsed_once

    try:
        start_time = time.monotonic()
        with gguf_parsed_once():
            # one commit for tokenizer, digest and weights, though a branch moves meanwhile
            asked, commit = config.revision, inspect_model(config.model, config.revision).revision
            config = replace(config, revision=commit or asked)
            tokenizer = export_tokenizer(config.model, config.revision, Path(tokenizer_dir))
            engine, ready = start_engine(config, start_time, tokenizer, on_loss=partial(_give_up, outbox))
        try:
            note_commit(config.model, asked, commit)
            outbox.put(replace(ready, threads=settled))
            freeze_heap()
            serve(engine, inbox, outbox, beat)
        finally:
            engine.close()
    except ModelError as error:
        outbox.put(EngineFailed(str(error)))
    except Exception as error:  # the process reports why it ends
        log.exception("the engine failed")
        outbox.put(EngineFailed(f"the engine failed: {type(error).__name__}: {error}"))


def _give_up(outbox: Queue[Any], sentence: str) -> NoReturn:
    """End the process from any thread, also while another one is stuck: without a rank there is no step."""
    outbox.put(EngineFailed(sentence))
    outbox.close()
    flusher = threading.Thread(target=outbox.join_thread, daemon=True)
    flusher.start()
    flusher.join(FLUSH_SECONDS)  # a server that reads nothing is stuck too
    os._exit(1)


def serve(engine: Engine, inbox: Queue[Any], outbox: Queue[Any], beat: Callable[[], None]) -> None:
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
