"""Which weights a checkpoint holds in fewer bits, and in which type, from its `quantization_config`."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Any

from turbo_runtime.shapes.config_reader import UnknownShapeError

BITS = {"fp8": 8, "int8": 8, "int4": 4, "mxfp4": 4, "nvfp4": 4}  # of one weight, its scales apart

_INTEGERS = {8: "int8", 4: "int4"}
_BY_NAME = {"fp8": "fp8", "fbgemm_fp8": "fp8", "mxfp4": "mxfp4"}
_BY_BITS = frozenset({"awq", "gptq", "gptq_marlin", "awq_marlin", "auto-round", "auto_round"})
_MODELOPT = {"FP8": "fp8", "FP8_PB_WO": "fp8", "NVFP4": "nvfp4", "INT8_SQ": "int8", "W4A16_AWQ": "int4"}
_KEPT = ("modules_to_not_convert", "ignore", "ignored_layers", "exclude_modules")
READ = "fp8, fbgemm_fp8, awq, gptq, auto-round, mxfp4, bitsandbytes, compressed-tensors, modelopt"


@dataclass(frozen=True, slots=True)
class Quantization:
    """The type of the quantized weights, and the modules that keep the model's own."""

    dtype: str  # a key of BITS
    kept: tuple[str, ...] = ()  # names, parts of names, patterns with * or, after `re:`, regular expressions
    targets: tuple[str, ...] = ()  # only those, where there are any
    head: bool = False  # the output head too, unless it is kept

    def covers(self, module: str) -> bool:
        """Whether the matrices of a module like `model.layers.3.mlp.down_proj` are quantized."""
        is_target = not self.targets or any(_matches(item, module) for item in self.targets)
        is_kept = (module == "lm_head" and not self.head) or any(_matches(item, module) for item in self.kept)
        return is_target and not is_kept


def quantization(config: Mapping[str, Any], name: str) -> Quantization | None:
    """Read the quantization, None where there is none. Raises UnknownShapeError for one not counted."""
    section = config.get("quantization_config") or config.get("compression_config")
    if not isinstance(section, Mapping):
        return None
    method = str(section.get("quant_method") or section.get("quant_algo") or "none").lower()
    kept = tuple(name for key in _KEPT for name in _names(section.get(key)))
    head = bool(section.get("lm_head")) or method in ("compressed-tensors", "modelopt")
    dtype, targets, groups = None, tuple[str, ...](), section.get("config_groups")
    if method in _BY_NAME:
        dtype = _BY_NAME[method]
    elif method in _BY_BITS:
        dtype = _INTEGERS.get(_bits(section, "bits", "w_bit"))
    elif method == "bitsandbytes":
        dtype = "int4" if section.get("load_in_4bit") else "int8"
    elif method == "modelopt" and str(section.get("quant_algo")) in _MODELOPT:
        dtype = _MODELOPT[str(section["quant_algo"])]
    elif isinstance(groups, Mapping):
        items = [item for item in groups.values() if isinstance(item, Mapping)]
        items = [item for item in items if isinstance(item.get("weights"), Mapping)]
        types = {_compressed(item["weights"]) for item in items}
        dtype = types.pop() if len(types) == 1 else None
        named = tuple(name for item in items for name in _names(item.get("targets")))
        targets = () if "Linear" in named else named
    if dtype is None:
        raise UnknownShapeError(
            f"{name} is quantized by {method} in a way that is not counted; methods that are, with weights "
            f"of one type of 8 or 4 bits: {READ}. Choose a checkpoint of one of those."
        )
    return Quantization(dtype, kept, targets, head)


def _compressed(weights: Mapping[str, Any]) -> str | None:
    """The type of a group of `compressed-tensors` or `modelopt`."""
    bits = _bits(weights, "num_bits")
    if weights.get("type") == "float":
        four = "mxfp4" if weights.get("group_size") == 32 else "nvfp4"
        return {8: "fp8", 4: four}.get(bits)
    return _INTEGERS.get(bits)


def _bits(section: Mapping[str, Any], *keys: str) -> int:
    return next((section[key] for key in keys if isinstance(section.get(key), int)), 0)


def _names(value: object) -> Iterator[str]:
    """Names of modules without the part that wraps a text decoder into a model of several inputs."""
    for item in value if isinstance(value, (list, tuple)) else ():
        if isinstance(item, str):
            yield item.replace("language_model.", "")


def _matches(pattern: str, module: str) -> bool:
    if pattern.startswith("re:"):
        try:
            return re.match(pattern[3:], module) is not None
        except re.error as error:
            raise UnknownShapeError(f"quantization_config: {pattern!r} is no pattern: {error}.") from error
    if "*" in pattern:
        return fnmatchcase(module, pattern) or fnmatchcase(module, f"{pattern}.*")
    return f".{pattern}." in f".{module}."
