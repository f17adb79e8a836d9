"""The server's end of the two queues: starts the engine process, hands events to whoever waits for them,
notices its death, and ends it when it hangs.
"""

from __future__ import annotations

import asyncio
import ctypes
import multiprocessing
import signal
import threading
import time
from collections.abc import Callable, Iterable, Sequence
from typing import Any

from turbo_runtime.contract.config import RuntimeConfig
from turbo_runtime.messages import (
    Abort,
    EngineFailed,
    EngineReady,
    EngineStats,
    GenerationRequest,
    Shutdown,
    StepOutput,
    TokenEvent,
)
from turbo_runtime.server.engine_client.event_buffer import Arrivals
from turbo_runtime.server.engine_client.process import EngineMain, child_main
from turbo_runtime.server.engine_client.watchdog import Watchdog

LAST_WORDS_SECONDS = 2.0  # how long messages of a dead engine are waited for
ABANDONED = "abandoned"  # finish reason, beside the engine's: it will say nothing more of this answer
STOP_SECONDS = 5.0  # how long an engine may take to end by itself


class _EngineExited:
    """Put on the outbox behind the last message of an engine that exited."""


class EngineClient:
    """All methods run on the event loop's thread; only the reader thread blocks on the outbox.

    `ready` holds the engine's first message. `ended` is set, with a sentence, once the engine will say
    nothing more.
    """

    def __init__(self, config: RuntimeConfig, engine: EngineMain, tokenizer_dir: str) -> None:
        context = multiprocessing.get_context(
            "spawn"
        )  # a fork would copy the threads' locks in whatever state they are
        self._inbox = context.Queue()
        self._outbox = context.Queue()
        self._beats = context.RawValue(ctypes.c_uint64, 0)
        self._process = context.Process(
            target=child_main,
            args=(engine, config, self._inbox, self._outbox, tokenizer_dir, self._beats),
            name="turbo engine",
        )
        self._loop = asyncio.get_running_loop()
        self._waiting: dict[str, Arrivals] = {}
        self._stopping = False
        self._hung = ""  # why it was ended from here; empty if it was not
        self._watchdog = Watchdog(config.step_timeout_seconds)
        self.stats = EngineStats()
        self.ready: asyncio.Future[EngineReady] = self._loop.create_future()
        self.ended: asyncio.Future[str] = self._loop.create_future()
        self.on_step: Callable[[EngineStats], None] | None = None

    def start(self) -> None:
        """Start the process; `ready` or `ended` follows."""
        self._process.start()
        threading.Thread(target=self._read, name="engine outbox", daemon=True).start()
        self._loop.add_reader(self._process.sentinel, self._exited)

    @property
    def alive(self) -> bool:
        """Whether the engine can still answer; also true while it loads."""
        return not self.ended.done()

    @property
    def silent_seconds(self) -> float:
        """For how long the engine has finished no step and no rest; 0 while it loads."""
        return self._watchdog.silent

    @property
    def late(self) -> bool:
        """Whether the engine has been silent for so long that requests should go elsewhere."""
        return self._watchdog.late

    @property
    def outstanding(self) -> int:
        """Answers submitted and not yet finished, running or waiting."""
        return len(self._waiting)

    def submit(self, submits: Sequence[GenerationRequest]) -> Arrivals:
        """Hand answers to the engine; their events all come where the returned one is emptied, also when the
        engine dies. Raises ValueError for an id that is in use, and hands nothing over.
        """
        taken = [submit.request_id for submit in submits if submit.request_id in self._waiting]
        if taken:
            raise ValueError(f"request {taken[0]} is running or waiting already")
        events = Arrivals()
        for submit in submits:
            self._waiting[submit.request_id] = events
            self._inbox.put(submit)
        if self.ended.done():  # it died since the caller asked
            self.fail_all(self.ended.result())
        return events

    def cancel(self, request_ids: Iterable[str]) -> None:
        """Drop answers that nobody waits for any more; finished ones are ignored."""
        for request_id in request_ids:
            if self._waiting.pop(request_id, None) is not None and self.alive:
                self._inbox.put(Abort(request_id))

    def fail_all(self, sentence: str) -> None:
        """End every unfinished answer with an error."""
        unfinished, now = dict(self._waiting), time.monotonic()
        self.cancel(unfinished)
        for request_id, events in unfinished.items():
            events.put(TokenEvent(request_id, finish_reason=ABANDONED, error=sentence), now)

    async def stop(self, patience: float = STOP_SECONDS) -> None:
        """End the process: by itself after the current step, by force if that takes `patience` seconds."""
        self._stopping = True
        if patience and self._process.is_alive():
            self._inbox.put(Shutdown())
            await asyncio.to_thread(self._process.join, patience)
        if self._process.is_alive():
            self._process.kill()
            await asyncio.to_thread(self._process.join)
        self._loop.remove_reader(self._process.sentinel)
        # a dead reader leaves the pipe full, and the interpreter would wait for it at exit
        self._inbox.cancel_join_thread()
        self._outbox.cancel_join_thread()

    def _read(self) -> None:
        while True:
            message = self._outbox.get()
            try:
                self._loop.call_soon_threadsafe(self._handle, message, time.monotonic())
            except RuntimeError:  # the loop is closed: the server ends, and nobody listens any more
                return
            if isinstance(message, _EngineExited | EngineFailed):
                return

    def _handle(self, message: Any, at: float) -> None:
        if isinstance(message, StepOutput):
            self._follow(message.stats)
            for event in message.events:
                self._deliver(event, at)
        elif isinstance(message, EngineReady):
            self._follow(message.stats)
            self.ready.set_result(message)
            self._watch()
        elif isinstance(message, EngineFailed):
            self._end(message.error)
        elif isinstance(message, _EngineExited):
            self._end(self._obituary())
        else:
            raise TypeError(f"the engine sent {type(message).__name__}, which is no message of its")

    def _follow(self, stats: EngineStats) -> None:
        self.stats = stats
        if self.on_step is not None:
            self.on_step(stats)

    def _deliver(self, event: TokenEvent, at: float) -> None:
        events = self._waiting.get(event.request_id)
        if events is None:
            return  # cancelled while the event was on its way
        if event.finish_reason is not None:
            del self._waiting[event.request_id]
        events.put(event, at)

    def _exited(self) -> None:
        self._loop.remove_reader(self._process.sentinel)
        if self._stopping:
            return
        # Its last messages, a Failed perhaps, may still be on the way: the mark queues up behind them.
        self._outbox.put(_EngineExited())
        # An engine killed while it wrote leaves the outbox locked, and the mark then never arrives.
        self._loop.call_later(LAST_WORDS_SECONDS, lambda: self._end(self._obituary()))

    def _watch(self) -> None:
        """Look at the heartbeat now and from now on. Loading takes as long as it takes: it is never called
        before Ready.
        """
        if self._stopping or self.ended.done():
            return
        self._watchdog.look(self._beats.value, self._loop.time())
        if not self._watchdog.expired:
            self._loop.call_later(self._watchdog.period, self._watch)
            return
        self._hung = (
            f"The engine process has not finished a step for {self._watchdog.limit:g} s and was ended. If a "
            "step may take that long here, lower --max-step-tokens or raise --step-timeout-seconds."
        )
        self._process.kill()  # also ends a process that is stopped
        # one that is stuck in a driver does not end even so
        self._loop.call_later(LAST_WORDS_SECONDS, self._end, self._hung)

    def _end(self, sentence: str) -> None:
        if not self.ended.done():
            self.ended.set_result(sentence)
            self.fail_all(sentence)

    def _obituary(self) -> str:
        if self._hung:
            return self._hung
        self._process.join()
        code = self._process.exitcode
        assert code is not None
        if code >= 0:
            how = f"ended with status {code}; its last lines above say why"
        elif -code == signal.SIGKILL:
            how = "was killed (SIGKILL), most often because it needed more memory than it may have"
        else:
            how = f"died of {signal.Signals(-code).name}"
        return f"The engine process {how}."
