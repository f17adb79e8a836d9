"""An EAGLE-3 draft in the folder that training writes: random weights, or fitted to some texts."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor

from turbo_runtime.distill.data.examples import UNKNOWN, positions_in
from turbo_runtime.distill.eagle3 import Eagle3, Eagle3Method, Eagle3Student, layer_config
from turbo_runtime.distill.recipe import Recipe
from turbo_runtime.drafters.target import Target
from turbo_runtime.models.runner import ModelRunner
from turbo_runtime.models.step_batch import Chunk

_DEPTH, _EPOCHS, _RATE = 4, 15, 1e-3


def write(
    folder: Path,
    target: Target,
    runner: ModelRunner,
    vocabulary: Tensor,
    layers: tuple[int, ...],
    texts: Sequence[Sequence[int]] = (),
) -> Eagle3:
    """Write it, and return the module that it was written from; `vocabulary`: the ids that it can draft;
    `texts`: what it is fitted to, through the first blocks of the runner's cache.
    """
    torch.manual_seed(2)
    config, output = layer_config(runner.config), target.output_rows(vocabulary)
    draft = Eagle3(config, target.embedding, output.float(), vocabulary)
    _fit(draft, runner, layers, texts)
    draft.requires_grad_(False)
    method = Eagle3Method.__new__(Eagle3Method)  # without the model that it would train with
    method._served = cast("Any", SimpleNamespace(target=target, model=runner))
    method._model, method._layers = "tiny", cast("Any", layers)
    method.student = Eagle3Student(draft, Recipe(method="eagle3", depth=_DEPTH))
    method.save(folder, "v1", "chat", {})
    return draft


def _fit(draft: Eagle3, runner: ModelRunner, layers: tuple[int, ...], texts: Sequence[Sequence[int]]) -> None:
    """Learn the texts by heart: an epoch after the other, a text a step."""
    if not texts:
        return
    optimizer = torch.optim.AdamW(draft.parameters(), lr=_RATE)
    places = positions_in(draft.vocabulary, len(draft.embedding))
    streams = [_streams(runner, layers, text) for text in texts]
    for step in range(_EPOCHS * len(texts)):
        number = step % len(texts)
        tokens = torch.tensor(texts[number][1:])
        windows = tokens.unfold(0, _DEPTH + 1, 1)
        count = len(windows)
        logits = draft(streams[number][:count], tokens[:count], windows[:, :-1])
        wanted = places[windows[:, 1:]].flatten()
        loss = F.cross_entropy(logits.flatten(0, 1), wanted, ignore_index=UNKNOWN)
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()


def _streams(runner: ModelRunner, layers: tuple[int, ...], text: Sequence[int]) -> Tensor:
    """What enters these layers at each token but the last, (tokens - 1, layers x width)."""
    count = len(text) - 1
    blocks = list(range(-(-count // runner.pool.block_size)))
    streams = runner.forward([Chunk(text[:-1], 0, blocks, 1, count)], layers).streams
    assert streams is not None
    return streams.float().clone()
