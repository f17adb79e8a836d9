"""`turbo inspect --adapter`: the ranks of what fits the model; what vLLM would refuse is named, with why."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import save_file

from turbo_dev import lora
from turbo_runtime.cli.serve import inspect
from turbo_runtime.contract.documents import AdapterInfo, ModelInfo
from turbo_runtime.contract.endpoints import PERMANENT_ERROR
from turbo_runtime.model_files.adapters import find_problem, inspect_with_adapters
from turbo_runtime.model_files.source import ModelError

CONFIG = {
    "architectures": ["LlamaForCausalLM"],
    "num_attention_heads": 2,
    "hidden_size": 8,
    "num_hidden_layers": 2,
    "intermediate_size": 16,
    "vocab_size": 10,
    "max_position_embeddings": 256,
}
QUERY, DOWN = "model.layers.1.self_attn.q_proj", "model.layers.0.mlp.down_proj"
SHAPES = {QUERY: (8, 8), DOWN: (8, 16)}


@pytest.fixture
def model(tmp_path: Path) -> str:
    folder = tmp_path / "model"
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(CONFIG))
    tensors = {f"{name}.weight": np.zeros(shape, np.float32) for name, shape in SHAPES.items()}
    save_file(
        {**tensors, "model.embed_tokens.weight": np.zeros((10, 8), np.float32)}, folder / "model.safetensors"
    )
    return str(folder)


def test_adapters_are_told_by_name_with_their_ranks_and_what_they_change(model: str, tmp_path: Path) -> None:
    adapters = {
        "sql": str(lora.write(tmp_path / "sql", {QUERY: (8, 8)}, rank=4)),
        "chat/v2": str(lora.write(tmp_path / "chat", SHAPES, rank=16)),
    }
    facts = inspect_with_adapters(model, None, adapters)
    assert facts.adapters == (AdapterInfo("sql", 4), AdapterInfo("chat/v2", 16))
    assert facts.adapter_modules == ("down_proj", "q_proj")
    alone = inspect_with_adapters(model)
    assert (alone.shape, alone.digest, alone.adapters) == (facts.shape, facts.digest, ())
    assert ModelInfo.from_json(facts.to_json()) == facts


def test_the_largest_rank_of_any_matrix_counts(model: str, tmp_path: Path) -> None:
    pattern = {"q_proj": 32, "down_proj": 32}
    adapter = lora.write(tmp_path / "sql", SHAPES, rank=32, r=8, rank_pattern=pattern)
    assert inspect_with_adapters(model, None, {"sql": str(adapter)}).adapters[0].rank == 32


@pytest.mark.parametrize(
    ("modules", "config", "said"),
    [
        ({"model.layers.1.self_attn.q_proj": (8, 12)}, {}, "has 12 inputs and the model 8 there"),
        ({"model.layers.0.mlp.down_proj": (9, 16)}, {}, "has 9 outputs and the model 8 there"),
        ({"model.layers.2.self_attn.q_proj": (8, 8)}, {}, "a module that the model does not have"),
        ({"model.layers.0.mlp.experts.3.up_proj": (8, 8)}, {}, "changes a routed expert"),
        ({"lm_head": (10, 8)}, {}, "no matrix of LoRA within a layer"),
        (SHAPES, {"rank": 1024}, "its rank is 1024; ranks up to 512 are served"),
        (SHAPES, {"peft_type": "IA3"}, "of type IA3, and only LORA is served"),
        (SHAPES, {"use_dora": True}, "DoRA (use_dora), which is not served"),
        (SHAPES, {"bias": "all"}, "a bias (bias, lora_bias)"),
        (SHAPES, {"modules_to_save": ["lm_head"]}, "modules saved whole"),
        (SHAPES, {"init_lora_weights": "pissa"}, "init_lora_weights 'pissa'"),
        (SHAPES, {"r": None}, "adapter_config.json names no rank (r)"),
        (SHAPES, {"rank": 4, "r": 8}, "has matrices of rank 4 and 4, and adapter_config.json says 8"),
        (SHAPES, {"rank": 4, "r": 0}, "no rank (r) from 1 to 512, or no lora_alpha"),
        (SHAPES, {"lora_alpha": "much"}, "no rank (r) from 1 to 512, or no lora_alpha"),
        (SHAPES, {"lora_alpha": float("nan")}, "no rank (r) from 1 to 512, or no lora_alpha"),
        (
            SHAPES,
            {"alpha_pattern": {"(": 4}},
            "alpha_pattern of adapter_config.json is no regular",
        ),
        ({}, {}, "holds no tensors"),
    ],
)
def test_what_cannot_be_served_is_refused_by_the_adapters_name(
    model: str, tmp_path: Path, modules: dict[str, tuple[int, int]], config: dict[str, Any], said: str
) -> None:
    place = str(lora.write(tmp_path / "sql", modules, **config))
    with pytest.raises(ModelError) as error:
        inspect_with_adapters(model, None, {"sql": place})
    assert str(error.value).startswith(f"adapter sql ({place}): ")
    assert said in str(error.value)


def test_where_the_hub_is_away_an_adapter_that_was_fetched_will_do(model: str, tmp_path: Path) -> None:
    commit = "c0ffee" + "0" * 34
    copy = tmp_path / "hub" / "models--acme--sql" / "snapshots" / commit
    away = {"HF_HUB_CACHE": str(tmp_path / "hub"), "HF_ENDPOINT": "http://127.0.0.1:9"}
    command = "import sys; from turbo_runtime.cli.serve import inspect; sys.exit(inspect(sys.argv[1:]))"
    program = [sys.executable, "-c", command, model, f"--adapter=sql=acme/sql@{commit}"]

    def run() -> subprocess.CompletedProcess[str]:
        return subprocess.run(program, env=os.environ | away, capture_output=True, text=True)

    nothing = run()
    assert (nothing.returncode, "the hub cannot be reached" in nothing.stderr) == (1, True), nothing.stderr
    copy.parent.mkdir(parents=True)
    lora.write(copy, SHAPES, rank=4)
    found = run()
    assert found.returncode == 0, found.stderr
    assert ModelInfo.from_json(found.stdout).adapters == (AdapterInfo("sql", 4, commit),)


@pytest.mark.parametrize("missing", ["adapter_config.json", "adapter_model.safetensors"])
def test_a_folder_without_an_adapters_files_is_no_adapter(model: str, tmp_path: Path, missing: str) -> None:
    place = lora.write(tmp_path / "sql", SHAPES)
    (place / missing).unlink()
    with pytest.raises(ModelError, match=rf"adapter sql .*there is no {missing}: name a LoRA adapter"):
        inspect_with_adapters(model, None, {"sql": str(place)})


def test_an_adapter_that_is_being_copied_still_is_named_and_may_be_tried_again(
    model: str, tmp_path: Path
) -> None:
    folder = lora.write(tmp_path / "sql", SHAPES)
    weights = folder / "adapter_model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-8])
    with pytest.raises(OSError, match=r"adapter sql \(.*\): adapter_model.safetensors has") as error:
        inspect_with_adapters(model, None, {"sql": str(folder)})
    assert not isinstance(error.value, ModelError)


def test_a_missing_adapter_ends_the_command_for_good_and_is_named(
    model: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    message = tmp_path / "message"
    argv = [model, f"--adapter=sql={tmp_path / 'nowhere'}", f"--termination-message={message}"]
    assert inspect(argv) == PERMANENT_ERROR
    assert f"adapter sql ({tmp_path / 'nowhere'}): there is no such folder" in message.read_text()
    assert message.read_text() == capsys.readouterr().err.strip()


@pytest.mark.parametrize(
    ("base", "other"),
    [
        ("meta-llama/Llama-3.1-8B", "Qwen/Qwen3-8B"),
        ("Qwen/Qwen2.5-7B-Instruct", "Qwen/Qwen2.5-14B-Instruct"),
    ],
)
def test_an_adapter_of_another_models_name_is_refused(base: str, other: str) -> None:
    assert find_problem({"base_model_name_or_path": base}, other) == (
        f"it was trained for {base}, and the model is {other}"
    )


@pytest.mark.parametrize(
    ("base", "model"),
    [
        ("meta-llama/Llama-3.1-70B-Instruct", "nvidia/Llama-3.1-70B-Instruct-FP8"),
        ("unsloth/llama-3.1-8b-instruct-bnb-4bit", "meta-llama/Llama-3.1-8B-Instruct"),
        ("/data/models/llama", "meta-llama/Llama-3.1-8B-Instruct"),
        ("meta-llama/Llama-3.1-8B-Instruct", "/models/llama"),
        (None, "meta-llama/Llama-3.1-8B-Instruct"),
    ],
)
def test_a_variant_of_the_model_or_a_path_is_no_other_model(base: str | None, model: str) -> None:
    assert find_problem({"base_model_name_or_path": base}, model) is None


def test_a_gguf_file_has_no_adapters(tmp_path: Path) -> None:
    (tmp_path / "m.gguf").write_bytes(b"GGUF")
    with pytest.raises(ModelError, match="they go with no GGUF file"):
        inspect_with_adapters(str(tmp_path / "m.gguf"), None, {"sql": "/x"})
