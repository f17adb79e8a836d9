"""`turbo serve` and `turbo inspect` before there is a model to serve or inspect."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import httpx2
import pytest
from huggingface_hub import HfApi
from huggingface_hub.errors import HfHubHTTPError, RepositoryNotFoundError

from turbo_dev.server_process import PATIENCE
from turbo_runtime.cli.serve import inspect, serve
from turbo_runtime.contract.config import RuntimeConfig

# No hub is there: the discard port of this machine refuses at once.
NO_HUB = {"HF_ENDPOINT": "http://127.0.0.1:9", "HF_HUB_DISABLE_TELEMETRY": "1"}


def test_serve_refuses_a_wrong_flag_before_anything_starts(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        serve(["model", "--port=99999"])
    assert ended.value.code == 2
    assert "--port" in capsys.readouterr().err


@pytest.mark.parametrize("argv", [["m", "--device=tpu"], ["m", "--served-model-name="]])
def test_serve_refuses_what_it_would_have_to_replace(
    argv: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as ended:
        serve(argv)
    assert ended.value.code == 2
    assert argv[1].partition("=")[0] in capsys.readouterr().err


def test_serve_announces_nothing_where_there_is_no_model(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    gone = tmp_path / "gone.gguf"
    assert serve([str(gone)]) == 1
    assert capsys.readouterr().err == f"turbo serve: there is no file {gone}\n"


@pytest.mark.parametrize("flag", ["--draft-model=/gone", "--lora-modules sql=/gone"])
def test_serve_names_the_flag_of_a_path_that_is_not_there_before_anything_starts(
    flag: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "config.json").write_text("{}")
    assert serve([str(tmp_path), *flag.split()]) == 1
    assert capsys.readouterr().err.startswith(f"turbo serve: {flag}: there is no ")


@pytest.mark.parametrize("first", [False, True], ids=["a process", "the first process of a container"])
def test_a_sigterm_before_the_server_is_there_ends_it_with_0(tmp_path: Path, first: bool) -> None:
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "config.json").write_text("{}")
    # uvicorn takes its time to be imported
    (tmp_path / "uvicorn.py").write_text(
        "import os, sys, time\nprint(os.getpid(), flush=True)\ntime.sleep(120)\n"
    )
    isolated = ["unshare", "--user", "--map-root-user", "--pid", "--fork", "--kill-child"]
    if first and subprocess.run([*isolated, "true"], capture_output=True).returncode:
        pytest.skip("no PID namespaces here")
    runtime = Path(__file__).resolve().parents[3] / "runtime"
    program = "import sys; from turbo_runtime.cli.serve import serve; sys.exit(serve(sys.argv[1:]))"
    process = subprocess.Popen(
        [*(isolated if first else []), sys.executable, "-c", program, str(tmp_path / "model")],
        env={**os.environ, "PYTHONPATH": f"{tmp_path}:{runtime}"},
        stdout=subprocess.PIPE,
        text=True,
    )
    with process:
        assert process.stdout
        pid = int(process.stdout.readline())
        if first:
            assert pid == 1
            pid = int(Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text())
        os.kill(pid, signal.SIGTERM)
        try:
            assert process.wait(PATIENCE) == 0
        finally:
            process.kill()


def test_a_gguf_file_is_served_under_its_name_without_the_suffix() -> None:
    assert RuntimeConfig("/models/smol.gguf").api_name == "smol"
    assert RuntimeConfig("org/Smol-1.5").api_name == "Smol-1.5"


def test_inspecting_nothing_is_a_sentence_status_3_and_the_termination_message(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    message = tmp_path / "termination"
    assert inspect([str(tmp_path / "gone.gguf"), f"--termination-message={message}"]) == 3
    said = capsys.readouterr()
    assert said.out == ""
    assert "gone.gguf" in said.err
    assert len(said.err.splitlines()) == 1
    assert message.read_text(encoding="utf-8") == said.err.removesuffix("\n")


@pytest.mark.parametrize("files", [{}, {"config.json": b"{}"}, {"config.json": b"{}", "a.safetensors": b"x"}])
def test_a_folder_that_is_no_model_is_permanent(tmp_path: Path, files: dict[str, bytes]) -> None:
    for name, content in files.items():
        (tmp_path / name).write_bytes(content)
    assert inspect([str(tmp_path)]) == 3


def test_a_hub_that_cannot_be_reached_is_a_sentence_and_may_pass(tmp_path: Path) -> None:
    message = tmp_path / "termination"
    code = "import sys; from turbo_runtime.cli.serve import inspect; sys.exit(inspect(sys.argv[1:]))"
    command = [sys.executable, "-c", code, "foo/bar", f"--termination-message={message}"]
    ended = subprocess.run(command, env=environment(), capture_output=True, text=True, check=False)
    assert ended.returncode == 1
    assert ended.stderr.startswith("Cannot inspect foo/bar: the hub cannot be reached (")
    remedy = "set the environment variable HF_ENDPOINT to a mirror, or name a model on disk"
    assert ended.stderr.endswith(f"): {remedy}\n")
    assert len(ended.stderr.splitlines()) == 1
    assert message.read_text(encoding="utf-8") == ended.stderr.removesuffix("\n")


@pytest.mark.parametrize(
    ("kind", "answer", "status"), [(RepositoryNotFoundError, 404, 3), (HfHubHTTPError, 503, 1)]
)
def test_what_the_hub_does_not_have_is_permanent_and_its_own_failure_is_not(
    monkeypatch: pytest.MonkeyPatch, kind: type[HfHubHTTPError], answer: int, status: int
) -> None:
    def refuse(*_: object, **__: object) -> None:
        request = httpx2.Request("GET", "http://hub/api/models/foo/bar")
        raise kind("no", response=httpx2.Response(answer, request=request))

    monkeypatch.setattr(HfApi, "model_info", refuse)
    assert inspect(["foo/bar"]) == status


def test_the_help_of_inspect_tells_its_exit_statuses(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        inspect(["--help"])
    assert "3 when trying again cannot help" in " ".join(capsys.readouterr().out.split())


def environment() -> dict[str, str]:
    return {**os.environ, **NO_HUB, "PYTHONPATH": os.pathsep.join(sys.path)}
