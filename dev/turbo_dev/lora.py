"""LoRA adapters of tests: matrices of noise, in the format of PEFT."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import save_file


def write(
    folder: Path, modules: Mapping[str, tuple[int, int]], *, rank: int = 4, scale: float = 1.0, **config: Any
) -> Path:
    """Write an adapter of `modules`, names with outputs and inputs, whose product has entries of `scale`."""
    folder.mkdir(parents=True, exist_ok=True)
    noise = np.random.default_rng(7)
    tensors = {}
    for name, (outputs, inputs) in modules.items():
        for part, shape in (("A", (rank, inputs)), ("B", (outputs, rank))):
            matrix = noise.normal(scale=scale**0.5, size=shape).astype(np.float32)
            tensors[f"base_model.model.{name}.lora_{part}.weight"] = matrix
    save_file(tensors, folder / "adapter_model.safetensors")
    (folder / "adapter_model.safetensors").chmod(0o644)  # pods that read it have another user
    targets = sorted({name.rpartition(".")[2] for name in modules})
    body = {"peft_type": "LORA", "r": rank, "lora_alpha": rank, "target_modules": targets, **config}
    (folder / "adapter_config.json").write_text(json.dumps(body))
    return folder
