"""What `turbo inspect` counts is what the engine will load and serve."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file

from turbo_runtime.inspect import inspect_model

CONFIG = {
    "architectures": ["MistralForCausalLM"],
    "num_attention_heads": 2,
    "hidden_size": 8,
    "num_hidden_layers": 1,
    "vocab_size": 10,
    "max_position_embeddings": 256,
}


def folder(path: Path, **config: object) -> Path:
    (path / "config.json").write_text(json.dumps(CONFIG | config))
    return path


def weights(path: Path, elements: int) -> None:
    save_file({path.name: np.zeros(elements, dtype=np.float32)}, path)


def test_a_second_copy_of_the_weights_is_not_counted(tmp_path: Path) -> None:
    folder(tmp_path)
    weights(tmp_path / "model.safetensors", 100)
    weights(tmp_path / "consolidated.safetensors", 100)
    facts = inspect_model(str(tmp_path))
    assert facts.shape.parameters == 100
    assert facts.weight_bytes == (tmp_path / "model.safetensors").stat().st_size


def test_of_sharded_weights_the_index_says_which_files_count(tmp_path: Path) -> None:
    folder(tmp_path)
    names = [f"model-0000{part}-of-00002.safetensors" for part in (1, 2)]
    for name in (*names, "consolidated.safetensors"):
        weights(tmp_path / name, 100)
    index = {"weight_map": {f"layer.{i}": name for i, name in enumerate(names)}}
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps(index))
    assert inspect_model(str(tmp_path)).shape.parameters == 200


@pytest.mark.parametrize(
    ("config", "longest"),
    [
        ({}, 256),
        ({"sliding_window": None}, 256),
        ({"sliding_window": 64}, 64),
        ({"sliding_window": 64, "use_sliding_window": False}, 256),
        ({"sliding_window": 1024}, 256),
    ],
)
def test_a_sliding_window_is_the_longest_context_that_is_served(
    tmp_path: Path, config: dict[str, object], longest: int
) -> None:
    folder(tmp_path, **config)
    weights(tmp_path / "model.safetensors", 1)
    shape = inspect_model(str(tmp_path)).shape
    assert shape.max_position == 256
    assert shape.max_served == longest
