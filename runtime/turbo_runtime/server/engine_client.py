"""The engine's process, and the server's end of its two queues: events, and the engine's death or hang."""

from __future__ import annotations

import asyncio
import ctypes
import multiprocessing
import os
import signal
import threading
import time
from collections.abc import Callable, Iterable, Sequence
from multiprocessing.queues import Queue
from typing import Any

from turbo_runtime import messages
from turbo_runtime.contract.config import RuntimeConfig
from turbo_runtime.engine.child_process import describe_exit, die_with_parent
from turbo_runtime.engine.threads import ask_for_huge_pages

# (config, inbox, outbox, folder that the tokenizer is exported into, what to call at every turn of the loop),
# as `turbo_runtime.engine.process.run_engine` takes them
EngineMain = Callable[[RuntimeConfig, "Queue[Any]", "Queue[Any]", str, Callable[[], None]], None]


def child_main(
    engine: EngineMain | None,
    config: RuntimeConfig,
    inbox: Queue[Any],
    outbox: Queue[Any],
    tokenizer_dir: str,
    heartbeat: ctypes.c_uint64,
) -> None:
    """Run `engine`, by default the real one, and count the turns of its loop in shared memory."""
    if engine is None:  # imported only in its own process: the server's stays free of torch
        from turbo_runtime.engine.process import run_engine

        engine = run_engine

    def beat() -> None:
        heartbeat.value += 1

    # Ctrl-C and a service manager's SIGTERM reach both processes; the server alone decides when to stop.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    threading.Thread(target=die_with_parent, name="server watch", daemon=True).start()
    engine(config, inbox, outbox, tokenizer_dir, beat)


MAX_PERIOD_SECONDS = 1.0  # between two checks

# Fraction of the limit after which no new requests should come. Not much sooner: a step of a long prompt may
# take 30 s on a busy core, and a pod that left its Service for it would send the next such prompt to another.
LATE_FRACTION = 0.5


class Watchdog:
    """Sum of the time between checks that find the count unchanged.

    Only time in which the server is awake counts, so that server and engine may be stopped together (a
    frozen container, a suspended machine) and go on: a late check adds no more than two periods.
    """

    def __init__(self, limit_seconds: float) -> None:
        self.limit_seconds = limit_seconds
        self.period_seconds = min(MAX_PERIOD_SECONDS, limit_seconds / 8)
        self.silent_seconds = 0.0
        self._count = -1
        self._check_time = 0.0

    def check(self, count: int, now: float) -> None:
        """Compare the engine's count with the last one; `now` is by a clock that never goes back."""
        passed, self._check_time = now - self._check_time, now
        if count != self._count:
            self._count, self.silent_seconds = count, 0.0
        else:
            self.silent_seconds += min(passed, 2 * self.period_seconds)

    @property
    def is_late(self) -> bool:
        """Whether the engine has been silent for so long that requests should go elsewhere."""
        return self.silent_seconds >= LATE_FRACTION * self.limit_seconds

    @property
    def is_expired(self) -> bool:
        """Whether to end the engine."""
        return self.silent_seconds >= self.limit_seconds


LAST_MESSAGES_SECONDS = 2.0  # how long to wait for messages of a dead engine
ABANDONED = "abandoned"  # a finish reason in addition to the engine's: it sends no more of this answer
STOP_SECONDS = 5.0  # how long an engine may take to end by itself

TimedEvent = tuple[messages.TokenEvent, float]  # and its time of arrival, however slowly the client reads
EventQueue = asyncio.Queue[TimedEvent]  # of one request, until its coroutine takes them


class EngineClient:
    """Client on the event loop's thread; only the reader thread blocks on the outbox.

    `ready` holds the engine's first message. `ended` holds a sentence once the engine sends nothing more.
    """

    def __init__(self, config: RuntimeConfig, engine: EngineMain | None, tokenizer_dir: str) -> None:
        # a fork would copy the threads' locks in whatever state they are
        context = multiprocessing.get_context("spawn")
        self._inbox = context.Queue()
        self._outbox = context.Queue()
        self._heartbeat = context.RawValue(ctypes.c_uint64, 0)
        self._process = context.Process(
            target=child_main,
            args=(engine, config, self._inbox, self._outbox, tokenizer_dir, self._heartbeat),
            name="turbo engine",
        )
        self._loop = asyncio.get_running_loop()
        self.unfinished: dict[str, EventQueue] = {}  # answers submitted and not finished, by id
        self._stopping = False
        self._hang_message = ""  # set when the watchdog ends the engine
        self.watchdog = Watchdog(config.step_timeout_seconds)
        self.stats = messages.EngineStats()
        self.ready: asyncio.Future[messages.EngineReady] = self._loop.create_future()
        self.ended: asyncio.Future[str] = self._loop.create_future()
        self.on_step: Callable[[messages.EngineStats], object] = lambda _: None

    def start(self) -> None:
        """Start the process; `ready` or `ended` follows."""
        ask_for_huge_pages(os.environ)
        self._process.start()
        threading.Thread(target=self._read_outbox, name="engine outbox", daemon=True).start()
        self._loop.add_reader(self._process.sentinel, self._handle_exit)

    @property
    def is_alive(self) -> bool:
        """Whether the engine can still answer; also true while it loads."""
        return not self.ended.done()

    def submit(self, requests: Sequence[messages.GenerationRequest]) -> EventQueue:
        """Hand requests to the engine and return where all their events arrive, also when the engine dies.

        Raises ValueError for an id that is in use, and hands nothing over.
        """
        if duplicates := [new.request_id for new in requests if new.request_id in self.unfinished]:
            raise ValueError(f"request {duplicates[0]} is running or waiting already")
        events = EventQueue()
        for request in requests:
            self.unfinished[request.request_id] = events
            self._inbox.put(request)
        if self.ended.done():  # it died after the caller checked
            self.fail_all(self.ended.result())
        return events

    def cancel(self, request_ids: Iterable[str]) -> None:
        """Drop answers that nobody waits for any more; finished ones are ignored."""
        for request_id in request_ids:
            if self.unfinished.pop(request_id, None) is not None and self.is_alive:
                self._inbox.put(messages.Abort(request_id))

    def fail_all(self, message: str) -> None:
        """End every unfinished answer with an error."""
        unfinished, now = dict(self.unfinished), time.monotonic()
        self.cancel(unfinished)
        for request_id, events in unfinished.items():
            events.put_nowait((messages.TokenEvent(request_id, finish_reason=ABANDONED, error=message), now))

    async def stop(self, timeout_seconds: float = STOP_SECONDS) -> None:
        """End the process after its current step, by force if that takes longer than `timeout_seconds`."""
        self._stopping = True
        if timeout_seconds and self._process.is_alive():
            self._inbox.put(messages.Shutdown())
            await asyncio.to_thread(self._process.join, timeout_seconds)
        if self._process.is_alive():
            self._process.kill()
            await asyncio.to_thread(self._process.join)
        self._loop.remove_reader(self._process.sentinel)
        # a dead reader leaves the pipe full, and the interpreter would wait for it at exit
        self._inbox.cancel_join_thread()
        self._outbox.cancel_join_thread()

    def _read_outbox(self) -> None:
        while True:
            message = self._outbox.get()
            try:
                self._loop.call_soon_threadsafe(self._handle_message, message, time.monotonic())
            except RuntimeError:  # the loop is closed: the server ends, and nobody listens any more
                return
            if isinstance(message, messages.EngineFailed):
                return

    def _handle_message(
        self, message: messages.StepOutput | messages.EngineReady | messages.EngineFailed, arrival_time: float
    ) -> None:
        if isinstance(message, messages.EngineFailed):
            self._end(message.error)
            return
        self.stats = message.stats
        self.on_step(message.stats)
        if isinstance(message, messages.EngineReady):
            self.ready.set_result(message)
            self._check_heartbeat()
            return
        for event in message.events:
            events = self.unfinished.get(event.request_id)
            if events is None:
                continue  # cancelled while the event was on its way
            if event.finish_reason is not None:
                del self.unfinished[event.request_id]
            events.put_nowait((event, arrival_time))

    def _handle_exit(self) -> None:
        self._loop.remove_reader(self._process.sentinel)
        if self._stopping:
            return
        # Its last messages, an EngineFailed perhaps, may still be on the way: this one queues up behind them.
        message = self._explain_exit()
        self._outbox.put(messages.EngineFailed(message))
        # An engine killed while it wrote leaves the outbox locked, and this one then never arrives.
        self._loop.call_later(LAST_MESSAGES_SECONDS, self._end, message)

    def _check_heartbeat(self) -> None:
        """Check now and from now on. Starts with EngineReady, since loading has no time limit."""
        if self._stopping or self.ended.done():
            return
        self.watchdog.check(self._heartbeat.value, self._loop.time())
        if not self.watchdog.is_expired:
            self._loop.call_later(self.watchdog.period_seconds, self._check_heartbeat)
            return
        self._hang_message = (
            f"The engine process has not finished a step for {self.watchdog.limit_seconds:g} s and was "
            "ended. If a step may take that long here, lower --max-num-batched-tokens or raise "
            "--step-timeout-seconds."
        )
        self._process.kill()  # also ends a process that is stopped
        # one that is stuck in a driver does not end even so
        self._loop.call_later(LAST_MESSAGES_SECONDS, self._end, self._hang_message)

    def _end(self, message: str) -> None:
        if not self.ended.done():
            self.ended.set_result(message)
            self.fail_all(message)

    def _explain_exit(self) -> str:
        if self._hang_message:
            return self._hang_message
        self._process.join()
        code = self._process.exitcode
        assert code is not None
        return f"The engine process {describe_exit(code)}."
