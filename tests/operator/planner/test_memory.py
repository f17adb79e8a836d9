"""What weights and caches take, against counts by hand."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from turbo_operator.catalog import shapes
from turbo_operator.planner.performance import memory
from turbo_runtime.contract.documents import ModelShape
from turbo_runtime.shapes.families import FAMILIES

DEGREES = st.sampled_from((1.0, 2.0, 4.0, 8.0, 16.0))


def shape(hub_id: str) -> ModelShape:
    actual = shapes.shipped(hub_id)
    assert actual is not None
    return actual


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


def test_a_pass_holds_its_widest_layer_or_later_its_logits() -> None:
    # 512 tokens of two times 4096 elements between layers and three times 14,336 in one, of 2 bytes each.
    between, inside = 512 * 2 * 4096 * 2, 512 * 3 * 14_336 * 2
    assert memory.activation_bytes(LLAMA, 2, 1.0, 32, 512, 0.0) == between + inside
    assert memory.activation_bytes(LLAMA, 2, 8.0, 1, 512, 0.0) == between + inside / 8
    # 32 requests with 8 drafts each: 288 rows of 128,256 numbers of 4 bytes, whole on each accelerator.
    for tensor in (1.0, 8.0):
        assert memory.activation_bytes(LLAMA, 2, tensor, 32, 512, 8.0) == between + 288 * 128_256 * 4


@given(
    DEGREES,
    st.integers(1, 4096),
    st.integers(1, 16_384),
    st.integers(0, 64),
    st.sampled_from((LLAMA, R1, OSS)),
)
def test_more_tokens_hold_no_less_and_more_accelerators_no_more(
    tensor: float, running: int, tokens: int, drafts: int, model: ModelShape
) -> None:
    def held(tensor: float, running: int, tokens: int, drafts: int) -> float:
        return float(memory.activation_bytes(model, 2.0, tensor, running, tokens, drafts))

    it = held(tensor, running, tokens, drafts)
    assert 0.0 < it <= held(tensor, running + 1, tokens + 1, drafts + 1)
    assert held(2.0 * tensor, running, tokens, drafts) <= it
    assert memory.activation_bytes(model, 4.0, tensor, running, tokens, drafts) <= 2.0 * it


def test_an_mlp_of_unknown_width_is_taken_to_hold_no_less_than_it_does_and_not_twice_as_much() -> None:
    for known in map(shape, shapes.table()):
        assert memory.mlp_width(known) == known.mlp_width > 0
        taken = 3.0 * memory.mlp_width(replace(known, mlp_width=0))
        held = (3 if FAMILIES[known.architecture].gated else 2) * known.mlp_width
        assert held <= taken <= 2.0 * held, known


def test_the_slot_of_an_adapter_has_two_matrices_for_each_projection() -> None:
    pairs = [(4096, 4096), (4096, 1024), (4096, 1024), (4096, 4096), *[(4096, 14_336)] * 3]
    layers = 32 * sum(map(sum, pairs))
    tables = 2 * (128_256 + 4096)
    assert memory.adapter_bytes(LLAMA, 2, 1.0, 1.0, 16) == 2 * 16 * (layers + tables)
    # Of two accelerators each has one side of a pair whole: the input of q, k, v, gate and up, the output of
    # o and down.
    whole = 32 * 7 * 4096
    assert memory.adapter_bytes(LLAMA, 2, 2.0, 1.0, 16) == 2 * 16 * (whole + (layers - whole) / 2 + tables)
    assert memory.adapter_bytes(LLAMA, 2, 1.0, 2.0, 16) == 2 * 16 * (layers / 2 + tables)


@given(st.integers(-(1 << 40), 1 << 40), st.integers(1, 1 << 20), st.integers(0, 64))
def test_the_longest_request_fits_and_one_token_more_does_not(room: int, item: int, drafts: int) -> None:
    longest = memory.max_model_len(room, item, drafts)

    def fits(length: int) -> bool:
        return bool(memory.whole_grains(item * memory.request_tokens(length, drafts)) <= room)

    assert longest == 0 or fits(longest)
    assert not fits(longest + 1)
