"""A model's shape and digest from its configuration and the heads of its weight files, without torch."""

from __future__ import annotations

import hashlib
import json
import struct
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any

from turbo_runtime.contract.model import ModelInfo
from turbo_runtime.model_files.hub import hub_errors
from turbo_runtime.model_files.source import ModelError, find
from turbo_runtime.shapes import UnknownShapeError, describe
from turbo_runtime.shapes.tensor_counts import count_tensors

_INDEX = "model.safetensors.index.json"
_LARGEST_HEAD = 100_000_000  # bytes; the bound of the safetensors format


@dataclass(frozen=True, slots=True)
class Files:
    """The files at the top of a model's folder, here or on a hub."""

    revision: str | None
    sizes: Mapping[str, int]  # in bytes, by name
    open: Callable[[str], AbstractContextManager[Any]]  # for reading bytes

    def read(self, name: str, start: int, count: int) -> bytes:
        """Read `count` bytes of a file from `start`; of a hub no others are fetched."""
        with self.open(name) as file:
            file.seek(start)
            return bytes(file.read(count))


def _local_files(folder: Path) -> Files:
    sizes = {path.name: path.stat().st_size for path in folder.iterdir() if path.is_file()}
    return Files(None, sizes, lambda name: (folder / name).open("rb"))


def _hub_files(repository: str, revision: str | None) -> Files:
    from huggingface_hub import HfApi, HfFileSystem

    info = HfApi().model_info(repository, revision=revision)
    root, system = f"{repository}@{info.sha}", HfFileSystem()
    entries: list[Any] = system.ls(root, detail=True)
    sizes = {entry["name"].rsplit("/", 1)[-1]: entry["size"] for entry in entries if entry["type"] == "file"}
    return Files(info.sha, sizes, lambda name: system.open(f"{root}/{name}", "rb"))


def inspect_model(model: str, revision: str | None = None) -> ModelInfo:
    """Inspect MODEL as `turbo serve` takes it. Raises ValueError (a ModelError where it can say more) or
    OSError, with a sentence. HubUnreachableError is the ModelError that may pass.
    """
    source = find(model, revision)
    if source.gguf_file:
        from turbo_runtime.model_files.gguf import inspect_gguf

        return inspect_gguf(Path(source.name) / source.gguf_file)
    local = Path(source.name)
    if local.is_dir():
        return _inspect(_local_files(local))
    with hub_errors():
        return _inspect(_hub_files(source.name, revision))


def _inspect(files: Files) -> ModelInfo:
    """Inspect config.json and the heads of all *.safetensors."""
    sizes = files.sizes
    if "config.json" not in sizes:
        raise ModelError("there is no config.json")
    weights = _weight_files(files)
    if not weights:
        raise ModelError(
            "there are no .safetensors files; other formats than safetensors and GGUF are not served"
        )
    raw = files.read("config.json", 0, sizes["config.json"])
    try:
        described = describe(json.loads(raw), "config.json")
    except UnknownShapeError as error:
        raise ModelError(f"{error} It must be that of a decoder-only language model.") from error
    digest = hashlib.sha256(raw)
    tensors: list[tuple[str, str, int]] = []
    for name in weights:
        head = _safetensors_head(files, name)
        digest.update(f"\0{name}\0{sizes[name]}\0".encode() + head)
        tensors += (
            (tensor, entry["dtype"], prod(entry["shape"]))
            for tensor, entry in json.loads(head).items()
            if tensor != "__metadata__"
        )
    return ModelInfo(
        count_tensors(tensors, described),
        f"sha256:{digest.hexdigest()}",
        files.revision,
        sum(sizes[name] for name in weights),
    )


def _weight_files(files: Files) -> list[str]:
    """List the files that transformers loads: those of the index, else the one whole file, else all. A folder
    may hold the weights a second time, as `consolidated.safetensors`.
    """
    sizes = files.sizes
    if _INDEX in sizes:
        index = json.loads(files.read(_INDEX, 0, sizes[_INDEX]))
        return sorted(set(index["weight_map"].values()))
    if "model.safetensors" in sizes:
        return ["model.safetensors"]
    return sorted(name for name in sizes if name.endswith(".safetensors"))


def _safetensors_head(files: Files, name: str) -> bytes:
    start = files.read(name, 0, 8)
    length = struct.unpack("<Q", start)[0] if len(start) == 8 else None
    if length is None or length > _LARGEST_HEAD:
        raise ModelError(f"{name} is not a safetensors file")
    return files.read(name, 8, length)
