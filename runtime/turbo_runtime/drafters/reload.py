"""Follows a file while the engine runs: what it names is loaded beside the steps and taken up between two."""

from __future__ import annotations

import logging
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Generic, Protocol, TypeVar

from turbo_runtime.file_stamp import Stamp, file_stamp

log = logging.getLogger(__name__)

LOOK_SECONDS = 2.0
RETRY_SECONDS = 30.0  # what a file names may come later than the file


class Told(Protocol):
    """What is loaded says itself what of it could not be."""

    @property
    def problem(self) -> str:
        """In sentences; empty if all of it was."""


Loaded = TypeVar("Loaded", bound=Told)


class WatchedFile(Generic[Loaded]):
    """Loads anew whenever the file is another one: written, replaced, or behind a symlink that was swapped,
    as a mounted ConfigMap's is.
    """

    def __init__(self, path: Path, load: Callable[[Path], Loaded]) -> None:
        """`load` runs in a thread of its own; the sentence of a ValueError of it becomes the problem."""
        self.path = path
        self.problem = ""  # why what the file names is not in use; empty if it is
        self._load = load
        self._seen: Stamp | None = (0, 0, 0)  # none: a file that is not there is a problem too
        self._loading: Future[Loaded] | None = None
        self._look_at = self._retry_at = float("-inf")
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="drafts")

    def poll(self, now: float) -> Loaded | None:
        """What was loaded since the last call, if anything. `now` in seconds of a clock that never goes back.

        Takes microseconds: a look at the file every `LOOK_SECONDS` at most. A file that cannot be loaded at
        all changes nothing of what is in use.
        """
        if self._loading is not None:
            return self._take(self._loading, now) if self._loading.done() else None
        if now < self._look_at:
            return None
        self._look_at = now + LOOK_SECONDS
        found = file_stamp(self.path)
        if found != self._seen or (self.problem and now >= self._retry_at):
            self._seen = found
            self._loading = self._thread.submit(self._load, self.path)
        return None

    def wait(self, now: float) -> Loaded | None:
        """`poll`, but to the end of a load that it begins: for the start, when nothing runs yet."""
        loaded = self.poll(now)
        return self._take(self._loading, now) if self._loading is not None else loaded

    def close(self) -> None:
        """Let the thread end."""
        self._thread.shutdown(wait=False, cancel_futures=True)

    def _take(self, loading: Future[Loaded], now: float) -> Loaded | None:
        try:
            loaded = loading.result()
        except ValueError as error:
            self._report(str(error), now)
            return None
        except Exception as error:  # whatever it is, it is no reason to stop serving
            log.exception("%s: loading failed", self.path)
            self._report(f"{self.path}: loading failed: {type(error).__name__}: {error}", now)
            return None
        finally:
            self._loading = None
        self._report(loaded.problem, now)
        return loaded

    def _report(self, problem: str, now: float) -> None:
        if problem and problem != self.problem:
            log.error("drafts stay as they are: %s", problem)
        self.problem = problem
        self._retry_at = now + RETRY_SECONDS
