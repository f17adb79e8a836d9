"""Records prompts in a thread of its own, so that requests never wait."""

from __future__ import annotations

import logging
import queue
import random
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import TextIO

from turbo_runtime.capture.segment_store import deletions, expire, host_name, line, opened, sweep
from turbo_runtime.capture.settings import CaptureError, read_settings, redact
from turbo_runtime.files import file_stamp

HEADER = "x-turbo-capture"  # with any value but `on`, the request is not kept
LOOK_SECONDS = 2.0  # between two checks of the settings and the deletions
SEGMENT_BYTES, SEGMENT_SECONDS = 8 << 20, 3600.0  # of one file
SEGMENTS = 8  # that the folder holds at least, so that only the oldest prompts go
WAITING = 256  # prompts that may wait for the thread; more are not kept

OUTCOMES = ("kept", "not_sampled", "refused", "ambiguous", "unredacted", "deleted", "overrun", "failed")

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class CapturedPrompt:
    """The prompt of a request."""

    tenant: str
    text: Callable[[], str | None]  # as the model reads it, None if no text does; called by the thread
    at: float = field(default_factory=time.time)


class Capture:
    """The recorder of a server; `offer` never blocks. `outcomes` and `size` are its statistics."""

    def __init__(self, path: Path) -> None:
        """`path`: of the settings. Raises CaptureError where they cannot be used."""
        self._path, self._stamp = path, file_stamp(path)
        self._settings = read_settings(path)
        self._lots = random.SystemRandom()
        self._queue: queue.Queue[CapturedPrompt | None] = queue.Queue(WAITING)
        self.outcomes: dict[str, int] = dict.fromkeys(OUTCOMES, 0)
        self.size = 0  # bytes of the folder when it was last looked at
        self._problems: dict[str, str] = {}  # by what went wrong
        self._lock = threading.Lock()
        self._file: TextIO | None = None
        self._opened = 0.0
        self._swept: tuple[Path, dict[str, float]] | None = None  # the deletions done in which folder
        self._look_at = 0.0
        self._thread = threading.Thread(target=self._run, name="capture", daemon=True)
        self._thread.start()

    @property
    def problem(self) -> str:
        """Why prompts or new settings are not taken; empty where all is well."""
        return next(iter(self._problems.values()), "")

    def offer(self, prompt: CapturedPrompt, header: str | None) -> None:
        """Take an admitted prompt; `header` is its client's value of HEADER."""
        if header is not None and header.strip().lower() != "on":
            self._count("refused")
        elif self._lots.random() >= self._settings.sample_fraction:
            self._count("not_sampled")
        else:
            try:
                self._queue.put_nowait(prompt)
            except queue.Full:
                self._count("overrun")

    def close(self, seconds: float = 5.0) -> None:
        """Write what waits, and end; do not wait for a volume that hangs."""
        with suppress(queue.Full):
            self._queue.put(None, timeout=seconds)
            self._thread.join(seconds)

    def _count(self, outcome: str) -> None:
        with self._lock:
            self.outcomes[outcome] += 1

    def _run(self) -> None:
        while True:
            try:
                prompt = self._queue.get(timeout=LOOK_SECONDS)
            except queue.Empty:
                self._look(time.time())
                continue
            self._look(time.time())
            if prompt is None:
                self._close_segment()
                return
            self._count(self._keep(prompt))

    def _keep(self, prompt: CapturedPrompt) -> str:
        try:
            if (text := prompt.text()) is None:
                return "ambiguous"
            if (text := redact(text, self._settings.redact)) is None:
                return "unredacted"
            if self._swept and prompt.at <= self._swept[1].get(prompt.tenant, 0.0):
                return "deleted"
            file = self._segment(prompt.at)
            file.write(line({"at": round(prompt.at, 3), "tenant": prompt.tenant, "text": text}))
            file.flush()
        except Exception as error:  # of disk or tokenizer: serving goes on
            self._report("writing", f"prompts are not captured: {error}")
            self._close_segment()
            return "failed"
        self._problems.pop("writing", None)
        return "kept"

    def _segment(self, now: float) -> TextIO:
        """Return the open segment, or a new one where that is full, old, gone, or elsewhere."""
        folder = Path(self._settings.folder)
        if self._file is not None:
            path = Path(self._file.name)
            full = self._file.tell() >= min(SEGMENT_BYTES, self._settings.max_bytes // SEGMENTS)
            old = now - self._opened >= SEGMENT_SECONDS
            if full or old or path.parent != folder or not path.exists():
                self._close_segment()
        if self._file is None:
            self._file, self._opened = opened(folder, host_name(), now), now
        return self._file

    def _close_segment(self) -> None:
        file, self._file = self._file, None
        with suppress(OSError):  # what could not be written is lost, and was logged
            if file is not None:
                file.close()

    def _look(self, now: float) -> None:
        """Check the settings, the deletions, and the limits of age and size."""
        if now < self._look_at:
            return
        self._look_at = now + LOOK_SECONDS
        try:
            self._follow_settings()
            folder = Path(self._settings.folder)
            gone = deletions(folder)
            if (folder, gone) != self._swept:
                self._close_segment()
                sweep(folder, gone)
                self._swept = folder, gone
            self.size = expire(folder, now, self._settings.max_bytes, self._settings.max_age_seconds)
        except Exception as error:  # such as a volume that is gone: it may come back
            self._report("folder", f"{self._settings.folder}: what is to go may be there yet: {error}")
        else:
            self._problems.pop("folder", None)

    def _follow_settings(self) -> None:
        before, self._stamp = self._stamp, file_stamp(self._path)
        if self._stamp != before:
            try:
                self._settings = read_settings(self._path)
                self._problems.pop("settings", None)
            except CaptureError as error:
                self._report("settings", f"capture goes on as it was: {error}")

    def _report(self, what: str, problem: str) -> None:
        if problem != self._problems.get(what):
            log.error("%s", problem)
        self._problems[what] = problem
