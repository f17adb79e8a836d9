"""From a model's source to a transformers model and a tokenizer that the engine can serve.

Whatever is wrong with them is a `ModelError` with one sentence that says what to do.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import snapshot_download
from safetensors import SafetensorError
from transformers import (
    MODEL_FOR_CAUSAL_LM_MAPPING,
    AutoConfig,
    AutoModelForCausalLM,
    AutoTokenizer,
    GenerationConfig,
    PreTrainedModel,
)

from turbo_runtime.model_files.source import ARCHITECTURES, ModelError, Source, find, first_line, hub_errors
from turbo_runtime.models.attention.metadata import IMPLEMENTATION, register
from turbo_runtime.models.dequantization import dequantized
from turbo_runtime.shapes.dequantization import describe_refusal
from turbo_runtime.shapes.support import find_unsupported

_FILES = ("*.safetensors", "*.json")


def load_config(source: Source) -> Any:
    """Read the model's configuration and check that the engine can serve it."""
    with model_errors(f"the configuration of {source.name} cannot be read"):
        config = AutoConfig.from_pretrained(source.name, **source.arguments())
    check_config(config)
    return config


def local_folder(source: Source) -> Path:
    """Find a model on disk; one of a hub is downloaded, by whoever of several processes comes first."""
    if Path(source.name).is_dir():
        return Path(source.name)
    return Path(snapshot_download(source.name, revision=source.revision, allow_patterns=list(_FILES)))


@contextmanager
def model_errors(
    sentence: str, errors: tuple[type[Exception], ...] = (OSError, ValueError, KeyError)
) -> Iterator[None]:
    """Turn errors of the hub, of files and of what is in them into ModelError."""
    try:
        with hub_errors():
            yield
    except ModelError:
        raise
    except errors as error:
        remedy = "; fetch the files again" if isinstance(error, SafetensorError) else ""
        raise ModelError(f"{sentence}: {first_line(error)}{remedy}") from error


def check_config(config: Any) -> None:
    """Raise ModelError unless the engine computes this model as transformers would, row by row alike."""
    if getattr(config, "is_encoder_decoder", False):
        raise ModelError(f"{config.model_type} is an encoder-decoder; only decoder-only models can be served")
    by_type = [name for name in ARCHITECTURES if name.lower() == f"{config.model_type}forcausallm"]
    names = config.architectures or by_type
    if not any(name in ARCHITECTURES for name in names):
        requested = ", ".join(names) or config.model_type
        raise ModelError(f"{requested} is not supported; supported are {', '.join(ARCHITECTURES)}")
    if setting := find_unsupported(config.to_dict()):
        raise ModelError(f"{setting} is not supported: choose a model whose configuration does not set it")
    quantization = _quantization(config)
    if quantization and (refusal := describe_refusal(quantization)):
        raise ModelError(refusal)
    if quantization.get("quant_method") == "mxfp4" and config.model_type != "gpt_oss":
        raise ModelError(
            "quantization_config.quant_method is mxfp4, and weights are dequantized from it for GPT-OSS "
            "alone: choose a checkpoint in bfloat16"
        )


def _quantization(config: Any) -> dict[str, Any]:
    """The configuration of quantized weights; empty where there are none."""
    section = getattr(config, "quantization_config", None) or {}
    return dict(section if isinstance(section, dict) else section.to_dict())


def load_model(source: Source, dtype: torch.dtype, device: torch.device) -> PreTrainedModel:
    """Load weights in `dtype` on `device`, attention through the paged pool; dequantize what is quantized."""
    register()
    config = load_config(source)
    options = {"config": config, "dtype": dtype, "attn_implementation": IMPLEMENTATION}
    errors = (OSError, ValueError, KeyError, RuntimeError, SafetensorError)
    quantization = _quantization(config)
    with model_errors(f"the weights of {source.name} cannot be loaded", errors):
        if quantization.get("quant_method") == "mxfp4":  # in which transformers dequantizes what we serve
            config.quantization_config = {**quantization, "dequantize": True}
        elif quantization:
            del config.quantization_config
            kind, weights = MODEL_FOR_CAUSAL_LM_MAPPING[type(config)], dequantized(source, quantization)
            model = _load_whole(kind, source, None, state_dict=weights, **options)
            del weights  # and with it what is mapped of the files
            with suppress(OSError):  # where there is none, as of models that transformers loads itself
                model.generation_config = GenerationConfig.from_pretrained(source.name, **source.arguments())
            return _prepare(model, device)
        model = _load_whole(AutoModelForCausalLM, source, source.name, **options, **source.arguments())
    return _prepare(model, device)


def _load_whole(kind: Any, source: Source, *place: str | None, **options: Any) -> PreTrainedModel:
    """Load the model; raises ModelError where transformers would make up weights that the files lack."""
    model, found = kind.from_pretrained(
        *place, output_loading_info=True, ignore_mismatched_sizes=True, **options
    )
    for name, stored, wanted in sorted(found["mismatched_keys"])[:1]:
        raise ModelError(
            f"{name} of {source.name} has shape {list(stored)}, and config.json says {list(wanted)}: the two "
            "are of different models"
        )
    if missing := sorted(found["missing_keys"]):
        more = f" and {len(missing) - 1} more tensors" if len(missing) > 1 else ""
        raise ModelError(
            f"the weights of {source.name} lack {missing[0]}{more}, which config.json describes: fetch all "
            "files of one revision again"
        )
    loaded: PreTrainedModel = model
    return loaded


def _prepare(model: PreTrainedModel, device: torch.device) -> PreTrainedModel:
    return model.to(device).eval().requires_grad_(False)


@dataclass(frozen=True, slots=True)
class ExportedTokenizer:
    """The parts of a tokenizer that the engine itself needs, for grammars."""

    file: Path  # tokenizer.json; missing where the tokenizer has no such form
    end_ids: frozenset[int]  # of its end-of-sequence token


def export_tokenizer(model: str, revision: str | None, directory: Path) -> ExportedTokenizer:
    """Save the tokenizer and its chat template into `directory`, for the server; raises ModelError."""
    source = find(model, revision)
    with model_errors(f"the tokenizer of {model} cannot be read"):
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
