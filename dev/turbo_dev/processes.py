"""A set of long-running programs that belong together: started in order, watched, stopped in reverse."""

from __future__ import annotations

import os
import signal
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

STOP_SECONDS = 10.0


class ComponentDiedError(RuntimeError):
    """A component ended by itself; the message holds the end of its log."""


class ProcessGroup:
    """Programs with one log file each; the kernel kills them if the thread that started them dies."""

    def __init__(self, logs: Path) -> None:
        self._logs = logs
        self._running: dict[str, subprocess.Popen[bytes]] = {}
        self._started: dict[str, tuple[Sequence[str | Path], Mapping[str, str] | None]] = {}
        logs.mkdir(parents=True, exist_ok=True)

    def start(self, name: str, command: Sequence[str | Path], env: Mapping[str, str] | None = None) -> None:
        """Start a program in a session of its own, so that a Ctrl-C in the terminal is not for it."""
        self._started[name] = command, env
        words = ["setpriv", "--pdeathsig", "KILL", "--", *map(str, command)]
        with self.log(name).open("ab") as log:
            self._running[name] = subprocess.Popen(
                words,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
                env=None if env is None else {**os.environ, **env},
            )

    def log(self, name: str) -> Path:
        """The file that a component writes to."""
        return self._logs / f"{name}.log"

    def check(self) -> None:
        """Raise ComponentDiedError if any component has ended."""
        for name, process in self._running.items():
            if process.poll() is not None:
                raise ComponentDiedError(f"{name} ended with {process.returncode}:\n{self._tail(name)}")

    def name_of(self, pid: int) -> str | None:
        """The component that runs (or ran) as `pid`."""
        return next((name for name, process in self._running.items() if process.pid == pid), None)

    def kill(self, name: str) -> None:
        """End one component at once, as a crash would."""
        process = self._running.pop(name)
        process.kill()
        process.wait()

    def restart(self, name: str) -> None:
        """Start one component again as it was started."""
        self.start(name, *self._started[name])

    def stop(self) -> None:
        """End all components, the last started first; what does not end in 10 s is killed."""
        for name, process in reversed(self._running.items()):
            process.send_signal(signal.SIGTERM)
            try:
                process.wait(STOP_SECONDS if name == "etcd" else 2.0)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
        self._running.clear()

    def wait_until(self, ready: Callable[[], bool], what: str, seconds: float) -> None:
        """Ask `ready()` until it is true; fail when a component dies or `seconds` have passed."""
        give_up = time.monotonic() + seconds
        while not ready():
            self.check()
            if time.monotonic() > give_up:
                raise TimeoutError(f"{what}: not so after {seconds:.0f} s; the logs are in {self._logs}")
            time.sleep(0.05)  # the programs offer nothing to wait on but their answer

    def _tail(self, name: str) -> str:
        return self.log(name).read_text(encoding="utf-8", errors="replace")[-3000:]
