"""Laws of the step-time model, over machines, models and loads."""

from __future__ import annotations

import math
from dataclasses import fields, replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from measurements import closed_loop

from turbo_operator.planner.performance import step_time
from turbo_operator.planner.performance.step_time import BY_ENGINE, NAMES, Coefficients, ForwardCost, Machine
from turbo_runtime.contract.documents import ModelShape

RATES = ("bandwidth", "flops", "expert_flops", "attention_flops", "link")


def machine_of(bandwidth: float, flops: float, tensor: int, data: int) -> Machine:
    return Machine(
        bandwidth=bandwidth,
        flops=flops,
        expert_flops=2.0 * flops,
        attention_flops=flops,
        link=math.inf if tensor * data == 1 else bandwidth / 8.0,
        tensor=float(tensor),
        data=float(data),
        coefficients=Coefficients(),
    )


machines = st.builds(
    machine_of,
    st.floats(1e11, 8e12),
    st.floats(1e13, 2.5e15),
    st.sampled_from([1, 2, 8]),
    st.sampled_from([1, 4]),
)
works = st.builds(
    ForwardCost,
    dense_bytes=st.floats(1e8, 1e12),
    expert_bytes=st.floats(1e9, 1e12),
    dense_flops=st.floats(1e8, 1e12),
    expert_flops=st.floats(1e8, 1e11),
    attention_flops=st.floats(1e5, 1e7),
    kv_bytes=st.floats(1e3, 1e6),
    summed_bytes=st.floats(1e4, 3e6),
    layers=st.integers(1, 126).map(float),
    active=st.sampled_from([0.0, 8 / 256, 2 / 8, 1.0]),
    window=st.sampled_from([0.0, 128.0, 4096.0]),
    sliding=st.sampled_from([0.0, 0.5]),
)
rows = st.integers(1, 512).map(float)
drafts = st.integers(0, 64).map(float)
contexts = st.integers(1, 131_072).map(float)
prompts = st.integers(1, 32_768).map(float)
NEARLY = 1.0 + 1e-12


@given(machines, works, rows, drafts, contexts)
def test_more_requests_drafts_or_context_never_make_a_pass_shorter(
    machine: Machine, work: ForwardCost, rows: float, drafts: float, context: float
) -> None:
    here = step_time.decode_seconds(machine, work, rows, drafts, context)
    assert here <= step_time.decode_seconds(machine, work, rows + 1, drafts, context) * NEARLY
    assert here <= step_time.decode_seconds(machine, work, rows, drafts + 1, context) * NEARLY
    assert here <= step_time.decode_seconds(machine, work, rows, drafts, context + 1) * NEARLY


@given(machines, works, prompts)
def test_a_longer_prompt_never_takes_less_time(machine: Machine, work: ForwardCost, prompt: float) -> None:
    here = step_time.prefill_seconds(machine, work, prompt)
    assert here <= step_time.prefill_seconds(machine, work, prompt + 1) * NEARLY


@given(machines, works, prompts, st.integers(1, 64).map(float))
def test_prompts_read_together_take_more_than_one_and_less_than_each_by_itself(
    machine: Machine, work: ForwardCost, prompt: float, number: float
) -> None:
    alone = step_time.prefill_seconds(machine, work, prompt)
    together = step_time.prefill_seconds(machine, work, prompt, number)
    assert alone <= together * NEARLY
    assert together <= number * alone * NEARLY


@given(machines, works, rows, drafts, contexts, prompts, st.sampled_from(RATES), st.floats(1.0, 8.0))
def test_faster_hardware_is_never_slower(
    machine: Machine,
    work: ForwardCost,
    rows: float,
    drafts: float,
    context: float,
    prompt: float,
    rate: str,
    faster: float,
) -> None:
    better = replace(machine, **{rate: faster * getattr(machine, rate)})
    assert step_time.decode_seconds(better, work, rows, drafts, context) <= NEARLY * step_time.decode_seconds(
        machine, work, rows, drafts, context
    )
    assert step_time.prefill_seconds(better, work, prompt) <= NEARLY * step_time.prefill_seconds(
        machine, work, prompt
    )


@given(machines, works, rows, drafts, contexts)
def test_a_pass_takes_no_less_than_any_part_of_its_work(
    machine: Machine, work: ForwardCost, rows: float, drafts: float, context: float
) -> None:
    c, tokens = machine.coefficients, rows * (drafts + 1)
    parts = (
        work.dense_bytes / machine.tensor / machine.bandwidth / c.bandwidth,
        rows * context * work.kv_bytes / machine.bandwidth / c.bandwidth,
        tokens * work.dense_flops / machine.tensor / machine.flops / c.flops,
        tokens * work.expert_flops / machine.tensor / machine.expert_flops / c.expert_flops,
        work.layers * c.layer_seconds,
    )
    assert step_time.decode_seconds(machine, work, rows, drafts, context) * NEARLY >= max(parts)


@given(machines, works, rows, contexts)
def test_a_dense_model_pays_nothing_for_experts(
    machine: Machine, work: ForwardCost, rows: float, context: float
) -> None:
    dense = replace(work, active=0.0, expert_bytes=0.0, expert_flops=0.0)
    dear = replace(machine.coefficients, expert_bandwidth=1e-9, expert_flops=1e-9, expert_layer_seconds=1e9)
    assert step_time.decode_seconds(machine, dense, rows, 0.0, context) == step_time.decode_seconds(
        replace(machine, coefficients=dear), dense, rows, 0.0, context
    )


@given(st.sampled_from([8 / 256, 2 / 8]), st.integers(1, 10_000))
def test_tokens_need_some_experts_and_never_more_than_there_are(active: float, tokens: int) -> None:
    work = ForwardCost(0, 0, 0, 0, 0, 0, 0, 1.0, active, 0, 0)
    share = step_time.distinct(work, float(tokens))
    assert active - 1e-12 <= share <= min(1.0, tokens * active) + 1e-12


@given(
    st.lists(st.tuples(machines, works, rows, drafts, contexts, prompts), min_size=1, max_size=6),
)
def test_arrays_are_told_as_their_elements_are(
    cases: list[tuple[Machine, ForwardCost, float, float, float, float]],
) -> None:
    def column(records: list[object], name: str) -> np.ndarray:
        return np.array([getattr(record, name) for record in records], float)

    of = [list(item) for item in zip(*cases, strict=True)]
    machine = Machine(
        coefficients=Coefficients(),
        **{f.name: column(of[0], f.name) for f in fields(Machine) if f.name != "coefficients"},
    )
    work = ForwardCost(**{f.name: column(of[1], f.name) for f in fields(ForwardCost)})
    decode = step_time.decode_seconds(machine, work, *(np.array(item) for item in of[2:5]))
    prefill = step_time.prefill_seconds(machine, work, np.array(of[5]))
    assert decode == pytest.approx([step_time.decode_seconds(*item[:5]) for item in cases])
    assert prefill == pytest.approx([step_time.prefill_seconds(item[0], item[1], item[5]) for item in cases])


@given(st.floats(1e-3, 1.0), st.floats(1e-3, 1.0), rows, prompts)
def test_accepting_every_token_of_a_plain_pass_is_decoding_without_drafts(
    decode: float, prefill: float, rows: float, answer: float
) -> None:
    plain = closed_loop.time_per_output_token(decode, prefill, rows, answer)
    assert plain == closed_loop.time_per_output_token(decode, prefill, rows, answer, 1.0)
    assert closed_loop.time_per_output_token(decode, prefill, rows, answer, 2.0) < plain
    assert closed_loop.saturated_tokens_per_second(decode, prefill, rows, answer, 2.0) > (
        closed_loop.saturated_tokens_per_second(decode, prefill, rows, answer)
    )


def test_a_pass_worked_out_by_hand() -> None:
    """8B in 16 bits on an H100: 15 GB over 3.12 TB/s, 8 requests of 1,000 tokens, 15 GFLOP a token."""
    shape = ModelShape(
        "LlamaForCausalLM", 8_030_261_248, 32, 4096, 32, 8, 128, 128_256, 131_072, "bfloat16",
        embedding_parameters=525_336_576,
    )  # fmt: skip
    work = step_time.build_work(shape, 2.0 * 7_504_924_672, 0.0, 2.0 * 32 * 8 * 128 * 2)
    coefficients = Coefficients(bandwidth=0.93, flops=0.59, layer_seconds=62e-6)
    machine = Machine(3.35e12, 989e12, 989e12, 989e12, math.inf, 1.0, coefficients)
    read = (15.009849344e9 + 8 * 1000 * 131_072) / (3.35e12 * 0.93)
    computed = 8 * (15.009849344e9 + 4 * 32 * 4096 * 1000) / (989e12 * 0.59)
    actual = step_time.decode_seconds(machine, work, 8.0, 0.0, 1000.0)
    assert actual == pytest.approx(read + computed + 32 * 62e-6)
    assert actual == pytest.approx(7.35e-3, rel=0.01)


def test_few_activations_go_to_every_accelerator_and_many_around_a_ring() -> None:
    work = ForwardCost(0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 80 * 16_384.0, 80.0, 0.0, 0.0, 0.0)
    silent = Coefficients(layer_seconds=0.0, flops=1.0)
    machine = Machine(1e12, 1e15, 1e15, 1e15, 450e9, 8.0, silent)
    few = 2 * 80 * 7 * 100 * 16_384 / 450e9
    assert step_time.decode_seconds(machine, work, 100.0, 0.0, 1.0) == pytest.approx(few)
    size = 1000 * 16_384.0
    many = 2 * 80 * (7 * step_time.WHOLE + 2 * 7 / 8 * (size - step_time.WHOLE)) / 450e9
    assert step_time.decode_seconds(machine, work, 1000.0, 0.0, 1.0) == pytest.approx(many)


@pytest.mark.parametrize("engine", sorted(BY_ENGINE))
def test_what_ships_is_a_share_of_what_there_is(engine: str) -> None:
    shipped = BY_ENGINE[engine]
    for name in NAMES:
        value = getattr(shipped, name)
        assert 0.0 < value <= (0.01 if name.endswith("seconds") else 1.0)
