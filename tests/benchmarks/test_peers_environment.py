"""The environment of a peer: it is made before anything is looked for in it."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pytest
from peers import contest
from peers.contest import OURS, VLLM


@pytest.fixture
def installs(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> list[str]:
    """The installations on a fresh machine whose installer puts the library where the wheel has it."""
    done: list[str] = []

    def install(command: Sequence[str | Path]) -> str:
        if "pip" in command:
            library = tmp_path / "peers" / VLLM.name / "lib" / "python3.12" / "libiomp5.so"
            library.parent.mkdir(parents=True)
            library.touch()
            done.append(VLLM.name)
        else:
            Path(command[-1]).mkdir(parents=True)
        return ""

    monkeypatch.setattr(contest, "cache_root", lambda: tmp_path)
    monkeypatch.setattr(contest, "run", install)
    return done


def test_a_library_is_looked_for_in_an_environment_that_is_made_first(
    installs: list[str], tmp_path: Path
) -> None:
    assert VLLM.preloaded() == str(tmp_path / "peers" / VLLM.name / "lib" / "python3.12" / "libiomp5.so")
    assert installs == [VLLM.name]


def test_an_environment_is_made_once(installs: list[str]) -> None:
    assert VLLM.preloaded()
    assert VLLM.python().name == "python"
    assert installs == [VLLM.name]


def test_an_environment_without_libraries_preloads_none(installs: list[str]) -> None:
    assert OURS.preloaded() == ""
    assert installs == []
