"""What the container of a training runs: half-done work of others goes, its own stays, and then `turbo`."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

from turbo_operator.drafts.training.manifests import SCRIPT


def test_work_of_other_trainings_goes_and_what_is_trained_stays(tmp_path: Path) -> None:
    claim = tmp_path / "a claim"
    kept = ("chat/2-aaaa/work/answers", "chat/1-bbbb/config.json", "chat/mine/work/x", "other/1-aaaa/work/x")
    gone = ("chat/1-aaaa/work/answers", "chat/7-bbbb/work/deep/er", "chat/1-bbbb/work/x")
    for name in (*kept, *gone):
        path = claim / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("x")
    turbo = tmp_path / "bin" / "turbo"
    turbo.parent.mkdir()
    turbo.write_text('#!/bin/sh\nprintf "%s|" "$@"\n')
    turbo.chmod(0o755)
    command = ["sh", "-c", SCRIPT, str(claim / "chat" / "2-aaaa"), "a model", "--domain=two words"]
    path = {"PATH": f"{turbo.parent}:{os.environ['PATH']}"}
    run = subprocess.run(command, env=path, capture_output=True, text=True, check=True)
    assert (run.stdout, run.stderr) == ("distill|a model|--domain=two words|", "")
    assert all((claim / name).is_file() for name in kept)
    assert not any((claim / name).exists() for name in gone)


def test_the_first_training_finds_nothing_to_remove(tmp_path: Path) -> None:
    (tmp_path / "turbo").write_text("#!/bin/sh\necho ran\n")
    (tmp_path / "turbo").chmod(0o755)
    path = {"PATH": f"{tmp_path}:{os.environ['PATH']}"}
    command = ["sh", "-c", SCRIPT, str(tmp_path / "claim" / "chat" / "1-aaaa")]
    run = subprocess.run(command, env=path, capture_output=True, text=True, check=True)
    assert (run.stdout, run.stderr) == ("ran\n", "")
