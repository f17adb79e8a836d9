"""An image's tag is what the image is made of."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from turbo_dev import images, model
from turbo_dev.paths import REPOSITORY


@pytest.fixture
def checkout(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of all that goes into the images."""
    for name in ("Dockerfile", ".dockerignore", "pyproject.toml", "uv.lock", "README.md", "LICENSE"):
        shutil.copy(REPOSITORY / name, tmp_path / name)
    (tmp_path / "dev").mkdir()
    shutil.copy(REPOSITORY / "dev" / "install-locked.sh", tmp_path / "dev")
    for name in ("operator", "runtime"):
        shutil.copytree(REPOSITORY / name, tmp_path / name)
    monkeypatch.setattr(images, "REPOSITORY", tmp_path)
    return tmp_path


def test_the_same_files_have_the_same_tag(checkout: Path) -> None:
    first = images.of_this_checkout()
    (checkout / "runtime" / "__pycache__").mkdir(exist_ok=True)
    (checkout / "runtime" / "__pycache__" / "x.pyc").write_bytes(b"compiled")
    assert images.of_this_checkout() == first
    assert first.runtime.name == f"turbo-runtime:{first.operator.tag}"


@pytest.mark.parametrize("file", ["uv.lock", "Dockerfile", "runtime/turbo_runtime/messages.py"])
def test_a_change_is_another_tag_but_the_model_stays(checkout: Path, file: str) -> None:
    before = images.of_this_checkout()
    with (checkout / file).open("a") as text:
        text.write("\n")
    after = images.of_this_checkout()
    assert after.operator.tag == after.runtime.tag != before.runtime.tag
    assert after.model == before.model
    assert model.FILE_SHA256.startswith(after.model.tag)


def test_a_renamed_file_is_another_tag(checkout: Path) -> None:
    before = images.of_this_checkout()
    file = checkout / "runtime" / "turbo_runtime" / "messages.py"
    file.rename(file.with_name("letters.py"))
    assert images.of_this_checkout().runtime != before.runtime
