"""`turbo serve` and `turbo inspect` before there is a model to serve or inspect."""

from __future__ import annotations

from pathlib import Path

import pytest

from turbo_runtime.cli import inspect, serve


def test_serve_refuses_a_wrong_flag_before_anything_starts(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        serve(["model", "--port=99999"])
    assert ended.value.code == 2
    assert "--port" in capsys.readouterr().err


def test_inspecting_nothing_is_a_sentence_status_1_and_the_termination_message(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    message = tmp_path / "termination"
    assert inspect([str(tmp_path / "gone.gguf"), f"--termination-message={message}"]) == 1
    said = capsys.readouterr()
    assert said.out == ""
    assert "gone.gguf" in said.err
    assert len(said.err.splitlines()) == 1
    assert message.read_text(encoding="utf-8") == said.err.removesuffix("\n")
