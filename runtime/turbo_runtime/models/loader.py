"""From a model's source to a transformers model that the engine can serve.

Everything that can be wrong with it is a `ModelError` with one sentence that says what to do.
"""

from __future__ import annotations

from typing import Any

import torch
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel

from turbo_runtime.model_files.hub import hub_errors
from turbo_runtime.model_files.source import ARCHITECTURES, ModelError, Source
from turbo_runtime.models.attention import IMPLEMENTATION, register

# These rescale by the longest position of the batch, so that one request's text would depend on its batch
# mates.
_ROPE_OF_THE_BATCH = ("dynamic", "longrope")


def load_config(source: Source) -> Any:
    """The model's configuration, checked to be one that the engine can serve."""
    try:
        with hub_errors():
            config = AutoConfig.from_pretrained(source.name, **source.arguments())
    except ModelError:
        raise
    except (OSError, ValueError, KeyError) as error:
        raise ModelError(
            f"the configuration of {source.name} cannot be read: {_first_line(error)}"
        ) from error
    check_config(config)
    return config


def check_config(config: Any) -> None:
    """Raises ModelError unless the engine computes this model as transformers would, row by row alike."""
    if getattr(config, "is_encoder_decoder", False):
        raise ModelError(f"{config.model_type} is an encoder-decoder; only decoder-only models can be served")
    names = config.architectures or [
        n for n in ARCHITECTURES if n.lower() == f"{config.model_type}forcausallm"
    ]
    if not any(name in ARCHITECTURES for name in names):
        found = ", ".join(names) or config.model_type
        raise ModelError(f"{found} is not supported; supported are {', '.join(ARCHITECTURES)}")
    rope = getattr(config, "rope_parameters", None) or {}
    if rope.get("rope_type") in _ROPE_OF_THE_BATCH:
        raise ModelError(
            f"rotary embeddings of type {rope['rope_type']} depend on the batch and are not supported"
        )
    _check_blocks(config)


def _check_blocks(config: Any) -> None:
    """transformers takes the size of a scaled block to be the rows of a matrix over those of its scales,
    which is wrong where the last block is not full.
    """
    quantization = getattr(config, "quantization_config", None) or {}
    block, _ = quantization.get("weight_block_size") or (1, 1)
    if rank := getattr(config, "kv_lora_rank", None):
        rows = rank + config.qk_rope_head_dim
        if rows % block:
            raise ModelError(
                f"weight_block_size: the {rows} rows of kv_a_proj_with_mqa are not a multiple of {block} and "
                "would be dequantised wrongly; convert the weights to bfloat16"
            )


def longest(config: Any) -> int:
    """Tokens of the longest context: a sliding window counts as the end, since the cache keeps no window."""
    length = int(config.max_position_embeddings)
    window: int | None = getattr(config, "sliding_window", None)
    if window is None or not getattr(config, "use_sliding_window", True):
        return length
    return min(length, window)


def load_model(source: Source, dtype: torch.dtype, device: torch.device) -> PreTrainedModel:
    """Weights in `dtype` on `device`, in evaluation mode, attention through the paged pool. A GGUF file is
    dequantised once.
    """
    register()
    config = load_config(source)
    try:
        with hub_errors():
            model = AutoModelForCausalLM.from_pretrained(
                source.name,
                config=config,
                dtype=dtype,
                attn_implementation=IMPLEMENTATION,
                **source.arguments(),
            )
    except ModelError:
        raise
    except (OSError, ValueError, KeyError, RuntimeError) as error:
        raise ModelError(f"the weights of {source.name} cannot be loaded: {_first_line(error)}") from error
    return model.to(device).eval().requires_grad_(False)


def _first_line(error: Exception) -> str:
    return (str(error) or type(error).__name__).strip().splitlines()[0]
