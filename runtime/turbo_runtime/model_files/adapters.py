"""LoRA adapters beside a model: whether they can be served with it, from their files' heads, without torch.

What vLLM 0.32 refuses is refused here by its name: vllm/lora/peft_helper.py, vllm/lora/lora_model.py. Engine
Turbo serves no more.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

from turbo_runtime.contract.documents import AdapterInfo, ModelInfo
from turbo_runtime.model_files.hub_cache import cached_snapshot
from turbo_runtime.model_files.inspector import (
    Files,
    Shapes,
    inspect_model,
    list_copy,
    list_files,
    read_model,
    safetensors_head,
    tensor_shapes,
)
from turbo_runtime.model_files.s3 import is_bucket
from turbo_runtime.model_files.source import HubUnreachableError, ModelError, Source, find, hub_errors

CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
MAX_RANK = 512  # of vLLM
MAX_MODULES = 16  # names of modules that are kept
_USUAL_ALPHA, _LARGEST_ALPHA = 8, 1e6  # of PEFT; that anybody trains with
_TENSOR = re.compile(r"^(?:base_model\.model\.)?(.+)\.lora_([AB])(?:\.default)?\.weight$")
_LAYER = re.compile(r"(?:^|\.)(layers\.\d+\..+)$")  # whatever a checkpoint calls what is above its layers
_PLAIN_INITS = ("gaussian", "eva", "orthogonal", "mica", "lora_ga")  # that leave the model's weights alone


def inspect_with_adapters(
    model: str, revision: str | None = None, adapters: Mapping[str, str] | None = None
) -> ModelInfo:
    """Inspect MODEL, and the adapters by their names. Raises ModelError, another ValueError or OSError."""
    if not adapters:
        return inspect_model(model, revision)
    source = Source(model) if is_bucket(model) else find(model, revision)
    if source.gguf_file:
        raise ModelError("adapters need a folder of safetensors: they go with no GGUF file")
    info, tensors = read_model(source.name, revision)
    layers = {found[1]: shape for name, shape in tensors.items() if (found := _LAYER.search(name))}
    inspected, modules = list[AdapterInfo](), set[str]()
    for name, place in adapters.items():
        try:
            one, own = _inspect_adapter(name, place, model, layers)
        except (OSError, ValueError) as error:
            # an OSError may be over soon: a file that is being copied still
            kept = isinstance(error, ModelError | OSError) and not isinstance(error, FileNotFoundError)
            kind = type(error) if kept else ModelError
            raise kind(f"adapter {name} ({place}): {error}") from error
        inspected.append(one)
        modules |= own
    if len(modules) > MAX_MODULES:
        raise ModelError(
            f"the adapters change {len(modules)} kinds of modules; at most {MAX_MODULES} are served"
        )
    return replace(info, adapters=tuple(inspected), adapter_modules=tuple(sorted(modules)))


def _inspect_adapter(name: str, place: str, model: str, layers: Shapes) -> tuple[AdapterInfo, set[str]]:
    path, revision = split_place(place)
    if path.startswith("/") and not Path(path).is_dir():
        raise ModelError("there is no such folder")
    try:
        with hub_errors():
            return _inspect_files(name, list_files(path, revision), model, layers)
    except HubUnreachableError:
        if (cached := cached_snapshot(path, revision)) is None:
            raise
        return _inspect_files(name, list_copy(cached), model, layers)


def _inspect_files(name: str, files: Files, model: str, layers: Shapes) -> tuple[AdapterInfo, set[str]]:
    for needed in (CONFIG, WEIGHTS):
        if needed not in files.sizes:
            raise ModelError(f"there is no {needed}: name a LoRA adapter in the format of PEFT")
    config = parse_config(files.read(CONFIG, 0, files.sizes[CONFIG]))
    if not isinstance(config.get("r"), int):
        raise ModelError(f"{CONFIG} names no rank (r)")
    if (problem := find_problem(config, model)) is not None:
        raise ModelError(problem)
    matrices, modules, ranks = dict[Matrix, tuple[int, ...]](), set[str](), [config["r"]]
    for tensor, shape in tensor_shapes(safetensors_head(files, WEIGHTS)).items():
        matrix = find_matrix(tensor, len(shape))
        ranks.append(shape[0 if matrix.part == "A" else 1])
        _check_fit(tensor, matrix.layer, matrix.part, shape, layers)
        modules.add(matrix.layer.rpartition(".")[2])
        matrices[matrix] = shape
    if max(ranks) > MAX_RANK:
        raise ModelError(f"its rank is {max(ranks)}; ranks up to {MAX_RANK} are served")
    find_scales(matrices, config)
    return AdapterInfo(name, max(ranks), files.revision), modules


def parse_config(raw: bytes) -> dict[str, Any]:
    """Parse an `adapter_config.json`. Raises ModelError."""
    try:
        config = json.loads(raw)
    except ValueError as error:
        raise ModelError(f"{CONFIG} is not JSON: {error}") from error
    if not isinstance(config, dict):
        raise ModelError(f"{CONFIG} is no JSON object")
    return config


class Matrix(NamedTuple):
    """What a tensor of an adapter is."""

    module: str  # whose it is, by the name that PEFT knows it by
    layer: str  # the same from `layers` on
    part: str  # A or B


def find_matrix(tensor: str, dimensions: int) -> Matrix:
    """Say what a tensor is by its name. Raises ModelError for what is not served."""
    match = _TENSOR.match(tensor)
    layer = match and _LAYER.search(match[1])
    if not match or not layer or dimensions != 2:
        raise ModelError(f"{tensor} is no matrix of LoRA within a layer, which alone is served")
    if ".experts." in tensor:
        raise ModelError(f"{tensor} changes a routed expert, which is not supported yet: train the others")
    return Matrix(match[1], layer[1], match[2])


def find_scales(matrices: Mapping[Matrix, Sequence[int]], config: Mapping[str, Any]) -> dict[str, float]:
    """Return what each layer's product of matrices is multiplied by, from the matrices' shapes. Raises
    ModelError where they are no pairs, or the configuration says something else of them.
    """
    if not matrices:
        raise ModelError(f"{WEIGHTS} holds no tensors")
    scales = {}
    for matrix, shape in matrices.items():
        module, layer, part = matrix
        other = matrix._replace(part="B" if part == "A" else "A")
        if other not in matrices:
            raise ModelError(f"{layer} has no lora_{other.part}: copy the adapter again")
        if part == "B":
            continue
        rank = _of_pattern(config, "rank_pattern", module, config.get("r"))
        alpha = _of_pattern(config, "alpha_pattern", module, config.get("lora_alpha", _USUAL_ALPHA))
        is_number = type(alpha) in (int, float) and abs(alpha) <= _LARGEST_ALPHA
        if type(rank) is not int or not 1 <= rank <= MAX_RANK or not is_number:
            raise ModelError(f"{CONFIG} gives {layer} no rank (r) from 1 to {MAX_RANK}, or no lora_alpha")
        found = shape[0], matrices[other][1]
        if found != (rank, rank):
            raise ModelError(
                f"{layer} has matrices of rank {found[0]} and {found[1]}, and {CONFIG} says {rank}: copy the "
                "adapter again"
            )
        scales[layer] = alpha / (math.sqrt(rank) if config.get("use_rslora") else rank)
    return scales


def _of_pattern(config: Mapping[str, Any], pattern: str, module: str, otherwise: Any) -> Any:
    """Return what a configuration says of a module, as PEFT reads it: by the first pattern that is its name,
    or the end of it.
    """
    values = config.get(pattern) or {}
    if not isinstance(values, dict):
        raise ModelError(f"{pattern} of {CONFIG} is no JSON object")
    try:
        found = (value for key, value in values.items() if re.match(rf"(.*\.)?({key})$", module))
        return next(found, otherwise)
    except re.error as error:
        raise ModelError(f"{pattern} of {CONFIG} is no regular expression: {error}") from error


def split_place(place: str) -> tuple[str, str | None]:
    """Split a hub id from the revision behind @."""
    path, _, revised = place.partition("@")
    return path, revised or None


def _check_fit(tensor: str, module: str, part: str, shape: tuple[int, ...], layers: Shapes) -> None:
    """A matrix A takes what the module takes, B puts out what it puts out. Raises ModelError."""
    weight = layers.get(f"{module}.weight")
    if weight is None:
        if any(name.startswith(f"{module}.") for name in layers):
            return  # of packed weights, whose shapes say something else
        raise ModelError(f"{tensor} is of a module that the model does not have: it is of another model")
    side, size = ("inputs", weight[1]) if part == "A" else ("outputs", weight[0])
    own = shape[1] if part == "A" else shape[0]
    if own != size:
        raise ModelError(f"{tensor} has {own} {side} and the model {size} there: it is of another model")


def find_problem(config: Mapping[str, Any], model: str) -> str | None:
    """Return what cannot be served of a configuration, or that it names another model."""
    kind, base = config.get("peft_type", "LORA"), config.get("base_model_name_or_path")
    if kind != "LORA":
        return f"it is of type {kind}, and only LORA is served"
    init = config.get("init_lora_weights", True)
    refused = {
        "DoRA (use_dora)": config.get("use_dora"),
        "a bias (bias, lora_bias)": config.get("bias", "none") != "none" or config.get("lora_bias"),
        "modules saved whole (modules_to_save)": config.get("modules_to_save"),
        "layer_replication": config.get("layer_replication"),
        "QALoRA (use_qalora)": config.get("use_qalora"),
        "BD-LoRA (use_bdlora)": config.get("use_bdlora"),
        "aLoRA (alora_invocation_tokens)": config.get("alora_invocation_tokens"),
        f"init_lora_weights {init!r}": isinstance(init, str) and init.lower() not in _PLAIN_INITS,
    }
    for what, is_there in refused.items():
        if is_there:
            return f"it has {what}, which is not served: train LoRA matrices alone"
    if base and _are_other_models(str(base), model):
        return f"it was trained for {base}, and the model is {model}"
    return None


def _are_other_models(base: str, model: str) -> bool:
    """Whether two hub ids are of unlike models: variants of one, such as quantized ones, have longer names.
    A path may be called anything.
    """
    if any(name.startswith(("/", ".", "~")) or name.count("/") != 1 for name in (base, model)):
        return False
    one, other = (name.rpartition("/")[2].lower() for name in (base, model))
    return not (one.startswith(other) or other.startswith(one))
