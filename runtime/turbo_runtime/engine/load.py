"""From what the user wrote after `turbo serve` to a transformers model: a .gguf file, a folder of safetensors or a hub id.

Everything that can be wrong with it is a `ModelError` with one sentence that says what to do.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel

from turbo_runtime.engine.attention import IMPLEMENTATION, register

# Decoder-only classes that hand `**kwargs` to the attention interface and have no part of their own whose rows mix.
ARCHITECTURES = ("LlamaForCausalLM", "MistralForCausalLM", "Qwen2ForCausalLM", "Qwen3ForCausalLM")
# These rescale by the longest position of the batch, so that one request's text would depend on its batch mates.
_ROPE_OF_THE_BATCH = ("dynamic", "longrope")


class ModelError(Exception):
    """The model cannot be served; the text is a sentence for the user."""


@dataclass(frozen=True, slots=True)
class Source:
    """Where a model's files are, in the words of transformers' `from_pretrained`."""

    name: str  # a folder or a hub id
    gguf_file: str | None = None
    revision: str | None = None

    def arguments(self) -> dict[str, Any]:
        """Keyword arguments of `from_pretrained`."""
        arguments: dict[str, Any] = {"gguf_file": self.gguf_file, "revision": self.revision}
        return {key: value for key, value in arguments.items() if value is not None}


def find(model: str, revision: str | None) -> Source:
    """Tell file, folder and hub id apart; raises ModelError for a path where nothing is."""
    path = Path(model).expanduser()
    if path.suffix == ".gguf":
        if not path.is_file():
            raise ModelError(f"there is no file {model}")
        return Source(str(path.parent), gguf_file=path.name)
    if path.is_dir():
        if not (path / "config.json").is_file():
            raise ModelError(f"{model} holds no config.json; name a folder of safetensors, a .gguf file or a hub id")
        return Source(str(path))
    if path.exists():
        raise ModelError(f"{model} is neither a folder nor a .gguf file")
    if model.startswith(("/", ".", "~")) or model.count("/") > 1:
        raise ModelError(f"there is no folder {model}")
    return Source(model, revision=revision)


def load_config(source: Source) -> Any:
    """The model's configuration, checked to be one that the engine can serve."""
    try:
        config = AutoConfig.from_pretrained(source.name, **source.arguments())
    except (OSError, ValueError, KeyError) as error:
        raise ModelError(f"the configuration of {source.name} cannot be read: {_first_line(error)}") from error
    check_config(config)
    return config


def check_config(config: Any) -> None:
    """Raises ModelError unless the engine computes this model as transformers would, row by row alike."""
    if getattr(config, "is_encoder_decoder", False):
        raise ModelError(f"{config.model_type} is an encoder-decoder; only decoder-only models can be served")
    names = config.architectures or [n for n in ARCHITECTURES if n.lower() == f"{config.model_type}forcausallm"]
    if not any(name in ARCHITECTURES for name in names):
        found = ", ".join(names) or config.model_type
        raise ModelError(f"{found} is not supported; supported are {', '.join(ARCHITECTURES)}")
    rope = getattr(config, "rope_parameters", None) or {}
    if rope.get("rope_type") in _ROPE_OF_THE_BATCH:
        raise ModelError(f"rotary embeddings of type {rope['rope_type']} depend on the batch and are not supported")


def longest(config: Any) -> int:
    """Tokens of the longest context: a sliding window counts as the end, since the cache keeps no window."""
    length = int(config.max_position_embeddings)
    window = getattr(config, "sliding_window", None)
    sliding = getattr(config, "use_sliding_window", True) and window is not None
    return min(length, int(window)) if sliding else length


def load_model(source: Source, dtype: torch.dtype, device: torch.device) -> PreTrainedModel:
    """Weights in `dtype` on `device`, in evaluation mode, attention through the paged pool. A GGUF file is dequantised once."""
    register()
    config = load_config(source)
    try:
        model = AutoModelForCausalLM.from_pretrained(
            source.name, config=config, dtype=dtype, attn_implementation=IMPLEMENTATION, **source.arguments()
        )
    except (OSError, ValueError, KeyError, RuntimeError) as error:
        raise ModelError(f"the weights of {source.name} cannot be loaded: {_first_line(error)}") from error
    return model.to(device).eval().requires_grad_(False)


def _first_line(error: Exception) -> str:
    return (str(error) or type(error).__name__).strip().splitlines()[0]
