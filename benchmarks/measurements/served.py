"""Which model a table's row served and in what types, and on which accelerator of the catalog."""

from __future__ import annotations

from dataclasses import replace

from turbo_operator.catalog import shapes
from turbo_runtime.contract.documents import ModelShape

ACCELERATORS = {  # a table's word: the catalog's
    "h100_sxm": "h100",
    "h200_sxm": "h200",
    "b200_sxm": "b200",
    "b300_sxm": "b300",
    "H100-SXM-80GB": "h100",
    "H200-SXM-141GB": "h200",
    "A100-SXM4-80GB": "a100-80gb",
    "RTX_PRO_6000_SERVER": "rtx-pro-6000",
    "A100-80GB": "a100-80gb",
    "L40S": "l40s-x4",
}
FAMILIES = {"a": "Ampere", "l": "Ada", "h": "Hopper", "b": "Blackwell", "g": "Blackwell", "r": "Blackwell"}
MODELS = {  # a table's word: a hub id whose shape is shipped
    "nvidia/Qwen3-32B-NVFP4": "Qwen/Qwen3-32B",
    "nvidia/DeepSeek-R1-NVFP4": "deepseek-ai/DeepSeek-R1",
    "zhipuai/GLM-5": "zai-org/GLM-5",
    "LLaMA v3.1 8B": "meta-llama/Llama-3.1-8B",
    "LLaMA v3.1 70B": "meta-llama/Llama-3.1-70B",
    "LLaMA v3.1 405B": "meta-llama/Llama-3.1-405B",
    "Llama 3.1 8B": "meta-llama/Llama-3.1-8B",
    "Llama 3.1 405B": "meta-llama/Llama-3.1-405B",
    "Llama 3.3 70B": "meta-llama/Llama-3.3-70B-Instruct",
    "Llama 4 Maverick": "meta-llama/Llama-4-Maverick-17B-128E-Instruct",
    "Llama 4 Scout": "meta-llama/Llama-4-Scout-17B-16E-Instruct",
    "Mistral 7B": "mistralai/Mistral-7B-v0.1",
    "Mixtral 8x7B": "mistralai/Mixtral-8x7B-v0.1",
    "Mixtral 8x22B": "mistralai/Mixtral-8x22B-v0.1",
    "Qwen3-235B-A22B": "Qwen/Qwen3-235B-A22B",
    "Qwen3-30B-A3B": "Qwen/Qwen3-30B-A3B",
    "Vicuna-7B-v1.3": "lmsys/vicuna-7b-v1.3",
    "Vicuna-13B-v1.3": "lmsys/vicuna-13b-v1.3",
    "Vicuna-33B-v1.3": "lmsys/vicuna-33b-v1.3",
}
FORMATS = {"fp8": ("fp8",), "fp4": ("nvfp4", "mxfp4"), "int4": ("int4",)}
SIXTEEN_BITS = ("", "bf16", "fp16")


def accelerator_name(word: str) -> str:
    """The catalog's name of what a table calls `word`; it need not be there."""
    return ACCELERATORS.get(word, word.lower())


def family(accelerator: str) -> str:
    """The maker's generation of an accelerator of the catalog."""
    return FAMILIES.get(accelerator[0], accelerator)


def served_shape(model: str, precision: str) -> ModelShape | None:
    """The shape of `model` with its weights in `precision`; None where either is not known.

    A model that is published in that format is served as it is. Another is quantised in all its matrices but
    the head; to four bits, of one with routed experts, only in those, as the published checkpoints are.
    """
    shape = shapes.shipped(MODELS.get(model, model))
    if shape is None or precision.lower() not in (*SIXTEEN_BITS, *FORMATS):
        return None
    if precision.lower() in SIXTEEN_BITS:
        return replace(shape, quantization=None, quantized_parameters=0)
    formats = FORMATS[precision.lower()]
    if shape.quantization in formats:
        return shape
    matrices = shape.parameters - shape.embedding_parameters - shape.vocab_size * shape.hidden_size
    if formats != FORMATS["fp8"] and shape.experts:
        matrices = shape.expert_parameters
    return replace(shape, quantization=formats[0], quantized_parameters=matrices)
