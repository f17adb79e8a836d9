"""From a folder in the format of PEFT to the matrices of a LoRA adapter.

Whatever is wrong with it is a `ModelError` with one sentence that names the adapter.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import snapshot_download
from safetensors import SafetensorError, safe_open
from torch import Tensor

from turbo_runtime.model_files.adapters import (
    CONFIG,
    MAX_RANK,
    WEIGHTS,
    Matrix,
    find_matrix,
    find_problem,
    split_place,
)
from turbo_runtime.model_files.source import ModelError
from turbo_runtime.models.layers.lora import Adapter
from turbo_runtime.models.loader import model_errors

_USUAL_ALPHA = 8  # of PEFT


def read_adapter(name: str, place: str, model: str, dtype: torch.dtype, device: torch.device) -> Adapter:
    """Read the adapter `name` of `model` from a folder, or from a hub id with @ and a revision behind it.
    Raises ModelError.
    """
    try:
        with model_errors("it cannot be read", (OSError, ValueError, SafetensorError, re.error)):
            folder = _folder(place)
            config = json.loads((folder / CONFIG).read_text(encoding="utf-8"))
            if not isinstance(config, dict):
                raise ModelError(f"{CONFIG} is no JSON object")
            if problem := find_problem(config, model):
                raise ModelError(problem)
            return Adapter(name, _scaled(_read_matrices(folder), config, dtype, device))
    except ModelError as error:
        raise type(error)(f"adapter {name} ({place}): {error}") from error


def _folder(place: str) -> Path:
    path, revision = split_place(place)
    folder = Path(path)
    if not folder.is_dir():
        if path.startswith(("/", ".", "~")):
            raise ModelError("there is no such folder")
        folder = Path(snapshot_download(path, revision=revision, allow_patterns=[CONFIG, WEIGHTS]))
    for needed in (CONFIG, WEIGHTS):
        if not (folder / needed).is_file():
            raise ModelError(f"there is no {needed}: name a LoRA adapter in the format of PEFT")
    return folder


def _read_matrices(folder: Path) -> dict[Matrix, Tensor]:
    with safe_open(folder / WEIGHTS, "pt") as file:
        tensors = {name: file.get_tensor(name) for name in sorted(file.keys())}
    if not tensors:
        raise ModelError(f"{WEIGHTS} holds no tensors")
    return {find_matrix(name, tensor.dim()): tensor for name, tensor in tensors.items()}


def _scaled(
    matrices: Mapping[Matrix, Tensor], config: Mapping[str, Any], dtype: torch.dtype, device: torch.device
) -> dict[str, tuple[Tensor, Tensor]]:
    """Pair the matrices, and multiply each B by its scale, in float32."""
    modules = {}
    for matrix, tensor in matrices.items():
        module, layer, part = matrix
        other = matrix._replace(part="B" if part == "A" else "A")
        if other not in matrices:
            raise ModelError(f"{layer} has no lora_{other.part}: copy the adapter again")
        if part == "B":
            continue
        a, b = tensor, matrices[other]
        rank = _of_pattern(config, "rank_pattern", module, config.get("r"))
        alpha = _of_pattern(config, "alpha_pattern", module, config.get("lora_alpha", _USUAL_ALPHA))
        if type(rank) is not int or not 1 <= rank <= MAX_RANK or type(alpha) not in (int, float):
            raise ModelError(f"{CONFIG} gives {layer} no rank (r) from 1 to {MAX_RANK}, or no lora_alpha")
        if (len(a), b.shape[1]) != (rank, rank):
            raise ModelError(
                f"{layer} has matrices of rank {len(a)} and {b.shape[1]}, and {CONFIG} says {rank}: copy the "
                "adapter again"
            )
        scale = alpha / (math.sqrt(rank) if config.get("use_rslora") else rank)
        modules[layer] = (a.to(device, dtype), (b.float() * scale).to(device, dtype))
    return modules


def _of_pattern(config: Mapping[str, Any], pattern: str, module: str, otherwise: Any) -> Any:
    """Return what a configuration says of a module, as PEFT reads it: by the first pattern that is its name,
    or the end of it.
    """
    values = config.get(pattern) or {}
    if not isinstance(values, dict):
        raise ModelError(f"{pattern} of {CONFIG} is no JSON object")
    found = (value for key, value in values.items() if re.match(rf"(.*\.)?({key})$", module))
    return next(found, otherwise)
