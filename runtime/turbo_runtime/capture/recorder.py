"""Records prompts in a thread of its own, so that requests never wait: sampled, redacted, and as the settings
say, a file that is followed while serving.
"""

from __future__ import annotations

import logging
import queue
import random
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import TextIO

import regex

from turbo_runtime.capture.segment_store import create_segment, deletions, expire, line, sweep
from turbo_runtime.files import file_stamp, read_object

HEADER = "x-turbo-capture"  # with any value but `on`, the request is not kept
LOOK_SECONDS = 2.0  # between two checks of the settings and the deletions
SEGMENT_BYTES, SEGMENT_SECONDS = 8 << 20, 3600.0  # of one file
SEGMENTS = 8  # that the folder holds at least, so that only the oldest prompts go
WAITING = 256  # prompts that may wait for the thread; more are not kept
REDACTED = "[redacted]"
PATTERN_SECONDS = 0.5  # limit of one pattern on one prompt; a prompt that takes longer is not kept
OUTCOMES = ("kept", "not_sampled", "refused", "ambiguous", "unredacted", "deleted", "overrun", "failed")
_LIMITS = {"sampleFraction": (0, 1), "maxMib": (1, 1 << 30), "maxAgeHours": (0.01, 1e6)}

log = logging.getLogger(__name__)


class CaptureError(ValueError):
    """Settings that cannot be used; the message is a sentence with the remedy."""


@dataclass(frozen=True, slots=True)
class CaptureSettings:
    """The settings; a file has the fields of `_NAMES`."""

    folder: str
    sample_fraction: float = 1.0  # of the requests
    max_mib: int = 1024  # of the folder, all servers' segments together
    max_age_hours: float = 720.0
    redact: tuple[str, ...] = ()  # patterns; a match becomes REDACTED before anything is written


_NAMES = dict(zip(("folder", *_LIMITS, "redact"), CaptureSettings.__dataclass_fields__, strict=True))


def read_settings(path: Path) -> CaptureSettings:
    """Read and check the file. Raises CaptureError."""
    document = read_object(path, CaptureError, "write a JSON object with 'folder'")
    if unknown := sorted(set(document) - set(_NAMES)):
        raise CaptureError(f"{path}: there is no '{unknown[0]}'; it knows {', '.join(_NAMES)}")
    if not isinstance(document.get("folder"), str) or not document["folder"]:
        raise CaptureError(f"{path}: folder must name a folder, not {document.get('folder')!r}")
    for name, (low, high) in _LIMITS.items():
        value = document.get(name, low)
        if isinstance(value, bool) or not isinstance(value, int if name == "maxMib" else (int, float)):
            raise CaptureError(f"{path}: {name} must be a number, not {value!r}")
        if not low <= value <= high:
            raise CaptureError(f"{path}: {name} must lie between {low:g} and {high:g}, not {value}")
    patterns = document.get("redact", [])
    if not isinstance(patterns, list) or not all(isinstance(item, str) and item for item in patterns):
        raise CaptureError(f"{path}: redact must be a list of patterns, not {patterns!r:.80}")
    for number, pattern in enumerate(patterns):
        try:
            regex.compile(pattern)
        except regex.error as error:
            raise CaptureError(f"{path}: redact[{number}] is no regular expression: {error}") from error
    values = {_NAMES[name]: value for name, value in document.items()}
    return CaptureSettings(**{**values, "redact": tuple(patterns)})


def redact(text: str, patterns: Sequence[str]) -> str | None:
    """Replace what the patterns match; None where one does not end, and the prompt must not be kept."""
    for pattern in patterns:
        try:
            # concurrent: requests must not wait for a pattern
            text = regex.sub(pattern, REDACTED, text, concurrent=True, timeout=PATTERN_SECONDS)
        except TimeoutError:
            return None
    return text


@dataclass(frozen=True, slots=True)
class CapturedPrompt:
    """The prompt of a request."""

    tenant: str
    text: Callable[[], str | None]  # as the model reads it, None if no text does; called by the thread
    salted: bool = False  # whether only a part of the tenant's requests shares with it
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
            row = {"at": round(prompt.at, 3), "tenant": prompt.tenant, "salted": prompt.salted, "text": text}
            file.write(line(row))
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
            full = self._file.tell() >= min(SEGMENT_BYTES, (self._settings.max_mib << 20) // SEGMENTS)
            old = now - self._opened >= SEGMENT_SECONDS
            if full or old or path.parent != folder or not path.exists():
                self._close_segment()
        if self._file is None:
            self._file, self._opened = create_segment(folder, now), now
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
            before, self._stamp = self._stamp, file_stamp(self._path)
            if self._stamp != before:
                try:
                    self._settings = read_settings(self._path)
                    self._problems.pop("settings", None)
                except CaptureError as error:
                    self._report("settings", f"capture goes on as it was: {error}")
            folder = Path(self._settings.folder)
            gone = deletions(folder)
            if (folder, gone) != self._swept:
                self._close_segment()
                sweep(folder, gone)
                self._swept = folder, gone
            max_bytes, max_age_seconds = self._settings.max_mib << 20, self._settings.max_age_hours * 3600
            self.size = expire(folder, now, max_bytes, max_age_seconds)
        except Exception as error:  # such as a volume that is gone: it may come back
            self._report("folder", f"{self._settings.folder}: what is to go may be there yet: {error}")
        else:
            self._problems.pop("folder", None)

    def _report(self, what: str, problem: str) -> None:
        if problem != self._problems.get(what):
            log.error("%s", problem)
        self._problems[what] = problem
