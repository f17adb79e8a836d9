"""A folder of images (OCI layout) between buildah and a node's containerd, that hands on only what is new.

The runtime image has 5 GB of dependencies in one layer. A change of code is a thin layer on top: only that,
with manifest and configuration, goes into the archive that the node imports.
"""

from __future__ import annotations

import io
import json
import tarfile
from pathlib import Path
from typing import IO, Any

from . import buildah
from .paths import cache_root

_NAME = "org.opencontainers.image.ref.name"
_COMPRESSED = ".compressed"  # buildah's suffix of a note that names the compressed form of a layer


class Layout:
    """The layout folder; images are known by their full name, "docker.io/library/turbo-runtime:TAG"."""

    def __init__(self, folder: Path | None = None) -> None:
        self._folder = folder or cache_root() / "oci"

    def add(self, image: str) -> None:
        """Copy an image from buildah's store; layers that are here already are not written again."""
        if self._entry(image) is None:
            self._folder.mkdir(parents=True, exist_ok=True)
            self._known.mkdir(exist_ok=True)
            buildah.push(image, f"oci:{self._folder}:{image}", f"--blob-cache={self._known}")
            self._remember(image)

    def write_archive(self, image: str, there: set[str], stream: IO[bytes]) -> None:
        """Write an archive for `ctr images import`, without the blobs whose digests are in `there`."""
        entry = self._entry(image)
        assert entry is not None, f"{image} has not been added"
        named = {**entry, "annotations": {"io.containerd.image.name": image}}
        with tarfile.open(fileobj=stream, mode="w|") as tar:
            _add(tar, "oci-layout", json.dumps({"imageLayoutVersion": "1.0.0"}).encode())
            _add(tar, "index.json", json.dumps({"schemaVersion": 2, "manifests": [named]}).encode())
            for digest in self._blobs(entry):
                if digest not in there:
                    path = self._blob(digest)
                    tar.add(path, arcname=str(path.relative_to(self._folder)))

    def keep_only(self, images: set[str]) -> None:
        """Forget all other images and the blobs that only they have."""
        index = self._index()
        kept = [entry for entry in index["manifests"] if entry.get("annotations", {}).get(_NAME) in images]
        if len(kept) == len(index["manifests"]):
            return
        (self._folder / "index.json").write_text(json.dumps({**index, "manifests": kept}), encoding="utf-8")
        needed = {digest for entry in kept for digest in self._blobs(entry)}
        for path in (self._folder / "blobs" / "sha256").iterdir():
            if f"sha256:{path.name}" not in needed:
                path.unlink()
        for path in self._known.iterdir():
            blob = path.read_text(encoding="ascii") if path.suffix == _COMPRESSED else path.name
            if blob not in needed:
                path.unlink()

    @property
    def _known(self) -> Path:
        """buildah's blob cache: without it, it would compress the big layer again for every image (100 s)."""
        return self._folder / "known"

    def _remember(self, image: str) -> None:
        """Note in the blob cache which compressed blob each layer of the image has become."""
        entry = self._entry(image)
        assert entry is not None
        manifest = json.loads(self._blob(entry["digest"]).read_text(encoding="utf-8"))
        config = json.loads(self._blob(manifest["config"]["digest"]).read_text(encoding="utf-8"))
        for plain, layer in zip(config["rootfs"]["diff_ids"], manifest["layers"], strict=True):
            compressed = self._known / layer["digest"]
            if not compressed.exists():
                compressed.hardlink_to(self._blob(layer["digest"]))
            (self._known / (plain + _COMPRESSED)).write_text(layer["digest"], encoding="ascii")

    def _index(self) -> dict[str, Any]:
        path = self._folder / "index.json"
        if not path.exists():
            return {"schemaVersion": 2, "manifests": []}
        content: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        return content

    def _entry(self, image: str) -> dict[str, Any] | None:
        found = (
            entry for entry in self._index()["manifests"] if entry.get("annotations", {}).get(_NAME) == image
        )
        return next(found, None)

    def _blobs(self, entry: dict[str, Any]) -> list[str]:
        manifest = json.loads(self._blob(entry["digest"]).read_text(encoding="utf-8"))
        parts = [manifest["config"]["digest"], *(layer["digest"] for layer in manifest["layers"])]
        return list(dict.fromkeys([entry["digest"], *parts]))

    def _blob(self, digest: str) -> Path:
        return self._folder / "blobs" / digest.replace(":", "/")


def _add(tar: tarfile.TarFile, name: str, content: bytes) -> None:
    entry = tarfile.TarInfo(name)
    entry.size = len(content)
    tar.addfile(entry, io.BytesIO(content))
