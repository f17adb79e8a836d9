"""LoRA adapters of tests: matrices of noise, in the format of PEFT, and what PEFT says that they do."""

from __future__ import annotations

import json
import math
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from safetensors.numpy import load_file, save_file

if TYPE_CHECKING:
    from transformers import PreTrainedModel

ATTENTION = ("q_proj", "k_proj", "v_proj", "qkv_proj", "o_proj")
PROJECTIONS = (*ATTENTION, "gate_proj", "up_proj", "gate_up_proj", "down_proj")


def write(
    folder: Path,
    modules: Mapping[str, tuple[int, int]],
    *,
    rank: int = 4,
    scale: float = 1.0,
    seed: int = 7,
    **config: Any,
) -> Path:
    """Write an adapter of `modules`, names with outputs and inputs, whose product has entries of `scale`."""
    folder.mkdir(parents=True, exist_ok=True)
    noise = np.random.default_rng(seed)
    tensors = {}
    for name, (outputs, inputs) in modules.items():
        own = _of_pattern(config.get("rank_pattern", {}), name, rank)
        for part, shape in (("A", (own, inputs)), ("B", (outputs, own))):
            matrix = noise.normal(scale=scale**0.5, size=shape).astype(np.float32)
            tensors[f"base_model.model.{name}.lora_{part}.weight"] = matrix
    save_file(tensors, folder / "adapter_model.safetensors")
    (folder / "adapter_model.safetensors").chmod(0o644)  # pods that read it have another user
    targets = sorted({name.rpartition(".")[2] for name in modules})
    body = {"peft_type": "LORA", "r": rank, "lora_alpha": rank, "target_modules": targets, **config}
    (folder / "adapter_config.json").write_text(json.dumps(body))
    return folder


def modules_of(
    model: PreTrainedModel, names: Collection[str] = PROJECTIONS, layers: Collection[int] = range(1 << 10)
) -> dict[str, tuple[int, int]]:
    """The linear layers of these names in these layers of a transformers model, with outputs and inputs."""
    found = {}
    for name, module in model.named_modules():
        parts = name.split(".")
        if parts[-1] in names and "layers" in parts and int(parts[parts.index("layers") + 1]) in layers:
            found[name] = (int(module.out_features), int(module.in_features))
    return found


def write_random(folder: Path, model: PreTrainedModel, *, scale: float) -> dict[str, Path]:
    """Write two adapters, of all projections and of attention in every other layer, by name."""
    return {
        "every": write(folder / "every", modules_of(model), rank=8, scale=scale),
        "some": write(
            folder / "some",
            modules_of(model, ATTENTION, range(0, 1 << 10, 2)),
            rank=3,
            scale=2 * scale,
            seed=8,
            lora_alpha=5,
            use_rslora=True,
        ),
    }


def merge(model: PreTrainedModel, folder: Path) -> PreTrainedModel:
    """Add B A times its scale to each weight that an adapter changes, in place."""
    import torch

    config = json.loads((folder / "adapter_config.json").read_text())
    tensors = load_file(folder / "adapter_model.safetensors")
    for name in sorted({key.removeprefix("base_model.model.").rpartition(".lora_")[0] for key in tensors}):
        a, b = (tensors[f"base_model.model.{name}.lora_{part}.weight"] for part in "AB")
        rank = _of_pattern(config.get("rank_pattern", {}), name, config["r"])
        alpha = _of_pattern(config.get("alpha_pattern", {}), name, config["lora_alpha"])
        scale = alpha / (math.sqrt(rank) if config.get("use_rslora") else rank)
        weight = model.get_submodule(name).weight
        assert isinstance(weight, torch.Tensor)
        weight.data += torch.from_numpy(scale * b.astype(np.float64) @ a.astype(np.float64)).to(weight.dtype)
    return model


def _of_pattern(values: Mapping[str, Any], module: str, otherwise: Any) -> Any:
    return next((value for key, value in values.items() if f".{module}".endswith(f".{key}")), otherwise)
