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


def stages() -> dict[str, list[str]]:
    """The instructions of each stage of the Dockerfile, its `FROM` first, by the stage's name."""
    text = (REPOSITORY / "Dockerfile").read_text().replace("\\\n", " ")
    found: dict[str, list[str]] = {}
    for line in text.splitlines():
        if line.startswith("FROM "):
            name = line.split(" AS ")[1]
            found[name] = []
        if line and not line.startswith("#") and found:
            found[name].append(line)
    return found


@pytest.mark.parametrize("target", [image.target for image in images.of_this_checkout()])
def test_an_image_is_a_slim_debian_and_runs_as_somebody_who_is_not_root(target: str) -> None:
    base = target
    while (parent := stages()[base][0].split()[1]) in stages():
        base = parent
    assert parent == "debian:12-slim"
    (user,) = [line.split()[1] for line in stages()[target] if line.startswith("USER ")]
    assert user == "65532:65532"
    assert stages()[target].index(f"USER {user}") < stages()[target].index(
        next(line for line in stages()[target] if line.startswith("ENTRYPOINT "))
    )


@pytest.mark.parametrize("target", ["operator", "runtime"])
def test_what_an_image_installs_is_what_the_lock_says_with_its_hashes(target: str) -> None:
    (listed,) = [line for line in stages()["lock"] if "uv export" in line]
    assert {"--frozen", "--no-emit-project"} <= set(listed.split())
    assert target in listed.split("for extra in ")[1].split(";")[0].split()
    assert f"COPY --from=lock /{target}.txt /opt/turbo/requirements.txt" in stages()[target]
    script = (REPOSITORY / "dev" / "install-locked.sh").read_text().replace("\\\n", " ")
    (install,) = [line for line in script.splitlines() if "uv pip install" in line]
    assert {"--require-hashes", "--no-deps", "/opt/turbo/requirements.txt"} <= set(install.split())
    (ours,) = [line for line in stages()["code"] if "uv pip install" in line]
    assert "--no-deps /dist/*.whl" in ours
    others = [line for line in stages()[target] if line.startswith("RUN ") and "install-locked" not in line]
    assert others == []
