"""What the operator writes into a pod is what `turbo serve` reads."""

from __future__ import annotations

import dataclasses

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from turbo_runtime.contract.config import RuntimeConfig

WORDS = st.text(st.characters(codec="utf-8", exclude_categories=["Cs", "Cc"]), min_size=1, max_size=20)
SECONDS = st.floats(0, 1e6)
NAMES = st.from_regex(r"[A-Za-z0-9][-A-Za-z0-9_.:/]{0,9}", fullmatch=True)
MODULES = st.dictionaries(NAMES, WORDS, max_size=8).map(lambda it: tuple(f"{name}={it[name]}" for name in it))
CONFIGS = st.builds(
    RuntimeConfig,
    model=WORDS.filter(lambda model: not model.startswith("-")),
    revision=st.none() | WORDS,
    served_model_name=st.none() | WORDS,
    host=WORDS,
    port=st.integers(0, 65535),
    device=st.sampled_from(["auto", "cpu", "cuda"]),
    dtype=st.sampled_from(["auto", "float32", "bfloat16"]),
    lora_modules=MODULES,
    threads=st.none() | st.integers(1, 512),
    tensor_parallel_size=st.integers(1, 64),
    gpu_memory_utilization=st.floats(0, 1, exclude_min=True),
    guarantee=st.sampled_from(["auto", "bitwise", "distribution"]),
    max_model_len=st.none() | st.integers(1, 1 << 20),
    max_num_seqs=st.integers(1, 4096),
    max_queued_requests=st.integers(1, 4096),
    max_queued_prompt_tokens=st.integers(1, 1 << 30),
    max_num_batched_tokens=st.integers(1, 1 << 16),
    kv_cache_gib=st.none() | st.floats(1e-3, 1e4),
    speculation=st.sampled_from(["auto", "suffix", "off"]),
    max_draft_tokens=st.integers(0, 64),
    audit_fraction=st.floats(0, 1),
    api_key_file=st.none() | WORDS,
    draft_config=st.none() | WORDS,
    draft_model=st.none() | WORDS,
    draft_device=st.none() | st.sampled_from(["auto", "cpu", "cuda", "cuda:1"]),
    capture_config=st.none() | WORDS,
    request_timeout_seconds=st.floats(1e-3, 1e6),
    step_timeout_seconds=st.floats(1, 1e6),
    max_connections=st.integers(1, 1 << 16),
    connection_seconds=SECONDS,
    drain_timeout_seconds=SECONDS,
    shutdown_delay_seconds=SECONDS,
)


@given(config=CONFIGS)
def test_a_configuration_survives_the_way_through_argv(config: RuntimeConfig) -> None:
    if config.lora_modules:
        config = dataclasses.replace(config, tensor_parallel_size=1)
    assume(config.problem() is None)
    assert RuntimeConfig.from_argv(config.to_argv()) == config


def test_every_field_is_drawn_above() -> None:
    assert {field.name for field in dataclasses.fields(RuntimeConfig)} == set(CONFIGS.wrapped_strategy.kwargs)


def test_defaults_are_left_out_so_that_new_ones_change_no_old_pod() -> None:
    assert RuntimeConfig("m").to_argv() == ["m"]
    assert RuntimeConfig("m", step_timeout_seconds=60.0).to_argv() == ["m"]
    assert RuntimeConfig("m", port=1).to_argv() == ["m", "--port=1"]


@pytest.mark.parametrize(
    ("argv", "flag"),
    [
        (["m", "--port=65536"], "--port"),
        (["m", "--port=x"], "--port"),
        (["m", "--max-num-seqs=0"], "--max-num-seqs"),
        (["m", "--max-queued-requests=0"], "--max-queued-requests"),
        (["m", "--max-queued-prompt-tokens=0"], "--max-queued-prompt-tokens"),
        (["m", "--max-num-batched-tokens=0"], "--max-num-batched-tokens"),
        (["m", "--request-timeout-seconds=0"], "--request-timeout-seconds"),
        (["m", "--connection-seconds=-1"], "--connection-seconds"),
        (["m", "--step-timeout-seconds=0.9"], "--step-timeout-seconds"),
        (["m", "--step-timeout-seconds=inf"], "--step-timeout-seconds"),
        (["m", "--api-key-file="], "--api-key-file"),
        (["m", "--threads=0"], "--threads"),
        (["m", "--max-model-len=-1"], "--max-model-len"),
        (["m", "--kv-cache-gib=nan"], "--kv-cache-gib"),
        (["m", "--kv-cache-gib=inf"], "--kv-cache-gib"),
        (["m", "--max-draft-tokens=65"], "--max-draft-tokens"),
        (
            ["m", "--audit-fraction=1.01"],
            "--audit-fraction must lie between 0 and 1",
        ),
        (["m", "--audit-fraction=-0.1"], "--audit-fraction"),
        (["m", "--gpu-memory-utilization=0"], "--gpu-memory-utilization must be above 0 and at most 1"),
        (["m", "--gpu-memory-utilization=1.1"], "--gpu-memory-utilization"),
        (["m", "--audit-fraction=nan"], "--audit-fraction"),
        (["m", "--drain-timeout-seconds=-1"], "--drain-timeout-seconds"),
        (["m", "--shutdown-delay-seconds=nan"], "--shutdown-delay-seconds"),
        (["m", "--speculation=maybe"], "--speculation"),
        (["m", "--dtype=int8"], "--dtype"),
        (["m", "--lora-modules=sql"], "--lora-modules"),
        (["m", "--max-run=3"], "--max-run"),
        ([""], "MODEL"),
        ([], "MODEL"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else None,
)
def test_a_wrong_flag_ends_with_status_2_and_is_named(
    argv: list[str], flag: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as ended:
        RuntimeConfig.from_argv(argv)
    assert ended.value.code == 2
    assert flag in capsys.readouterr().err.splitlines()[-1]


def test_help_names_every_flag(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        RuntimeConfig.from_argv(["--help"])
    assert ended.value.code == 0
    text = capsys.readouterr().out
    for field in dataclasses.fields(RuntimeConfig)[1:]:
        assert f"--{field.name.replace('_', '-')} " in text
