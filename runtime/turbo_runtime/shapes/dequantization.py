"""Which quantized weights engine Turbo serves: it dequantizes them as it loads them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

_COMPRESSED = ("float-quantized", "int-quantized", "naive-quantized", "pack-quantized")
_STRATEGIES = ("tensor", "channel", "group", "block")


def describe_refusal(quantization: Mapping[str, Any]) -> str | None:
    """Say in a sentence which word of `quantization_config` is not read, and what is; None if the weights
    can be dequantized.
    """
    for field, value, known in _fields(quantization):
        if value not in known:
            listed = ", ".join(map(str, known))
            return (
                f"quantization_config.{field} is {value}, and weights are dequantized for {listed} alone: "
                "choose a checkpoint of that kind, or one in bfloat16"
            )
    return None


def _fields(section: Mapping[str, Any]) -> Iterator[tuple[str, object, tuple[object, ...]]]:
    """Yield each word that decides how weights are stored, its value, and those that are known."""
    method = str(section.get("quant_method") or section.get("quant_algo") or "none").lower()
    yield "quant_method", method, ("fp8", "mxfp4", "awq", "gptq", "compressed-tensors")
    if method == "awq":
        yield "bits", section.get("bits", section.get("w_bit")), (4,)
        yield "version", str(section.get("version") or "gemm").lower(), ("gemm",)
        yield "zero_point", section.get("zero_point", True), (True,)
    elif method == "gptq":
        yield "bits", section.get("bits"), (4, 8)
        yield "checkpoint_format", section.get("checkpoint_format") or "gptq", ("gptq", "gptq_v2")
    elif method == "compressed-tensors":
        yield from _compressed(section)


def _compressed(section: Mapping[str, Any]) -> Iterator[tuple[str, object, tuple[object, ...]]]:
    yield "format", section.get("format"), _COMPRESSED
    yield "sparsity_config.format", _part(section, "sparsity_config").get("format") or "dense", ("dense",)
    yield "transform_config", section.get("transform_config") or None, (None,)
    groups = _part(section, "config_groups")
    for name in groups:
        path, group = f"config_groups.{name}", _part(groups, name)
        weights = _part(group, "weights")
        yield f"{path}.format", group.get("format") or section.get("format"), _COMPRESSED
        yield f"{path}.weights.type", weights.get("type"), ("int", "float")
        bits = (8,) if weights.get("type") == "float" else (4, 8)
        yield f"{path}.weights.num_bits", weights.get("num_bits"), bits
        yield f"{path}.weights.strategy", weights.get("strategy"), _STRATEGIES


def _part(section: Mapping[str, Any], key: str) -> Mapping[str, Any]:
    value = section.get(key)
    return value if isinstance(value, Mapping) else {}
