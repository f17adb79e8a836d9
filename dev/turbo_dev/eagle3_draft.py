"""An EAGLE-3 draft with random weights, in the folder that training writes."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import torch
from torch import Tensor

from turbo_runtime.distill.eagle3 import Eagle3, Eagle3Method, Eagle3Student, layer_config
from turbo_runtime.distill.recipe import Recipe
from turbo_runtime.drafters.target import Target
from turbo_runtime.models.runner import ModelRunner


def write(
    folder: Path, target: Target, runner: ModelRunner, vocabulary: Tensor, layers: tuple[int, ...]
) -> Eagle3:
    """Write it, and return the module that it was written from; `vocabulary`: the ids that it can draft."""
    torch.manual_seed(2)
    config, output = layer_config(runner.config), target.output_rows(vocabulary)
    draft = Eagle3(config, target.embedding, output, vocabulary).requires_grad_(False)
    method = Eagle3Method.__new__(Eagle3Method)  # without the model that it would train with
    method._served = cast("Any", SimpleNamespace(target=target, model=runner))
    method._model, method._layers = "tiny", cast("Any", layers)
    method.student = Eagle3Student(draft, Recipe(method="eagle3", depth=4))
    method.save(folder, "v1", "chat", {})
    return draft
