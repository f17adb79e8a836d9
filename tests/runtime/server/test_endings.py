"""How requests and servers end: clients that leave, engines that die, drains."""

from __future__ import annotations

import json
import os
import select
import signal
import threading
import time
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing
from http.client import HTTPConnection
from typing import Any

import httpx
import openai
import pytest

from turbo_dev.server_process import PATIENCE
from turbo_runtime.contract import endpoints
from turbo_runtime.contract.config import RuntimeConfig
from turbo_runtime.server.app import build_app
from turbo_runtime.server.engine_client import EngineClient
from turbo_runtime.server.service import Service

HOLD = {"model": "echo", "prompt": "hold", "temperature": 0}


def in_background(work: Any) -> Future[Any]:
    pool = ThreadPoolExecutor(1)
    future = pool.submit(work)
    pool.shutdown(wait=False)
    return future


def until(server, what: str, times: int = 1) -> None:
    """Wait until the engine has been told something so many times."""
    ticks = threading.Event()
    end = time.monotonic() + PATIENCE
    while time.monotonic() < end:
        if server.engine_log.exists() and server.engine_log.read_text().count(what) >= times:
            return
        ticks.wait(0.02)
    raise AssertionError(f"the engine was not told {what} {times} times")


@pytest.mark.parametrize("stream", [True, False], ids=["streamed", "whole"])
def test_a_client_that_leaves_cancels_its_answers(launch, stream: bool) -> None:
    server = launch()
    body = json.dumps({**HOLD, "max_tokens": 1500, "n": 2, "stream": stream})
    with closing(HTTPConnection(server.url.removeprefix("http://"), timeout=PATIENCE)) as client:
        client.request("POST", "/v1/completions", body, {"Content-Type": "application/json"})
        if stream:
            client.getresponse().readline()
        until(server, "GenerationRequest(", times=2)
    until(server, "Abort(", times=2)
    log = server.engine_log.read_text()
    assert log.count("GenerationRequest(") == log.count("Abort(") == 2
    assert 'finished_reason="abort",model_name="echo"' in httpx.get(server.url + endpoints.METRICS_PATH).text


def test_a_stop_string_cancels_the_rest_of_its_answer(launch, connect_to) -> None:
    server = launch()
    with connect_to(server) as client:
        reply = client.completions.create(**HOLD, max_tokens=1500, stop="ldho")
    assert reply.choices[0].text == "ho"
    until(server, "Abort")


@pytest.mark.parametrize("death", ["crash", "kill"])
def test_a_dead_engine_is_told_to_all_who_wait_and_ends_the_server(launch, connect_to, death: str) -> None:
    server = launch()
    with connect_to(server) as client:
        request = {**HOLD, "max_tokens": 1500}
        waiting = [in_background(lambda: client.completions.create(**request)) for _ in range(4)]
        streams = [client.completions.create(**request, stream=True) for _ in range(4)]
        for stream in streams:
            next(iter(stream))
        if death == "kill":
            os.kill(server.engine_pid(), signal.SIGKILL)
        else:
            with pytest.raises(openai.InternalServerError, match="status 3"):
                client.completions.create(model="echo", prompt="crash")
        how = "SIGKILL" if death == "kill" else "status 3"
        for one in waiting:
            with pytest.raises(openai.InternalServerError) as caught:
                one.result(PATIENCE)
            assert caught.value.status_code == 503
            assert how in caught.value.body["message"]
        for stream in streams:
            with pytest.raises(openai.APIError, match=how):
                list(stream)
    assert server.exit_status() == 1
    assert "The engine process" in server.said


def test_a_model_that_cannot_be_loaded_is_one_sentence_and_status_1(launch) -> None:
    server = launch(model="unloadable", ready=False)
    assert server.exit_status() == 1
    assert server.said.splitlines()[-1] == "turbo serve: There is no model at unloadable."
    assert "Traceback" not in server.said


def test_an_engine_that_dies_while_loading_is_told(launch) -> None:
    server = launch(model="vanishing", ready=False)
    assert server.exit_status() == 1
    assert "ended with status 7" in server.said


def test_a_taken_port_is_one_sentence_and_status_1(launch, server) -> None:
    port = server.url.rsplit(":", 1)[-1]
    second = launch(f"--port={port}", ready=False)
    assert second.exit_status() == 1
    assert second.said == f"turbo serve: cannot listen on 127.0.0.1:{port}: Address already in use.\n"


def test_sigterm_serves_on_then_finishes_what_runs_and_exits_0(launch, connect_to) -> None:
    server = launch("--shutdown-delay-seconds=1", "--drain-timeout-seconds=30")
    with connect_to(server) as client:
        running = in_background(lambda: client.completions.create(**HOLD, max_tokens=120))  # some 3 s
        until(server, "GenerationRequest")
        server.process.send_signal(signal.SIGTERM)
        server.wait_for("Draining")
        assert httpx.get(server.url + endpoints.READY_PATH).status_code == 503
        assert httpx.get(server.url + endpoints.HEALTH_PATH).status_code == 200
        assert httpx.get(server.url + endpoints.LOAD_PATH).json()["draining"] is True
        late = client.completions.with_raw_response.create(model="echo", prompt="still", temperature=0)
        assert late.parse().choices[0].text == "still"
        assert late.headers["connection"] == "close"
        server.wait_for("Finishing 1 running")
        with pytest.raises(openai.APIStatusError) as caught:
            client.completions.create(model="echo", prompt="too late")
        assert caught.value.status_code == 503
        assert "retry-after" in caught.value.response.headers
        assert running.result(PATIENCE).usage.completion_tokens == 120
    assert server.exit_status() == 0


def test_what_runs_longer_than_the_drain_is_cut_with_an_error(launch, connect_to) -> None:
    server = launch("--shutdown-delay-seconds=0", "--drain-timeout-seconds=0.3")
    with connect_to(server) as client:
        running = in_background(lambda: client.completions.create(**HOLD, max_tokens=1500))
        until(server, "GenerationRequest")
        server.process.send_signal(signal.SIGTERM)
        with pytest.raises(openai.InternalServerError, match="not complete after"):
            running.result(PATIENCE)
    assert server.exit_status() == 0
    assert "1 answers were not complete" in server.said


def test_ctrl_c_on_an_idle_server_ends_it_at_once(launch) -> None:
    server = launch("--shutdown-delay-seconds=60")
    os.kill(server.engine_pid(), signal.SIGINT)  # a terminal sends it to both processes
    server.process.send_signal(signal.SIGINT)
    assert server.exit_status() == 0
    assert "Traceback" not in server.said


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_server_whose_model_still_loads_has_nothing_to_finish(launch, number: signal.Signals) -> None:
    server = launch("--shutdown-delay-seconds=60", model="endless", ready=False)
    server.wait_for("listening on")
    server.process.send_signal(number)
    assert server.exit_status() == 0
    assert server.said.splitlines()[-1] == "Stopped before the model was loaded."


def test_a_second_signal_stops_now(launch, connect_to) -> None:
    server = launch("--shutdown-delay-seconds=60")
    with connect_to(server) as client:
        running = in_background(lambda: client.completions.create(**HOLD, max_tokens=1500))
        until(server, "GenerationRequest")
        server.process.send_signal(signal.SIGTERM)
        server.wait_for("Draining")
        server.process.send_signal(signal.SIGTERM)
        with pytest.raises(openai.InternalServerError, match="stopped before this answer"):
            running.result(PATIENCE)
    assert server.exit_status() == 128 + signal.SIGTERM


def test_an_engine_does_not_outlive_its_server(launch) -> None:
    server = launch()
    engine = server.engine_pid()
    ended = os.pidfd_open(engine)
    server.process.kill()
    server.exit_status()
    try:
        assert select.select([ended], [], [], 10)[0], "the engine still runs 10 s after its server was killed"
    finally:
        os.close(ended)


@pytest.mark.parametrize(("patience", "exitcode"), [(0.0, -signal.SIGKILL), (60.0, 0)])
async def test_an_engine_that_nobody_has_patience_for_is_not_waited_for(
    patience: float, exitcode: int
) -> None:
    engine = EngineClient(
        RuntimeConfig("models/echo"), print, ""
    )  # one that ends by itself, once it has begun
    engine.start()
    await engine.stop(patience)
    assert engine._process.exitcode == exitcode


async def test_a_server_without_its_engine_is_neither_alive_nor_ready() -> None:
    config = RuntimeConfig("models/echo")
    engine = EngineClient(config, print, "")  # an engine that says nothing to the server and ends
    service = Service(config, engine)
    engine.start()
    sentence = await engine.ended
    transport = httpx.ASGITransport(app=build_app(service))
    async with httpx.AsyncClient(transport=transport, base_url="http://server") as client:
        for path in (endpoints.HEALTH_PATH, endpoints.READY_PATH):
            reply = await client.get(path)
            assert (reply.status_code, reply.json()) == (503, {"status": sentence})
        reply = await client.post("/v1/completions", json={"model": "echo", "prompt": "x"})
        assert (reply.status_code, reply.json()["error"]["message"]) == (503, sentence)
    assert not engine.ready.done()
    await engine.stop()
