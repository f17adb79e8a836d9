"""Weights that do not fit their configuration are refused: nothing is served with made-up numbers."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
import torch

from turbo_dev.tiny_engine import write
from turbo_runtime.model_files.source import ModelError, find
from turbo_runtime.models.loader import load_model


def load(folder: Path) -> None:
    load_model(find(str(folder), None), torch.float32, torch.device("cpu"))


def configure(folder: Path, **changes: int) -> None:
    file = folder / "config.json"
    config = json.loads(file.read_text())
    file.write_text(json.dumps(config | {name: config[name] + more for name, more in changes.items()}))


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        (
            {"num_hidden_layers": 1},
            r"lack model\.layers\.2\.input_layernorm\.weight and 8 more tensors, which",
        ),
        (
            {"intermediate_size": 8},
            r"down_proj\.weight of .* has shape \[32, 64\], and config\.json says \[32, 72\]",
        ),
    ],
    ids=["a layer without weights", "weights of another shape"],
)
def test_what_does_not_fit_is_refused_and_named(tmp_path: Path, change: dict[str, int], problem: str) -> None:
    write(tmp_path)
    load(tmp_path)
    configure(tmp_path, **change)
    with pytest.raises(ModelError, match=problem):
        load(tmp_path)


def test_a_file_that_ends_too_early_is_refused(tmp_path: Path) -> None:
    write(tmp_path)
    file = tmp_path / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-100])
    with pytest.raises(ModelError, match=f"the weights of {re.escape(str(tmp_path))} cannot be loaded: "):
        load(tmp_path)
