"""Follows a file while the engine runs, and loads what it names in the background."""

from __future__ import annotations

import logging
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Generic, Protocol, TypeVar

from turbo_runtime.file_stamp import Stamp, file_stamp

log = logging.getLogger(__name__)

LOOK_SECONDS = 2.0
RETRY_SECONDS = 30.0  # the named files may appear later


class HasError(Protocol):
    """A result that may be incomplete."""

    @property
    def problem(self) -> str:
        """Sentences about what could not be loaded; else empty."""


Loaded = TypeVar("Loaded", bound=HasError)


class WatchedFile(Generic[Loaded]):
    """Loads again whenever the file changes, also behind a swapped symlink as of a mounted ConfigMap."""

    def __init__(self, path: Path, load: Callable[[Path], Loaded]) -> None:
        """`load` runs in another thread; the sentence of its ValueError becomes the problem."""
        self.path = path
        self.problem = ""  # why what the file names is not in use; else empty
        self._load = load
        self._seen: Stamp | None = (0, 0, 0)  # of no file: a missing one is a problem too
        self._loading: Future[Loaded] | None = None
        self._look_at = self._retry_at = float("-inf")
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="drafts")

    def poll(self, now: float) -> Loaded | None:
        """Return what was loaded since the last call, if anything; `now` is monotonic.

        Takes microseconds: it checks the file every `LOOK_SECONDS`. A file that cannot be loaded changes
        nothing.
        """
        if self._loading is not None:
            return self._take(self._loading, now) if self._loading.done() else None
        if now < self._look_at:
            return None
        self._look_at = now + LOOK_SECONDS
        stamp = file_stamp(self.path)
        if stamp != self._seen or (self.problem and now >= self._retry_at):
            self._seen = stamp
            self._loading = self._thread.submit(self._load, self.path)
        return None

    def wait(self, now: float) -> Loaded | None:
        """`poll`, and wait for the load that it begins: for the start."""
        loaded = self.poll(now)
        return self._take(self._loading, now) if self._loading is not None else loaded

    def close(self) -> None:
        """End the thread."""
        self._thread.shutdown(wait=False, cancel_futures=True)

    def _take(self, loading: Future[Loaded], now: float) -> Loaded | None:
        try:
            loaded = loading.result()
        except ValueError as error:
            self._report(str(error), now)
            return None
        except Exception as error:  # no reason to stop serving
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
