"""The JSON documents of the contract survive the way, and readers of another version are borne."""

from __future__ import annotations

import dataclasses
import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from turbo_runtime.contract.documents import Load, ModelInfo, ModelShape, StepTime
from turbo_runtime.contract.endpoints import TERMINATION_MESSAGE_BYTES

COUNTS = st.integers(0, 1 << 53)
STEP_TIMES = st.builds(StepTime, rows=COUNTS, tokens=COUNTS, context=COUNTS, seconds=st.floats(0, 1e6))
LOADS = st.builds(
    Load,
    **dict.fromkeys(
        [
            "running_requests",
            "waiting_requests",
            "running_tokens",
            "waiting_tokens",
            "kv_cache_tokens",
            "drafts",
            "draft_tokens",
            "accepted_tokens",
            "generated_tokens",
        ],
        COUNTS,
    ),
    kv_cache_usage=st.floats(0, 1),
    guarantee=st.sampled_from(["bitwise", "distribution"]),
    draining=st.booleans(),
    **dict.fromkeys(
        ["max_num_seqs", "prompts", "prompt_tokens", "audits", "audit_mismatches", "captured"],
        st.none() | COUNTS,
    ),
    **dict.fromkeys(["generation_seconds", "baseline_generation_seconds"], st.none() | st.floats(0, 1e9)),
    **dict.fromkeys(["draft_version", "draft_error"], st.none() | st.text(max_size=100)),
    step_times=st.none() | st.lists(STEP_TIMES, max_size=16).map(tuple),
    speedup=st.none() | st.floats(0, 100),
)
OPTIONAL = [name for name, spec in Load.__dataclass_fields__.items() if spec.default is None]
REQUIRED = [name for name in Load.__dataclass_fields__ if name not in OPTIONAL]
WORDS = st.text(max_size=100)
FACTS = st.builds(
    ModelInfo,
    shape=st.builds(
        ModelShape,
        architecture=WORDS,
        dtype=WORDS,
        **dict.fromkeys(
            [
                "parameters",
                "layers",
                "hidden_size",
                "heads",
                "kv_heads",
                "head_dim",
                "vocab_size",
                "max_position",
            ],
            st.integers(1, 1 << 53),
        ),
        quantization=st.none() | WORDS,
        **dict.fromkeys(
            [
                "quantized_parameters",
                "embedding_parameters",
                "experts",
                "experts_per_token",
                "expert_parameters",
                "kv_latent",
                "sliding_window",
                "sliding_layers",
                "mtp_layers",
                "mlp_width",
            ],
            COUNTS,
        ),
    ),
    digest=WORDS,
    revision=st.none() | WORDS,
    weight_bytes=COUNTS,
)


@given(load=LOADS)
def test_load_survives(load: Load) -> None:
    assert Load.from_json(load.to_json()) == load


@given(facts=FACTS)
def test_model_facts_survive_on_one_line(facts: ModelInfo) -> None:
    assert "\n" not in facts.to_json()
    assert ModelInfo.from_json(facts.to_json()) == facts


def test_model_facts_fit_a_termination_message() -> None:
    longest = {spec.name: 1 << 62 for spec in dataclasses.fields(ModelShape)}
    shape = ModelShape(**{**longest, **dict.fromkeys(("architecture", "dtype", "quantization"), "A" * 64)})
    facts = ModelInfo(shape, "sha256:" + "f" * 64, "f" * 40, 1 << 60)
    assert len(facts.to_json().encode()) <= TERMINATION_MESSAGE_BYTES


@given(facts=FACTS)
def test_what_an_older_version_wrote_of_a_model_is_a_dense_one_without_windows(facts: ModelInfo) -> None:
    document = json.loads(facts.to_json())
    newer = [spec.name for spec in dataclasses.fields(ModelShape) if spec.default is not dataclasses.MISSING]
    for name in newer:
        document["shape"].pop(name, None)
    shape = ModelInfo.from_json(json.dumps(document)).shape
    assert not any(getattr(shape, name) for name in newer)


@given(load=LOADS)
def test_a_key_of_a_newer_version_is_ignored(load: Load) -> None:
    assert Load.from_json(json.dumps({**json.loads(load.to_json()), "gain": 2.5})) == load


@given(load=LOADS, name=st.sampled_from(REQUIRED))
def test_a_missing_number_is_an_error_and_never_zero(load: Load, name: str) -> None:
    document = json.loads(load.to_json())
    del document[name]
    with pytest.raises(ValueError, match=f"Load: {name} is missing"):
        Load.from_json(json.dumps(document))


@given(load=LOADS, name=st.sampled_from(OPTIONAL))
def test_what_an_older_runtime_does_not_say_is_unknown_and_never_zero(load: Load, name: str) -> None:
    document = json.loads(load.to_json())
    del document[name]
    assert Load.from_json(json.dumps(document)) == dataclasses.replace(load, **{name: None})


@pytest.mark.parametrize("text", ["", "[]", "5", "{", '"x"', "[" * 20_000, "1" * 5000])
def test_what_is_no_document_is_told_in_a_sentence(text: str) -> None:
    for kind in (Load, ModelInfo):
        with pytest.raises(ValueError, match=rf"^{kind.__name__}: "):
            kind.from_json(text)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("running_requests", None),
        ("running_requests", "2"),
        ("running_requests", True),
        ("running_requests", 2.5),
        ("running_requests", -1),
        ("running_requests", 1 << 63),
        ("kv_cache_usage", float("nan")),
        ("kv_cache_usage", float("inf")),
        ("kv_cache_usage", "full"),
        ("guarantee", "hope"),
        ("draining", 0),
        ("max_num_seqs", "32"),
        ("step_times", 3),
        ("step_times", [{}] * 257),
    ],
)
def test_a_load_of_the_right_keys_and_wrong_types_is_refused_by_name(field: str, value: object) -> None:
    document = json.loads(Load(1, 0, 1, 0, 0.5, 10, 0, 0, 0, 1, "bitwise", False).to_json())
    with pytest.raises(ValueError, match=f"Load: {field} cannot be"):
        Load.from_json(json.dumps(document | {field: value}))


@pytest.mark.parametrize(
    ("point", "said"),
    [
        (5, "StepTime: expected an object, got int"),
        ({"rows": 1, "tokens": 1, "context": 0}, "StepTime: seconds is missing"),
        ({"rows": 1, "tokens": 1, "context": 0, "seconds": -0.1}, "StepTime: seconds cannot be -0.1"),
    ],
)
def test_a_step_time_that_is_none_is_refused_by_name(point: object, said: str) -> None:
    document = json.loads(Load(1, 0, 1, 0, 0.5, 10, 0, 0, 0, 1, "bitwise", False).to_json())
    with pytest.raises(ValueError, match=f"^Load: step_times {said}$"):
        Load.from_json(json.dumps(document | {"step_times": [point]}))


@pytest.mark.parametrize("shape", [None, [], "small", {"layers": "2"}, {"kv_heads": 0}])
def test_facts_whose_shape_is_none_are_refused(shape: object) -> None:
    whole = ModelShape("LlamaForCausalLM", 1000, 2, 8, 2, 1, 4, 100, 64, "float32")
    document = json.loads(ModelInfo(whole, "sha256:00", None, 4000).to_json())
    wrong = document["shape"] | shape if isinstance(shape, dict) else shape
    with pytest.raises(ValueError, match=r"cannot be|expected an object"):
        ModelInfo.from_json(json.dumps(document | {"shape": wrong}))
