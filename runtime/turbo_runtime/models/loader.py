"""From a model's source to a transformers model and a tokenizer that the engine can serve.

Whatever is wrong with them is a `ModelError` with one sentence that says what to do.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import torch
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, PreTrainedModel

from turbo_runtime.model_files.source import ARCHITECTURES, ModelError, Source, find, first_line, hub_errors
from turbo_runtime.models.attention.metadata import IMPLEMENTATION, register

# These rescale by the longest position of the batch, so that one request's text would depend on the others'.
_BATCH_DEPENDENT_ROPE = ("dynamic", "longrope")


def load_config(source: Source) -> Any:
    """Read the model's configuration and check that the engine can serve it."""
    with _model_errors(f"the configuration of {source.name} cannot be read"):
        config = AutoConfig.from_pretrained(source.name, **source.arguments())
    check_config(config)
    return config


@contextmanager
def _model_errors(
    sentence: str, errors: tuple[type[Exception], ...] = (OSError, ValueError, KeyError)
) -> Iterator[None]:
    """Turn errors of the hub, of files and of what is in them into ModelError."""
    try:
        with hub_errors():
            yield
    except ModelError:
        raise
    except errors as error:
        raise ModelError(f"{sentence}: {first_line(error)}") from error


def check_config(config: Any) -> None:
    """Raise ModelError unless the engine computes this model as transformers would, row by row alike."""
    if getattr(config, "is_encoder_decoder", False):
        raise ModelError(f"{config.model_type} is an encoder-decoder; only decoder-only models can be served")
    by_type = [name for name in ARCHITECTURES if name.lower() == f"{config.model_type}forcausallm"]
    names = config.architectures or by_type
    if not any(name in ARCHITECTURES for name in names):
        requested = ", ".join(names) or config.model_type
        raise ModelError(f"{requested} is not supported; supported are {', '.join(ARCHITECTURES)}")
    rope = getattr(config, "rope_parameters", None) or {}
    if rope.get("rope_type") in _BATCH_DEPENDENT_ROPE:
        raise ModelError(
            f"rotary embeddings of type {rope['rope_type']} depend on the batch and are not supported"
        )
    # transformers takes the size of a scaled block to be the rows of a matrix over those of its scales, which
    # is wrong where the last block is not full
    quantization = getattr(config, "quantization_config", None) or {}
    block, _ = quantization.get("weight_block_size") or (1, 1)
    if rank := getattr(config, "kv_lora_rank", None):
        rows = rank + config.qk_rope_head_dim
        if rows % block:
            raise ModelError(
                f"weight_block_size: the {rows} rows of kv_a_proj_with_mqa are not a multiple of {block} and "
                "would be dequantized wrongly; convert the weights to bfloat16"
            )


def longest(config: Any) -> int:
    """Tokens of the longest context; a sliding window bounds it, since the cache keeps no window."""
    length = int(config.max_position_embeddings)
    window: int | None = getattr(config, "sliding_window", None)
    if window is None or not getattr(config, "use_sliding_window", True):
        return length
    return min(length, window)


def load_model(source: Source, dtype: torch.dtype, device: torch.device) -> PreTrainedModel:
    """Load weights in `dtype` on `device`, attention through the paged pool; dequantize a GGUF file."""
    register()
    config = load_config(source)
    options = {"config": config, "dtype": dtype, "attn_implementation": IMPLEMENTATION, **source.arguments()}
    errors = (OSError, ValueError, KeyError, RuntimeError)
    with _model_errors(f"the weights of {source.name} cannot be loaded", errors):
        model = AutoModelForCausalLM.from_pretrained(source.name, **options)
    return model.to(device).eval().requires_grad_(False)


@dataclass(frozen=True, slots=True)
class ExportedTokenizer:
    """The parts of a tokenizer that the engine itself needs, for grammars."""

    file: Path  # tokenizer.json; missing where the tokenizer has no such form
    end_ids: frozenset[int]  # of its end-of-sequence token


def export_tokenizer(model: str, revision: str | None, directory: Path) -> ExportedTokenizer:
    """Save the tokenizer and its chat template into `directory`, for the server; raises ModelError."""
    source = find(model, revision)
    with _model_errors(f"the tokenizer of {model} cannot be read"):
        tokenizer = AutoTokenizer.from_pretrained(source.name, **source.arguments())
    tokenizer.save_pretrained(directory)
    end = tokenizer.eos_token_id
    return ExportedTokenizer(directory / "tokenizer.json", frozenset(() if end is None else (int(end),)))


@contextmanager
def gguf_parsed_once() -> Iterator[None]:
    """Parse each GGUF file once, not for the tokenizer, the configuration, the weights and the digest each.

    transformers also builds a table of tensor names for every module of the model. Each takes seconds, and
    nobody changes what they share. Not for several threads at a time.
    """
    import gguf  # only this format needs it

    reader, names = gguf.GGUFReader, gguf.get_tensor_name_map
    read = cache(reader)
    gguf.GGUFReader = lambda path: read(Path(path).resolve())
    gguf.get_tensor_name_map = cache(names)
    try:
        yield
    finally:
        gguf.GGUFReader, gguf.get_tensor_name_map = reader, names
