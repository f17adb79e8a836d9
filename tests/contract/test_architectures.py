"""The operator plans what the runtime serves."""

from __future__ import annotations

from turbo_operator.planner.capabilities import ARCHITECTURES as PLANNED
from turbo_runtime.model_files.source import ARCHITECTURES
from turbo_runtime.shapes.families import FAMILIES


def test_every_architecture_that_is_planned_is_served_and_its_weights_can_be_counted() -> None:
    assert set(ARCHITECTURES) & FAMILIES.keys() >= PLANNED


def test_latent_attention_and_experts_are_planned_where_deepseek_is() -> None:
    assert {"DeepseekV2ForCausalLM", "DeepseekV3ForCausalLM"} <= PLANNED
