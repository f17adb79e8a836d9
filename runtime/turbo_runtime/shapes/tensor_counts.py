"""Counts weights from the heads of their files."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable

from turbo_runtime.contract.model import ModelShape
from turbo_runtime.shapes import Described
from turbo_runtime.shapes.quantization import BITS

_DTYPES = {"F64": "float64", "F32": "float32", "F16": "float16", "BF16": "bfloat16"}  # safetensors' names
_PACKED = {"I32": 32, "U8": 8, "I8": 8}  # bits of one stored element that holds one or more weights
_FLOAT8 = ("F8_E4M3", "F8_E5M2")
_HEADS = ("lm_head.weight", "embed_out.weight")
_EMBEDDINGS = ("embed_tokens.weight", "embed_in.weight", "wte.weight")
# What quantisation adds to its weights. Only of quantised models, since others may learn a scale.
_ADDED = re.compile(r"scale|zero|g_idx|weight_shape|absmax|quant_map|quant_state|SCB")
_LAYER = re.compile(r"^(?:model\.)?(?:language_model\.)?(?:model\.)?layers\.(\d+)\.")


def count_tensors(tensors: Iterable[tuple[str, str, int]], described: Described) -> ModelShape:
    """Count the elements of stored weights (name, type, elements) as before several were packed into one."""
    less, layers = described.quantization, described.size.layers
    kept: Counter[str] = Counter()
    quantized = routed = embedding = head = 0
    for name, dtype, elements in tensors:
        if _is_mtp(name, layers) or (less and _ADDED.search(name.rpartition(".weight")[2])):
            continue
        if less and dtype in _PACKED:
            elements *= _PACKED[dtype] // BITS[less.dtype]
            quantized += elements
        elif dtype in _FLOAT8:
            quantized += elements
        else:
            kept[_DTYPES.get(dtype, dtype)] += elements
        routed += elements if ".experts." in name else 0
        embedding += elements if name.endswith(_EMBEDDINGS) else 0
        head += elements if name.endswith(_HEADS) else 0
    tied = described.tied if described.tied is not None else not head
    return described.shape(
        parameters=kept.total() + quantized - (head if tied else 0),
        quantized=quantized,
        routed=routed,
        embedding=0 if tied else embedding,
        dtype=kept.most_common(1)[0][0] if kept else "float32",
        quantization=less.dtype if less else "fp8",
    )


def _is_mtp(name: str, layers: int) -> bool:
    """Whether a tensor belongs to a layer that predicts the tokens after the next."""
    layer = _LAYER.match(name)
    return name.startswith("mtp.") or ".mtp." in name or (layer is not None and int(layer[1]) >= layers)
