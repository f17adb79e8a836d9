"""What a configuration asks for that engine Turbo does not support: its pod and the planner say the same."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from transformers import Gemma3TextConfig, LlamaConfig, Phi3Config, PreTrainedConfig

from turbo_dev.plan_cases import plan
from turbo_dev.plan_examples import MIDDLE, SHORT, fast, named, spec
from turbo_runtime.contract.documents import ModelInfo
from turbo_runtime.model_files.source import ModelError
from turbo_runtime.models.loader import check_config
from turbo_runtime.shapes import describe
from turbo_runtime.shapes.support import find_unsupported

SIZES: dict[str, Any] = {
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "vocab_size": 61,
    "max_position_embeddings": 256,
}
LLAMA3 = {
    "rope_type": "llama3",
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 64,
    "rope_theta": 1e4,
}
LONG = {"rope_type": "longrope", "short_factor": [1.0] * 8, "long_factor": [2.0] * 8, "rope_theta": 1e4}
MIXED = ["sliding_attention", "full_attention"]
CONFIGS: dict[str, PreTrainedConfig] = {
    "": LlamaConfig(**SIZES, architectures=["LlamaForCausalLM"], rope_parameters=LLAMA3),
    "rope_type longrope": Phi3Config(
        **SIZES,
        architectures=["Phi3ForCausalLM"],
        rope_parameters=LONG,
        original_max_position_embeddings=64,
        pad_token_id=0,
    ),
    "rope_type dynamic": Gemma3TextConfig(
        **SIZES,
        architectures=["Gemma3ForCausalLM"],
        layer_types=MIXED,
        rope_parameters={
            "sliding_attention": {"rope_type": "default", "rope_theta": 1e4},
            "full_attention": {"rope_type": "dynamic", "factor": 2.0, "rope_theta": 1e6},
        },
    ),
    "final_logit_softcapping": Gemma3TextConfig(
        **SIZES, architectures=["Gemma3ForCausalLM"], layer_types=MIXED, final_logit_softcapping=30.0
    ),
}


@pytest.mark.parametrize("setting", CONFIGS)
def test_a_setting_that_is_not_supported_is_in_the_shape_and_refused_by_the_engine(setting: str) -> None:
    config = CONFIGS[setting]
    shape, _, _ = describe(config.to_dict(), "m")
    assert shape.unsupported == setting
    if not setting:
        check_config(config)
        return
    with pytest.raises(ModelError, match=f"^{setting} is not supported: choose a model"):
        check_config(config)


@pytest.mark.parametrize(
    ("config", "setting"),
    [
        ({"rope_scaling": {"type": "su"}}, "rope_type su"),
        ({"rope_scaling": {"type": "linear", "factor": 4.0}}, ""),
        ({"rope_scaling": None}, ""),
        ({"rope_scaling": "much"}, ""),
        ({"attn_logit_softcapping": None}, ""),
        ({"attn_logit_softcapping": 50.0}, "attn_logit_softcapping"),
    ],
)
def test_settings_are_read_as_older_files_write_them(config: dict[str, Any], setting: str) -> None:
    assert find_unsupported(config) == setting


def test_a_plan_of_engine_turbo_has_no_model_with_such_a_setting() -> None:
    odd = replace(MIDDLE, unsupported="rope_type longrope")
    made = plan(spec(model=SHORT, engine={"type": "Turbo"}), odd, named(fast("small", 80, "1")))
    assert made.choice is None
    assert "rope_type longrope is not supported yet on engine Turbo: write engine.type: VLLM" in made.detail


@pytest.mark.parametrize("setting", ["", "rope_type longrope"])
def test_what_is_told_of_a_model_names_the_setting_where_there_is_one(setting: str) -> None:
    info = ModelInfo(replace(MIDDLE, unsupported=setting), "sha256:ab", None, 1)
    assert ("unsupported" in info.to_json()) == bool(setting)
    assert ModelInfo.from_json(info.to_json()) == info
