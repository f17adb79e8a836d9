"""What a node is sent of an image: everything once, then only what it lacks."""

from __future__ import annotations

import io
import json
import tarfile
from pathlib import Path

import pytest

from turbo_dev import ociarchive
from turbo_dev.layout import Layout

IMAGE = "docker.io/library/some:1"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A layout with one image, and a blob that belongs to nothing any more."""
    program = tmp_path / "program"
    program.write_bytes(b"\x7fELF and more")
    archive = tmp_path / "image.tar"
    ociarchive.single_program(archive, program, IMAGE)
    folder = tmp_path / "layout"
    with tarfile.open(archive) as tar:
        tar.extractall(folder, filter="data")
    index = json.loads((folder / "index.json").read_text())
    index["manifests"][0]["annotations"] = {"org.opencontainers.image.ref.name": IMAGE}
    (folder / "index.json").write_text(json.dumps(index))
    (folder / "known").mkdir()
    return folder


def names_sent(layout: Layout, there: set[str]) -> set[str]:
    stream = io.BytesIO()
    layout.write_archive(IMAGE, there, stream)
    stream.seek(0)
    with tarfile.open(fileobj=stream) as tar:
        return set(tar.getnames())


def test_all_blobs_go_to_a_node_that_has_none(folder: Path) -> None:
    blobs = {f"blobs/sha256/{path.name}" for path in (folder / "blobs" / "sha256").iterdir()}
    assert len(blobs) == 3
    assert names_sent(Layout(folder), set()) == blobs | {"oci-layout", "index.json"}


def test_a_blob_that_is_there_is_not_sent_again(folder: Path) -> None:
    sizes = {path.stat().st_size: path.name for path in (folder / "blobs" / "sha256").iterdir()}
    layer = sizes[max(sizes)]
    sent = names_sent(Layout(folder), {f"sha256:{layer}"})
    assert f"blobs/sha256/{layer}" not in sent
    assert len(sent) == 4


def test_what_no_kept_image_has_is_removed(folder: Path) -> None:
    layout = Layout(folder)
    layout.keep_only({IMAGE})
    assert len(list((folder / "blobs" / "sha256").iterdir())) == 3
    layout.keep_only(set())
    assert not list((folder / "blobs" / "sha256").iterdir())
