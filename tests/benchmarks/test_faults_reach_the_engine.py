"""What `faults` sends is answered by an engine, and what it waits for comes or is missed aloud."""

from __future__ import annotations

import signal
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from crowd.generated import generated
from crowd.outcomes import SERVED_NAME, body
from crowd.underload import under_load
from crowd.unruly import unruly
from faults import EACH

from turbo_dev.server_process import ServerProcess

SCRIPTED = Path(__file__).parents[1] / "runtime" / "server" / "scripted_server.py"


@pytest.fixture
def server(tmp_path: Path) -> Iterator[ServerProcess]:
    command = [sys.executable, str(SCRIPTED), "models/echo", "--host=127.0.0.1", "--port=0"]
    limits = (
        f"--served-model-name={SERVED_NAME}",
        "--max-num-seqs=24",
        "--max-queued-requests=60",
        "--shutdown-delay-seconds=0",
    )
    process = ServerProcess([*command, *limits], {"SCRIPTED_ENGINE_LOG": str(tmp_path / "log")})
    process.wait_for("Ready: ")
    yield process
    process.close()


def requests(tmp_path: Path) -> int:
    return (tmp_path / "log").read_text(encoding="utf-8").count("GenerationRequest(")


async def test_unruly_clients_are_answered_now_and_then(server: ServerProcess, tmp_path: Path) -> None:
    counts = await unruly(server.url, clients=30)
    assert counts.total() == 300
    assert counts["200"] >= 10
    assert counts["400"] >= 5
    assert requests(tmp_path) >= counts["200"]


def test_generated_requests_are_answered_now_and_then(server: ServerProcess, tmp_path: Path) -> None:
    counts = generated(server.url, EACH)
    completions, chats = counts["POST /v1/completions 200"], counts["POST /v1/chat/completions 200"]
    assert min(completions, chats) >= 2
    assert counts["POST /v1/completions 400"] >= 5
    assert requests(tmp_path) >= completions + chats


async def test_requests_that_are_in_at_sigterm_are_answered(server: ServerProcess) -> None:
    wanted = [body(400, prompt="hold on", stream=n < 8) for n in range(16)]
    ended = await under_load(server.url, wanted, lambda: server.process.send_signal(signal.SIGTERM))
    assert dict(ended) == {"whole": 16}
    assert server.exit_status() == 0


async def test_requests_that_never_come_in_are_not_waited_for(server: ServerProcess) -> None:
    wanted = [body(40, model="another")] * 3
    with pytest.raises(TimeoutError, match=r"0 of 3 requests are in the engine after 0\.5 s; 3 told"):
        await under_load(server.url, wanted, lambda: pytest.fail("nothing to strike"), 0.5)
