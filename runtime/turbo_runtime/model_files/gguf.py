"""Inspects a GGUF file by its key-value head and tensor table."""

from __future__ import annotations

import hashlib
from collections import Counter
from pathlib import Path
from typing import Any

from turbo_runtime.contract.model import ModelInfo, ModelShape
from turbo_runtime.model_files.source import ModelError

_ARCHITECTURES = {
    "llama": "LlamaForCausalLM",
    "mistral": "MistralForCausalLM",
    "qwen2": "Qwen2ForCausalLM",
    "qwen3": "Qwen3ForCausalLM",
}


def inspect_gguf(path: Path) -> ModelInfo:
    """Inspect the file. Raises ModelError where it is no GGUF file of a language model."""
    import gguf  # here, since only this format needs it

    try:
        reader = gguf.GGUFReader(path)
    except (ValueError, IndexError) as error:
        raise ModelError(f"{path.name} is not a GGUF file: {error}") from error

    def value(key: str, default: Any = None) -> Any:
        field = reader.get_field(key)
        if field is not None:
            return field.contents()
        if default is None:
            raise ModelError(f"{path.name} names no {key}: not a decoder-only language model")
        return default

    family = value("general.architecture")
    heads = int(value(f"{family}.attention.head_count"))
    hidden = int(value(f"{family}.embedding_length"))
    elements: Counter[str] = Counter()
    routed, looked_up, tied = 0, 0, True
    for tensor in reader.tensors:
        count = int(tensor.n_elements)
        elements[tensor.tensor_type.name] += count
        routed += count if "_exps." in tensor.name else 0
        looked_up += count if tensor.name == "token_embd.weight" else 0
        tied = tied and tensor.name != "output.weight"
    if not elements:
        raise ModelError(f"{path.name} holds no tensors")
    vocabulary = reader.get_field("tokenizer.ggml.tokens")
    length = int(value(f"{family}.context_length"))
    layers = int(value(f"{family}.block_count"))
    window = int(value(f"{family}.attention.sliding_window", length)) or length
    slides = window < length
    widths = value(f"{family}.feed_forward_length", 0)  # of all layers, or of each
    shape = ModelShape(
        architecture=_ARCHITECTURES.get(family, family),
        parameters=sum(elements.values()),
        layers=layers,
        hidden_size=hidden,
        heads=heads,
        kv_heads=int(value(f"{family}.attention.head_count_kv", heads)),
        head_dim=int(value(f"{family}.attention.key_length", hidden // heads)),
        vocab_size=int(value(f"{family}.vocab_size", len(vocabulary.data) if vocabulary else None)),
        max_position=length,
        dtype=elements.most_common(1)[0][0],  # of the file's blocks, which the engine expands as it loads
        embedding_parameters=0 if tied else looked_up,
        experts=int(value(f"{family}.expert_count", 0)),
        experts_per_token=int(value(f"{family}.expert_used_count", 0)),
        expert_parameters=routed,
        sliding_window=window if slides else 0,
        sliding_layers=layers if slides else 0,
        mlp_width=0 if routed else max(map(int, widths if isinstance(widths, list) else [widths]), default=0),
    )
    size = path.stat().st_size
    with path.open("rb") as file:
        head = file.read(reader.data_offset)
    digest = hashlib.sha256(f"{path.name}\0{size}\0".encode() + head)
    return ModelInfo(shape, f"sha256:{digest.hexdigest()}", None, size)
