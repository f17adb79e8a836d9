"""A server whose model is cut up among two processes: how it answers, and how it ends."""

from __future__ import annotations

import os
import signal
import sys
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import pytest

from turbo_dev import tiny_engine
from turbo_dev.ranks import rank_pids
from turbo_dev.server_process import PATIENCE, ServerProcess
from turbo_runtime.contract import endpoints
from turbo_runtime.server.metrics import NUM_REQUESTS_RUNNING

SERVE = "import sys; from turbo_runtime.cli.serve import serve; sys.exit(serve(sys.argv[1:]))"
FLAGS = ["--host=127.0.0.1", "--port=0", "--threads=1", "--dtype=float32", "--served-model-name=tiny"]

Start = Callable[[], ServerProcess]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("tiny")
    tiny_engine.write(folder)
    return folder


@pytest.fixture
def start(start_process: Callable[[list[str]], ServerProcess], folder: Path) -> Start:
    def started() -> ServerProcess:
        flags = [*FLAGS, "--tensor-parallel-size=2", "--shutdown-delay-seconds=0"]
        server = start_process([sys.executable, "-c", SERVE, str(folder), *flags])
        server.wait_for("Ready: ", 3 * PATIENCE)
        return server

    return started


def complete(server: ServerProcess, prompt: list[int], tokens: int) -> httpx.Response:
    body = {"model": "tiny", "prompt": prompt, "max_tokens": tokens, "temperature": 0, "ignore_eos": True}
    return httpx.post(f"{server.url}/v1/completions", json=body, timeout=PATIENCE)


def until_running(server: ServerProcess, requests: int) -> None:
    deadline = time.monotonic() + PATIENCE
    number = -1.0
    while number != requests:
        assert time.monotonic() < deadline, f"{number} requests run, not {requests}"
        time.sleep(0.01)
        page = httpx.get(server.url + endpoints.METRICS_PATH).text
        lines = [line for line in page.splitlines() if line.startswith(NUM_REQUESTS_RUNNING.name + "{")]
        number = float(lines[0].split()[-1])


def until_they_end(pids: list[int]) -> None:
    deadline = time.monotonic() + PATIENCE
    while any(Path(f"/proc/{pid}").exists() for pid in pids):
        assert time.monotonic() < deadline, f"of the processes {pids} some are still there"
        time.sleep(0.05)


def test_sigterm_to_all_processes_loses_no_request_and_leaves_no_process(start: Start) -> None:
    server = start()
    version: dict[str, Any] = httpx.get(server.url + endpoints.VERSION_PATH).json()
    assert version["tensor_parallel_size"] == 2
    assert version["threads"] == {"count": 1, "wait": "sleep", "reason": "there is one thread"}
    engine = server.engine_pid()
    ranks = rank_pids(engine)
    assert len(ranks) == 1
    with ThreadPoolExecutor(6) as pool:
        waiting = [pool.submit(complete, server, [5, 6, 7 + n], 150) for n in range(6)]
        until_running(server, 6)
        for pid in (*ranks, engine, server.process.pid):  # as a service manager does
            os.kill(pid, signal.SIGTERM)
        replies = [reply.result(PATIENCE) for reply in waiting]
    assert [reply.status_code for reply in replies] == [200] * 6
    assert all(reply.json()["usage"]["completion_tokens"] == 150 for reply in replies)
    assert server.exit_status() == 0
    until_they_end([engine, *ranks])


def test_a_killed_rank_is_named_to_all_who_wait_and_ends_the_server(start: Start) -> None:
    server = start()
    engine = server.engine_pid()
    ranks = rank_pids(engine)
    with ThreadPoolExecutor(1) as pool:
        waiting = pool.submit(complete, server, [5, 6, 7], 240)
        until_running(server, 1)
        os.kill(ranks[0], signal.SIGKILL)
        reply = waiting.result(PATIENCE)
    assert server.exit_status() == 1
    sentence = "Rank 1 of 2 was killed (SIGKILL), most often because it needed more memory than it may have."
    assert server.said.splitlines()[-1] == f"turbo serve: {sentence}"
    assert (reply.status_code, sentence in reply.text) == (503, True)
    until_they_end([engine, *ranks])


@pytest.mark.parametrize("victim", ["server", "engine"])
def test_ranks_end_with_whoever_leads_them_and_leave_no_file(
    start: Start, victim: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    server = start()
    engine = server.engine_pid()
    ranks = rank_pids(engine)
    os.kill(server.process.pid if victim == "server" else engine, signal.SIGKILL)
    until_they_end([engine, *ranks])
    assert not [*tmp_path.rglob("*ranks*")]


def test_a_model_that_cannot_be_cut_ends_the_start_with_one_sentence(
    start_process: Callable[[list[str]], ServerProcess], folder: Path
) -> None:
    server = start_process([sys.executable, "-c", SERVE, str(folder), *FLAGS, "--tensor-parallel-size=3"])
    assert server.exit_status() == 1
    assert "=3: 3 ranks do not divide the model's intermediate_size of 64; use fewer" in server.said
    assert "Traceback" not in server.said
