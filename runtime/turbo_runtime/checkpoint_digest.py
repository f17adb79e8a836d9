"""The digest of a draft's checkpoint, whatever its method."""

from __future__ import annotations

import hashlib
from pathlib import Path


def artefact_digest(folder: Path) -> str:
    """Digest its configuration and its tensors, and no other file."""
    digest = hashlib.sha256()
    for file in (folder / "config.json", *sorted(folder.glob("*.safetensors"))):
        digest.update(hashlib.sha256(file.read_bytes()).digest())
    return f"sha256:{digest.hexdigest()}"
