"""From a folder of weights to Ready: what the engine says of itself, and what it refuses to start with."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path
from queue import Queue
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from transformers import LlamaConfig, LlamaForCausalLM

from turbo_dev import tiny_engine
from turbo_dev.fitting import write
from turbo_dev.runners import RUNNERS
from turbo_dev.tiny_engine import network
from turbo_runtime.contract.config import BatchLimits, DType, RuntimeConfig
from turbo_runtime.drafters.heads import Heads
from turbo_runtime.drafters.target import Target
from turbo_runtime.engine.process import run_engine
from turbo_runtime.engine.startup import builder, invariance_check, sizing
from turbo_runtime.engine.startup.builder import choose_device, choose_dtype, start_engine
from turbo_runtime.engine.startup.sizing import GIB, DeviceMemory, largest_step, size_cache
from turbo_runtime.kv_cache.block_pool import BLOCK_SIZE, PROMPT_TILE
from turbo_runtime.messages import DraftStats, EngineFailed, GenerationRequest, SamplingParams
from turbo_runtime.model_files.inspector import inspect_model
from turbo_runtime.model_files.source import ModelError
from turbo_runtime.models.attention.metadata import Rule
from turbo_runtime.models.loader import export_tokenizer
from turbo_runtime.models.runner import ModelRunner

LONGEST = 256
SIZES = LlamaConfig(
    hidden_size=32,
    intermediate_size=64,
    num_hidden_layers=2,
    num_attention_heads=4,
    num_key_value_heads=2,
    vocab_size=61,
    max_position_embeddings=LONGEST,
    eos_token_id=[3, 5],
)
BYTES_PER_BLOCK = 2 * 2 * 2 * 8 * 4 * BLOCK_SIZE  # keys and values, layers, KV heads, head size, float32


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RuntimeConfig]:
    folder = tmp_path_factory.mktemp("tiny")
    torch.manual_seed(1)
    LlamaForCausalLM(SIZES).save_pretrained(folder)
    before = torch.get_num_threads()
    yield RuntimeConfig(model=str(folder), dtype="float32", threads=1, max_num_seqs=3, device="cpu")
    torch.set_num_threads(before)


def test_ready_says_what_was_loaded_and_what_is_promised(config: RuntimeConfig) -> None:
    began = time.monotonic()
    engine, ready = start_engine(config, began)
    took = time.monotonic() - began
    assert ready.guarantee == "bitwise"
    assert set(ready.arithmetic) == {"61x32", "32x32", "64x32", "128x32", "32x64"}
    assert (ready.device, ready.dtype, ready.vocab_size) == ("cpu", "float32", 61)
    assert (ready.max_model_len, ready.block_size) == (LONGEST, BLOCK_SIZE)
    # memory for more is there; three sequences cannot use it
    assert ready.kv_blocks == 3 * LONGEST // BLOCK_SIZE == engine.model.pool.blocks
    assert set(ready.eos_token_ids) == {3, 5}
    assert ready.digest == inspect_model(config.model).digest
    assert 0 < ready.load_seconds + ready.check_seconds + ready.measure_seconds <= took
    assert engine.idle


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_prompts_share_any_block_where_tiles_have_the_bits_of_rows(
    config: RuntimeConfig, dtype: DType, monkeypatch: pytest.MonkeyPatch
) -> None:
    # what a busy machine has no time to prove is not promised
    patient = partial(builder.check_batch_invariance, limit_seconds=300)
    monkeypatch.setattr(builder, "check_batch_invariance", patient)
    engine, _ = start_engine(replace(config, dtype=dtype), time.monotonic())
    assert engine.model.shared_tile == BLOCK_SIZE
    assert engine.scheduler.shared_tile == BLOCK_SIZE
    assert Rule(exact=False, uniform=True).shared_tile(BLOCK_SIZE) == PROMPT_TILE


def test_the_engine_is_measured_before_it_is_ready_and_its_cache_is_empty_then(
    config: RuntimeConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    # a machine that stands still for a second must not fail this
    monkeypatch.setattr(builder, "measure_steps", partial(builder.measure_steps, limit_seconds=60))
    engine, ready = start_engine(replace(config, max_num_batched_tokens=100), time.monotonic())
    assert ready.step_times is not None
    # three run at most, and none is longer than the model's 256 positions
    assert [(each.rows, each.tokens, each.context) for each in ready.step_times] == [
        (1, 1, LONGEST - 1),
        (3, 1, LONGEST - 1),
        (1, 100, 0),
    ]
    assert engine.scheduler.block_pool.num_used == 0


def test_reading_the_digest_counts_as_loading_not_as_the_check(
    config: RuntimeConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    slow = 1.0

    def slowly(model: str, revision: str | None) -> object:
        time.sleep(slow)
        return inspect_model(model, revision)

    monkeypatch.setattr(builder, "inspect_model", slowly)
    _, ready = start_engine(config, time.monotonic())
    assert ready.load_seconds >= slow


def test_speculation_off_drafts_nothing(config: RuntimeConfig) -> None:
    engine, _ = start_engine(replace(config, speculation="off"), time.monotonic())
    assert engine.scheduler.max_draft_tokens == 0


def test_until_the_file_of_drafts_can_be_read_the_option_says_who_drafts(
    config: RuntimeConfig, tmp_path: Path
) -> None:
    file = tmp_path / "drafts.json"
    file.write_text("{")
    engine, _ = start_engine(
        replace(config, speculation="suffix", draft_config=str(file), max_draft_tokens=4), time.monotonic()
    )
    assert engine.speculation.drafters.problem
    assert engine.speculation.drafters._active.drafter == "suffix"


def test_which_drafts_can_be_chosen_is_told_before_the_first_request(
    config: RuntimeConfig, tmp_path: Path
) -> None:
    digest = inspect_model(config.model).digest
    rows = torch.zeros(SIZES.vocab_size, SIZES.hidden_size)
    words = torch.arange(20)
    heads = Heads(rows, rows[words], words, heads=2, markov_rank=4)
    write(tmp_path / "one", heads, Target(digest, rows, lambda ids: rows[ids]), "latex-1")
    file = tmp_path / "drafts.json"
    file.write_text('{"named": {"latex": "one", "json": "none"}}')
    _, ready = start_engine(replace(config, draft_config=str(file), max_draft_tokens=4), time.monotonic())
    assert ready.stats.by_draft == (DraftStats("default"), DraftStats("latex", "latex-1"))
    assert ready.stats.draft_error.startswith("the draft json: ")


def test_the_cache_is_as_large_as_memory_and_use_allow(config: RuntimeConfig) -> None:
    def sized(free_blocks: int, **changes: object) -> tuple[int, int]:
        changed = replace(config, **changes)  # type: ignore[arg-type]
        budget = free_blocks * BYTES_PER_BLOCK
        return size_cache(changed, SIZES, torch.float32, changed.limits("cpu"), BLOCK_SIZE, budget)

    assert sized(1000) == (48, LONGEST)
    assert sized(20) == (20, LONGEST)
    assert sized(5) == (5, 5 * BLOCK_SIZE)  # where nobody asked for a length, what fits is the longest
    assert sized(1000, max_model_len=40) == (9, 40)
    assert sized(1000, kv_cache_gib=20 * BYTES_PER_BLOCK / 2**30) == (20, LONGEST)
    with pytest.raises(ModelError, match="holds 80 tokens and a sequence may have 100"):
        sized(5, max_model_len=100)
    with pytest.raises(ModelError, match="holds 0 tokens"):
        sized(0)
    with pytest.raises(ModelError, match="--max-model-len=257 is above the model's own 256"):
        sized(1000, max_model_len=257)


def test_a_cache_that_a_gpu_has_no_room_for_is_bounded_with_a_sentence(
    config: RuntimeConfig, caplog: pytest.LogCaptureFixture
) -> None:
    """Of 80 GiB others and weights take 20, the largest step and drafts 4."""
    memory = DeviceMemory(total=80 * GIB, free=60 * GIB, needed=4 * GIB)
    assert memory.budget(0.9) == 48 * GIB
    assert memory.budget(0.2) < 0
    fits = replace(config, kv_cache_gib=56.0)
    assert memory.hold(fits) == fits
    assert memory.hold(config) == config
    assert not caplog.text
    assert memory.hold(replace(config, kv_cache_gib=60.0)) == fits
    assert "--kv-cache-gib=60 is more than the 56.0 GiB that weights, steps and drafts leave" in caplog.text
    held = replace(memory, needed=70 * GIB).hold(replace(config, kv_cache_gib=1.0))
    with pytest.raises(ModelError, match="the KV cache holds 0 tokens"):
        size_cache(held, SIZES, torch.float32, held.limits("cuda"), BLOCK_SIZE, 1 << 40)


@pytest.mark.parametrize(
    ("seqs", "drafts", "rows"), [(3, 0, [3, 0, 0]), (3, 8, [27, 0, 0]), (20, 16, [LONGEST, 84, 0])]
)
def test_the_step_that_memory_is_measured_with_has_the_rows_of_all_drafts(
    seqs: int, drafts: int, rows: list[int]
) -> None:
    model = RUNNERS["cuda"](network(), blocks=20, max_length=LONGEST)
    step = largest_step(model, BatchLimits(seqs, 600), drafts)
    assert [len(chunk.tokens) for chunk in step] == [LONGEST, LONGEST, 600 - 2 * LONGEST]
    assert [chunk.logit_rows for chunk in step] == rows


@pytest.mark.parametrize(
    ("blocks", "told"),
    [
        (5, "the KV cache holds 80 tokens, so that is the context, and not the model's own 256"),
        (LONGEST // BLOCK_SIZE, ""),
    ],
)
def test_a_cache_that_shortens_the_context_is_told(
    config: RuntimeConfig, caplog: pytest.LogCaptureFixture, blocks: int, told: str
) -> None:
    wanted = replace(config, kv_cache_gib=blocks * BYTES_PER_BLOCK / 2**30)
    size_cache(wanted, SIZES, torch.float32, wanted.limits("cpu"), BLOCK_SIZE, 1 << 40)
    assert told in caplog.text
    assert bool(told) == bool(caplog.text)


def test_where_nothing_is_proven_in_time_ready_says_why_it_promises_less(
    config: RuntimeConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        builder, "check_batch_invariance", partial(builder.check_batch_invariance, limit_seconds=0)
    )
    _, ready = start_engine(config, time.monotonic())
    assert (ready.guarantee, ready.guarantee_reason) == ("distribution", "the start-up check took too long")


def test_the_whole_check_has_20_seconds(config: RuntimeConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    clock, late, limits = time.monotonic, 0.0, list[float]()

    def check(model: ModelRunner, deadline: float, *_: object) -> None:
        nonlocal late
        limits.append(deadline - time.monotonic())
        late += 17.0

    def bulk(model: ModelRunner, tokens: int, limit: float) -> dict[str, str]:
        limits.append(limit)
        return {}

    monkeypatch.setattr(time, "monotonic", lambda: clock() + late)
    proven = {
        "_group_products": [],
        "_check_row_wise": None,
        "find_rule": Rule(row_counts=(1,)),
    }
    for name, outcome in proven.items():
        monkeypatch.setattr(invariance_check, name, lambda *_, outcome=outcome: outcome)
    monkeypatch.setattr(invariance_check, "_check_model", check)
    monkeypatch.setattr(invariance_check, "adopt_bulk", bulk)
    start_engine(config, time.monotonic())
    assert 17 < limits[0] <= 20
    assert 0 < limits[1] <= 3


def test_a_draft_model_is_there_from_the_first_request_on_and_its_cache_is_counted(tmp_path: Path) -> None:
    tiny_engine.write(tmp_path / "served")
    tiny_engine.write(tmp_path / "small", layers=1)
    file, folder = tmp_path / "drafts.json", str(tmp_path / "served")
    file.write_text('{"drafter": "model", "model": "small", "named": {"layer": {"layers": 1}}}')
    tokenizer = export_tokenizer(folder, None, tmp_path / "tokenizer")
    config = RuntimeConfig(
        folder,
        dtype="float32",
        threads=1,
        device="cpu",
        draft_config=str(file),
        draft_device="cpu",
        kv_cache_gib=60 * BYTES_PER_BLOCK / 2**30,
    )
    engine, ready = start_engine(config, time.monotonic(), tokenizer)
    assert ready.stats.draft_error == ""
    assert ready.stats.by_draft == (DraftStats("default", "small"), DraftStats("layer", "first-1-layers"))
    assert ready.kv_blocks == 40, "the draft model has half as many layers"
    engine.accept(GenerationRequest("r", (1, 2, 3), SamplingParams(max_tokens=200, temperature=0.0)))
    while not engine.idle:
        engine.step()
    assert engine.stats().by_draft[0].own_draft_tokens > 0


def test_a_device_that_is_not_there_is_refused() -> None:
    with pytest.raises(ModelError, match="must be auto, cpu or cuda, not tpu"):
        choose_device("tpu")
    if not torch.cuda.is_available():
        with pytest.raises(ModelError, match="no CUDA device"):
            choose_device("cuda")
        with pytest.raises(ModelError, match="--draft-device=cuda: no CUDA device"):
            choose_device("cuda", "--draft-device")


@pytest.mark.parametrize(
    ("vendor", "flags", "dtype"),
    [
        ("AuthenticAMD", "avx2", torch.float32),
        ("AuthenticAMD", "avx512f avx512_bf16", torch.bfloat16),
        ("GenuineIntel", "avx512f avx512_bf16", torch.float32),
        ("GenuineIntel", "avx512f avx512_bf16 amx_bf16", torch.bfloat16),
        ("", "", torch.float32),
    ],
)
def test_bfloat16_is_chosen_where_the_cpu_multiplies_it_faster(
    vendor: str, flags: str, dtype: torch.dtype, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    info = f"processor\t: 0\nvendor_id\t: {vendor}\nflags\t\t: fpu {flags} sse\n\n"
    file = tmp_path / "cpuinfo"
    file.write_text(info + info.replace("0", "1", 1))
    monkeypatch.setattr(builder, "CPU_INFO", file)
    assert choose_dtype("auto", torch.device("cpu")) == dtype
    assert choose_dtype("float32", torch.device("cpu")) == torch.float32


def test_every_shard_of_many_counts_in_the_digest_beyond_its_first_tensor(tmp_path: Path) -> None:
    """Which training may have left alone."""
    SIZES.save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(config | {"architectures": ["LlamaForCausalLM"]}))

    def shard(number: int, value: float) -> None:
        tensors = {f"a.{number}": torch.zeros(40, 40), f"b.{number}": torch.full((40, 40), value)}
        save_file(tensors, tmp_path / f"model-{number:02}.safetensors")

    for number in range(20):
        shard(number, 0.0)
    digests = {inspect_model(str(tmp_path)).digest}
    for number in (0, 10, 19):
        shard(number, 1.0)
        digests.add(inspect_model(str(tmp_path)).digest)
    assert len(digests) == 4


def test_a_model_of_the_same_shape_with_other_weights_has_another_digest(tmp_path: Path) -> None:
    digests = set[str]()
    for seed in (1, 2):
        torch.manual_seed(seed)
        LlamaForCausalLM(SIZES).save_pretrained(tmp_path / str(seed))
        digests.add(inspect_model(str(tmp_path / str(seed))).digest)
    assert len(digests) == 2


def test_a_cache_that_no_memory_holds_is_refused(config: RuntimeConfig) -> None:
    wanted = replace(config, kv_cache_gib=1e6, max_num_seqs=10**9)
    with pytest.raises(ModelError, match=r"--kv-cache-gib=1e\+06 takes [\d.]+ GiB, and there are [\d.]+ GiB"):
        start_engine(wanted, time.monotonic())


def test_a_cache_that_may_be_large_is_no_larger_than_its_requests(config: RuntimeConfig) -> None:
    _, ready = start_engine(replace(config, kv_cache_gib=1e6), time.monotonic())
    assert ready.kv_blocks == config.limits("cpu").max_num_seqs * LONGEST // BLOCK_SIZE


def test_a_control_group_bounds_the_memory_that_there_is(
    config: RuntimeConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "memory.max").write_text(str(1 << 29))
    (tmp_path / "memory.current").write_text(str(1 << 28))
    monkeypatch.setattr(sizing, "CONTROL_GROUP", tmp_path)
    assert sizing.free_memory(torch.device("cpu")) <= 1 << 28
    wanted = replace(config, kv_cache_gib=1.0, max_num_seqs=10**9)
    with pytest.raises(ModelError, match=r"--kv-cache-gib=1 takes 1\.0 GiB, and there are 0\.5"):
        start_engine(wanted, time.monotonic())


def test_more_threads_than_cores_are_refused() -> None:
    cores, outbox = os.cpu_count() or 1, Queue[Any]()
    run_engine(RuntimeConfig("m", threads=cores + 1), Queue[Any](), outbox, "", lambda: None)
    assert outbox.get() == EngineFailed(f"--threads={cores + 1}: this machine has {cores} cores; lower it")
