"""Ctrl-C ends `turbo bench` and `turbo chat` at once, whatever they wait for, and what is known is told."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from turbo_dev.server_process import PATIENCE

BENCH = "import sys; from turbo_runtime.cli.bench import bench; sys.exit(bench(sys.argv[1:]))"
AT_ONCE_SECONDS = 5  # of the 300 that a request may wait for its first token


class Stuck(ThreadingHTTPServer):
    """Answers so many chats, and begins to wait with the next."""

    daemon_threads = True

    def __init__(self, answers: int) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.answers = answers
        self.waiting = threading.Semaphore(0)
        self.end = threading.Event()


class Handler(BaseHTTPRequestHandler):
    server: Stuck

    def do_GET(self) -> None:
        self.reply(json.dumps({"data": [{"id": "m"}]}) if self.path == "/v1/models" else "")

    def do_POST(self) -> None:
        self.rfile.read(int(self.headers["Content-Length"]))
        self.server.answers -= 1
        if self.server.answers < 0:
            self.server.waiting.release()
            self.server.end.wait()
        event = json.dumps({"choices": [{"delta": {"content": "word"}}]})
        self.reply(f"data: {event}\n\ndata: {event}\n\ndata: [DONE]\n\n")

    def reply(self, text: str) -> None:
        self.send_response(200)
        self.end_headers()
        self.wfile.write(text.encode())

    def log_message(self, *_: object) -> None: ...


@pytest.fixture
def stuck(request: pytest.FixtureRequest) -> Iterator[Stuck]:
    server = Stuck(request.param)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield server
    server.end.set()
    server.shutdown()
    thread.join()
    server.server_close()


def interrupted(server: Stuck, waiting: int, *flags: str) -> tuple[int, str, str, float]:
    url = f"http://127.0.0.1:{server.server_port}"
    command = [sys.executable, "-c", BENCH, url, "--requests=6", "--concurrency=2", *flags]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as bench:
        try:
            for _ in range(waiting):
                assert server.waiting.acquire(timeout=PATIENCE)
            began = time.monotonic()
            bench.send_signal(signal.SIGINT)
            out, err = bench.communicate(timeout=PATIENCE)
        finally:
            bench.kill()
        return bench.returncode, out, err, time.monotonic() - began


@pytest.mark.parametrize("stuck", [1 + 6 + 2], indirect=True)  # a warm-up, a whole pass, two more
def test_what_was_measured_is_told_and_rates_are_of_whole_passes(stuck: Stuck, tmp_path: Path) -> None:
    figures = tmp_path / "figures.json"
    status, out, err, seconds = interrupted(stuck, 2, f"--json={figures}")
    assert (status, err) == (
        130,
        "turbo bench: stopped; tokens/s and the speedup are those of whole passes.\n",
    )
    assert "as it is" in out
    (mode,) = json.loads(figures.read_text())["modes"]
    assert (mode["answers"], mode["failed"]) == (8, 0)
    assert mode["tokens_per_second"] == pytest.approx(12 / mode["seconds"])
    assert seconds < AT_ONCE_SECONDS


@pytest.mark.parametrize("stuck", [1 + 2], indirect=True)
def test_no_rate_is_told_of_less_than_a_pass(stuck: Stuck, tmp_path: Path) -> None:
    figures = tmp_path / "figures.json"
    status, out, _, _ = interrupted(stuck, 2, f"--json={figures}")
    assert status == 130
    assert "ms" in out
    (mode,) = json.loads(figures.read_text())["modes"]
    assert (mode["answers"], mode["tokens_per_second"]) == (2, None)


@pytest.mark.parametrize(("stuck", "waiting"), [(0, 1), (1, 2)], indirect=["stuck"])
def test_before_the_first_answer_there_is_one_sentence(stuck: Stuck, waiting: int) -> None:
    status, out, err, seconds = interrupted(stuck, waiting)
    assert (status, out, err) == (130, "", "turbo bench: stopped; there are no figures.\n")
    assert seconds < AT_ONCE_SECONDS


@pytest.mark.parametrize("stuck", [0], indirect=True)
def test_a_chat_whose_input_goes_on_ends_without_a_word(stuck: Stuck) -> None:
    command = [sys.executable, "-m", "turbo_cli", "chat", f"http://127.0.0.1:{stuck.server_port}"]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stderr=subprocess.PIPE, bufsize=0) as chat:
        assert chat.stdin is not None
        assert chat.stderr is not None
        chat.stdin.write(b"word " * 100_000)  # more than a pipe holds: it is being read
        chat.send_signal(signal.SIGINT)
        with suppress(BrokenPipeError):
            for _ in range(100 * AT_ONCE_SECONDS):
                chat.stdin.write(b"word ")
                time.sleep(0.01)
            pytest.fail("it reads on")
        assert (chat.wait(PATIENCE), chat.stderr.read()) == (130, b"")
