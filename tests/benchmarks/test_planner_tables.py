"""The planner's benchmark reads rows as their sources mean them: three worked out by hand."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from measurements.endtoend import Times, end_to_end, predicted, throughput
from measurements.fit import Joined, fit
from measurements.saturated import saturated
from measurements.shipping import rounded, to_ship
from measurements.speculative import speculative
from measurements.studies import calibrated, halves, unseen

from turbo_operator.api import EngineName
from turbo_operator.catalog import catalog
from turbo_operator.planner.performance.step_time import BY_ENGINE, Coefficients

DATA = Path(__file__).parents[2] / "benchmarks" / "data"
ACCELERATORS = catalog()
END_TO_END = (
    "backend,model_path,system,precision,mode,isl,osl,batch_size,tp_size,attention_dp_size,moe_tp_size,"
    "moe_ep_size,silicon_ttft_ms,silicon_tpot_ms,concurrency_from_source,model_has_mtp_head\n"
)


def table(folder: Path, text: str) -> Path:
    path = folder / "table.csv"
    path.write_text(text)
    return path


def test_a_dense_row_on_two_accelerators(tmp_path: Path) -> None:
    line = "trtllm,meta-llama/Llama-3.1-70B,h100_sxm,fp8,agg,1024,512,16,2,,1,1,200,20,16,0\n"
    rows, out = end_to_end(table(tmp_path, END_TO_END + line), ACCELERATORS)
    assert rows is not None
    assert not out
    work, machine = rows.work, rows.machine
    # Of 70,553,706,496 weights a table and a head have 128,256 x 8,192 each: the table is not read, the head
    # has 16 bits, the rest 8.
    head = 128_256 * 8192
    assert work.dense_bytes[0] == 70_553_706_496 - 2 * head + 2 * head
    assert work.dense_flops[0] == 2.0 * (70_553_706_496 - head)
    assert work.expert_bytes[0] == 0.0
    # 8 heads of keys and of values over 2 accelerators, 80 layers, 128 elements of 8 bits.
    assert work.kv_bytes[0] == 2 * 4 * 80 * 128
    assert machine.flops[0] == ACCELERATORS["h100"].flops["fp8"]
    assert machine.attention_flops[0] == ACCELERATORS["h100"].flops["bf16"]
    assert machine.link[0] == ACCELERATORS["h100"].interconnect_bandwidth
    assert (machine.tensor[0], machine.data[0], rows.requests[0]) == (2.0, 1.0, 16.0)
    assert throughput(rows, Times(rows.first, rows.token))[0] == pytest.approx(16 * 512 / (0.2 + 512 * 0.02))


def test_a_row_of_groups_that_share_latent_attentions_experts(tmp_path: Path) -> None:
    line = "vllm,moonshotai/Kimi-K2.5,b200_sxm,int4,agg,1024,1024,16,4,4,1,16,200,20,64,0\n"
    rows, _ = end_to_end(table(tmp_path, END_TO_END + line), ACCELERATORS)
    assert rows is not None
    assert (rows.machine.tensor[0], rows.machine.data[0], rows.requests[0]) == (4.0, 4.0, 64.0)
    # A latent of 512 and 64 elements of position, in 16 bits, whole on each accelerator.
    assert rows.work.kv_bytes[0] == 61 * 576 * 2
    # Experts in 4 bits and their scales, all else in 16; 8 of 384 are used by a token.
    assert rows.work.expert_bytes[0] == pytest.approx(1_014_686_023_680 * 0.52)
    assert rows.work.active[0] == 8 / 384
    assert rows.machine.expert_flops[0] == ACCELERATORS["b200"].flops["bf16"]
    # 16 accelerators are two servers.
    assert rows.machine.link[0] == 100e9


def test_a_saturated_row_on_one_accelerator(tmp_path: Path) -> None:
    text = "model,gpu,precision,tp,pp,isl,osl,output_tok_s_total\n"
    line = "LLaMA v3.1 8B,H100-SXM-80GB,FP16,1,1,1000,1000,5000\n"
    rows, _ = saturated(table(tmp_path, text + line), ACCELERATORS)
    assert rows is not None
    # Logits of 2048 requests take 1.05 GB, more than the MLP's three times 14,336 elements of 8192 tokens.
    activations = 8192 * 2 * 4096 * 2 + 2048 * 128_256 * 4
    room = int(0.95 * 80 * 2**30) - 2 * 2**30 - 2 * 8_030_261_248 - activations
    assert rows.requests[0] == pytest.approx(math.floor(room / (131_072 * 2017)), abs=1)
    assert math.isinf(rows.machine.link[0])


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (("agg", "disagg"), "disaggregated"),
        ((",16,0\n", ",16,1\n"), "may speculate"),
        ((",16,0\n", ",64,0\n"), "load not clear"),
        ((",16,0\n", ",,0\n"), "load not clear"),
        (("1024,512,16", "65536,512,16"), "more than memory holds"),
        # 67.7 GiB of weights over two accelerators at 3.35 TB/s: 10.9 ms.
        (("200,20", "200,10"), "faster than memory is read"),
        (("200,20", "200,nan"), "no positive number in silicon_tpot_ms"),
        (("200,20", "0,20"), "no positive number in silicon_ttft_ms"),
        (("fp8,agg,1024,512,16,2", "fp8,agg,1024,512,16,"), "no positive number in tp_size"),
        (("Llama-3.1-70B", "Llama-9"), "model meta-llama/Llama-9 fp8"),
        (("h100_sxm", "z9"), "accelerator z9"),
    ],
)
def test_a_row_that_cannot_be_told_is_counted_with_its_reason(
    tmp_path: Path, change: tuple[str, str], reason: str
) -> None:
    line = "trtllm,meta-llama/Llama-3.1-70B,h100_sxm,fp8,agg,1024,512,16,2,,1,1,200,20,16,0\n"
    rows, out = end_to_end(table(tmp_path, END_TO_END + line.replace(*change)), ACCELERATORS)
    assert rows is None
    assert dict(out) == {reason: 1}


def test_a_table_that_is_not_there_has_no_rows(tmp_path: Path) -> None:
    assert end_to_end(tmp_path / "none.csv", ACCELERATORS)[0] is None
    assert saturated(tmp_path / "none.csv", ACCELERATORS)[0] is None
    assert speculative(tmp_path / "none.csv", ACCELERATORS)[0] is None


def test_the_shipped_tables_are_told_but_for_few_rows() -> None:
    rows, out = end_to_end(DATA / "perf" / "silicon_e2e.csv", ACCELERATORS)
    full, _ = saturated(DATA / "perf" / "trtllm_max_throughput.csv", ACCELERATORS)
    drafting, _ = speculative(DATA / "specdec" / "specdec_measured.csv", ACCELERATORS)
    assert rows is not None
    assert full is not None
    assert drafting is not None
    assert (len(rows), len(drafting)) == (1724, 23)
    assert len(full) >= 558
    assert out == {"load not clear": 40, "more than memory holds": 40, "faster than memory is read": 5}


def test_numbers_may_be_written_with_a_point_and_columns_may_be_missing(tmp_path: Path) -> None:
    line = "trtllm,meta-llama/Llama-3.1-70B,h100_sxm,fp8,agg,1024,512,16.0,2.0,,1.0,1.0,200,20,16.0,0.0\n"
    rows, _ = end_to_end(table(tmp_path, END_TO_END + line), ACCELERATORS)
    assert rows is not None
    assert (rows.machine.tensor[0], rows.requests[0]) == (2.0, 16.0)
    other = END_TO_END.replace("isl", "prompt") + line
    assert end_to_end(table(tmp_path, other), ACCELERATORS) == (None, {"no column isl": 1})
    assert saturated(table(tmp_path, "model\nx\n"), ACCELERATORS) == (None, {"no column gpu": 1})
    some = "acceptance_length,speedup\n2,2\n"
    assert speculative(table(tmp_path, some), ACCELERATORS) == (None, {"no column method": 1})


def test_a_fit_finds_the_coefficients_that_made_the_times() -> None:
    rows, _ = end_to_end(DATA / "perf" / "silicon_e2e.csv", ACCELERATORS)
    assert rows is not None
    made = Coefficients(bandwidth=0.7, flops=0.4, layer_seconds=90e-6, prefill_wait=0.2)
    times = predicted(rows, made)
    found = fit(replace(rows, first=times.first, token=times.token), names=())
    for name, value in found.of("").items():
        assert value == pytest.approx(getattr(made, name), rel=0.02)


def test_the_planner_ships_what_a_fit_to_every_row_finds() -> None:
    rows, _ = end_to_end(DATA / "perf" / "silicon_e2e.csv", ACCELERATORS)
    full, _ = saturated(DATA / "perf" / "trtllm_max_throughput.csv", ACCELERATORS)
    assert rows is not None
    assert full is not None
    common, of_engines = to_ship(Joined(rows, full))
    assert BY_ENGINE[EngineName.TURBO] == common
    assert BY_ENGINE[EngineName.VLLM] == of_engines["vllm"]


def test_what_is_shipped_has_two_digits_and_no_share_above_the_whole() -> None:
    assert rounded("flops", 0.6149) == 0.61
    assert rounded("layer_seconds", 63.6e-6) == 64e-6
    assert rounded("expert_bandwidth", 1.04) == 1.0
    assert rounded("prefill_wait", 1.04) == 1.0
    assert rounded("prefill_wait", 1.06) == 1.1


def test_a_model_whose_window_its_engine_does_not_apply_reads_its_whole_cache(tmp_path: Path) -> None:
    text = "model,gpu,precision,tp,pp,isl,osl,output_tok_s_total\n"
    lines = "".join(
        f"{name},H100-SXM-80GB,FP16,1,1,20000,2000,500\n" for name in ("Mistral 7B", "LLaMA v3.1 8B")
    )
    rows, _ = saturated(table(tmp_path, text + lines), ACCELERATORS)
    assert rows is not None
    assert rows.work.kv_bytes.tolist() == [131_072.0, 131_072.0]  # alike but for the window
    assert rows.work.sliding.tolist() == [0.0, 0.0]


def test_no_configuration_is_on_both_sides_and_no_row_is_told_by_a_fit_that_saw_it() -> None:
    rows, _ = end_to_end(DATA / "perf" / "silicon_e2e.csv", ACCELERATORS)
    assert rows is not None
    names = rows.words["configuration"]
    for on in halves(names, 2):
        assert not set(names[on]) & set(names[~on])
    some = rows.take(np.arange(len(rows)) % 40 == 0)
    on = np.arange(len(some)) % 2 == 0
    errors = unseen(some, iter([on]), fit, lambda of, _: np.ones((len(of), 3)))
    assert np.isnan(errors[on]).all()
    assert (errors[~on] == 1.0).all()


def test_three_points_set_right_what_is_wrong_by_a_factor() -> None:
    rows, _ = end_to_end(DATA / "perf" / "silicon_e2e.csv", ACCELERATORS)
    assert rows is not None
    wrong = Times(2.0 * rows.first, 0.5 * rows.token)
    times, told = calibrated(rows, wrong)
    assert told.sum() > 1000
    assert times.first[told] == pytest.approx(rows.first[told])
    assert times.token[told] == pytest.approx(rows.token[told])
