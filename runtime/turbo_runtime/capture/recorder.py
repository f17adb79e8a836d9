"""Captures beside the server: a thread of its own decides, redacts and writes; requests wait for nothing."""

from __future__ import annotations

import logging
import queue
import random
import threading
import time
from collections.abc import Callable
from contextlib import ExitStack, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import TextIO

from turbo_runtime.capture.redaction import Redaction
from turbo_runtime.capture.segment_store import deletions, expire, host_name, line, opened, sweep
from turbo_runtime.capture.settings import CaptureError, read_settings
from turbo_runtime.file_stamp import file_stamp

HEADER = "x-turbo-capture"  # with any value but `on`, the request is not kept
LOOK_SECONDS = 2.0  # between looks at the settings and at what is to be deleted
SEGMENT_BYTES, SEGMENT_SECONDS = 8 << 20, 3600.0  # of one file
SEGMENTS = 8  # that the folder holds at least, so that only the oldest prompts go
WAITING = 256  # prompts that may wait for the thread; more are not kept

OUTCOMES = ("kept", "not_sampled", "refused", "ambiguous", "unredacted", "deleted", "overrun", "failed")

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class CapturedPrompt:
    """What a request asked."""

    tenant: str
    text: Callable[
        [], str | None
    ]  # the prompt as the model reads it, None if no text says it; for the thread
    at: float = field(default_factory=time.time)


class Capture:
    """Of one server; `offer` never blocks. All that is counted is told by `outcomes` and `size`."""

    def __init__(self, path: Path) -> None:
        """`path` of the settings. Raises CaptureError where they cannot be used at first."""
        self._path = path
        self._stamp = file_stamp(path)
        self._settings = read_settings(path)
        self._redact = Redaction(self._settings.redact)
        self._lots = random.SystemRandom()
        self._queue: queue.Queue[CapturedPrompt | None] = queue.Queue(WAITING)
        self.outcomes: dict[str, int] = dict.fromkeys(OUTCOMES, 0)
        self.size = 0  # bytes of the folder when it was last looked at
        self._problems: dict[str, str] = {}  # by what went wrong
        self._lock = threading.Lock()
        self._file: TextIO | None = None
        self._closing = ExitStack()
        self._opened = 0.0
        self._swept: tuple[Path, dict[str, float]] | None = None  # what was taken out of which folder
        self._look_at = 0.0
        self._thread = threading.Thread(target=self._run, name="capture", daemon=True)
        self._thread.start()

    @property
    def problem(self) -> str:
        """Why prompts are not kept, or settings are not those of the file; empty where all is well."""
        return next(iter(self._problems.values()), "")

    def offer(self, asked: CapturedPrompt, header: str | None) -> None:
        """A prompt that was let in; `header` is what its client said of being captured."""
        if header is not None and header.strip().lower() != "on":
            self._count("refused")
        elif self._lots.random() >= self._settings.sample_fraction:
            self._count("not_sampled")
        else:
            try:
                self._queue.put_nowait(asked)
            except queue.Full:
                self._count("overrun")

    def close(self, seconds: float = 5.0) -> None:
        """Write what waits, and end; what a claim that hangs holds up is not waited for."""
        with suppress(queue.Full):
            self._queue.put(None, timeout=seconds)
            self._thread.join(seconds)

    def _count(self, outcome: str) -> None:
        with self._lock:
            self.outcomes[outcome] += 1

    def _run(self) -> None:
        while True:
            try:
                asked = self._queue.get(timeout=LOOK_SECONDS)
            except queue.Empty:
                self._look(time.time())
                continue
            self._look(time.time())
            if asked is None:
                self._close_segment()
                return
            self._count(self._keep(asked))

    def _keep(self, asked: CapturedPrompt) -> str:
        try:
            text = asked.text()
            if text is None:
                return "ambiguous"
            text = self._redact(text)
            if text is None:
                return "unredacted"
            if self._swept and asked.at <= self._swept[1].get(asked.tenant, 0.0):
                return "deleted"
            file = self._segment(asked.at)
            file.write(line({"at": round(asked.at, 3), "tenant": asked.tenant, "text": text}))
            file.flush()
        except Exception as error:  # whatever the disk or the tokenizer says: serving goes on
            self._tell("writing", f"prompts are not captured: {error}")
            self._close_segment()
            return "failed"
        self._problems.pop("writing", None)
        return "kept"

    def _segment(self, now: float) -> TextIO:
        """The one that is written, a new one where that is full, is old, is gone, or lies elsewhere."""
        folder = Path(self._settings.folder)
        if self._file is not None:
            path = Path(self._file.name)
            full = self._file.tell() >= min(SEGMENT_BYTES, self._settings.max_bytes // SEGMENTS)
            old = now - self._opened >= SEGMENT_SECONDS
            if full or old or path.parent != folder or not path.exists():
                self._close_segment()
        if self._file is None:
            self._file = self._closing.enter_context(opened(folder, host_name(), now))
            self._opened = now
        return self._file

    def _close_segment(self) -> None:
        self._file = None
        with suppress(OSError):  # what could not be written is lost, and was told
            self._closing.close()

    def _look(self, now: float) -> None:
        """At the settings, at what is to be deleted, and at what is too old or too much."""
        if now < self._look_at:
            return
        self._look_at = now + LOOK_SECONDS
        try:
            self._read_settings()
            folder = Path(self._settings.folder)
            gone = deletions(folder)
            if (folder, gone) != self._swept:
                self._close_segment()
                sweep(folder, gone)
                self._swept = folder, gone
            self.size = expire(folder, now, self._settings.max_bytes, self._settings.max_age_seconds)
        except Exception as error:  # a claim that is gone, say: it may come back
            self._tell("folder", f"{self._settings.folder}: what is to go may be there yet: {error}")
        else:
            self._problems.pop("folder", None)

    def _read_settings(self) -> None:
        stamp = file_stamp(self._path)
        if stamp == self._stamp:
            return
        self._stamp = stamp
        try:
            self._settings = read_settings(self._path)
            self._redact = Redaction(self._settings.redact)
        except CaptureError as error:
            self._tell("settings", f"capture goes on as it was: {error}")
        else:
            self._problems.pop("settings", None)

    def _tell(self, what: str, problem: str) -> None:
        if problem != self._problems.get(what):
            log.error("%s", problem)
        self._problems[what] = problem
