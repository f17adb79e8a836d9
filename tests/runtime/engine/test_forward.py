"""A forward pass gives the logits of transformers, for every family, however the tokens are cut up."""

from __future__ import annotations

import gc
import weakref
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import (
    AutoModelForCausalLM,
    DeepseekV2Config,
    DeepseekV3Config,
    Gemma3TextConfig,
    GptOssConfig,
    LlamaConfig,
    MistralConfig,
    MixtralConfig,
    Olmo2Config,
    Phi3Config,
    PreTrainedConfig,
    PreTrainedModel,
    Qwen2Config,
    Qwen3Config,
    Qwen3MoeConfig,
)

from turbo_runtime.engine.startup.invariance_check import check_batch_invariance, set_free
from turbo_runtime.kv_cache.block_pool import PROMPT_TILE, blocks_for
from turbo_runtime.models.attention.metadata import IMPLEMENTATION, register
from turbo_runtime.models.compiled import elementwise
from turbo_runtime.models.layers.native import LEAN_ARCHITECTURES
from turbo_runtime.models.matmul import COUNTS
from turbo_runtime.models.runner import ModelRunner
from turbo_runtime.models.step_batch import Chunk

SIZES = {
    "hidden_size": 48,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 6,
    "num_key_value_heads": 2,
    "vocab_size": 61,
    "max_position_embeddings": 256,
}
YARN = {"rope_type": "yarn", "factor": 4.0, "rope_theta": 1e4, "original_max_position_embeddings": 64}
LATENT = {
    **SIZES,
    "num_key_value_heads": 6,
    "kv_lora_rank": 24,
    "qk_rope_head_dim": 8,
    "qk_nope_head_dim": 12,
    "v_head_dim": 20,
    "num_hidden_layers": 3,
    "first_k_dense_replace": 1,
    "moe_intermediate_size": 16,
    "num_experts_per_tok": 2,
    "n_routed_experts": 8,
}
EXPERTS = {"num_experts": 8, "num_experts_per_tok": 3, "moe_intermediate_size": 16, "head_dim": 16}
MIXED = ["sliding_attention", "full_attention"]
TWO_ROPES = {
    "sliding_attention": {"rope_type": "default", "rope_theta": 1e4},
    "full_attention": {"rope_type": "linear", "factor": 8.0, "rope_theta": 1e6},
}
GROUPED = {"n_group": 4, "topk_group": 2}
CONFIGS: dict[str, Callable[[], PreTrainedConfig]] = {
    "llama, tied": lambda: LlamaConfig(**SIZES, tie_word_embeddings=True),
    "llama, biases everywhere": lambda: LlamaConfig(**SIZES, attention_bias=True, mlp_bias=True),
    "llama, scaled positions": lambda: LlamaConfig(**SIZES, rope_parameters=YARN),
    "mistral": lambda: MistralConfig(**SIZES, sliding_window=None),
    "mistral, sliding": lambda: MistralConfig(**SIZES, sliding_window=40),
    "qwen2": lambda: Qwen2Config(**SIZES),
    "qwen2, upper layers sliding": lambda: Qwen2Config(
        **SIZES, use_sliding_window=True, sliding_window=128, max_window_layers=1
    ),
    "qwen3": lambda: Qwen3Config(**SIZES, head_dim=16),
    "qwen3, experts": lambda: Qwen3MoeConfig(
        **{**SIZES, "num_hidden_layers": 3}, **EXPERTS, norm_topk_prob=True, mlp_only_layers=[1]
    ),
    "mixtral, sliding": lambda: MixtralConfig(**SIZES, num_local_experts=8, sliding_window=100),
    "phi3": lambda: Phi3Config(**SIZES, pad_token_id=0, partial_rotary_factor=0.5),
    "gemma 3": lambda: Gemma3TextConfig(
        **SIZES, head_dim=16, sliding_window=64, layer_types=MIXED, rope_parameters=TWO_ROPES
    ),
    "gpt-oss": lambda: GptOssConfig(
        **SIZES, num_local_experts=8, num_experts_per_tok=2, sliding_window=48, head_dim=16, layer_types=MIXED
    ),
    "deepseek v3": lambda: DeepseekV3Config(
        **LATENT,
        **GROUPED,
        q_lora_rank=16,
        n_shared_experts=2,
        rope_parameters={**YARN, "mscale_all_dim": 1.0},
    ),
    "deepseek v3, plain queries": lambda: DeepseekV3Config(
        **LATENT,
        n_group=1,
        topk_group=1,
        q_lora_rank=None,
        attention_bias=True,
        rope_interleave=False,
        norm_topk_prob=False,
    ),
    "deepseek v2": lambda: DeepseekV2Config(
        **LATENT, **GROUPED, q_lora_rank=16, topk_method="group_limited_greedy", rope_parameters=YARN
    ),
    "deepseek v2, plain queries": lambda: DeepseekV2Config(**LATENT, q_lora_rank=None),
    "olmo2, by transformers' modules": lambda: Olmo2Config(**SIZES),
}
LENGTH, PROMPT = 200, 90


pytestmark = pytest.mark.usefixtures("one_thread")


def network(name: str, implementation: str, dtype: torch.dtype = torch.float32) -> PreTrainedModel:
    """The same random weights at every call, biases and norms included."""
    register()
    torch.manual_seed(1)
    model = AutoModelForCausalLM.from_config(CONFIGS[name](), attn_implementation=implementation, dtype=dtype)
    assert isinstance(model, PreTrainedModel)
    for parameter in model.parameters():
        parameter.data.normal_(1.0 if parameter.dim() == 1 else 0.0, 0.3)
    for buffer_name, buffer in model.named_buffers():
        if buffer_name.endswith("e_score_correction_bias"):  # of experts
            buffer.normal_(0.0, 0.3)
    return model.eval().requires_grad_(False)


def paged(name: str, dtype: torch.dtype = torch.float32) -> ModelRunner:
    return ModelRunner(network(name, IMPLEMENTATION, dtype), blocks=64, max_length=LENGTH)


def tokens() -> list[int]:
    return [(7 + 29 * i * i) % 61 for i in range(LENGTH)]


def computed(model: ModelRunner, lengths: list[int], first_block: int = 0) -> Tensor:
    """Logits of all positions, in steps of these lengths, over and over."""
    table = list(range(first_block, first_block + blocks_for(LENGTH)))
    ids, start, parts = tokens(), 0, []
    while start < LENGTH:
        count = min(lengths[len(parts) % len(lengths)], LENGTH - start)
        chunk = Chunk(ids[start : start + count], start, table, count, PROMPT)
        parts.append(model.forward([chunk]).logits)
        start += count
    return torch.cat(parts)


@pytest.fixture(scope="module", params=CONFIGS)
def checked(request: pytest.FixtureRequest) -> tuple[str, ModelRunner]:
    torch.set_num_threads(1)
    model = paged(request.param)
    report = check_batch_invariance(model, max_num_batched_tokens=256, limit_seconds=60)
    assert report.guarantee == "bitwise", report.reason
    return request.param, model


def test_the_logits_are_those_of_transformers(checked: tuple[str, ModelRunner]) -> None:
    name, model = checked
    expected = network(name, "eager")(torch.tensor([tokens()])).logits[0]
    torch.testing.assert_close(computed(model, [LENGTH]), expected, atol=1e-3, rtol=1e-3)
    torch.testing.assert_close(computed(model, [30, 1, 5]), expected, atol=1e-3, rtol=1e-3)


@pytest.mark.parametrize("lengths", [[1], [3], [17], [5, 1, 60], [PROMPT, 1, 9], [130]])
def test_logits_do_not_depend_on_how_many_rows_a_step_has(
    checked: tuple[str, ModelRunner], lengths: list[int]
) -> None:
    _, model = checked
    assert torch.equal(computed(model, lengths, first_block=20), computed(model, [LENGTH]))


def test_families_with_a_lean_decoder_use_it_and_others_do_not(checked: tuple[str, ModelRunner]) -> None:
    name, model = checked
    lean = type(network(name, "eager")).__name__ in LEAN_ARCHITECTURES
    assert lean == ("olmo2" not in name)
    assert type(model.decoder).__name__ == ("LeanDecoder" if lean else "ModuleDecoder")


def test_rows_come_in_the_order_of_the_chunks_and_only_those_that_were_asked_for(
    checked: tuple[str, ModelRunner],
) -> None:
    _, model = checked
    ids, tables = tokens(), [list(range(n * 13, n * 13 + 13)) for n in range(3)]
    every = model.forward([Chunk(ids[:100], 0, tables[0], 100, PROMPT)])
    some = model.forward(
        [
            Chunk(ids[:100], 0, tables[1], 2, PROMPT),
            Chunk(ids[:70], 0, tables[2], 0, PROMPT),
            Chunk(ids[100:101], 100, tables[0], 1, PROMPT),
        ]
    )
    assert (some.logits.shape, some.hidden.shape[0], some.logits.dtype) == ((3, 61), 3, torch.float32)
    assert torch.equal(some.logits[:2], every.logits[98:])
    assert torch.equal(some.hidden[:2], every.hidden[98:])
    assert torch.equal(model.decoder.logits(some.hidden), some.logits)
    nothing = model.forward([Chunk(ids[:70], 0, tables[2], 0, PROMPT)])
    assert (nothing.logits.shape, nothing.hidden.shape[0]) == ((0, 61), 0)


@pytest.mark.parametrize("name", ["llama, tied", "qwen3", "deepseek v3", "olmo2, by transformers' modules"])
def test_without_the_guarantee_the_logits_are_the_same_but_for_rounding(name: str) -> None:
    model = paged(name)
    set_free(model)
    assert all(product.form in product.free_forms for product in model.decoder.products())
    expected = network(name, "eager")(torch.tensor([tokens()])).logits[0]
    torch.testing.assert_close(computed(model, [100, 1, 5, 40]), expected, atol=1e-3, rtol=1e-3)


def test_bfloat16_stays_close_to_transformers() -> None:
    name = "llama, tied"
    exact = network(name, "eager")(torch.tensor([tokens()])).logits[0]
    theirs = network(name, "eager", torch.bfloat16)(torch.tensor([tokens()])).logits[0].float()
    ours = computed(paged(name, torch.bfloat16), [64, 7, 1])
    assert (ours - exact).abs().mean() <= 1.1 * (theirs - exact).abs().mean()


def test_a_lean_decoder_keeps_no_second_copy_of_the_weights() -> None:
    model = network("llama, biases everywhere", IMPLEMENTATION)
    body = model.get_decoder()
    old = [weakref.ref(p) for p in body.layers.parameters()]
    served = ModelRunner(model, blocks=8, max_length=LENGTH)
    gc.collect()
    assert len(list(served.decoder.products())) == 4 * 2 + 1
    assert not [ref for ref in old if ref() is not None]


def test_a_model_whose_rows_depend_on_their_number_is_served_under_law(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    model = paged("llama, tied")
    real = model.decoder.hidden

    def crowded(ids: Tensor, step: object, layers: tuple[int, ...]) -> tuple[Tensor, dict[int, Tensor]]:
        hidden, streams = real(ids, step, layers)  # type: ignore[arg-type]
        return hidden if len(ids) > COUNTS[0] else hidden * (1 + 2**-20), streams

    monkeypatch.setattr(model.decoder, "hidden", crowded)
    report = check_batch_invariance(model, max_num_batched_tokens=64, limit_seconds=60)
    assert report.guarantee == "distribution"
    assert "depend on the number of rows" in report.reason
    assert not model.rule.exact


def test_a_norm_that_depends_on_the_number_of_rows_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    real = elementwise.norm

    def crowded(x: Tensor, *rest: Any) -> Tensor:
        return real(x, *rest) * (1 + 2**-18 * (x.shape[0] == 40))

    monkeypatch.setattr(elementwise, "norm", crowded)
    report = check_batch_invariance(paged("llama, tied"), max_num_batched_tokens=64, limit_seconds=60)
    assert report.reason == "RMSNorm over 48 values depends on the row count"


def test_a_prompt_tile_is_64_positions_of_whole_blocks() -> None:
    assert PROMPT_TILE == 64
    assert blocks_for(PROMPT_TILE) * 16 == PROMPT_TILE
