"""The store of images: what a build that was killed leaves there does not stay."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from turbo_dev import buildah, packages

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="building images needs root")


@pytest.fixture(autouse=True)
def store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    packages.install(packages.plan(packages.missing(packages.IMAGE_PROGRAMS)))
    monkeypatch.setattr(buildah, "home", lambda: tmp_path)


def containers() -> list[str]:
    return buildah._buildah("containers", "--quiet").split()


@pytest.mark.parametrize("killed", [0, 2])
def test_a_build_removes_the_working_containers_of_builds_that_were_killed(
    killed: int, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(buildah, "_ensure_base", lambda: None)
    for _ in range(killed):
        buildah._buildah("from", "scratch")
    assert len(containers()) == killed
    file = tmp_path / "Dockerfile"
    file.write_text("FROM scratch AS nothing\nLABEL purpose=test\n")
    buildah.build("nothing", "docker.io/library/nothing:1", {}, file)
    assert buildah.images() == ["docker.io/library/nothing:1"]
    assert containers() == []
