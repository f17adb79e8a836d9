"""Servers as processes of their own, as a pod has them: real signals, real sockets, a real uvicorn."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import openai
import pytest

RUNTIME = Path(__file__).resolve().parents[3] / "runtime"
PATIENCE_SECONDS = 60


class ServerProcess:
    """A server and what it says; `url` is known once it listens."""

    def __init__(self, command: list[str], log: Path) -> None:
        environment = {**os.environ, "PYTHONPATH": str(RUNTIME), "SCRIPTED_ENGINE_LOG": str(log)}
        self.engine_log = log
        self.process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env=environment)
        self.lines: list[str] = []
        self._news = threading.Condition()
        self._reader = threading.Thread(target=self._read)
        self._reader.start()

    @property
    def url(self) -> str:
        return self.wait_for(r"listening on (http://\S+),")

    @property
    def said(self) -> str:
        return "".join(self.lines)

    def wait_for(self, pattern: str, seconds: float = PATIENCE_SECONDS) -> str:
        """The first group (or all) of the first line that matches."""

        def found() -> re.Match[str] | None:
            return next((match for line in self.lines if (match := re.search(pattern, line))), None)

        with self._news:
            self._news.wait_for(lambda: found() or not self._reader.is_alive(), seconds)
            match = found()
        assert match, f"{pattern!r} never came in:\n{self.said}"
        return match[match.lastindex or 0]

    def exit_status(self) -> int:
        status = self.process.wait(PATIENCE_SECONDS)
        self._reader.join(PATIENCE_SECONDS)
        return status

    def engine_pid(self) -> int:
        """The one child that is no resource tracker of multiprocessing."""
        pid = self.process.pid
        children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
        tracker = "resource_tracker"
        return next(int(c) for c in children if tracker not in Path(f"/proc/{c}/cmdline").read_text())

    def close(self) -> None:
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


Start = Callable[..., ServerProcess]


@pytest.fixture(scope="session")
def start_process(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[[list[str]], ServerProcess]]:
    """Start a server by its command line; all are ended with the run."""
    started: list[ServerProcess] = []

    def start(command: list[str]) -> ServerProcess:
        server = ServerProcess(command, tmp_path_factory.mktemp("engine") / "log")
        started.append(server)
        return server

    yield start
    for server in started:
        server.close()


@pytest.fixture(scope="session")
def launch(start_process: Callable[[list[str]], ServerProcess]) -> Start:
    """Start a server over the scripted engine, with flags of `turbo serve`; `ready=False` does not wait."""

    def start(*flags: str, model: str = "models/echo", ready: bool = True) -> ServerProcess:
        script = str(Path(__file__).with_name("scripted_server.py"))
        command = [sys.executable, "-W", "error", script, model, "--host=127.0.0.1", "--port=0", *flags]
        server = start_process(command)
        if ready:
            server.wait_for("Ready: ")
        return server

    return start


@pytest.fixture(scope="session")
def server(launch: Start) -> ServerProcess:
    """One server for all tests that leave it as it was."""
    return launch()


@pytest.fixture
def client(server: ServerProcess) -> Iterator[openai.OpenAI]:
    with connect(server) as one:
        yield one


@pytest.fixture
def connect_to() -> Callable[[ServerProcess], openai.OpenAI]:
    return connect


def connect(server: ServerProcess) -> openai.OpenAI:
    return openai.OpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0, timeout=PATIENCE_SECONDS)
