"""What a distillation goes on with where an earlier run has begun it."""

from __future__ import annotations

from pathlib import Path

import pytest

from turbo_runtime.distill.progress import Progress
from turbo_runtime.distill.recipe import DistillError, Recipe
from turbo_runtime.distill.workspace import RunSpec, Workspace, captured_before
from turbo_runtime.prompts import Prompt

ASKED = [Prompt("pod-1", "captured", written="hello", captured_at=5.0)]


@pytest.fixture
def work(tmp_path: Path) -> Workspace:
    request = RunSpec(
        target_digest="sha256:0",
        prompts_digest="sha256:1",
        recipe=Recipe(),
        domain="d",
        threads=1,
        device="cpu",
        dtype="float32",
        memory_gib=1.0,
        answers_from="engine",
        captured=True,
    )
    return Workspace(tmp_path / "out", request, Progress())


def test_captured_prompts_are_those_that_were_there_at_first(work: Workspace, tmp_path: Path) -> None:
    folder = tmp_path / "kept"
    folder.mkdir()
    assert captured_before(work.out, [folder]) is None
    with work.lock():
        work.keep_captured([folder], ASKED)
    assert captured_before(work.out, [folder]) == ASKED
    assert captured_before(work.out, [tmp_path / "out" / ".." / "kept"]) == ASKED


def test_what_began_with_another_folder_of_captured_prompts_is_refused_by_name(
    work: Workspace, tmp_path: Path
) -> None:
    for name in ("kept", "other"):
        (tmp_path / name).mkdir()
    with work.lock():
        work.keep_captured([tmp_path / "kept"], ASKED)
    with pytest.raises(
        DistillError, match=f"of what was captured in {tmp_path / 'kept'}; name that with --pro"
    ):
        captured_before(work.out, [tmp_path / "other"])


def test_what_is_written_is_read_and_what_a_disk_has_lost_is_nothing(work: Workspace) -> None:
    assert work.read("machine.json") is None
    work.write("machine.json", {"guarantee": "bytes"})
    assert work.read("machine.json") == {"guarantee": "bytes"}
    (work.folder / "machine.json").write_text('{"guar')
    assert work.read("machine.json") is None
