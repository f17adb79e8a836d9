"""A server as a process of its own, as a pod has it: real signals, real sockets, a real uvicorn."""

from __future__ import annotations

import os
import re
import subprocess
import threading
from collections.abc import Mapping, Sequence
from pathlib import Path

from .paths import REPOSITORY

PATIENCE = 240.0  # seconds, which a machine that stands still for a minute may need; usual are few


class ServerProcess:
    """A server and what it says."""

    def __init__(self, command: Sequence[str], environment: Mapping[str, str] | None = None) -> None:
        """Start it; `environment` is added to ours."""
        added = {"PYTHONPATH": str(REPOSITORY / "runtime"), **(environment or {})}
        self.process = subprocess.Popen(
            command, stderr=subprocess.PIPE, text=True, env={**os.environ, **added}
        )
        self.lines: list[str] = []
        self._news = threading.Condition()
        self._reader = threading.Thread(target=self._read)
        self._reader.start()

    @property
    def url(self) -> str:
        """Where it listens; waits until it does."""
        return self.wait_for(r"listening on (http://\S+),")

    @property
    def said(self) -> str:
        """All of its standard error so far."""
        return "".join(self.lines)

    def wait_for(self, pattern: str, seconds: float = PATIENCE) -> str:
        """The first group (or all) of the first line that matches."""

        def found() -> re.Match[str] | None:
            return next((match for line in self.lines if (match := re.search(pattern, line))), None)

        with self._news:
            self._news.wait_for(lambda: found() or not self._reader.is_alive(), seconds)
            match = found()
        assert match, f"{pattern!r} never came in:\n{self.said}"
        return match[match.lastindex or 0]

    def exit_status(self) -> int:
        """Waits for its end."""
        status = self.process.wait(PATIENCE)
        self._reader.join(PATIENCE)
        return status

    def engine_pid(self) -> int:
        """The one child that is no resource tracker of multiprocessing."""
        pid = self.process.pid
        children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
        tracker = "resource_tracker"
        return next(int(c) for c in children if tracker not in Path(f"/proc/{c}/cmdline").read_text())

    def close(self) -> None:
        """End it, however it is."""
        if self.process.poll() is None:
            self.process.kill()
        self.exit_status()
        assert self.process.stderr is not None
        self.process.stderr.close()

    def _read(self) -> None:
        assert self.process.stderr is not None
        for line in self.process.stderr:
            with self._news:
                self.lines.append(line)
                self._news.notify_all()
        with self._news:
            self._news.notify_all()
