"""A draft model that the command line names: it is there for as long as the server runs."""

from __future__ import annotations

import os
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from turbo_dev import tiny_engine
from turbo_dev.drafting import EveryDraft
from turbo_runtime.contract.config import RuntimeConfig
from turbo_runtime.engine.startup.builder import start_engine
from turbo_runtime.kv_cache.block_pool import BLOCK_SIZE
from turbo_runtime.messages import DraftStats, GenerationRequest, SamplingParams
from turbo_runtime.model_files.source import ModelError
from turbo_runtime.models.loader import export_tokenizer

BYTES_PER_BLOCK = 2 * 2 * 2 * 8 * 4 * BLOCK_SIZE  # keys and values, layers, KV heads, head size, float32


@pytest.mark.parametrize("hub", [False, True])
def test_a_draft_model_needs_no_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, hub: bool) -> None:
    """The first of a process is a folder, or is of the hub and there already."""
    tiny_engine.write(tmp_path / "served")
    snapshots = tmp_path / "hub" / "models--a--small"
    small = snapshots / "snapshots" / "0123" if hub else tmp_path / "small"
    tiny_engine.write(small, layers=1)
    (snapshots / "refs").mkdir(parents=True, exist_ok=True)
    (snapshots / "refs" / "main").write_text("0123")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    folder = str(tmp_path / "served")
    config = RuntimeConfig(
        folder,
        dtype="float32",
        threads=1,
        device="cpu",
        speculation="model",
        draft_model="a/small" if hub else str(small),
        draft_device="cpu",
        kv_cache_gib=60 * BYTES_PER_BLOCK / 2**30,
    )
    tokenizer = export_tokenizer(folder, None, tmp_path / "tokenizer")
    engine, ready = start_engine(config, time.monotonic(), tokenizer)
    assert ready.stats.by_draft == (DraftStats("default", small.name),)
    assert ready.kv_blocks == 40, "the draft model has half as many layers"
    engine.speculation.control = EveryDraft()  # no measured time decides whether it drafts
    engine.accept(GenerationRequest("r", (1, 2, 3), SamplingParams(max_tokens=20, temperature=0.0)))
    while not engine.idle:
        engine.step()
    assert engine.stats().by_draft[0].own_draft_tokens > 0


def test_a_draft_model_that_cannot_be_used_ends_the_start_with_a_sentence(tmp_path: Path) -> None:
    tiny_engine.write(tmp_path / "served")
    tiny_engine.write(tmp_path / "other", layers=1)
    folder = str(tmp_path / "served")
    tokenizer = export_tokenizer(folder, None, tmp_path / "tokenizer")
    config = RuntimeConfig(folder, dtype="float32", threads=1, device="cpu")
    (tmp_path / "other" / "tokenizer.json").unlink()
    tiny_engine.write(tmp_path / "cut", layers=1)
    weights = tmp_path / "cut" / "model.safetensors"
    os.truncate(weights, weights.stat().st_size - 1)
    for changes, said in (
        ({"draft_model": str(tmp_path / "other")}, "tokenizer.json cannot be read"),
        ({"draft_model": str(tmp_path / "none")}, "there is no folder"),
        ({"draft_model": '{"model": 3}'}, "is no folder, no .gguf file and no hub id such as org/model"),
        ({"draft_model": str(tmp_path / "cut")}, "file not fully covered; fetch the files again"),
        (
            {"draft_model": folder, "speculation": "eagle3"},
            "is a draft of method model; write --speculation=model or auto",
        ),
    ):
        with pytest.raises(ModelError, match=said):
            start_engine(replace(config, **changes), time.monotonic(), tokenizer)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        (
            {"speculation": "eagle3"},
            "needs --draft-config FILE, which names the draft's folder, or --dra",
        ),
        ({"draft_device": "cpu"}, "--draft-device needs --draft-model, or --draft-config FILE, which names"),
        ({"draft_device": "gpu"}, "--draft-device must be auto, cpu, cuda or like cuda:1, not gpu"),
        ({"draft_model": "m", "draft_config": "f"}, "--draft-model is named in the file of --draft-config"),
        ({"draft_model": "m", "speculation": "suffix"}, "--speculation=suffix does not use --draft-model"),
        ({"draft_model": "m", "speculation": "off"}, "--speculation=off does not use --draft-model"),
        ({"draft_model": "m", "tensor_parallel_size": 2}, "only where --tensor-parallel-size is 1"),
    ],
)
def test_drafts_without_a_file_that_names_them_are_refused(changes: dict[str, Any], said: str) -> None:
    problem = replace(RuntimeConfig("model"), **changes).problem()
    assert said in (problem or "")
