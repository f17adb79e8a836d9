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
    monkeypatch.setattr(contest, "find_library", lambda name: f"lib{name}.so.4")
    return done


def test_a_library_is_looked_for_in_an_environment_that_is_made_first(
    installs: list[str], tmp_path: Path
) -> None:
    library = tmp_path / "peers" / VLLM.name / "lib" / "python3.12" / "libiomp5.so"
    assert VLLM.preloaded() == f"libtcmalloc_minimal.so.4 {library}"
    assert installs == [VLLM.name]


def test_an_environment_is_made_once(installs: list[str]) -> None:
    assert VLLM.preloaded()
    assert VLLM.python().name == "python"
    assert installs == [VLLM.name]


def test_an_environment_without_libraries_preloads_none(installs: list[str]) -> None:
    assert OURS.preloaded() == ""
    assert installs == []


def test_a_peer_that_lacks_a_library_of_the_system_does_not_compete(
    installs: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """vLLM is a tenth slower without tcmalloc."""
    monkeypatch.setattr(contest, "find_library", lambda _: None)
    with pytest.raises(RuntimeError, match="apt-get install libtcmalloc-minimal4"):
        VLLM.preloaded()
