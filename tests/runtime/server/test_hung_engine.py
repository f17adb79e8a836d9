"""An engine that hangs is found out, told to all who wait, and ends the server, which is then restarted."""

from __future__ import annotations

import os
import signal
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest

from turbo_dev import tiny_engine
from turbo_dev.server_process import PATIENCE, ServerProcess
from turbo_runtime.contract import endpoints
from turbo_runtime.contract.config import RuntimeConfig
from turbo_runtime.messages import EngineReady
from turbo_runtime.server import metrics
from turbo_runtime.server.engine_client import EngineClient

SERVE = "import sys; from turbo_runtime.cli.serve import serve; sys.exit(serve(sys.argv[1:]))"
LIMIT_SECONDS = 5
FLAG = f"--step-timeout-seconds={LIMIT_SECONDS}"
HUNG = f"The engine process has not finished a step for {LIMIT_SECONDS} s and was ended"
LATE_SECONDS = 20  # within which a request arrives that is sent to an engine that hangs already
HOLD = {"model": "echo", "prompt": "hold", "temperature": 0}


@contextmanager
def in_background(work: Any) -> Iterator[Future[Any]]:
    with ThreadPoolExecutor(1) as pool:
        yield pool.submit(work)


def ready(server: Any) -> httpx.Response:
    return httpx.get(server.url + endpoints.READY_PATH)


def until_ready_is(server: Any, status: int) -> httpx.Response:
    deadline = time.monotonic() + PATIENCE
    while (reply := ready(server)).status_code != status:
        assert time.monotonic() < deadline, f"{endpoints.READY_PATH} answers {reply.status_code} {reply.text}"
        time.sleep(0.05)
    return reply


def silence(server: Any) -> float:
    page = httpx.get(server.url + endpoints.METRICS_PATH).text
    lines = page.splitlines()
    return next(
        float(line.split()[-1]) for line in lines if line.startswith(metrics.HEARTBEAT_AGE.name + "{")
    )


def test_an_idle_engine_that_hangs_leaves_its_service_and_then_ends_the_server(launch) -> None:
    server = launch(FLAG)
    assert ready(server).status_code == 200
    assert silence(server) < LIMIT_SECONDS / 2
    os.kill(server.engine_pid(), signal.SIGSTOP)
    reply = until_ready_is(server, 503)
    assert "has not finished a step for" in reply.json()["status"]
    assert httpx.get(server.url + endpoints.HEALTH_PATH).status_code == 200
    assert silence(server) >= LIMIT_SECONDS / 2
    assert server.exit_status() == 1
    assert server.said.splitlines()[-1].startswith(f"turbo serve: {HUNG}")
    assert "SIGKILL" not in server.said


def test_the_real_engine_is_heard_of_while_idle_and_given_up_when_it_hangs(
    start_process: Callable[[list[str]], ServerProcess], tmp_path: Path
) -> None:
    tiny_engine.write(tmp_path)
    flags = [
        "--host=127.0.0.1",
        "--port=0",
        "--threads=1",
        "--dtype=float32",
        "--served-model-name=tiny",
        FLAG,
    ]
    server = start_process([sys.executable, "-c", SERVE, str(tmp_path), *flags])
    server.wait_for("Ready: ", 3 * PATIENCE)
    time.sleep(2 * LIMIT_SECONDS)
    body = {"model": "tiny", "prompt": [5, 6, 7], "max_tokens": 8}
    reply = httpx.post(f"{server.url}/v1/completions", json=body, timeout=PATIENCE)
    assert (reply.status_code, ready(server).status_code) == (200, 200)
    os.kill(server.engine_pid(), signal.SIGSTOP)
    assert server.exit_status() == 1
    assert HUNG in server.said


def test_an_engine_that_hangs_is_told_to_all_who_wait(launch, connect_to) -> None:
    server = launch(f"--step-timeout-seconds={LATE_SECONDS}", "--max-model-len=16384")
    hung = HUNG.replace(f"{LIMIT_SECONDS} s", f"{LATE_SECONDS} s")
    with connect_to(server) as client:
        stream = client.completions.create(**HOLD, max_tokens=1500, stream=True)
        next(iter(stream))
        os.kill(server.engine_pid(), signal.SIGSTOP)
        # more than fits into the pipe to an engine that reads nothing
        request = {"model": "echo", "prompt": [5] * 16_000, "n": 16, "max_tokens": 1}
        with in_background(lambda: client.completions.create(**request)) as waiting:
            with pytest.raises(openai.APIError, match=hung):
                list(stream)
            with pytest.raises(openai.InternalServerError, match=hung) as caught:
                waiting.result(PATIENCE)
    assert caught.value.status_code == 503
    assert server.exit_status() == 1


def test_a_step_that_takes_longer_than_the_limit_ends_the_engine(launch, connect_to) -> None:
    server = launch(FLAG)
    with connect_to(server) as client, pytest.raises(openai.InternalServerError, match=HUNG):
        client.completions.create(model="echo", prompt="stuck")
    assert server.exit_status() == 1


def test_an_engine_that_goes_on_before_the_limit_has_lost_nothing(launch, connect_to) -> None:
    server = launch("--step-timeout-seconds=10")
    engine = server.engine_pid()
    with connect_to(server) as client:
        request = {**HOLD, "max_tokens": 150}
        expected = client.completions.create(**request).choices[0].text
        stream = client.completions.create(**request, stream=True)
        first = next(iter(stream))
        os.kill(engine, signal.SIGSTOP)
        until_ready_is(server, 503)
        os.kill(engine, signal.SIGCONT)
        until_ready_is(server, 200)
        rest = list(stream)
        assert "".join(event.choices[0].text for event in (first, *rest)) == expected
    assert server.engine_pid() == engine


def test_a_pod_that_was_stopped_as_a_whole_goes_on(launch, connect_to) -> None:
    server = launch(FLAG)
    processes = (server.process.pid, server.engine_pid())
    with connect_to(server) as client:
        request = {**HOLD, "max_tokens": 300}
        expected = client.completions.create(**request).choices[0].text
        stream = client.completions.create(**request, stream=True)
        first = next(iter(stream))
        for process in reversed(processes):
            os.kill(process, signal.SIGSTOP)
        time.sleep(2 * LIMIT_SECONDS)
        for process in processes:
            os.kill(process, signal.SIGCONT)
        assert "".join(event.choices[0].text for event in (first, *stream)) == expected
    assert (server.process.pid, server.engine_pid()) == processes


def test_the_heartbeat_does_not_count_before_the_model_is_loaded(launch) -> None:
    server = launch("--step-timeout-seconds=1", model="slow", ready=False)
    assert ready(server).status_code == 503
    os.kill(server.engine_pid(), signal.SIGSTOP)
    time.sleep(3)
    assert ready(server).json() == {"status": "loading the model"}
    assert httpx.get(server.url + endpoints.HEALTH_PATH).status_code == 200
    server.process.send_signal(signal.SIGINT)
    assert server.exit_status() == 0  # the engine that reads nothing is not waited for


def test_an_engine_that_hangs_does_not_keep_the_server_from_ending(launch) -> None:
    server = launch(FLAG, "--shutdown-delay-seconds=0")
    os.kill(server.engine_pid(), signal.SIGSTOP)
    server.process.send_signal(signal.SIGTERM)
    assert server.exit_status() == 0


def test_an_engine_that_hangs_while_the_server_drains_ends_it_before_the_drain_does(launch) -> None:
    server = launch(FLAG, "--shutdown-delay-seconds=600", "--drain-timeout-seconds=600")
    os.kill(server.engine_pid(), signal.SIGSTOP)
    server.process.send_signal(signal.SIGTERM)
    assert server.exit_status() == 1
    assert HUNG in server.said


async def test_an_engine_that_not_even_a_kill_ends_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    engine = EngineClient(RuntimeConfig("models/echo", step_timeout_seconds=1), print, "")
    engine.start()
    os.kill(engine._process.pid, signal.SIGSTOP)
    with monkeypatch.context() as patched:
        patched.setattr(engine._process, "kill", lambda: None)  # as one that is stuck in a driver takes it
        engine._handle_message(EngineReady("bitwise"), 0.0)
        sentence = await engine.ended
    assert sentence.startswith("The engine process has not finished a step for 1 s and was ended.")
    await engine.stop(0)
