"""The runner for GPUs, on a CPU: what it computes, how often it waits for the device, and how its steps are
filled up. Whatever else holds of both runners is shown where it holds (`turbo_dev.runners`).
"""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from transformers import AutoModelForCausalLM, Gemma3TextConfig, PreTrainedModel

from turbo_dev import host_syncs
from turbo_dev.drafting import EveryDraft
from turbo_dev.runners import capture_on_host
from turbo_dev.tiny_engine import VOCABULARY, WANTED, network
from turbo_dev.varlen_reference import varlen_attn_out
from turbo_runtime.contract.config import GPU_LIMITS
from turbo_runtime.drafters.proposer import Proposer
from turbo_runtime.engine.loop import Engine
from turbo_runtime.engine.scheduler import Scheduler
from turbo_runtime.engine.speculator import Speculator
from turbo_runtime.engine.startup.invariance_check import check_batch_invariance
from turbo_runtime.kv_cache.block_pool import BlockPool
from turbo_runtime.messages import GenerationRequest, SamplingParams
from turbo_runtime.models.attention.metadata import IMPLEMENTATION, register
from turbo_runtime.models.attention.pool import KVCacheSpec
from turbo_runtime.models.attention.varlen import PAGE_SIZE, supports
from turbo_runtime.models.cuda_runner import CudaModelRunner
from turbo_runtime.models.graphs import GRAPH_ROWS, MAX_GRAPH_QUERIES, Capture, Run
from turbo_runtime.models.runner import ModelRunner
from turbo_runtime.models.step_batch import Chunk
from turbo_runtime.models.transfer import download
from turbo_runtime.sampling import dense
from turbo_runtime.sampling.dense import DENSE
from turbo_runtime.sampling.logprobs import score
from turbo_runtime.sampling.noise import Noise
from turbo_runtime.sampling.rows import DrawnRows, RowKernels, Rule, rule_of
from turbo_runtime.sampling.sampler import Sampler
from turbo_runtime.sampling.search import SEARCH

pytestmark = pytest.mark.usefixtures("one_thread")

PAGES, LENGTH = 12, 700
TEXT = [(7 * i + 3) % VOCABULARY for i in range(600)]


@pytest.fixture(scope="module")
def model(one_thread: None) -> CudaModelRunner:
    made = CudaModelRunner(network(positions=LENGTH), blocks=PAGES, max_length=LENGTH, op=varlen_attn_out)
    report = check_batch_invariance(made, max_num_batched_tokens=64, limit_seconds=60)
    assert report.guarantee == "bitwise", report.reason
    return made


def test_a_step_is_as_the_runner_for_cpus_computes_it(model: CudaModelRunner) -> None:
    cpu = ModelRunner(network(positions=LENGTH), blocks=64, max_length=LENGTH)
    expected = cpu.forward([Chunk(TEXT, 0, list(range(38)), 600, 580)])
    first = model.forward([Chunk(TEXT[:300], 0, [4, 2, 9], 300, 580)])
    # then other sequences beside it, and one between whose page is shared by nobody
    rest = model.forward([Chunk([5, 6], 0, [7], 1, 2), Chunk(TEXT[300:], 300, [4, 2, 9], 300, 580)])
    found = torch.cat([first.logits, rest.logits[1:]])
    torch.testing.assert_close(found, expected.logits, atol=1e-4, rtol=1e-4)
    assert first.finite.tolist() == [True]
    assert rest.finite.tolist() == [True, True]


def test_a_window_is_the_one_that_the_runner_for_cpus_has() -> None:
    register()
    config = Gemma3TextConfig(
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=16,
        vocab_size=VOCABULARY,
        max_position_embeddings=LENGTH,
        sliding_window=100,
        layer_types=["sliding_attention", "full_attention"],
        initializer_range=0.4,
    )

    def weights() -> PreTrainedModel:
        torch.manual_seed(1)
        made = AutoModelForCausalLM.from_config(config, attn_implementation=IMPLEMENTATION)
        assert isinstance(made, PreTrainedModel)
        return made.eval().requires_grad_(False)

    cpu = ModelRunner(weights(), blocks=64, max_length=LENGTH)
    cuda = CudaModelRunner(weights(), blocks=PAGES, max_length=LENGTH, op=varlen_attn_out)
    expected = cpu.forward([Chunk(TEXT, 0, list(range(38)), 600, 580)]).logits
    parts = [
        cuda.forward([Chunk(TEXT[start:end], start, [4, 2, 9], end - start, 580)]).logits
        for start, end in ((0, 300), (300, 600))
    ]
    torch.testing.assert_close(torch.cat(parts), expected, atol=1e-4, rtol=1e-4)


def graphs_on_host(capture: Capture = capture_on_host()) -> CudaModelRunner:  # noqa: B008  no state
    return CudaModelRunner(
        network(positions=LENGTH), blocks=PAGES, max_length=LENGTH, op=varlen_attn_out, graphs=lambda: capture
    )


@pytest.fixture(scope="module")
def captured(one_thread: None) -> CudaModelRunner:
    """With the graphs that its proof ran through."""
    made = graphs_on_host()
    report = check_batch_invariance(made, max_num_batched_tokens=64, limit_seconds=60)
    assert report.guarantee == "bitwise", report.reason
    return made


def test_a_step_that_is_filled_up_to_the_size_of_a_graph_has_the_same_bits(
    model: CudaModelRunner, captured: CudaModelRunner
) -> None:
    assert [graph.size.rows for graph in captured.graphs] == [rows for rows in GRAPH_ROWS if rows <= 64]
    chunks = [Chunk(TEXT[500:505], 500, [3, 8, 1], 5, 500), Chunk([9] * 3, 0, [6], 1, 3)]
    eager, replayed = [
        (runner.forward([Chunk(TEXT[:500], 0, [3, 8, 1], 0, 500)]), runner.execute(chunks))[1]
        for runner in (model, captured)
    ]
    assert (eager.lent, replayed.lent) == (False, True)
    assert torch.equal(replayed.logits, eager.logits)
    assert torch.equal(replayed.hidden, eager.hidden)
    assert replayed.finite.tolist() == [True, True]
    # what the larger step left in the table is not read by the next, of one page
    short = [Chunk(TEXT[:7], 0, [5], 7, 7)]
    assert torch.equal(captured.forward(short).logits, model.forward(short).logits)


def test_what_a_pass_returns_outlives_the_next(captured: CudaModelRunner) -> None:
    first = captured.forward([Chunk(TEXT[:9], 0, [3], 1, 9)])
    logits, hidden = first.logits.clone(), first.hidden.clone()
    lent = captured.execute([Chunk(TEXT[:9], 0, [3], 1, 9)])
    owned = lent.owned()
    captured.execute([Chunk(TEXT[50:59], 0, [4], 1, 9)])
    for kept in (first, owned):
        assert torch.equal(kept.logits, logits)
        assert torch.equal(kept.hidden, hidden)
    assert not torch.equal(lent.logits, logits), "what is lent has the next step's rows"


def test_steps_that_no_graph_has_room_for_run_without(captured: CudaModelRunner) -> None:
    captured.forward([Chunk(TEXT[:200], 0, [3], 0, 200)])
    for chunks, layers, is_graph in (
        ([Chunk(TEXT[200:264], 200, [3, 4], 1, 200)], (), True),
        ([Chunk(TEXT[:65], 0, [5], 1, 65)], (), False),  # tokens
        ([Chunk(TEXT[200:203], 200, [3, 4], 1, 200)], (0,), False),  # whose inputs a drafter reads
    ):
        assert captured.execute(chunks, layers).lent == is_graph
    assert [captured.padded_rows(rows) for rows in (1, 17, 64, 65)] == [4, 24, 64, 80]


def test_a_long_piece_of_a_prompt_is_no_graph(one_thread: None) -> None:
    made = graphs_on_host()
    made.capture(512)
    for tokens, is_graph in ((MAX_GRAPH_QUERIES, True), (MAX_GRAPH_QUERIES + 1, False)):
        assert made.execute([Chunk(TEXT[:tokens], 0, [5], 1, tokens)]).lent == is_graph


def test_another_cache_is_not_written_by_the_graphs_of_the_one_before(one_thread: None) -> None:
    made = graphs_on_host()
    made.capture(16)
    made.resize(PAGES - 1, LENGTH)
    assert made.graphs == []
    made.capture(8)
    made.forward([Chunk(TEXT[:3], 0, [5], 1, 3)])
    assert bool(made.pool.keys[0][5, :3].any())


@pytest.mark.parametrize("wrong", [4, 24, 64])
def test_a_graph_that_computes_something_else_is_found_out_by_the_proof(wrong: int) -> None:
    """The proof runs through what serves: every graph, whatever the steps without one give."""
    runs: list[Run] = []

    def capture(run: Run) -> Run:
        runs.append(run)

        def replay() -> None:
            run()
            assert made._outputs is not None
            made._outputs.logits[0] += 1e-5

        return replay if len(runs) == sizes.index(wrong) + 1 else run

    sizes = sorted((rows for rows in GRAPH_ROWS if rows <= 64), reverse=True)
    made = graphs_on_host(capture)
    report = check_batch_invariance(made, max_num_batched_tokens=64, limit_seconds=60)
    assert (report.guarantee, report.reason) == (
        "distribution",
        "the model's logits depend on the number of rows",
    )
    assert len(runs) == 2 * len(sizes), "they are captured again, in the quickest arithmetic"


def test_the_first_chunk_of_a_step_is_checked_over_the_edge_of_a_page() -> None:
    """An op whose bits depend on how many queries a sequence has is found out."""

    def crowded(out: Tensor, *args: object, **rest: object) -> None:
        varlen_attn_out(out, *args, **rest)  # type: ignore[arg-type]
        out *= 1 + 1e-6 * (len(out) > 100)

    made = CudaModelRunner(network(positions=LENGTH), blocks=PAGES, max_length=LENGTH, op=crowded)
    report = check_batch_invariance(made, max_num_batched_tokens=64, limit_seconds=60)
    assert (report.guarantee, report.reason) == (
        "distribution",
        "the model's logits depend on the number of rows",
    )


@pytest.mark.parametrize(
    ("shape", "dtype", "supported"),
    [
        (KVCacheSpec(32, 8, 128, 128), torch.bfloat16, True),
        (KVCacheSpec(32, 8, 128, 128), torch.float32, False),
        (KVCacheSpec(32, 8, 128, 64), torch.bfloat16, False),
        (KVCacheSpec(16, 1, 576, 512, latent=True), torch.bfloat16, False),
        (KVCacheSpec(8, 8, 128, 128, sinks=True), torch.bfloat16, False),
        (KVCacheSpec(8, 8, 128, 128, windows=(128, 0)), torch.bfloat16, True),
        (KVCacheSpec(8, 8, 260, 260), torch.bfloat16, False),
        (KVCacheSpec(8, 8, 100, 100), torch.float16, False),
    ],
)
def test_what_the_built_in_attention_refuses_goes_another_way(
    shape: KVCacheSpec, dtype: torch.dtype, supported: bool
) -> None:
    assert supports(shape, dtype) == supported
    assert GPU_LIMITS.block_size == PAGE_SIZE  # which the planner counts with
    assert PAGE_SIZE % 256 == 0


@pytest.mark.parametrize("drafts", [0, 4])
def test_a_step_waits_for_the_device_once(model: CudaModelRunner, drafts: int) -> None:
    scheduler = Scheduler(
        BlockPool(PAGES, block_size=PAGE_SIZE),
        max_num_seqs=9,
        max_num_batched_tokens=64,
        max_draft_tokens=drafts,
        max_length=LENGTH,
        shared_tile=model.shared_tile,
    )
    engine = Engine(model, scheduler, Proposer(), control=EveryDraft())
    wanted = [params for params in WANTED if "grammar" not in params]
    for number, params in enumerate(wanted):
        sampling = SamplingParams(**{"max_tokens": 24, **params})
        engine.accept(GenerationRequest(str(number), tuple(TEXT[number : number + 30] * 2), sampling))
    verified = 0
    while not engine.idle:
        with host_syncs.counted() as waits:
            output = engine.step()
        verified += sum(event.drafted for event in output.events)
        assert sum(waits.values()) == 1, waits
    assert bool(verified) == bool(drafts)


@pytest.mark.parametrize("rows", [1, 3])
def test_tensors_of_any_layout_and_type_come_in_one_copy(rows: int) -> None:
    table = torch.arange(20.0 * rows).view(rows, 20)
    tensors = (table[:, 3], torch.arange(rows), table.T[2:4], torch.ones(rows, dtype=torch.bool), table[:0])
    with host_syncs.counted() as waits:
        fetched = download(*tensors)
    assert waits.total() == 1
    for tensor, array in zip(tensors, fetched, strict=True):
        assert torch.equal(torch.from_numpy(array.copy()), tensor)


def test_the_audit_waits_for_its_pass_and_for_its_token(model: CudaModelRunner) -> None:
    scheduler = Scheduler(
        BlockPool(PAGES, block_size=PAGE_SIZE),
        max_num_seqs=2,
        max_num_batched_tokens=64,
        max_draft_tokens=0,
        max_length=LENGTH,
        shared_tile=model.shared_tile,
    )
    engine = Engine(model, scheduler, Proposer(), audit_fraction=1.0)
    params = SamplingParams(temperature=1.0, top_p=0.7, top_k=9, presence_penalty=1.0, max_tokens=12)
    engine.accept(GenerationRequest("a", tuple(TEXT[:20]), params))
    while not engine.idle:
        engine.step()
    most = 0
    while engine.audit.pending:
        with host_syncs.counted() as waits:
            engine.rest()
        most = max(most, waits.total())
    assert most == 2
    assert (engine.stats().audits, engine.stats().audit_mismatches) == (1, 0)


def test_what_the_host_knows_is_prepared_while_the_device_computes(
    model: CudaModelRunner, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A grammar's masks, penalties, and prompts to draft from: between the launch and the copy back."""
    order: list[str] = []

    def noted(name: str, kind: object, method: str) -> None:
        real = getattr(kind, method)

        def call(*args: object, **rest: object) -> object:
            order.append(name)
            return real(*args, **rest)

        monkeypatch.setattr(kind, method, call)

    noted("launch", CudaModelRunner, "execute")
    noted("collect", Sampler, "collect")
    noted("read", Speculator, "read_on")
    noted("fetch", torch.Tensor, "cpu")
    scheduler = Scheduler(
        BlockPool(PAGES, block_size=PAGE_SIZE),
        max_num_seqs=2,
        max_num_batched_tokens=64,
        max_draft_tokens=0,
        max_length=LENGTH,
    )
    engine = Engine(model, scheduler, Proposer())
    params = SamplingParams(temperature=1.0, presence_penalty=1.0, max_tokens=2)
    engine.accept(GenerationRequest("a", tuple(TEXT[:20]), params))
    engine.step()
    engine.step()
    assert order == ["launch", "collect", "read", "fetch"] * 2


NOISES = [Noise(size) for size in (64, 192, 200, 256, 1500)]


@settings(deadline=None, max_examples=300)
@given(st.data())
def test_all_ways_to_draw_give_the_same_tokens(data: st.DataObject) -> None:
    """Ties, forbidden and masked tokens, rows without any and rows that are broken included."""
    rows, noise = data.draw(st.integers(1, 6)), data.draw(st.sampled_from(NOISES))
    size = noise.vocabulary
    generator = torch.Generator().manual_seed(data.draw(st.integers(0, 1 << 30)))
    logits = torch.randn(rows, size, generator=generator) * data.draw(st.sampled_from([0.1, 1.0, 8.0]))
    if data.draw(st.booleans()):
        logits = logits.round()  # many are equal
    for row in range(rows):
        forbidden = data.draw(st.sampled_from([0, 0, size * 3 // 4, size - 1, size]))
        logits[row, torch.randperm(size, generator=generator)[:forbidden]] = -math.inf
    if data.draw(st.integers(0, 5)) == 0:
        logits[0, 3] = math.nan
    drawn = DrawnRows()
    for row in range(rows):
        if data.draw(st.integers(0, 4)):
            key = data.draw(st.integers(-(1 << 63), (1 << 63) - 1))
            drawn.add(row, 1, rule_of(_params(data)), key, data.draw(st.integers(0, 1 << 20)))
            if data.draw(st.booleans()):
                kept = torch.rand(size, generator=generator) < data.draw(st.sampled_from([0.0, 0.02, 0.5]))
                drawn.keep(row, np.packbits(kept.numpy(), bitorder="little"))
    found = [kernels.draw(logits.clone(), drawn, noise).tolist() for kernels in (SEARCH, DENSE)]
    assert found[0] == found[1]


def _params(data: st.DataObject) -> SamplingParams:
    temperature = data.draw(st.sampled_from([0.0, 0.01, 0.7, 1.0, 3.0]))
    if data.draw(st.booleans()):
        return SamplingParams(temperature=temperature)
    return SamplingParams(
        temperature=temperature,
        top_p=data.draw(st.sampled_from([1e-9, 0.1, 0.6, 0.95, 0.9999, 1.0])),
        top_k=data.draw(st.sampled_from([0, 1, 3, 50, 500])),
        min_p=data.draw(st.sampled_from([0.0, 0.02, 0.5, 1.0])),
    )


def test_many_rows_are_masked_and_scored_together_with_the_same_bits(monkeypatch: pytest.MonkeyPatch) -> None:
    logits = torch.randn(40, 270, generator=torch.Generator().manual_seed(1))
    tokens = torch.arange(40) * 6
    for size in (dense._BYTES_AT_ONCE, 8 * 270 * 16):  # all at once, and 16 rows
        monkeypatch.setattr(dense, "_BYTES_AT_ONCE", size)
        for alone, together in zip(
            score(logits, tokens, 3, SEARCH), score(logits, tokens, 3, DENSE), strict=True
        ):
            assert torch.equal(alone, together)
        masked_rows, rows = [*range(1, 38, 2)], DrawnRows()
        rows.add(0, 40, Rule())
        forbidden = torch.rand(len(masked_rows), 270, generator=torch.Generator().manual_seed(2)) < 0.6
        masks = np.packbits(~forbidden.numpy(), axis=1, bitorder="little")
        for row, mask in zip(masked_rows, masks, strict=True):
            rows.keep(row, mask)
        masked = [logits.clone(), logits.clone()]
        found = [way.draw(masked[n], rows, Noise(270)) for n, way in enumerate((SEARCH, DENSE))]
        assert torch.equal(*found)
        assert torch.equal(*masked)
        assert masked[0][masked_rows].isneginf().sum() == forbidden.sum()
        assert masked[0].isneginf().sum() == forbidden.sum()


@pytest.mark.parametrize("kernels", [SEARCH, DENSE], ids=["search", "dense"])
def test_the_likeliest_are_ranked_by_logit_and_then_by_id(kernels: RowKernels) -> None:
    logits = torch.tensor([[1.0, 3.0, 3.0, 0.0, 2.0], [5.0, -math.inf, -math.inf, 5.0, 5.0]])
    assert kernels.likeliest(logits, 3).tolist() == [[1, 2, 4], [0, 3, 4]]
