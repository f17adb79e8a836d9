"""From files of safetensors to the transformers model of one rank, without ever reading the rest."""

from __future__ import annotations

from contextlib import ExitStack
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from transformers import AutoModelForCausalLM, GenerationConfig, PreTrainedModel

from turbo_runtime.model_files.hub_cache import INDEX, read_index
from turbo_runtime.model_files.source import ModelError, Source
from turbo_runtime.models.attention.metadata import IMPLEMENTATION, register
from turbo_runtime.models.loader import load_config, local_folder, model_errors
from turbo_runtime.models.parallel.shards import Shard


def read_shard(source: Source, rank: int, size: int) -> tuple[Any, Shard]:
    """Read the model's configuration, and which part of it a rank has. Raises ModelError."""
    if source.gguf_file:
        raise ModelError(f"--tensor-parallel-size={size}: a GGUF file is not cut up; use safetensors")
    config = load_config(source)
    return config, Shard.of(config, rank, size)


def load_shard(
    source: Source, dtype: torch.dtype, device: torch.device, rank: int, size: int
) -> PreTrainedModel:
    """Load a rank's part as a smaller model; only its configuration's `vocab_size` is the whole one's."""
    register()
    config, shard = read_shard(source, rank, size)
    local = shard.configuration(config)
    with model_errors(f"the weights of {source.name} cannot be loaded", (OSError, ValueError, KeyError)):
        folder = local_folder(source)
        with torch.device("meta"):
            model = AutoModelForCausalLM.from_config(local, attn_implementation=IMPLEMENTATION, dtype=dtype)
        with ExitStack() as files:
            stored = _open(folder, files)
            names = [name for name, _ in model.named_parameters()]  # a tied one once
            if missing := [name for name in names if name not in stored]:
                raise ModelError(f"the weights of {source.name} have no tensor {missing[0]}")
            weights = {
                name: shard.cut(name, stored[name].get_slice(name)).to(device, dtype) for name in names
            }
        model.load_state_dict(weights, strict=False, assign=True)
        model.tie_weights()
        if (folder / "generation_config.json").is_file():
            model.generation_config = GenerationConfig.from_pretrained(folder)
    body = model.get_decoder()
    body.rotary_emb = type(body.rotary_emb)(local)  # computed, and not stored
    model.config.vocab_size = config.vocab_size
    return model.to(device).eval().requires_grad_(False)


def _open(folder: Path, files: ExitStack) -> dict[str, Any]:
    """Open the files that transformers would load: the one with a tensor, by the tensor's name."""
    if (folder / INDEX).is_file():
        paths = [folder / name for name in read_index(INDEX, (folder / INDEX).read_bytes())]
    else:
        whole = folder / "model.safetensors"
        paths = [whole] if whole.is_file() else sorted(folder.glob("*.safetensors"))
    opened = [files.enter_context(safe_open(path, "pt")) for path in paths]
    return {name: file for file in opened for name in file.keys()}  # noqa: SIM118  not a mapping
