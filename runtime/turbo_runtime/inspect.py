"""A model's shape and digest from its configuration and the heads of its weight files: no weights are read,
and torch is not imported.
"""

from __future__ import annotations

import hashlib
import json
import struct
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol

from turbo_runtime.contract import ModelFacts, ModelShape
from turbo_runtime.engine.hub import hub_errors
from turbo_runtime.engine.source import ModelError, find

_SAFETENSORS_DTYPES = {"F32": "float32", "F16": "float16", "BF16": "bfloat16"}
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


def inspect_model(model: str, revision: str | None = None) -> ModelFacts:
    """Facts about MODEL as `turbo serve` takes it; raises ValueError (a ModelError where it can say more)
    or OSError, with a sentence. HubUnreachableError is the ModelError that may pass.
    """
    source = find(model, revision)
    if source.gguf_file:
        from turbo_runtime.inspect_gguf import inspect_gguf

        return inspect_gguf(Path(source.name) / source.gguf_file)
    local = Path(source.name)
    if local.is_dir():
        return inspect_folder(LocalFolder(local))
    with hub_errors():
        return inspect_folder(HubFolder(source.name, revision))


def inspect_folder(files: Files) -> ModelFacts:
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
    config = json.loads(raw)
    digest = hashlib.sha256(raw)
    elements: Counter[str] = Counter()
    head_elements = 0
    for name in weights:
        head = _safetensors_head(files, name)
        digest.update(f"\0{name}\0{sizes[name]}\0".encode() + head)
        for tensor, entry in json.loads(head).items():
            if tensor == "__metadata__":
                continue
            count = _product(entry["shape"])
            elements[entry["dtype"]] += count
            head_elements += count if tensor == "lm_head.weight" else 0
    stored = elements.most_common(1)[0][0]
    tied = bool(config.get("tie_word_embeddings"))
    shape = ModelShape(
        architecture=(config.get("architectures") or [config.get("model_type", "unknown")])[0],
        parameters=sum(elements.values()) - (head_elements if tied else 0),
        dtype=_SAFETENSORS_DTYPES.get(stored, stored),
        **_sizes(config),
    )
    return ModelFacts(
        shape, f"sha256:{digest.hexdigest()}", files.revision, sum(sizes[name] for name in weights)
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


def _sizes(config: Mapping[str, Any]) -> dict[str, Any]:
    try:
        heads = int(config["num_attention_heads"])
        hidden = int(config["hidden_size"])
        return {
            "layers": int(config["num_hidden_layers"]),
            "hidden_size": hidden,
            "heads": heads,
            "kv_heads": int(config.get("num_key_value_heads") or heads),
            "head_dim": int(config.get("head_dim") or hidden // heads),
            "vocab_size": int(config["vocab_size"]),
            "max_position": _longest(config),
        }
    except KeyError as error:
        raise ModelError(
            f"config.json names no {error.args[0]}: not a decoder-only language model"
        ) from error


def _longest(config: Mapping[str, Any]) -> int:
    """As the engine takes it: a sliding window counts as the end, since the cache keeps no window."""
    length, window = int(config["max_position_embeddings"]), config.get("sliding_window")
    return min(length, int(window)) if window and config.get("use_sliding_window", True) else length


def _product(shape: list[int]) -> int:
    count = 1
    for side in shape:
        count *= side
    return count
