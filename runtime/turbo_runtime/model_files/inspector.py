"""A model's shape and digest from its configuration and the heads of its weight files: no weights are read,
and torch is not imported.
"""

from __future__ import annotations

import hashlib
import json
import struct
from collections.abc import Mapping
from math import prod
from pathlib import Path
from typing import Any, Protocol

from turbo_runtime.contract.model import ModelInfo
from turbo_runtime.model_files.hub import hub_errors
from turbo_runtime.model_files.source import ModelError, find
from turbo_runtime.shapes import UnknownShapeError, describe
from turbo_runtime.shapes.tensor_counts import Tensor, tally

_INDEX = "model.safetensors.index.json"
_LARGEST_HEAD = 100_000_000  # bytes; the bound of the safetensors format


class Files(Protocol):
    """A model's folder, here or on a hub."""

    revision: str | None

    def sizes(self) -> dict[str, int]:
        """Names and sizes in bytes of the files at the top of the folder."""

    def head(self, name: str, start: int, count: int) -> bytes:
        """`count` bytes of a file from `start`."""


class LocalFolder:
    """A folder of this machine."""

    revision: str | None = None

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def sizes(self) -> dict[str, int]:
        """See Files."""
        return {path.name: path.stat().st_size for path in self._folder.iterdir() if path.is_file()}

    def head(self, name: str, start: int, count: int) -> bytes:
        """See Files."""
        with (self._folder / name).open("rb") as file:
            file.seek(start)
            return file.read(count)


class HubFolder:
    """A repository of the Hugging Face hub; only the bytes asked for are fetched."""

    def __init__(self, repository: str, revision: str | None) -> None:
        from huggingface_hub import HfApi, HfFileSystem

        info = HfApi().model_info(repository, revision=revision)
        self.revision = info.sha
        self._root = f"{repository}@{info.sha}"
        self._files = HfFileSystem()

    def sizes(self) -> dict[str, int]:
        """See Files."""
        entries: list[Any] = self._files.ls(self._root, detail=True)
        return {
            entry["name"].rsplit("/", 1)[-1]: entry["size"] for entry in entries if entry["type"] == "file"
        }

    def head(self, name: str, start: int, count: int) -> bytes:
        """See Files."""
        with self._files.open(f"{self._root}/{name}", "rb") as file:
            file.seek(start)
            return bytes(file.read(count))


def inspect_model(model: str, revision: str | None = None) -> ModelInfo:
    """Facts about MODEL as `turbo serve` takes it; raises ValueError (a ModelError where it can say more)
    or OSError, with a sentence. HubUnreachableError is the ModelError that may pass.
    """
    source = find(model, revision)
    if source.gguf_file:
        from turbo_runtime.model_files.gguf import inspect_gguf

        return inspect_gguf(Path(source.name) / source.gguf_file)
    local = Path(source.name)
    if local.is_dir():
        return inspect_folder(LocalFolder(local))
    with hub_errors():
        return inspect_folder(HubFolder(source.name, revision))


def inspect_folder(files: Files) -> ModelInfo:
    """Facts from config.json and the heads of all *.safetensors."""
    sizes = files.sizes()
    if "config.json" not in sizes:
        raise ModelError("there is no config.json")
    weights = _weight_files(files, sizes)
    if not weights:
        raise ModelError(
            "there are no .safetensors files; other formats than safetensors and GGUF are not served"
        )
    raw = files.head("config.json", 0, sizes["config.json"])
    try:
        described = describe(json.loads(raw), "config.json")
    except UnknownShapeError as error:
        raise ModelError(f"{error} It must be that of a decoder-only language model.") from error
    digest = hashlib.sha256(raw)
    tensors: list[Tensor] = []
    for name in weights:
        head = _safetensors_head(files, name)
        digest.update(f"\0{name}\0{sizes[name]}\0".encode() + head)
        entries = {it: entry for it, entry in json.loads(head).items() if it != "__metadata__"}
        tensors += (Tensor(it, entry["dtype"], prod(entry["shape"])) for it, entry in entries.items())
    return ModelInfo(
        described.shape(tally(tensors, described)),
        f"sha256:{digest.hexdigest()}",
        files.revision,
        sum(sizes[name] for name in weights),
    )


def _weight_files(files: Files, sizes: Mapping[str, int]) -> list[str]:
    """The files that transformers loads: those of the index, else the one whole file, else all there are.

    A folder may hold the weights a second time, as `consolidated.safetensors`.
    """
    if _INDEX in sizes:
        index = json.loads(files.head(_INDEX, 0, sizes[_INDEX]))
        return sorted(set(index["weight_map"].values()))
    if "model.safetensors" in sizes:
        return ["model.safetensors"]
    return sorted(name for name in sizes if name.endswith(".safetensors"))


def _safetensors_head(files: Files, name: str) -> bytes:
    start = files.head(name, 0, 8)
    length = struct.unpack("<Q", start)[0] if len(start) == 8 else None
    if length is None or length > _LARGEST_HEAD:
        raise ModelError(f"{name} is not a safetensors file")
    return files.head(name, 8, length)
