"""The operator plans what the runtime serves."""

from __future__ import annotations

import pytest

from turbo_operator.catalog.shapes import shipped
from turbo_operator.planner.capabilities import ARCHITECTURES as PLANNED
from turbo_operator.planner.capabilities import describe_model_lack
from turbo_runtime.model_files.source import ARCHITECTURES
from turbo_runtime.shapes.families import FAMILIES


def test_every_architecture_that_is_served_is_planned_and_its_weights_can_be_counted() -> None:
    assert set(ARCHITECTURES) == PLANNED
    assert FAMILIES.keys() >= PLANNED


@pytest.mark.parametrize(
    ("model", "lack"),
    [
        ("Qwen/Qwen3-30B-A3B-FP8", False),
        ("openai/gpt-oss-20b", False),
        ("nvidia/Llama-3.1-70B-Instruct-FP8", True),
    ],
)
def test_quantized_weights_are_planned_where_the_engine_reads_them(model: str, lack: bool) -> None:
    shape = shipped(model)
    assert shape is not None
    assert shape.quantization
    assert (describe_model_lack(shape) is not None) == lack


def test_latent_attention_and_experts_are_planned_where_deepseek_is() -> None:
    assert {"DeepseekV2ForCausalLM", "DeepseekV3ForCausalLM"} <= PLANNED
