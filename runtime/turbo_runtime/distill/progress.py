"""One line for each stage of long work, with the time that is left."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TextIO

from turbo_runtime.contract.training import TrainingProgress

LIVE_SECONDS, LOG_SECONDS = (
    0.2,
    15.0,
)  # between two lines: on a terminal, where one takes another's place, in a log


class Stage:
    """How far a stage is."""

    def __init__(self, name: str, total: int, unit: str) -> None:
        self._name, self._total, self._unit = name, total, unit
        self._began = time.monotonic()
        self._done = self._fresh = 0

    def line(self, now: float, *, over: bool = False) -> str:
        """What is told of it; `over`: for the last time."""
        passed = now - self._began
        head = f"{self._name:<12}{self._done:>7,}/{self._total:,} {self._unit}"
        if over:
            return f"{head}  in {spell(passed)}"
        if not self._fresh:
            return head
        return f"{head}  {spell(passed * (self._total - self._done) / self._fresh)} left"

    def told(self, now: float) -> TrainingProgress:
        """The same for a program."""
        left = (now - self._began) * (self._total - self._done) / self._fresh if self._fresh else None
        return TrainingProgress(self._name, self._done, self._total, self._unit, left)

    def add(self, count: int, *, known: bool) -> None:
        """More units are done; those that were `known` took no time."""
        self._done += count
        self._fresh += 0 if known else count


class Advance:
    """Tells of one stage, now and then."""

    def __init__(self, progress: Progress, stage: Stage) -> None:
        self._progress, self._stage = progress, stage
        self._told = time.monotonic()

    def __call__(self, count: int = 1, *, known: bool = False) -> None:
        """So many units more are done, or were before."""
        self._stage.add(count, known=known)
        now = time.monotonic()
        if now - self._told >= (LIVE_SECONDS if self._progress.live else LOG_SECONDS):
            self._told = now
            self._progress.show(self._stage.line(now))


class Progress:
    """Tells on standard error how far the work is."""

    def __init__(self, stream: TextIO | None = None) -> None:
        self._stream = sys.stderr if stream is None else stream
        self.live = self._stream.isatty()
        self._stage: Stage | None = None

    @property
    def now(self) -> TrainingProgress:
        """Of the stage in progress, or of the last one."""
        stage = self._stage
        return TrainingProgress("start", 0, 1, "stages") if stage is None else stage.told(time.monotonic())

    def say(self, text: str) -> None:
        """A line of its own."""
        print(text, file=self._stream, flush=True)

    def show(self, text: str, *, last: bool = False) -> None:
        """A line that the next one replaces where that can be."""
        if self.live:
            print(f"\r\x1b[2K{text}", end="\n" if last else "", file=self._stream, flush=True)
        else:
            self.say(text)

    @contextmanager
    def stage(self, name: str, total: int, unit: str, done: int = 0) -> Iterator[Advance]:
        """Run a stage of `total` units, of which some may be done already."""
        stage = self._stage = Stage(name, total, unit)
        stage.add(done, known=True)
        self.show(stage.line(time.monotonic()))
        try:
            yield Advance(self, stage)
        except BaseException:
            if self.live:
                self.say("")
            raise
        self.show(stage.line(time.monotonic(), over=True), last=True)


def spell(seconds: float) -> str:
    """A duration for people."""
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02} s"
    return f"{whole // 3600} h {whole % 3600 // 60:02} min"
