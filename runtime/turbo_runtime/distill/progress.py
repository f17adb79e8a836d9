"""Progress of long work: a line for each stage on standard error, and a document over HTTP."""

from __future__ import annotations

import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import TextIO

from turbo_runtime.contract.endpoints import HEALTH_PATH
from turbo_runtime.contract.training import PROGRESS_PATH, TrainingProgress

# Between two lines: on a terminal, where one replaces another, and in a log.
LIVE_SECONDS, LOG_SECONDS = 0.2, 15.0
_UNIT_SECONDS = 3.0  # from which on a stage without an end in sight shows the time that it has taken


class Stage:
    """One stage; calling it reports that more units are done."""

    def __init__(self, progress: Progress, name: str, total: int, unit: str) -> None:
        self._progress, self._name, self._total, self._unit = progress, name, total, unit
        self._start_time = self._shown_time = time.monotonic()
        self._done = self._fresh = 0
        self._lock = threading.Lock()

    def __call__(self, count: int = 1, *, known: bool = False) -> None:
        """Add units; those that were `known` took no time."""
        self._done += count
        self._fresh += 0 if known else count
        self.refresh()

    def refresh(self) -> None:
        """Show the stage where the last line is old enough."""
        with self._lock:
            now = time.monotonic()
            if now - self._shown_time >= self._progress.interval:
                self._shown_time = now
                self._progress.show(self.line(now))

    def line(self, now: float, *, over: bool = False) -> str:
        """Describe it; `over`: for the last time."""
        head = f"{self._name:<12}{self._done:>7,}/{self._total:,} {self._unit}"
        remaining, passed = self.document(now).left_seconds, now - self._start_time
        if over:
            return f"{head}  in {spell(passed)}"
        if remaining is not None:
            return f"{head}  {spell(remaining)} left"
        return f"{head}  for {spell(passed)}" if passed >= _UNIT_SECONDS else head

    def document(self, now: float) -> TrainingProgress:
        """Describe it for a program."""
        passed = now - self._start_time
        remaining = passed * (self._total - self._done) / self._fresh if self._fresh else None
        return TrainingProgress(self._name, self._done, self._total, self._unit, remaining)


class Progress:
    """Reports how far the work is."""

    def __init__(self, stream: TextIO | None = None) -> None:
        self._stream = sys.stderr if stream is None else stream
        self._live = self._stream.isatty()
        self.interval = LIVE_SECONDS if self._live else LOG_SECONDS
        self._stage: Stage | None = None

    @property
    def now(self) -> TrainingProgress:
        """Describe the stage in progress, or the last one."""
        if self._stage is None:
            return TrainingProgress("start", 0, 1, "stages")
        return self._stage.document(time.monotonic())

    def say(self, text: str) -> None:
        """Print a line."""
        print(text, file=self._stream, flush=True)

    def show(self, text: str, *, last: bool = False) -> None:
        """Print a line that the next one replaces on a terminal."""
        if self._live:
            print(f"\r\x1b[2K{text}", end="\n" if last else "", file=self._stream, flush=True)
        else:
            self.say(text)

    @contextmanager
    def stage(self, name: str, total: int, unit: str, done: int = 0) -> Iterator[Stage]:
        """Run a stage of `total` units, of which some may be done already."""
        stage = self._stage = Stage(self, name, total, unit)
        stage(done, known=True)
        self.show(stage.line(time.monotonic()))
        over = threading.Event()

        def keep_fresh() -> None:
            while not over.wait(self.interval):
                stage.refresh()

        thread = threading.Thread(target=keep_fresh, name="progress", daemon=True)
        thread.start()
        try:
            yield stage
        except BaseException:
            if self._live:
                self.say("")
            raise
        finally:
            over.set()
            thread.join()
        self.show(stage.line(time.monotonic(), over=True), last=True)


@contextmanager
def serve_progress(port: int | None, now: Callable[[], TrainingProgress]) -> Iterator[int | None]:
    """Serve `PROGRESS_PATH` meanwhile, on the port that is yielded; 0 takes a free one, None serves nothing.

    Raises OSError where the port is taken.
    """
    if port is None:
        yield None
        return

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            body = now().to_json().encode()
            self.send_response(200 if self.path in (PROGRESS_PATH, HEALTH_PATH) else 404)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: object) -> None:
            """Log nothing: the operator asks every few seconds."""

    server = ThreadingHTTPServer(("", port), Handler)
    thread = threading.Thread(target=server.serve_forever, name="progress server", daemon=True)
    thread.start()
    try:
        yield int(server.server_address[1])
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def spell(seconds: float) -> str:
    """Spell a duration for people."""
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02} s"
    return f"{whole // 3600} h {whole % 3600 // 60:02} min"
