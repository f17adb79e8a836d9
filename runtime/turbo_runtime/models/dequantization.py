"""Quantized weights of a folder as the floating-point numbers that they stand for.

Formats, by what is stored beside each other for a matrix (out, in):
fp8 and 8 bits of compressed-tensors: `weight`, and `weight_scale_inv` or `weight_scale` of all of it, of
each row, of groups of columns or of blocks; `weight_zero_point`.
compressed-tensors packed: `weight_packed` (out, in / n), n numbers an int32, each above what it stands for by
half its range; `weight_scale` (out, groups), `weight_zero_point` (out / n, groups), `weight_g_idx` (in).
GPTQ: `qweight` (in / n, out), `qzeros` (groups, out / n), in its first version less by one, `scales`,
`g_idx`.
AWQ: `qweight` (in, out / n), `qzeros` (groups, out / n), a word's columns in an order of their own, `scales`.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from types import EllipsisType
from typing import Any

import torch
from safetensors import safe_open
from torch import Tensor
from transformers.utils.hub import cached_file, get_checkpoint_shard_files

from turbo_runtime.model_files.hub_cache import INDEX
from turbo_runtime.model_files.source import ModelError, Source

_QUANTIZED = frozenset({"weight_scale", "weight_scale_inv", "weight_packed", "qweight"})
_FLOATS = frozenset({"F64", "F32", "F16", "BF16"})
_AWQ_COLUMNS = (0, 4, 1, 5, 2, 6, 3, 7)  # where a word has its columns, four bits each

Parts = Mapping[str, Tensor]  # what is stored of one matrix


@dataclass(frozen=True, slots=True)
class LazyWeight:
    """A weight that is read and dequantized when it is taken, as transformers takes a slice of a file."""

    read: Callable[[], Tensor]

    def __getitem__(self, whole: EllipsisType) -> Tensor:
        """Return all of it."""
        return self.read()


def dequantized(source: Source, section: Mapping[str, Any]) -> dict[str, LazyWeight]:
    """Return all weights of the model, by name. Raises ModelError.

    The files stay open as long as the weights: transformers reads them in threads of its own, and does not
    wait for these where a weight is refused; closing a file that they read raises another error.
    """
    modules: defaultdict[str, dict[str, Any]] = defaultdict(dict)
    for path in _files(source):
        file: Any = safe_open(path, framework="pt")
        for key in file.keys():  # noqa: SIM118  no mapping
            module, _, leaf = key.rpartition(".")
            modules[module][leaf] = file
    weights: dict[str, LazyWeight] = {}
    for module, leaves in modules.items():
        if not _QUANTIZED.isdisjoint(leaves):
            weights[f"{module}.weight"] = LazyWeight(partial(_dequantize, module, leaves, section))
            leaves = {leaf: file for leaf, file in leaves.items() if leaf == "bias"}
        for leaf, file in leaves.items():
            name = f"{module}.{leaf}"
            if (stored := file.get_slice(name).get_dtype()) not in _FLOATS:
                raise ModelError(f"{name} is stored as {stored} without a scale that is known beside it")
            weights[name] = LazyWeight(partial(file.get_tensor, name))
    return weights


def _files(source: Source) -> list[Path]:
    """The files of weights, here or in the cache of the hub."""
    index = cached_file(
        source.name, INDEX, revision=source.revision, _raise_exceptions_for_missing_entries=False
    )
    if index is None:
        return [Path(cached_file(source.name, "model.safetensors", revision=source.revision))]
    return [
        Path(file) for file in get_checkpoint_shard_files(source.name, index, revision=source.revision)[0]
    ]


def _dequantize(module: str, leaves: Mapping[str, Any], section: Mapping[str, Any]) -> Tensor:
    """Return the weight (out, in) of a module, float32."""
    parts = {leaf: file.get_tensor(f"{module}.{leaf}") for leaf, file in leaves.items()}
    if "weight_packed" in parts:
        return unpack_compressed(parts)
    if "qweight" in parts and section["quant_method"] == "awq":
        return unpack_awq(parts)
    if "qweight" in parts:
        is_first = section.get("checkpoint_format") != "gptq_v2"
        return unpack_gptq(parts, int(section["bits"]), int(section["group_size"]), is_first)
    groups = (section.get("config_groups") or {}).values()
    blocks = [
        section.get("weight_block_size"),
        *(group["weights"].get("block_structure") for group in groups),
    ]
    return scale_up(parts, next((block for block in blocks if block), None))


def scale_up(parts: Parts, block: tuple[int, int] | None) -> Tensor:
    """8 bits; `block` is rows and columns that share a scale, where there are blocks."""
    weight = parts["weight"].float()
    scale = parts["weight_scale_inv" if "weight_scale_inv" in parts else "weight_scale"]
    if scale.dtype == torch.uint8:
        raise ValueError("scales that are exponents (ue8m0 in uint8) are not read")
    if (zero := parts.get("weight_zero_point")) is not None:
        weight = weight - _spread(zero.float(), weight, block)
    return weight * _spread(scale.float(), weight, block)


def _spread(scales: Tensor, weight: Tensor, block: tuple[int, int] | None) -> Tensor:
    """Repeat scales (), (out), or (blocks of rows, blocks of columns) to where they can be multiplied."""
    scales = scales.reshape(-1, 1) if scales.dim() < 2 else scales
    for dim, size in enumerate(weight.shape):
        count = scales.shape[dim]
        if count in (1, size):
            continue
        each = block[dim] if block else size // count
        if -(-size // each) != count:
            raise ValueError(f"{count} scales do not fit {size} rows or columns")
        scales = scales.repeat_interleave(each, dim).narrow(dim, 0, size)
    return scales


def unpack_compressed(parts: Parts) -> Tensor:
    """Numbers packed along rows, in words of 4 or 8 bits each."""
    packed, (rows, columns) = parts["weight_packed"], parts["weight_shape"].tolist()
    bits = 4 if packed.shape[1] == -(-columns // 8) else 8
    half, scales, zero = 1 << (bits - 1), parts["weight_scale"].float(), parts.get("weight_zero_point")
    weight = (_unpack(packed, bits, 1)[:, :columns] - half).float()
    zeros = torch.zeros(1, 1)
    if zero is not None:
        zeros = (_unpack(zero, bits, 0)[:rows] - half if zero.dtype == torch.int32 else zero).float()
    if (group := parts.get("weight_g_idx")) is not None:
        scales, zeros = (each if each.shape[1] == 1 else each[:, group.long()] for each in (scales, zeros))
    return (weight - _spread(zeros, weight, None)) * _spread(scales, weight, None)


def unpack_gptq(parts: Parts, bits: int, group_size: int, is_first: bool) -> Tensor:
    """Numbers packed along columns (in); `is_first`: zero points are stored less by one."""
    weight, scales = _unpack(parts["qweight"], bits, 0), parts["scales"].float()
    zeros = _unpack(parts["qzeros"], bits, 1)[:, : scales.shape[1]] + is_first
    group = parts.get("g_idx")
    if group is None:
        group = torch.arange(len(weight)) // (group_size if group_size > 0 else len(weight))
    group = group.long()
    return ((weight - zeros[group]).float() * scales[group]).t().contiguous()


def unpack_awq(parts: Parts) -> Tensor:
    """Four bits each, the columns (out) of a word in the order of its kernel (`gemm`)."""
    weight, zeros = (
        _unpack(parts[name], 4, 1).view(len(parts[name]), -1, 8)[..., list(_AWQ_COLUMNS)].flatten(1)
        for name in ("qweight", "qzeros")
    )
    scales = parts["scales"].float()
    group = torch.arange(len(weight)) // (len(weight) // len(scales))
    return ((weight - zeros[group]).float() * scales[group]).t().contiguous()


def _unpack(words: Tensor, bits: int, dim: int) -> Tensor:
    """The unsigned numbers of int32 words, the lowest bits first, one after the other along `dim`."""
    shifts = torch.arange(0, 32, bits, dtype=torch.int32)
    numbers: Tensor = words.unsqueeze(dim + 1) >> (shifts[:, None] if dim == 0 else shifts)
    return (numbers & ((1 << bits) - 1)).flatten(dim, dim + 1)
