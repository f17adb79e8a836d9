"""What weights and caches take, against counts by hand."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from turbo_operator.catalog import shapes
from turbo_operator.planner import memory
from turbo_runtime.contract import ModelShape

DEGREES = st.sampled_from((1.0, 2.0, 4.0, 8.0, 16.0))


def shape(hub_id: str) -> ModelShape:
    found = shapes.shipped(hub_id)
    assert found is not None
    return found


LLAMA, R1, OSS = (
    shape(name) for name in ("meta-llama/Llama-3.1-8B", "deepseek-ai/DeepSeek-R1", "openai/gpt-oss-120b")
)


def test_stored_weights_take_their_own_bytes_and_converted_ones_the_elements() -> None:
    assert memory.weights(LLAMA, 2).total == 2 * LLAMA.parameters
    rest = R1.parameters - R1.quantized_parameters
    assert memory.weights(R1, 2).total == pytest.approx(R1.quantized_parameters + 2 * rest)
    assert memory.weights(R1, 2, quantized=False).total == 2 * R1.parameters
    assert memory.weights(OSS, 2).total == pytest.approx(65.2e9, rel=0.01)  # as its files are published


def test_one_token_takes_keys_and_values_of_every_layer() -> None:
    assert memory.kv_bytes(LLAMA, 2, 1.0, 100.0) == 2 * 32 * 8 * 128 * 2


@given(DEGREES)
def test_heads_divide_as_far_as_they_go_and_a_latent_does_not(tensor: float) -> None:
    whole = memory.kv_bytes(LLAMA, 2, 1.0, 100.0)
    assert memory.kv_bytes(LLAMA, 2, tensor, 100.0) == whole / min(tensor, LLAMA.kv_heads)
    assert memory.kv_bytes(R1, 2, tensor, 100.0) == R1.layers * R1.kv_latent * 2


@given(st.integers(1, 100_000))
def test_a_window_forgets_only_where_layers_slide_and_the_engine_forgets(tokens: int) -> None:
    whole = memory.kv_bytes(OSS, 2, 1.0, tokens)
    short = memory.kv_bytes(OSS, 2, 1.0, tokens, slides=True)
    assert whole == memory.kv_bytes(replace(OSS, sliding_window=0), 2, 1.0, tokens, slides=True)
    kept = OSS.sliding_layers * min(tokens, OSS.sliding_window) + (OSS.layers - OSS.sliding_layers) * tokens
    assert short * tokens == pytest.approx(2 * OSS.kv_heads * OSS.head_dim * 2 * kept)


@given(st.integers(-(1 << 40), 1 << 40), st.integers(1, 1 << 20), st.integers(0, 64))
def test_the_longest_request_fits_and_one_token_more_does_not(room: int, each: int, drafts: int) -> None:
    longest = memory.longest_model_len(room, each, drafts)

    def fits(length: int) -> bool:
        return bool(memory.whole_grains(each * memory.request_tokens(length, drafts)) <= room)

    assert longest == 0 or fits(longest)
    assert not fits(longest + 1)
