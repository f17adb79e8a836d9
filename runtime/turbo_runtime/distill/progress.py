"""Progress of long work: a line for each stage on standard error, and a document over HTTP."""

from __future__ import annotations

import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import TextIO

from turbo_runtime.contract.documents import PROGRESS_PATH, JobProgress
from turbo_runtime.contract.endpoints import HEALTH_PATH

# Between two lines: on a terminal, where one replaces another, and in a log.
LIVE_SECONDS, LOG_SECONDS = 0.2, 15.0
_UNIT_SECONDS = 3.0  # from which on a stage without an end in sight shows the time that it has taken


class Progress:
    """Reports how far the stage in progress is, or was."""

    def __init__(self, stream: TextIO | None = None) -> None:
        self._stream = sys.stderr if stream is None else stream
        self._live = self._stream.isatty()
        self._interval = LIVE_SECONDS if self._live else LOG_SECONDS
        self._lock = threading.RLock()
        self._begin("start", 1, "stages", 0)

    def _begin(self, name: str, total: int, unit: str, done: int) -> None:
        with self._lock:
            self._name, self._total, self._unit = name, total, unit
            self._done, self._fresh = done, 0
            self._start_time = self._shown_time = time.monotonic()

    @property
    def now(self) -> JobProgress:
        """Describe the stage for a program."""
        with self._lock:
            passed = time.monotonic() - self._start_time
            remaining = passed * (self._total - self._done) / self._fresh if self._fresh else None
            return JobProgress(self._name, self._done, self._total, self._unit, remaining)

    def line(self, *, over: bool = False) -> str:
        """Describe the stage for people; `over`: for the last time."""
        now, passed = self.now, time.monotonic() - self._start_time
        head = f"{now.stage:<12}{now.done:>7,}/{now.total:,} {now.unit}"
        if over:
            return f"{head}  in {spell(passed)}"
        if now.left_seconds is not None:
            return f"{head}  {spell(now.left_seconds)} left"
        return f"{head}  for {spell(passed)}" if passed >= _UNIT_SECONDS else head

    def say(self, text: str) -> None:
        """Print a line."""
        print(text, file=self._stream, flush=True)

    def _show(self, *, over: bool = False) -> None:
        """Print the line of the stage, which the next one replaces on a terminal until it is over."""
        line = self.line(over=over)
        if self._live:
            print(f"\r\x1b[2K{line}", end="\n" if over else "", file=self._stream, flush=True)
        else:
            self.say(line)

    def _advance(self, count: int = 1, known: bool = False) -> None:
        """Add units, of which those that were `known` took no time; show them where the last line is old."""
        with self._lock:  # many threads may report
            self._done += count
            self._fresh += 0 if known else count
            if time.monotonic() - self._shown_time >= self._interval:
                self._shown_time = time.monotonic()
                self._show()

    @contextmanager
    def stage(self, name: str, total: int, unit: str, done: int = 0) -> Iterator[Callable[..., None]]:
        """Run a stage of `total` units, of which some may be done already; yield what adds more."""
        self._begin(name, total, unit, done)
        self._show()
        over = threading.Event()

        def keep_fresh() -> None:
            while not over.wait(self._interval):
                self._advance(0)

        thread = threading.Thread(target=keep_fresh, name="progress", daemon=True)
        thread.start()
        try:
            yield self._advance
        except BaseException:
            if self._live:
                self.say("")
            raise
        finally:
            over.set()
            thread.join()
        self._show(over=True)


@contextmanager
def serve_progress(port: int | None, now: Callable[[], JobProgress]) -> Iterator[int | None]:
    """Serve `PROGRESS_PATH` on the port that is yielded: of 0 a free one, of None none. Raises OSError."""
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

    with ThreadingHTTPServer(("", port), Handler) as server:
        thread = threading.Thread(target=server.serve_forever, name="progress server", daemon=True)
        thread.start()
        try:
            yield int(server.server_address[1])
        finally:
            server.shutdown()
            thread.join()


def spell(seconds: float) -> str:
    """Spell a duration for people."""
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 60:
        return f"{minutes} min {rest:02} s" if minutes else f"{rest} s"
    return f"{minutes // 60} h {minutes % 60:02} min"
