"""A model's shape and digest from its configuration, the heads of its weight files and samples of its
weights, without torch.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from itertools import chain
from math import prod
from pathlib import Path
from typing import Any

from turbo_runtime.contract.documents import ModelInfo, ModelShape
from turbo_runtime.model_files import hub_cache, s3
from turbo_runtime.model_files.hub_cache import INDEX, read_index
from turbo_runtime.model_files.source import HubUnreachableError, ModelError, Source, find, hub_errors
from turbo_runtime.shapes import UnknownShapeError, describe
from turbo_runtime.shapes.config_reader import BITS, Quantization

_GGUF_ARCHITECTURES = {
    "llama": "LlamaForCausalLM",
    "mistral": "MistralForCausalLM",
    "qwen2": "Qwen2ForCausalLM",
    "qwen3": "Qwen3ForCausalLM",
}
_SAMPLES, _SAMPLE_BYTES = 32, 1024  # of the weights, in a digest
_FILE_SAMPLES = 2  # of each file, at least
_LARGEST_HEAD = 100_000_000  # bytes; the bound of the safetensors format
_DTYPES = {"F64": "float64", "F32": "float32", "F16": "float16", "BF16": "bfloat16"}  # safetensors' names
_PACKED = {"I32": 32, "U8": 8, "I8": 8}  # bits of one stored element that holds one or more weights
_FLOAT8 = ("F8_E4M3", "F8_E5M2")
_HEADS = ("lm_head.weight", "embed_out.weight")
_EMBEDDINGS = ("embed_tokens.weight", "embed_in.weight", "wte.weight")
# What quantization adds to its weights. Only of quantized models, since others may learn a scale.
_ADDED = re.compile(r"scale|zero|g_idx|_shape$|absmax|quant_map|quant_state|SCB")
_LAYER = re.compile(r"^(?:model\.)?(?:language_model\.)?(?:model\.)?layers\.(\d+)\.")


Shapes = Mapping[str, tuple[int, ...]]  # of tensors, by their names


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


def inspect_model(model: str, revision: str | None = None) -> ModelInfo:
    """Inspect MODEL as `turbo serve` takes it, or in a bucket.

    Where hub or store cannot be reached, a copy on disk will do. Raises ModelError, another ValueError or
    OSError.
    """
    source = Source(model) if s3.is_bucket(model) else find(model, revision)
    if source.gguf_file:
        return _inspect_gguf(Path(source.name) / source.gguf_file)
    return read_model(source.name, revision)[0]


def read_model(name: str, revision: str | None) -> tuple[ModelInfo, Shapes]:
    """Inspect a folder, a prefix of a bucket or a hub id; return the shapes of its tensors by name, too."""
    in_bucket = s3.is_bucket(name)
    if in_bucket and revision and (copy := s3.cached_snapshot(name, revision)):  # the store may have another
        return inspect_files(list_copy(copy))
    try:
        with hub_errors():
            return inspect_files(list_files(name, revision))
    except (HubUnreachableError, s3.StoreUnreachableError):
        if (cached := (s3 if in_bucket else hub_cache).cached_snapshot(name, revision)) is None:
            raise
        return inspect_files(list_copy(cached))


def list_copy(folder: Path) -> Files:
    """List a copy on disk, whose folder has the name of its revision."""
    return replace(list_files(str(folder), None), revision=folder.name)


def list_files(name: str, revision: str | None) -> Files:
    """List a folder, or what a bucket or a hub has; within `hub_errors`, as are reads of what it returns."""
    if s3.is_bucket(name):
        listed = s3.list_snapshot(name, revision)
        sizes = {file.name: file.size for file in listed.files if "/" not in file.name}
        return Files(listed.revision, sizes, listed.open)
    if (folder := Path(name)).is_dir():
        sizes = {path.name: path.stat().st_size for path in folder.iterdir() if path.is_file()}
        return Files(None, sizes, lambda name: (folder / name).open("rb"))
    from huggingface_hub import HfApi, HfFileSystem

    info, system = HfApi().model_info(name, revision=revision), HfFileSystem()
    root = f"{name}@{info.sha}"
    entries: list[Any] = system.ls(root, detail=True)
    files = [entry for entry in entries if entry["type"] == "file"]
    sizes = {file["name"].rsplit("/", 1)[-1]: file["size"] for file in files}
    # without a cache, which would read megabytes ahead at each place
    return Files(info.sha, sizes, lambda name: system.open(f"{root}/{name}", "rb", cache_type="none"))


def inspect_files(files: Files) -> tuple[ModelInfo, Shapes]:
    """Inspect config.json and the heads of all *.safetensors; return the shapes of tensors by name, too."""
    sizes = files.sizes
    if "config.json" not in sizes:
        raise ModelError("there is no config.json")
    weights = _weight_files(files)
    if not weights:
        raise ModelError("there are no .safetensors files; only safetensors and GGUF are served")
    raw = files.read("config.json", 0, sizes["config.json"])
    try:
        description = describe(json.loads(raw), "config.json")
    except UnknownShapeError as error:
        raise ModelError(str(error)) from error
    digest = hashlib.sha256(raw)
    heads: list[bytes] = []
    for name in weights:
        heads.append(safetensors_head(files, name))
        digest.update(f"\0{name}\0{sizes[name]}\0".encode() + heads[-1])
        for place in _sample_places(len(heads[-1]), sizes[name], len(weights)):
            digest.update(files.read(name, place, _SAMPLE_BYTES))
    tensors = {name: shape for head in heads for name, shape in tensor_shapes(head).items()}
    shape, size = _count_weights(heads, *description), sum(sizes[name] for name in weights)
    _check_layers(tensors, shape.layers)
    return ModelInfo(shape, f"sha256:{digest.hexdigest()}", files.revision, size), tensors


def _check_layers(names: Iterable[str], count: int) -> None:
    """Raise ModelError unless the weights have as many layers; names of some families say no layer."""
    numbers = {int(match[1]) for name in names if (match := _LAYER.match(name))}
    if (
        numbers
        and (lacking := next((layer for layer in range(count) if layer not in numbers), None)) is not None
    ):
        raise ModelError(
            f"the weights have no layer {lacking} of the {count} that config.json describes: fetch all files "
            "of one revision again"
        )


def _sample_places(start: int, end: int, num_files: int) -> list[int]:
    """Where a file's weights are read for the digest: between them all files have `_SAMPLES` places, and each
    one `_FILE_SAMPLES` at least, since its first may be of a tensor that training left alone. A model that
    was trained on has the shapes of the one before, and other weights nearly everywhere.
    """
    count = max(_FILE_SAMPLES, _SAMPLES // num_files)
    return [start + (end - start) * place // count for place in range(count)]


def _weight_files(files: Files) -> list[str]:
    """List what transformers loads: a folder may hold the weights again as `consolidated.safetensors`.

    Raises ModelError, or FileNotFoundError, since what is not there may still come.
    """
    sizes = files.sizes
    if INDEX in sizes:
        names = read_index(INDEX, files.read(INDEX, 0, sizes[INDEX]))
        if missing := [name for name in names if name not in sizes]:
            raise FileNotFoundError(f"{INDEX} names {missing[0]}, which is missing from the folder: add it")
        return names
    if "model.safetensors" in sizes:
        return ["model.safetensors"]
    return sorted(name for name in sizes if name.endswith(".safetensors"))


def safetensors_head(files: Files, name: str) -> bytes:
    """Read the JSON that a file of safetensors begins with. Raises ModelError; OSError if it ends early."""
    start = files.read(name, 0, 8)
    length = int.from_bytes(start, "little")
    if len(start) < 8 or length > _LARGEST_HEAD:
        raise ModelError(f"{name} is not a safetensors file")
    head = files.read(name, 8, length)
    try:
        entries = [entry for key, entry in json.loads(head).items() if key != "__metadata__"]
        size = 8 + length + max((int(entry["data_offsets"][1]) for entry in entries), default=0)
    except (ValueError, LookupError, TypeError, AttributeError) as error:
        raise ModelError(f"{name} is not a safetensors file") from error
    found, remedy = files.sizes[name], f"bytes and should have {size}: fetch it again"
    if found < size:
        raise OSError(f"{name} has {found} {remedy}, unless it is being copied still")
    if found > size:
        raise ModelError(f"{name} has {found} {remedy}")
    return head


def tensor_shapes(head: bytes) -> dict[str, tuple[int, ...]]:
    """Return the shape of each tensor, by its name."""
    entries = json.loads(head).items()
    return {name: tuple(entry["shape"]) for name, entry in entries if name != "__metadata__"}


def _count_weights(
    heads: list[bytes], shape: ModelShape, less: Quantization | None, tied: bool | None
) -> ModelShape:
    """Count the elements of all stored weights as before several were packed into one."""
    kept: Counter[str] = Counter()
    quantized = routed = embedding = head = 0
    for name, entry in chain.from_iterable(json.loads(text).items() for text in heads):
        if name == "__metadata__":
            continue
        dtype, elements = entry["dtype"], prod(entry["shape"])
        layer = _LAYER.match(name)  # those behind the last predict the tokens after the next
        is_mtp = name.startswith("mtp.") or ".mtp." in name or (layer and int(layer[1]) >= shape.layers)
        if is_mtp or (less and _ADDED.search(name.rpartition(".weight")[2])):
            continue
        if less and dtype in _PACKED:
            elements *= _PACKED[dtype] // BITS[less.dtype]
            quantized += elements
        elif dtype in _FLOAT8:
            quantized += elements
        else:
            kept[_DTYPES.get(dtype, dtype)] += elements
        routed += elements if ".experts." in name else 0
        embedding += elements if name.endswith(_EMBEDDINGS) else 0
        head += elements if name.endswith(_HEADS) else 0
    tied = not head if tied is None else tied
    return replace(
        shape,
        parameters=kept.total() + quantized - (head if tied else 0),
        dtype=kept.most_common(1)[0][0] if kept else "float32",
        quantization=(less.dtype if less else "fp8") if quantized else None,
        quantized_parameters=quantized,
        dequantizable=bool(quantized and less and less.refusal is None),
        embedding_parameters=0 if tied else embedding,
        expert_parameters=routed,
    )


def _inspect_gguf(path: Path) -> ModelInfo:
    """Inspect the key-value head and tensor table of a GGUF file. Raises ModelError."""
    import gguf  # here, since only this format needs it

    try:
        reader = gguf.GGUFReader(path)
    except (ValueError, IndexError) as error:
        raise ModelError(f"{path.name} is not a GGUF file: {error}") from error

    def value(key: str, default: Any = None) -> Any:
        field = reader.get_field(key)
        if field is not None:
            return field.contents()
        if default is None:
            raise ModelError(f"{path.name} names no {key}: not a decoder-only language model")
        return default

    family = value("general.architecture")
    heads = int(value(f"{family}.attention.head_count"))
    hidden = int(value(f"{family}.embedding_length"))
    elements: Counter[str] = Counter()
    routed, looked_up, tied = 0, 0, True
    for tensor in reader.tensors:
        count = int(tensor.n_elements)
        elements[tensor.tensor_type.name] += count
        routed += count if "_exps." in tensor.name else 0
        looked_up += count if tensor.name == "token_embd.weight" else 0
        tied = tied and tensor.name != "output.weight"
    if not elements:
        raise ModelError(f"{path.name} holds no tensors")
    vocabulary = reader.get_field("tokenizer.ggml.tokens")
    length = int(value(f"{family}.context_length"))
    layers = int(value(f"{family}.block_count"))
    window = int(value(f"{family}.attention.sliding_window", length)) or length
    window = window if window < length else 0
    widths = value(f"{family}.feed_forward_length", 0)  # of all layers, or of each
    shape = ModelShape(
        architecture=_GGUF_ARCHITECTURES.get(family, family),
        parameters=sum(elements.values()),
        layers=layers,
        hidden_size=hidden,
        heads=heads,
        kv_heads=int(value(f"{family}.attention.head_count_kv", heads)),
        head_dim=int(value(f"{family}.attention.key_length", hidden // heads)),
        vocab_size=int(value(f"{family}.vocab_size", len(vocabulary.data) if vocabulary else None)),
        max_position=length,
        dtype=elements.most_common(1)[0][0],  # of the file's blocks, which the engine expands as it loads
        embedding_parameters=0 if tied else looked_up,
        experts=int(value(f"{family}.expert_count", 0)),
        experts_per_token=int(value(f"{family}.expert_used_count", 0)),
        expert_parameters=routed,
        sliding_window=window,
        sliding_layers=layers if window else 0,
        mlp_width=0 if routed else max(map(int, widths if isinstance(widths, list) else [widths]), default=0),
    )
    size = path.stat().st_size
    with path.open("rb") as file:
        digest = hashlib.sha256(f"{path.name}\0{size}\0".encode() + file.read(reader.data_offset))
        for place in _sample_places(reader.data_offset, size, 1):
            file.seek(place)
            digest.update(file.read(_SAMPLE_BYTES))
    return ModelInfo(shape, f"sha256:{digest.hexdigest()}", None, size)
