"""Reading LoRA adapters: scales as PEFT has them, and one sentence for whatever cannot be served."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from turbo_dev import lora
from turbo_dev.tiny_engine import network
from turbo_runtime.contract.config import RuntimeConfig
from turbo_runtime.model_files.source import ModelError
from turbo_runtime.models.adapters import read_adapter
from turbo_runtime.models.layers.lora import Adapter
from turbo_runtime.models.runner import ModelRunner

QUERY, DOWN = "model.layers.1.self_attn.q_proj", "model.layers.0.mlp.down_proj"
SHAPES = {QUERY: (32, 32), DOWN: (32, 64)}


def read(folder: Path, dtype: torch.dtype = torch.float32) -> Adapter:
    return read_adapter("sql", str(folder), "acme/tiny", dtype, torch.device("cpu"))


def build(*folders: Path) -> ModelRunner:
    return ModelRunner(network(), blocks=4, max_length=32, adapters=[read(folder) for folder in folders])


@pytest.mark.parametrize(
    ("config", "scales"),
    [
        ({}, (1.0, 1.0)),
        ({"lora_alpha": 10}, (2.5, 2.5)),
        ({"lora_alpha": 10, "use_rslora": True}, (5.0, 5.0)),
        ({"alpha_pattern": {"q_proj": 2}}, (0.5, 1.0)),
        ({"alpha_pattern": {"layers.0.mlp.down_proj": 2}, "lora_alpha": 8}, (2.0, 0.5)),
        ({"rank_pattern": {"q_proj": 2}, "lora_alpha": 8}, (4.0, 2.0)),
        ({"rank_pattern": {"^model.layers.1.self_attn.q_proj": 4, "proj": 4}}, (1.0, 1.0)),
        ({"lora_alpha": 0.5}, (0.125, 0.125)),
    ],
)
def test_b_is_multiplied_by_the_scale_of_its_module(
    tmp_path: Path, config: dict[str, Any], scales: tuple[float, float]
) -> None:
    folder = lora.write(tmp_path / "sql", SHAPES, **config)
    stored = load_file(folder / "adapter_model.safetensors")
    for module, scale in zip(SHAPES, scales, strict=True):
        a, b = read(folder).modules[module.removeprefix("model.")]
        assert torch.equal(a, stored[f"base_model.model.{module}.lora_A.weight"])
        torch.testing.assert_close(b, scale * stored[f"base_model.model.{module}.lora_B.weight"])
    assert read(folder, torch.bfloat16).modules["layers.0.mlp.down_proj"][1].dtype == torch.bfloat16


@pytest.mark.parametrize(
    ("modules", "config", "said"),
    [
        (SHAPES, {"peft_type": "IA3"}, "it is of type IA3, and only LORA is served"),
        (
            SHAPES,
            {"use_dora": True},
            "it has DoRA (use_dora), which is not served: train LoRA matrices alone",
        ),
        (SHAPES, {"bias": "all"}, "it has a bias (bias, lora_bias), which is not served"),
        (SHAPES, {"modules_to_save": ["lm_head"]}, "it has modules saved whole (modules_to_save)"),
        (SHAPES, {"init_lora_weights": "pissa"}, "it has init_lora_weights 'pissa', which is not served"),
        (
            SHAPES,
            {"base_model_name_or_path": "acme/other"},
            "trained for acme/other, and the model is acme/tiny",
        ),
        (
            SHAPES,
            {"r": None},
            "adapter_config.json gives layers.0.mlp.down_proj no rank (r) from 1 to 512",
        ),
        (SHAPES, {"lora_alpha": "8"}, "or no lora_alpha"),
        (SHAPES, {"r": 8}, "has matrices of rank 4 and 4, and adapter_config.json says 8: copy the adapter"),
        (SHAPES, {"alpha_pattern": [4]}, "alpha_pattern of adapter_config.json is no JSON object"),
        (
            SHAPES,
            {"alpha_pattern": {"(": 4}},
            "alpha_pattern of adapter_config.json is no regular",
        ),
        ({"lm_head": (61, 32)}, {}, "lm_head.lora_A.weight is no matrix of LoRA within a layer"),
        ({"model.layers.0.mlp.experts.3.up_proj": (8, 8)}, {}, "changes a routed expert"),
        ({}, {}, "adapter_model.safetensors holds no tensors"),
    ],
)
def test_what_cannot_be_served_is_refused_by_the_adapters_name(
    tmp_path: Path, modules: dict[str, tuple[int, int]], config: dict[str, Any], said: str
) -> None:
    folder = lora.write(tmp_path / "sql", modules, **config)
    with pytest.raises(ModelError) as error:
        read(folder)
    assert str(error.value).startswith(f"adapter sql ({folder}): ")
    assert said in str(error.value)


@pytest.mark.parametrize(
    ("modules", "said"),
    [
        (
            {QUERY: (48, 32)},
            "layers.1.self_attn.q_proj has 48 outputs and the model 32 there: it is of another",
        ),
        (
            {DOWN: (32, 48)},
            "layers.0.mlp.down_proj has 48 inputs and the model 64 there: it is of another model",
        ),
        (
            {"model.layers.2.self_attn.q_proj": (32, 32)},
            "changes layers.2.self_attn.q_proj, which the model does not have: it is of another model",
        ),
        (
            {"model.layers.1.mlp.gate": (4, 32)},
            "layers.1.mlp.gate, which has no adapters here: of this model down_proj, gate_proj",
        ),
    ],
)
def test_what_does_not_fit_the_model_is_refused_with_what_it_has(
    tmp_path: Path, modules: dict[str, tuple[int, int]], said: str
) -> None:
    folder = lora.write(tmp_path / "sql", modules)
    with pytest.raises(ModelError, match="adapter sql") as error:
        build(folder)
    assert said in str(error.value)


@pytest.mark.parametrize("part", ["A", "B"])
@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_values_that_are_no_numbers_are_refused_before_the_model_is_checked_with_them(
    tmp_path: Path, part: str, value: float
) -> None:
    folder = lora.write(tmp_path / "sql", SHAPES)
    stored = load_file(folder / "adapter_model.safetensors")
    stored[f"base_model.model.{DOWN}.lora_{part}.weight"][1, 2] = value
    save_file(stored, folder / "adapter_model.safetensors")
    with pytest.raises(
        ModelError, match=r"adapter sql .*: layers.0.mlp.down_proj has values that are no num"
    ):
        read(folder)


def test_half_a_pair_a_missing_file_and_a_broken_one_are_told(tmp_path: Path) -> None:
    folder = lora.write(tmp_path / "sql", SHAPES)
    weights, config = folder / "adapter_model.safetensors", folder / "adapter_config.json"
    stored = load_file(weights)
    del stored[f"base_model.model.{QUERY}.lora_B.weight"]
    save_file(stored, weights)
    with pytest.raises(ModelError, match=r"layers.1.self_attn.q_proj has no lora_B: copy the adapter again"):
        read(folder)
    weights.write_bytes(b"nothing of the kind")
    with pytest.raises(ModelError, match=r"adapter sql .*: adapter_model.safetensors cannot be read: "):
        read(folder)
    config.write_text(json.dumps([]))
    with pytest.raises(ModelError, match=r"adapter_config.json is no JSON object"):
        read(folder)
    weights.unlink()
    with pytest.raises(ModelError, match=r"there is no adapter_model.safetensors: name a LoRA adapter"):
        read(folder)
    with pytest.raises(ModelError, match=r"adapter sql \(.*gone\): there is no such folder"):
        read(tmp_path / "gone")


def test_flags_name_adapters_as_vllm_does_and_come_back_from_the_command_line() -> None:
    config = RuntimeConfig.from_argv(
        ["acme/tiny", "--lora-modules", "sql=acme/sql@main", "chat/v2=/tuned/a b", "--lora-modules=law=/law"]
    )
    assert config.adapters == {"sql": "acme/sql@main", "chat/v2": "/tuned/a b", "law": "/law"}
    assert config.to_argv() == [
        "acme/tiny",
        "--lora-modules=sql=acme/sql@main",
        "--lora-modules=chat/v2=/tuned/a b",
        "--lora-modules=law=/law",
    ]
    assert RuntimeConfig.from_argv(config.to_argv()) == config
    assert RuntimeConfig("acme/tiny").to_argv() == ["acme/tiny"]


@pytest.mark.parametrize(
    ("modules", "flags", "said"),
    [
        (
            ["sql"],
            {},
            "--lora-modules must be NAME=PATH, with letters, digits and - _ . : / in NAME, not 'sql'",
        ),
        (["=x"], {}, "not '=x'"),
        (["s q=x"], {}, "not 's q=x'"),
        (["sql=x", "sql=y"], {}, "adapter a name of its own: 'sql' is another's, or the model's"),
        (["tiny=x"], {}, "adapter a name of its own: 'tiny' is another's, or the model's"),
        (["base=x"], {"served_model_name": "base"}, "'base' is another's, or the model's"),
        (
            [f"a{n}=x" for n in range(9)],
            {},
            "may name 8 adapters, not 9: serve the others in another process",
        ),
        (["sql=x"], {"tensor_parallel_size": 2}, "needs --tensor-parallel-size=1: adapters are not cut up"),
    ],
)
def test_wrong_flags_are_told_with_the_remedy(modules: list[str], flags: dict[str, Any], said: str) -> None:
    problem = RuntimeConfig("acme/tiny", lora_modules=tuple(modules), **flags).problem()
    assert problem is not None
    assert said in problem
