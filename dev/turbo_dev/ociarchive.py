"""Write a container image of one static program, as an OCI archive, without any tool."""

from __future__ import annotations

import hashlib
import io
import json
import tarfile
from pathlib import Path


def single_program(archive: Path, program: Path, name: str) -> None:
    """Write to `archive` an image `name` whose only file is `program`, which it runs as uid 65532."""
    layer = io.BytesIO()
    with tarfile.open(fileobj=layer, mode="w") as tar:
        entry = tarfile.TarInfo(program.name)
        entry.size, entry.mode = program.stat().st_size, 0o755
        with program.open("rb") as content:
            tar.addfile(entry, content)
    layer_digest = _digest(layer.getvalue())
    config = _encode(
        {
            "architecture": "amd64",
            "os": "linux",
            "config": {"Entrypoint": [f"/{program.name}"], "User": "65532:65532"},
            "rootfs": {"type": "layers", "diff_ids": [layer_digest]},
        }
    )
    kind = "application/vnd.oci.image"
    manifest = _encode(
        {
            "schemaVersion": 2,
            "mediaType": f"{kind}.manifest.v1+json",
            "config": _descriptor(f"{kind}.config.v1+json", config),
            "layers": [_descriptor(f"{kind}.layer.v1.tar", layer.getvalue())],
        }
    )
    entry_point = _descriptor(f"{kind}.manifest.v1+json", manifest)
    entry_point["annotations"] = {"io.containerd.image.name": name}
    index = _encode({"schemaVersion": 2, "manifests": [entry_point]})
    with tarfile.open(archive, mode="w") as tar:
        _add(tar, "oci-layout", _encode({"imageLayoutVersion": "1.0.0"}))
        _add(tar, "index.json", index)
        for blob in (layer.getvalue(), config, manifest):
            _add(tar, "blobs/sha256/" + _digest(blob).removeprefix("sha256:"), blob)


def _digest(content: bytes) -> str:
    return "sha256:" + hashlib.sha256(content).hexdigest()


def _encode(content: object) -> bytes:
    return json.dumps(content).encode()


def _descriptor(media_type: str, content: bytes) -> dict[str, object]:
    return {"mediaType": media_type, "digest": _digest(content), "size": len(content)}


def _add(tar: tarfile.TarFile, name: str, content: bytes) -> None:
    entry = tarfile.TarInfo(name)
    entry.size = len(content)
    tar.addfile(entry, io.BytesIO(content))
