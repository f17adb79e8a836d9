"""Servers as processes of their own, as a pod has them: real signals, real sockets, a real uvicorn."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import openai
import pytest

from turbo_dev.server_process import PATIENCE, ServerProcess


class ScriptedServer(ServerProcess):
    """A server over the scripted engine, which writes down what it is told."""

    def __init__(self, command: list[str], log: Path) -> None:
        self.engine_log = log
        super().__init__(command, {"SCRIPTED_ENGINE_LOG": str(log)})


Start = Callable[..., ScriptedServer]


@pytest.fixture(scope="session")
def start_process(
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[Callable[[list[str]], ScriptedServer]]:
    """Start a server by its command line; all are ended with the run."""
    started: list[ScriptedServer] = []

    def start(command: list[str]) -> ScriptedServer:
        server = ScriptedServer(command, tmp_path_factory.mktemp("engine") / "log")
        started.append(server)
        return server

    yield start
    for server in started:
        server.close()


@pytest.fixture(scope="session")
def launch(start_process: Callable[[list[str]], ScriptedServer]) -> Start:
    """Start a server over the scripted engine, with flags of `turbo serve`; `ready=False` does not wait."""

    def start(*flags: str, model: str = "models/echo", ready: bool = True) -> ScriptedServer:
        script = str(Path(__file__).with_name("scripted_server.py"))
        command = [sys.executable, "-W", "error", script, model, "--host=127.0.0.1", "--port=0", *flags]
        server = start_process(command)
        if ready:
            server.wait_for("Ready: ")
        return server

    return start


@pytest.fixture(scope="session")
def server(launch: Start) -> ScriptedServer:
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
    return openai.OpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0, timeout=PATIENCE)
