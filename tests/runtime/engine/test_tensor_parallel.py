"""A model that is cut up among two processes gives what it gives in one."""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from operator import attrgetter, methodcaller
from pathlib import Path

import pytest
import torch
from transformers import (
    AutoConfig,
    DeepseekV3Config,
    LlamaConfig,
    MistralConfig,
    PretrainedConfig,
    Qwen2Config,
    Qwen3Config,
    Qwen3ForCausalLM,
)

from turbo_dev.drafting import EveryDraft
from turbo_dev.ranks import kernels, weight_bytes
from turbo_runtime.contract.config import RuntimeConfig
from turbo_runtime.drafters.proposer import Proposer
from turbo_runtime.engine.loop import Engine
from turbo_runtime.engine.scheduler import Scheduler
from turbo_runtime.engine.startup import builder
from turbo_runtime.engine.startup.builder import start_engine
from turbo_runtime.engine.startup.invariance_check import set_free
from turbo_runtime.kv_cache.block_pool import BlockPool
from turbo_runtime.messages import EngineReady, EngineStats, GenerationRequest, SamplingParams
from turbo_runtime.model_files.source import ModelError, Source
from turbo_runtime.models.attention.metadata import Rule
from turbo_runtime.models.matmul import FREE_FORMS
from turbo_runtime.models.parallel.loading import read_shard
from turbo_runtime.models.parallel.shards import Shard
from turbo_runtime.models.runner import ModelRunner
from turbo_runtime.models.step_batch import Chunk

LENGTH, VOCABULARY, TOKENS = 192, 61, 24
# what a busy machine has no time to prove is not promised
PATIENT = partial(builder.check_batch_invariance, limit_seconds=300)
SIZES = {
    "hidden_size": 48,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 6,
    "num_key_value_heads": 3,  # which two ranks cannot share evenly
    "head_dim": 8,
    "vocab_size": VOCABULARY,  # likewise
    "max_position_embeddings": LENGTH,
}


def write(folder: Path, **changes: object) -> str:
    torch.manual_seed(1)
    config = Qwen3Config(**SIZES | {"initializer_range": 0.4, "tie_word_embeddings": False} | changes)
    Qwen3ForCausalLM(config).save_pretrained(folder)
    return str(folder)


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RuntimeConfig]:
    before = torch.get_num_threads()
    folder = write(tmp_path_factory.mktemp("model"))
    yield RuntimeConfig(model=folder, dtype="float32", device="cpu", threads=1, max_num_seqs=4)
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def one(config: RuntimeConfig) -> ModelRunner:
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(builder, "check_batch_invariance", PATIENT)
        return start_engine(config, time.monotonic())[0].model


@pytest.fixture(scope="module")
def started(config: RuntimeConfig) -> Iterator[tuple[ModelRunner, EngineReady]]:
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(builder, "check_batch_invariance", PATIENT)
        engine, ready = start_engine(replace(config, tensor_parallel_size=2), time.monotonic())
    yield engine.model, ready
    engine.model.followers.stop()


@pytest.fixture
def two(started: tuple[ModelRunner, EngineReady]) -> ModelRunner:
    return started[0]


def requests(method: str = "auto") -> list[GenerationRequest]:
    """Greedy ones and drawn ones, some of which begin alike, over several tiles of a prompt."""
    generator = torch.Generator().manual_seed(5)
    made = []
    for number in range(8):
        words = torch.randint(VOCABULARY, (9 + 2 * number,), generator=generator).tolist()
        prompt = (made[-1].prompt if number % 2 else ()) + tuple(words * 3)
        params = SamplingParams(
            temperature=number % 3 / 2, seed=number, max_tokens=TOKENS, draft_method=method
        )
        made.append(GenerationRequest(f"r{number}", prompt, params))
    return made


def run(
    model: ModelRunner, asked: list[GenerationRequest], drafts: int
) -> tuple[dict[str, list[int]], EngineStats]:
    scheduler = Scheduler(
        BlockPool(model.pool.blocks, block_size=model.pool.block_size),
        max_num_seqs=4,
        max_num_batched_tokens=96,
        max_draft_tokens=drafts,
        max_length=model.max_length,
        shared_tile=model.shared_tile,
    )
    engine = Engine(model, scheduler, Proposer(), control=EveryDraft())
    for request in asked:
        engine.accept(request)
    answers: dict[str, list[int]] = {request.request_id: [] for request in asked}
    while not engine.idle:
        for event in engine.step().events:
            assert event.error is None
            answers[event.request_id].extend(event.tokens)
    return answers, engine.stats()


def test_two_ranks_say_so_and_promise_the_same_bytes(started: tuple[ModelRunner, EngineReady]) -> None:
    model, ready = started
    assert (ready.tensor_parallel_size, ready.guarantee) == (2, "bitwise")
    assert ready.vocab_size == VOCABULARY
    assert model.rule.exact
    # 4 + 2 query heads over 2 + 1 KV heads, each a rank's own product
    assert {"64x48", "32x48", "48x32", "48x16", "31x48"} <= set(ready.arithmetic)


def test_logits_and_hidden_states_are_those_of_one_rank(one: ModelRunner, two: ModelRunner) -> None:
    tokens = [(7 * i + 3) % VOCABULARY for i in range(100)]
    chunks = [Chunk(tokens, 0, list(range(7)), 100, 100), Chunk(tokens[:5], 0, [8], 2, 5)]
    expected, actual = one.forward(chunks, (1,)), two.forward(chunks, (1,))
    assert actual.logits.shape == (102, VOCABULARY)
    torch.testing.assert_close(actual.logits, expected.logits, atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(actual.hidden, expected.hidden, atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(actual.streams, expected.streams, atol=1e-4, rtol=1e-4)


def test_blocks_are_copied_on_all_ranks(two: ModelRunner) -> None:
    tokens = [(7 * i + 3) % VOCABULARY for i in range(20)]
    two.forward([Chunk(tokens, 0, [0, 1], 1, 20)])
    expected = two.forward([Chunk(tokens[10:], 10, [0, 2], 1, 20)])
    two.copy_blocks({5: 0})
    assert torch.equal(two.forward([Chunk(tokens[10:], 10, [5, 6], 1, 20)]).logits, expected.logits)


def test_one_seed_is_one_text_for_any_drafts_and_company_on_two_ranks(
    one: ModelRunner, two: ModelRunner
) -> None:
    alone: dict[str, list[int]] = {}
    for request in requests("off"):
        alone |= run(two, [request], 0)[0]
    together, stats = run(two, requests(), 4)
    assert together == alone
    assert 0 < stats.accepted_tokens < stats.draft_tokens
    assert stats.prefix_cache_hits > 0
    assert together == run(one, requests(), 4)[0]  # no draw of these is as close as rounding


def test_each_rank_has_half_of_the_weights_and_no_more(one: ModelRunner, two: ModelRunner) -> None:
    whole, parts = weight_bytes(one), two.everywhere(weight_bytes)
    padding = 2 * 48 * 4  # of embedding and head, since 61 is odd
    assert sum(parts) == whole + padding
    assert all(0.4 < part / whole < 0.6 for part in parts)
    # of three KV heads a rank has two and the other one, and as many blocks
    assert two.everywhere(attrgetter("pool.kv_heads")) == [2, 1]


def test_drafts_get_the_tables_of_the_whole_model(one: ModelRunner, two: ModelRunner) -> None:
    (embedding, rows), (expected, expected_rows) = two.collect_tables(), one.collect_tables()
    ids = torch.tensor([60, 0, 31, 30])
    assert torch.equal(embedding, expected)
    assert torch.equal(rows(ids), expected_rows(ids))


def test_what_is_settled_is_settled_on_all_ranks(one: ModelRunner, two: ModelRunner) -> None:
    exact = two.rule
    two.everywhere(set_free)
    try:
        first, second = two.everywhere(kernels)
        assert first == second
        assert first <= {form.name for form in FREE_FORMS}
        chunk = Chunk([3, 5, 8], 0, [0], 3, 3)
        torch.testing.assert_close(
            two.forward([chunk]).logits, one.forward([chunk]).logits, atol=1e-4, rtol=1e-4
        )
    finally:
        two.everywhere(methodcaller("use_rule", exact))


def test_a_rule_of_all_ranks_promises_what_each_of_them_can() -> None:
    rules = [Rule(row_counts=(1, 2, 4), uniform=True), Rule(row_counts=(1, 4, 8), uniform=False)]
    assert Rule.common(rules) == Rule(row_counts=(1, 4), uniform=False)


CONFIGS: list[PretrainedConfig] = [
    LlamaConfig(**SIZES, architectures=["LlamaForCausalLM"], mlp_bias=True, attention_bias=True),
    MistralConfig(**SIZES, architectures=["MistralForCausalLM"]),
    Qwen2Config(**SIZES, architectures=["Qwen2ForCausalLM"]),
    Qwen3Config(**SIZES, architectures=["Qwen3ForCausalLM"]),
]


@pytest.mark.parametrize("size", [2, 4])
@pytest.mark.parametrize("config", CONFIGS, ids=lambda config: config.model_type)
def test_the_parts_of_every_weight_make_the_whole(config: PretrainedConfig, size: int) -> None:
    from transformers import AutoModelForCausalLM

    if size == 4:
        config.num_attention_heads, config.num_key_value_heads = 8, 2  # KV heads on two ranks each
    model = AutoModelForCausalLM.from_config(config)
    for name, weight in model.named_parameters():
        torch.nn.init.normal_(weight)
        parts = [Shard.of(config, rank, size).cut(name, weight.detach()) for rank in range(size)]
        if "norm" in name:
            assert all(torch.equal(part, weight) for part in parts)
        elif name.endswith(("o_proj.bias", "down_proj.bias")):
            assert torch.equal(sum(parts), weight)
        elif name.endswith(("o_proj.weight", "down_proj.weight")):
            assert torch.equal(torch.cat(parts, 1), weight)
        else:
            copies = size // 2 if size > 2 and ("k_proj" in name or "v_proj" in name) else 1
            assert torch.equal(torch.cat(parts[::copies])[: len(weight)], weight)


@pytest.mark.parametrize(
    ("changes", "size", "sentence"),
    [
        ({}, 3, "--tensor-parallel-size=3: 3 ranks do not divide the model's intermediate_size of 64"),
        ({"num_key_value_heads": 3}, 4, "each of the model's 3 KV heads would be on several of 4 ranks"),
        ({"quantization_config": {"quant_method": "fp8"}}, 2, "quantized weights are not cut up"),
    ],
)
def test_a_model_that_cannot_be_cut_is_refused(changes: dict[str, object], size: int, sentence: str) -> None:
    config = Qwen3Config(**SIZES | changes, architectures=["Qwen3ForCausalLM"])
    with pytest.raises(ModelError, match=sentence):
        Shard.of(config, 0, size)


def test_other_architectures_and_files_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"DeepseekV3ForCausalLM is not cut up; LlamaForCausalLM, .* are"):
        Shard.of(DeepseekV3Config(architectures=["DeepseekV3ForCausalLM"]), 0, 2)
    with pytest.raises(ModelError, match="a GGUF file is not cut up"):
        read_shard(Source(str(tmp_path), gguf_file="model.gguf"), 0, 2)


def test_a_model_with_a_missing_tensor_ends_the_start_with_a_sentence(tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    folder = write(tmp_path)
    weights = load_file(tmp_path / "model.safetensors")
    del weights["model.layers.1.mlp.up_proj.weight"]
    save_file(weights, tmp_path / "model.safetensors", {"format": "pt"})
    assert AutoConfig.from_pretrained(folder).num_hidden_layers == 2
    settings = RuntimeConfig(model=folder, dtype="float32", device="cpu", tensor_parallel_size=2)
    with pytest.raises(ModelError, match=r"have no tensor model\.layers\.1\.mlp\.up_proj\.weight"):
        start_engine(settings, time.monotonic())
