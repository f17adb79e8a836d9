"""The catalogue: what ships is valid and sourced, a user's object wins, and shapes are counted exactly."""

from __future__ import annotations

import dataclasses
import json
from decimal import Decimal

import pytest

from turbo_operator.api import parse_accelerator
from turbo_operator.catalog import UnknownShapeError, catalogue, shapes, shipped_objects
from turbo_runtime.contract import ModelFacts

GIB = 1 << 30
CONFIG = {
    "architectures": ["LlamaForCausalLM"],
    "num_hidden_layers": 30,
    "hidden_size": 576,
    "intermediate_size": 1536,
    "num_attention_heads": 9,
    "num_key_value_heads": 3,
    "vocab_size": 49152,
    "max_position_embeddings": 8192,
    "tie_word_embeddings": True,
    "torch_dtype": "bfloat16",
}


def test_every_shipped_price_says_where_it_comes_from_and_when() -> None:
    for each in map(parse_accelerator, shipped_objects()):
        pricing = each.spec.pricing
        if each.spec.resource_name == "cpu":
            assert pricing is None
        else:
            assert pricing is not None
            assert pricing.per_accelerator_hour.on_demand
            assert pricing.source
            assert pricing.as_of


def test_the_shipped_accelerators_are_rows_of_the_planner() -> None:
    rows = catalogue()
    assert rows["l4"].prices.get("OnDemand") == Decimal("0.8048")
    assert rows["l40s"].memory_bytes == int(Decimal("44.98") * GIB)
    assert rows["cpu"].prices.get("OnDemand") is None
    assert rows["h100"].node_selector == {"nvidia.com/gpu.product": "NVIDIA-H100-80GB-HBM3"}
    assert rows["h100"].tolerations == (
        {"key": "nvidia.com/gpu", "operator": "Exists", "effect": "NoSchedule"},
    )


def test_a_users_accelerator_takes_the_place_of_the_shipped_one() -> None:
    mine = parse_accelerator(
        {
            "apiVersion": "serving.turbo.dev/v1alpha1",
            "kind": "TurboAccelerator",
            "metadata": {"name": "cpu"},
            "spec": {
                "resourceName": "cpu",
                "quantity": "1500m",
                "memoryGiB": "2.5",
                "pricing": {"perAcceleratorHour": {"onDemand": "0.04"}},
            },
        }
    )
    row = catalogue([mine])["cpu"]
    assert (row.quantity, row.memory_bytes) == (Decimal("1.5"), int(2.5 * GIB))
    assert row.prices.get("OnDemand") == Decimal("0.04")
    assert catalogue()["cpu"].prices.get("OnDemand") is None


# Counts that the publishers' own weight files have (the sum over the tensors of each, a tied embedding once).
@pytest.mark.parametrize(
    ("name", "parameters"),
    [
        ("HuggingFaceTB/SmolLM2-135M", 134_515_008),
        ("Qwen/Qwen3-0.6B", 596_049_920),
        ("Qwen/Qwen3-8B", 8_190_735_360),
        ("meta-llama/Llama-3.1-8B", 8_030_261_248),
        ("meta-llama/Llama-3.1-70B", 70_553_706_496),
    ],
)
def test_weights_are_counted_exactly(name: str, parameters: int) -> None:
    shape = shapes.shipped(name)
    assert shape is not None
    assert shape.parameters == parameters


def test_a_hub_id_is_found_in_any_case_and_an_unknown_one_is_not() -> None:
    assert shapes.shipped("qwen/qwen3-8b") == shapes.shipped("Qwen/Qwen3-8B")
    assert shapes.shipped("nobody/nothing") is None


def test_a_configuration_and_what_inspect_prints_give_the_same_shape() -> None:
    from_config = shapes.from_document(json.dumps(CONFIG), "config.json")
    facts = ModelFacts(from_config, "sha256:ab", None, 1)
    assert shapes.from_document(facts.to_json(), "facts.json") == from_config
    assert from_config == shapes.shipped("HuggingFaceTB/SmolLM2-135M")


def test_biases_are_counted() -> None:
    plain = shapes.from_config(CONFIG, "x").parameters
    qwen = shapes.from_config({**CONFIG, "architectures": ["Qwen2ForCausalLM"]}, "x").parameters
    assert qwen - plain == 30 * (9 * 64 + 2 * 3 * 64)
    biased = shapes.from_config({**CONFIG, "attention_bias": True, "mlp_bias": True}, "x").parameters
    assert biased - plain == 30 * (9 * 64 + 2 * 3 * 64 + 576 + 2 * 1536 + 576)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("GGUF", "is not JSON"),
        ("[]", "holds no JSON object"),
        (json.dumps({**CONFIG, "architectures": ["MambaForCausalLM"]}), "describes MambaForCausalLM"),
        ("{}", "describes no architecture"),
        (json.dumps({**CONFIG, "hidden_size": "many"}), "hidden_size must be a whole number above 0"),
        (json.dumps({**CONFIG, "num_hidden_layers": 0}), "num_hidden_layers must be a whole number above 0"),
        ('{"shape": {}}', "is no output of `turbo inspect`"),
    ],
)
def test_a_shape_that_cannot_be_read_says_why(text: str, said: str) -> None:
    with pytest.raises(UnknownShapeError, match=said):
        shapes.from_document(text, "given.json")


def test_every_shipped_shape_has_its_fields() -> None:
    shape = shapes.shipped("Qwen/Qwen3-32B")
    assert shape is not None
    required = [field.name for field in dataclasses.fields(shape) if field.default is dataclasses.MISSING]
    assert all(getattr(shape, name) for name in required)
