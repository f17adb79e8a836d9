"""From a folder in the format of PEFT to the matrices of a LoRA adapter.

Whatever is wrong with it is a `ModelError` with one sentence that names the adapter.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import snapshot_download
from safetensors import SafetensorError, safe_open
from torch import Tensor

from turbo_runtime.model_files.adapters import (
    CONFIG,
    WEIGHTS,
    Matrix,
    find_matrix,
    find_problem,
    find_scales,
    parse_config,
    split_place,
)
from turbo_runtime.model_files.source import ModelError
from turbo_runtime.models.layers.lora import Adapter
from turbo_runtime.models.loader import model_errors


def read_adapter(name: str, place: str, model: str, dtype: torch.dtype, device: torch.device) -> Adapter:
    """Read the adapter `name` of `model` from a folder, or from a hub id with @ and a revision behind it.
    Raises ModelError.
    """
    try:
        with model_errors("it cannot be read"):
            folder = _folder(place)
            config = parse_config((folder / CONFIG).read_bytes())
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
    with (
        model_errors(f"{WEIGHTS} cannot be read", (OSError, SafetensorError)),
        safe_open(folder / WEIGHTS, "pt") as file,
    ):
        tensors = {name: file.get_tensor(name) for name in sorted(file.keys())}
    return {find_matrix(name, tensor.dim()): tensor for name, tensor in tensors.items()}


def _scaled(
    matrices: Mapping[Matrix, Tensor], config: Mapping[str, Any], dtype: torch.dtype, device: torch.device
) -> dict[str, tuple[Tensor, Tensor]]:
    """Pair the matrices, and multiply each B by its scale, in float32. Raises ModelError for NaN and infinite
    values: the start-up check would take them for the model's own, and promise less of all requests.
    """
    scales = find_scales({matrix: tensor.shape for matrix, tensor in matrices.items()}, config)
    parts = {(matrix.layer, matrix.part): tensor for matrix, tensor in matrices.items()}
    pairs = {
        layer: (parts[layer, "A"].to(device, dtype), (parts[layer, "B"].float() * scale).to(device, dtype))
        for layer, scale in scales.items()
    }
    for layer, pair in pairs.items():
        if not all(bool(matrix.isfinite().all()) for matrix in pair):
            raise ModelError(f"{layer} has values that are no numbers in {dtype}; train the adapter again")
    return pairs
