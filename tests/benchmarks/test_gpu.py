"""The benchmark for GPUs, on a CPU: all of it but the card runs, through the reference of the attention."""

from __future__ import annotations

import json
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import gpu
import pytest
import torch
from transformers import PreTrainedModel

from turbo_dev.runners import RUNNERS
from turbo_runtime.contract.config import RuntimeConfig
from turbo_runtime.models.runner import ModelRunner
from turbo_runtime.shapes import describe

CPU = torch.device("cpu")


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def on_the_reference(config: RuntimeConfig, weights: PreTrainedModel) -> ModelRunner:
    assert config.max_model_len is not None
    return RUNNERS["cuda"](weights, blocks=16, max_length=config.max_model_len)


def test_every_way_to_run_is_measured_against_the_bound_and_vllm() -> None:
    runner = gpu.build(gpu.QUICK, CPU, torch.float32, on_the_reference)
    vllm = gpu.Rates("vllm", dict.fromkeys(gpu.QUICK.requests, 1000.0))
    figures, rows = gpu.compare(gpu.QUICK, runner, 1e9, vllm)
    ways = ["vllm", "graphs", "no graphs", "bitwise"]
    assert [(row["requests"], row["way"]) for row in rows] == [(n, way) for n in (1, 4) for way in ways]
    assert all(row["tokens_per_second"] > 0 for row in rows)
    for row in rows:
        assert row["share"] == row["tokens_per_second"] / row["bound"]
    assert figures["of_vllm_1"] == pytest.approx(figures["graphs_1"] / 1000, abs=1e-3)
    assert {bar.figure for bar in gpu.BARS} - {*figures} == {"of_vllm_8", "of_vllm_64"}


def test_the_bound_reads_all_weights_once_and_the_contexts_of_all_requests() -> None:
    runner = gpu.build(gpu.QUICK, CPU, torch.float32, on_the_reference)
    layer = 64 * (64 + 2 * 32) + 64 * 64 + 3 * 64 * 128
    weights = (2 * layer + 512 * 64) * 4
    each = (12 + 3) * 2 * 2 * 32 * 4  # tokens, layers, keys and values, two heads of 16, float32
    for requests in gpu.QUICK.requests:
        assert gpu.bytes_of_step(gpu.QUICK, runner, requests) == weights + requests * each
    assert gpu.copy_bandwidth(CPU, 1 << 20) > 0


def test_vllm_gets_the_same_model_and_prompts_that_share_nothing(tmp_path: Path) -> None:
    gpu.EIGHT_BILLION.save(tmp_path)
    shape, _, _ = describe(json.loads((tmp_path / "config.json").read_text()), "config.json")
    assert (shape.layers, shape.hidden_size, shape.vocab_size) == (32, 4096, 128256)
    made = gpu.prompts(gpu.EIGHT_BILLION, 64)
    assert len({tuple(prompt[:16]) for prompt in made}) == 64
    assert {len(prompt) for prompt in made} == {128}


def test_without_a_gpu_it_ends_with_one_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(gpu, "parse", partial(gpu.parse, ["--quick"]))
    with pytest.raises(SystemExit, match="there is no CUDA device here: run this on a machine with"):
        gpu.main()
