"""`turbo chat` and `turbo bench` against Turbo, another server of the OpenAI API, and none."""

from __future__ import annotations

import io
import json
import math
import os
import pty
import re
import select
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from turbo_dev.server_process import PATIENCE
from turbo_runtime.cli.bench import bench, generate_prompts, percentile, read_prompts
from turbo_runtime.cli.chat import Conversation, chat, parse_field
from turbo_runtime.client.client import Progress, Server, ServerError

CHAT = "import sys; from turbo_runtime.cli.chat import chat; sys.exit(chat(sys.argv[1:]))"


class Other(BaseHTTPRequestHandler):
    """A server that knows only what OpenAI's API has, counts no tokens and takes no unknown field."""

    def do_GET(self) -> None:
        if self.path == "/v1/models":
            self.reply(200, json.dumps({"data": [{"id": "other"}]}))
        else:
            self.reply(404, "<html>")

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        if unknown := {"cache_salt", "speculation"} & set(body):
            self.reply(400, json.dumps({"error": {"message": f"no {unknown}"}}))
            return
        events = [{"choices": [{"delta": {"content": word}}]} for word in ("one ", "two ", "three")]
        text = "".join(f"data: {json.dumps(event)}\n\n" for event in events)
        self.reply(200, f": a comment\n\n{text}data: [DONE]\n\n")

    def reply(self, status: int, text: str) -> None:
        self.send_response(status)
        self.send_header("Content-Length", str(len(text)))
        self.end_headers()
        self.wfile.write(text.encode())

    def log_message(self, *_: object) -> None: ...


@pytest.fixture
def other() -> Iterator[str]:
    server = ThreadingHTTPServer(("127.0.0.1", 0), Other)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    thread.join()
    server.server_close()


def pipe(monkeypatch: pytest.MonkeyPatch, text: str) -> None:
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(text.encode()), "utf-8"))


def test_a_message_that_is_piped_in_is_answered_on_standard_output(
    server: Any, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    pipe(monkeypatch, "hello wörld")
    assert chat([f"{server.url}/v1/", "--system=be brief: ", "--set=temperature=0"]) == 0
    said = capsys.readouterr()
    assert said.out == "be brief: hello wörld\n"
    assert re.search(r"^\d+ tokens .*3\.0 per draft · speedup 1\.50$", said.err.strip())


@pytest.mark.parametrize("given", ["temperature", "=1", "temperature="])
def test_what_is_no_field_of_a_request_is_not_set(given: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        chat(["http://127.0.0.1:1", f"--set={given}"])
    assert f"{given!r} is no NAME=VALUE such as temperature=0.2" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        chat(["http://127.0.0.1:1", "--set=messages=[]"])
    assert "messages is written by the chat itself" in capsys.readouterr().err


@pytest.mark.parametrize("text", ["NaN", "-Infinity", "[" * 100_000, "off"])
def test_what_is_no_json_is_text(text: str) -> None:
    assert parse_field(text) == text


def test_any_other_server_of_the_openai_api_will_do(
    other: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    pipe(monkeypatch, "hi")
    assert chat([other]) == 0
    said = capsys.readouterr()
    assert said.out == "one two three\n"
    assert said.err.startswith("3 tokens")
    figures = tmp_path / "figures.json"
    assert bench([other, "--requests=2", f"--json={figures}"]) == 0
    (mode,) = json.loads(figures.read_text())["modes"]
    assert (mode["name"], mode["answers"], mode["failed"]) == ("as it is", 4, 0)


@pytest.mark.parametrize("command", [chat, bench])
@pytest.mark.parametrize(
    ("url", "sentence"),
    [
        ("http://127.0.0.1:1", "There is no server at http://127.0.0.1:1: Connection refused; `turbo serve"),
        ("ftp://a", "'ftp://a' is no address of a server"),
        ("http://", "'http://' is no address of a server"),
        ("http://a:99999", "'http://a:99999' is no address of a server"),
        ("http://a..b", "'http://a..b' is no address of a server"),
        ("http://a b:80/", "'http://a b:80/' is no address of a server"),
        ("http://[::1", "'http://[::1' is no address of a server"),
        ("http://a/b\x01c", "is no address of a server"),
        ("http://a/ü", "'http://a/ü' is no address of a server"),
        ("https://SERVER", "cannot be talked to over TLS: what answers is no TLS; try http://"),
        ("SERVER/elsewhere", "answers 404, and not as a server of the OpenAI API"),
    ],
)
def test_what_is_wrong_with_the_address_is_one_sentence_and_status_1(
    server: Any, capsys: pytest.CaptureFixture[str], command: Any, url: str, sentence: str
) -> None:
    place = server.url.removeprefix("http://") if url.startswith("https") else server.url
    assert command([url.replace("SERVER", place)]) == 1
    said = capsys.readouterr()
    assert said.out == ""
    assert sentence in said.err
    assert len(said.err.splitlines()) == 1


@pytest.mark.parametrize("url", ["a:8000", "http://a:8000", "a:8000/v1", "http://a:8000/v1/", "a:8000/"])
def test_an_address_is_taken_as_people_write_it(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    assert Server.at(url) == Server("http://a:8000")
    assert Server.at("https://[::1]/x/v1").url == "https://[::1]:443/x"


def test_a_server_that_asks_for_a_key_names_the_variable_for_it(
    launch: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    keys = tmp_path / "keys"
    keys.write_text("alice:sk-alice-1\n")
    server = launch(f"--api-key-file={keys}")
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    assert chat([server.url]) == 1
    assert "OPENAI_API_KEY" in capsys.readouterr().err
    monkeypatch.setenv("OPENAI_API_KEY", "sk-alice-1")
    pipe(monkeypatch, "hello")
    assert chat([server.url]) == 0
    monkeypatch.setenv("OPENAI_API_KEY", " sk-alice-1\n")  # as `$(cat key)` or a pasted line leaves it
    pipe(monkeypatch, "hello")
    assert chat([server.url]) == 0
    capsys.readouterr()
    monkeypatch.setenv("OPENAI_API_KEY", "sk-mallory")
    assert bench([server.url]) == 1
    said = capsys.readouterr().err
    assert "does not know the API key in OPENAI_API_KEY" in said
    assert "mallory" not in said


@pytest.mark.parametrize("command", [chat, bench])
@pytest.mark.parametrize("key", ["sk-secret\n-123", "sk-secret–123", "sk-secret 123", "sk-secret\x00"])
def test_a_key_that_no_header_can_carry_is_refused_and_not_told(
    server: Any, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, command: Any, key: str
) -> None:
    monkeypatch.setattr(os, "environ", {**os.environ, "OPENAI_API_KEY": key})
    assert command([server.url]) == 1
    said = capsys.readouterr()
    assert said.out == ""
    assert said.err.startswith(f"turbo {command.__name__}: The API key in OPENAI_API_KEY has")
    assert "secret" not in said.err


def test_a_server_that_loads_its_model_says_so(launch: Any, capsys: pytest.CaptureFixture[str]) -> None:
    server = launch(model="slow", ready=False)
    server.wait_for("loading")
    assert chat([server.url]) == 1
    assert capsys.readouterr().err.endswith(" answers 503: The model 'slow' is still loading.\n")


@pytest.mark.parametrize("text", ["", " \n"])
def test_nothing_piped_in_is_no_message(
    other: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], text: str
) -> None:
    pipe(monkeypatch, text)
    assert chat([other]) == 1
    assert "There is no message" in capsys.readouterr().err


def test_of_input_without_an_end_no_more_is_read_than_a_request_may_have(other: str) -> None:
    with Path("/dev/zero").open("rb") as endless:
        done = subprocess.run(
            [sys.executable, "-c", CHAT, other], stdin=endless, capture_output=True, text=True, check=False
        )
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr == "turbo chat: The message is longer than 4 MiB, and no request may be: shorten it.\n"


def test_where_every_request_fails_there_is_no_table(server: Any, capsys: pytest.CaptureFixture[str]) -> None:
    assert bench([server.url, "--requests=2", "--max-tokens=100000"]) == 1
    said = capsys.readouterr()
    assert said.out == ""
    assert said.err.startswith("turbo bench: 8 requests failed, the first thus: The prompt has ")


def test_a_message_of_other_bytes_than_utf8_is_refused(server: Any) -> None:
    for locale in ("C", "C.UTF-8"):
        done = subprocess.run(
            [sys.executable, "-c", CHAT, server.url],
            env={**os.environ, "LC_ALL": locale, "PYTHONPATH": os.pathsep.join(sys.path)},
            input=b"\xff",
            capture_output=True,
            check=False,
        )
        assert (done.returncode, done.stderr) == (1, b"turbo chat: The message is no UTF-8.\n")


def test_where_figures_cannot_be_written_nothing_is_measured(
    other: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for path, reason in ((tmp_path, "it is a folder"), (tmp_path / "a" / "b", "there is no such folder")):
        assert bench([other, f"--json={path}"]) == 1
        assert f"--json: {path} cannot be written: {reason}" in capsys.readouterr().err


def test_a_refusal_is_in_the_servers_own_words(server: Any) -> None:
    with pytest.raises(ServerError, match="The model 'x' does not exist"):
        list(
            Server.at(server.url).stream_chat(
                {"model": "x", "messages": [{"role": "user", "content": "a"}]},
                Progress(),
            )
        )


def test_ctrl_c_stops_an_answer_and_the_chat_goes_on(server: Any) -> None:
    pid, terminal = pty.fork()
    if pid == 0:
        os.environ |= {"TERM": "xterm", "PYTHONPATH": os.pathsep.join(sys.path)}
        os.execv(sys.executable, [sys.executable, "-c", CHAT, server.url])
    screen = Screen(terminal)
    screen.wait_for("/help lists")
    screen.type("/set temperature 0\n")
    screen.wait_for("temperature is 0.")
    screen.type("hold\n")
    screen.wait_for("holdhold")
    screen.type("\x03")
    screen.wait_for("Stopped.")
    screen.type("/new\n")
    screen.wait_for("A new conversation.")
    screen.type("<think>hm</think>hello\n")
    screen.wait_for(r"speedup 1\.50")
    screen.type("\x04")
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
    os.close(terminal)
    assert "Traceback" not in screen.text


class Screen:
    """The other end of a terminal."""

    def __init__(self, terminal: int) -> None:
        self.terminal, self.text, self.seen = terminal, "", 0

    def type(self, text: str) -> None:
        os.write(self.terminal, text.encode())

    def wait_for(self, pattern: str) -> None:
        """More text, behind what was waited for before."""
        deadline = time.monotonic() + PATIENCE
        while not (match := re.search(pattern, self.text[self.seen :])):
            left = deadline - time.monotonic()
            assert left > 0, f"{pattern!r} never came in:\n{self.text}"
            if select.select([self.terminal], [], [], left)[0]:
                self.text += os.read(self.terminal, 65536).decode(errors="replace")
        self.seen += match.end()


def test_the_bench_compares_both_ways_with_a_cache_of_its_own_for_each_pass(
    launch: Any, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    server, figures = launch(), tmp_path / "figures.json"
    assert bench([server.url, "--requests=3", "--repeat=2", "--max-tokens=8", f"--json={figures}"]) == 0
    document = json.loads(figures.read_text())
    on, off = document["modes"]
    assert (on["name"], on["answers"], off["name"], off["answers"]) == ("on", 6, "off", 6)
    assert on["tokens_per_draft"] == pytest.approx(8 / 3)
    assert off["tokens_per_draft"] is None
    assert document["speedup"] == pytest.approx(on["tokens_per_second"] / off["tokens_per_second"])
    assert on["ttft_p50"] <= on["ttft_p95"]
    requests = [
        line for line in server.engine_log.read_text().splitlines() if line.startswith("GenerationRequest(")
    ]
    passes = re.findall(r"draft_method='(\w+)'.*salt='(.+)'", "\n".join(requests[2:]))
    assert [mode for mode, _ in passes[::3]] == ["auto", "off", "off", "auto"]
    assert len({salt for _, salt in passes}) == 4
    assert f"{document['speedup']:.2f} times" in capsys.readouterr().out


def test_requests_that_fail_are_told_with_the_first_sentence_and_status_1(
    server: Any, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    prompts = tmp_path / "prompts"
    prompts.write_text("hello\nfail please\n")
    assert bench([server.url, f"--prompts={prompts}", "--repeat=1"]) == 1
    assert "2 requests failed, the first thus: The script says so." in capsys.readouterr().err


@pytest.mark.parametrize(
    ("name", "content", "sentence"),
    [
        ("a.txt", None, "cannot be read: No such file"),
        ("a.txt", b"\xff", "it is no UTF-8"),
        ("a.txt", b"\n", "holds no prompt"),
        ("a.jsonl", b"{", "line 1 is no JSON"),
        ("a.jsonl", b'{"text": "x"}', "write 'prompt' or 'messages'"),
        ("pod-1790000000000.jsonl", b'{"text": "x", "at": 1}', "captured prompts, which are no chats"),
    ],
)
def test_a_prompts_file_that_cannot_be_used_is_one_sentence(
    tmp_path: Path, name: str, content: bytes | None, sentence: str
) -> None:
    path = tmp_path / name
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(ValueError, match=f"--prompts: .*{sentence}"):
        read_prompts(path)


def test_prompts_are_lines_or_objects(tmp_path: Path) -> None:
    lines, objects = tmp_path / "a.txt", tmp_path / "a.jsonl"
    lines.write_text("one\n\ntwo\n")
    objects.write_text('{"prompt": "one"}\n{"messages": [{"role": "user", "content": "two"}]}\n')
    wanted = [[{"role": "user", "content": text}] for text in ("one", "two")]
    assert read_prompts(lines) == read_prompts(objects) == wanted


def test_made_prompts_are_always_the_same_and_no_two_are_alike() -> None:
    prompts = generate_prompts(600)
    assert generate_prompts(600) == prompts
    assert len({json.dumps(one) for one in prompts}) == 600


@given(values=st.lists(st.floats(0, 1e3), min_size=1, max_size=50), share=st.floats(0.01, 1))
def test_a_percentile_is_the_least_value_that_so_large_a_share_does_not_pass(
    values: list[float], share: float
) -> None:
    found = percentile(values, share)
    assert found in values
    assert sum(value <= found for value in values) >= math.ceil(share * len(values))
    assert sum(value < found for value in values) < math.ceil(share * len(values))


def test_tokens_per_second_leave_out_what_the_first_event_brought() -> None:
    progress = Progress()
    progress.update({"usage": {"completion_tokens": 3}}, 1.0, has_text=True)
    assert progress.tokens_per_second is None
    progress.update({"usage": {"completion_tokens": 11}, "turbo": {"speedup": 2.0}}, 3.0, has_text=True)
    assert (progress.first_token_seconds, progress.tokens_per_second, progress.speedup) == (1.0, 4.0, 2.0)


def test_a_conversation_keeps_what_was_said_and_obeys() -> None:
    talk = Conversation("m", system="be brief")
    assert [one["role"] for one in talk.add_message("a", {})["messages"]] == ["system", "user"]
    talk.add_answer("b")
    assert talk.run_command("/set temperature 0.5") == "temperature is 0.5."
    assert talk.run_command("/set speculation off") == 'speculation is "off".'
    body = talk.add_message("c", {})
    assert (body["temperature"], body["speculation"], len(body["messages"])) == (0.5, "off", 4)
    talk.add_answer("")  # stopped before its first word: as if it had not been asked
    assert talk.run_command("/set speculation") == "speculation is no longer sent."
    assert talk.run_command("/set messages []").startswith("Write /set NAME VALUE")
    assert [one["content"] for one in talk.messages] == ["a", "b"]
    talk.run_command("/system")
    talk.run_command("/new")
    assert talk.add_message("d", {})["messages"] == [{"role": "user", "content": "d"}]
    assert "/help" in talk.run_command("/nothing")
    assert talk.run_command("/quit") is None
