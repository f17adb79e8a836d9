"""LoRA adapters in the engine: what a model with merged weights says, in any company and with any drafts."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from transformers import AutoModelForCausalLM, Olmo2Config, PreTrainedModel

from turbo_dev import lora
from turbo_dev.drafting import EveryDraft, RandomDrafts
from turbo_dev.runners import RUNNERS
from turbo_runtime.drafters.loader import ActiveDrafts
from turbo_runtime.drafters.model import FirstLayersDrafter
from turbo_runtime.drafters.proposer import Proposer
from turbo_runtime.engine.loop import Engine
from turbo_runtime.engine.scheduler import Scheduler
from turbo_runtime.engine.startup import invariance_check
from turbo_runtime.engine.startup.invariance_check import check_adapters, check_batch_invariance
from turbo_runtime.kv_cache.block_pool import BlockPool
from turbo_runtime.messages import GenerationRequest, SamplingParams
from turbo_runtime.models.adapters import read_adapter
from turbo_runtime.models.attention.metadata import IMPLEMENTATION, register
from turbo_runtime.models.layers.lora import Adapter, LowRankProduct
from turbo_runtime.models.matmul import BatchInvariantLinear, MatmulKernel
from turbo_runtime.models.runner import ModelRunner
from turbo_runtime.models.step_batch import Chunk
from turbo_runtime.speculation.controller import GoodputController

from .test_tiny_models import CONFIGS, LENGTH, run

pytestmark = pytest.mark.usefixtures("one_thread")
BLOCKS, TOKENS, CPU = 96, 32, torch.device("cpu")
FAMILIES = {
    **CONFIGS,
    "olmo 2": lambda: Olmo2Config(
        **{key: value for key, value in CONFIGS["llama"]().to_dict().items() if key in SIZES}
    ),
}
SIZES = (
    "hidden_size",
    "intermediate_size",
    "num_hidden_layers",
    "num_attention_heads",
    "num_key_value_heads",
    "vocab_size",
    "max_position_embeddings",
)
SERVED = sorted({*FAMILIES} - {"deepseek v3"})


def network(family: str, implementation: str = IMPLEMENTATION) -> PreTrainedModel:
    """The same random weights at every call."""
    register()
    config = FAMILIES[family]()
    config.initializer_range, config.tie_word_embeddings = 0.4, False  # else the last token is repeated
    torch.manual_seed(1)
    model = AutoModelForCausalLM.from_config(config, attn_implementation=implementation, dtype=torch.float32)
    assert isinstance(model, PreTrainedModel)
    return model.eval().requires_grad_(False)


def write(folder: Path, family: str = "llama") -> list[Path]:
    """Three adapters: of all projections, of some with a scale of its own, and of ranks by pattern."""
    model = network(family, "eager")
    every = lora.modules_of(model)
    some = lora.modules_of(model, ("q_proj", "qkv_proj", "o_proj", "down_proj"), [1])
    ranks = {"rank_pattern": {"o_proj": 5, "layers.1.self_attn.v_proj": 1}, "alpha_pattern": {"o_proj": 9}}
    return [
        lora.write(folder / "all", every, rank=4, scale=0.02),
        lora.write(folder / "some", some, rank=3, scale=0.05, seed=8, lora_alpha=5, use_rslora=True),
        lora.write(folder / "ranks", every, rank=2, scale=0.03, seed=9, lora_alpha=3, **ranks),
    ]


def read(folders: Sequence[Path]) -> list[Adapter]:
    return [read_adapter(folder.name, str(folder), "tiny", torch.float32, CPU) for folder in folders]


def build(runner: str, family: str, folders: Sequence[Path]) -> ModelRunner:
    model = RUNNERS[runner](network(family), blocks=BLOCKS, max_length=LENGTH, adapters=read(folders))
    report = check_batch_invariance(model, max_num_batched_tokens=64, limit_seconds=120)
    assert report.guarantee == "bitwise", report.reason
    return model


def serve(
    model: ModelRunner,
    control: GoodputController | None = None,
    *,
    blocks: int = BLOCKS,
    step_tokens: int = 64,
    drafts: ActiveDrafts | None = None,
    audit: float = 0.0,
) -> Engine:
    scheduler = Scheduler(
        BlockPool(blocks),
        max_num_seqs=8,
        max_num_batched_tokens=step_tokens,
        max_draft_tokens=6,
        max_length=min(LENGTH, blocks * 16),
        shared_tile=model.shared_tile,
    )
    proposer = Proposer(drafts) if drafts else Proposer()
    return Engine(model, scheduler, proposer, control=control or EveryDraft(), audit_fraction=audit)


def asked(adapters: int, temperatures: Sequence[float] = (0.0, 0.9)) -> list[GenerationRequest]:
    """Of every adapter and of the model itself equal prompts, shorter and longer than a tile."""
    generator = torch.Generator().manual_seed(3)
    requests = []
    for number, length in enumerate((5, 23, 70, 131)):
        prompt = tuple(torch.randint(0, 61, (length,), generator=generator).tolist())
        for lora_id in range(adapters + 1):
            heat = temperatures[(number + lora_id) % len(temperatures)]
            params = SamplingParams(temperature=heat, seed=number, max_tokens=TOKENS)
            name = f"{length} by {lora_id}"
            requests.append(GenerationRequest(name, prompt, params, lora_id=lora_id))
    return requests


def off(request: GenerationRequest) -> GenerationRequest:
    return replace(request, params=replace(request.params, draft_method="off"))


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    return write(tmp_path_factory.mktemp("adapters"))


@pytest.fixture(scope="module", params=RUNNERS)
def adapted(request: pytest.FixtureRequest, one_thread: None, folders: list[Path]) -> ModelRunner:
    return build(request.param, "llama", folders)


@pytest.fixture(scope="module")
def alone(adapted: ModelRunner) -> dict[str, list[int]]:
    """Every answer, computed alone and without drafts."""
    answers = dict[str, list[int]]()
    for request in asked(3):
        answers |= run(serve(adapted), [off(request)])
    return answers


@pytest.mark.parametrize("family", SERVED)
def test_adapters_of_every_family_answer_as_merged_weights_do_and_beside_one_another(
    tmp_path: Path, family: str
) -> None:
    folders = write(tmp_path, family)
    requests = asked(3, (0.0,))
    answers = run(serve(build("cpu", family, folders)), requests)
    for lora_id, folder in enumerate([None, *folders]):
        reference = network(family, "eager")
        if folder is not None:
            lora.merge(reference, folder)
        for request in requests[lora_id::4]:
            ids = torch.tensor([request.prompt])
            said = reference.generate(
                ids,
                attention_mask=torch.ones_like(ids),
                max_new_tokens=TOKENS,
                do_sample=False,
                pad_token_id=0,
                eos_token_id=None,
            )
            assert answers[request.request_id] == said[0, len(request.prompt) :].tolist()
    assert len({tuple(answers[f"70 by {number}"]) for number in range(4)}) == 4


def test_the_model_itself_keeps_its_bits_where_there_are_adapters(adapted: ModelRunner) -> None:
    bare = type(adapted) is ModelRunner
    plain = RUNNERS["cpu" if bare else "cuda"](network("llama"), blocks=BLOCKS, max_length=LENGTH)
    check_batch_invariance(plain, max_num_batched_tokens=64, limit_seconds=120)
    tokens = list(range(60))
    table, mate = [0, 1, 2, 3], [4, 5, 6, 7]
    expected = plain.forward([Chunk(tokens, 0, table, 60, 50)])
    for lora_id in (1, 2, 3):
        found = adapted.forward([Chunk(tokens, 0, mate, 9, 50, lora_id), Chunk(tokens, 0, table, 60, 50)])
        assert torch.equal(found.logits[9:], expected.logits)
        assert torch.equal(found.hidden[9:], expected.hidden)
        assert not torch.equal(found.logits[:9], expected.logits[-9:])


@settings(
    max_examples=40,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
    derandomize=True,
)
@given(data=st.data())
def test_a_row_has_the_same_bits_whatever_is_beside_it(adapted: ModelRunner, data: st.DataObject) -> None:
    """Any mix of adapters, of pieces of a prompt and of single rows, in any order."""
    draw = data.draw
    tokens = [(11 * place) % 61 for place in range(90)]
    chunks, wanted = list[Chunk](), list[tuple[int, int, int]]()
    for place in range(draw(st.integers(1, 5))):
        lora_id, start = draw(st.integers(0, 3)), draw(st.integers(0, 80))
        count = draw(st.integers(1, 90 - start))
        table = list(range(place * 6, place * 6 + 6))
        if start:
            adapted.forward([Chunk(tokens[:start], 0, table, 0, 80, lora_id)])
        rows = draw(st.integers(1, count))
        chunks.append(Chunk(tokens[start : start + count], start, table, rows, 80, lora_id))
        wanted.append((lora_id, start + count, rows))
    logits = adapted.forward(chunks).logits.clone()
    first = 0
    for lora_id, end, rows in wanted:
        whole = adapted.forward([Chunk(tokens, 0, list(range(40, 46)), 90, 80, lora_id)]).logits
        assert torch.equal(logits[first : first + rows], whole[end - rows : end])
        first += rows


@pytest.mark.parametrize(
    ("control", "blocks", "step_tokens"),
    [(EveryDraft, BLOCKS, 64), (lambda: RandomDrafts(1), BLOCKS, 33), (lambda: RandomDrafts(2), 14, 7)],
    ids=["every draft", "some", "preempted, in small chunks"],
)
def test_answers_are_the_same_with_drafts_together_and_in_small_caches(
    adapted: ModelRunner,
    alone: dict[str, list[int]],
    control: Callable[[], GoodputController],
    blocks: int,
    step_tokens: int,
) -> None:
    server = serve(adapted, control(), blocks=blocks, step_tokens=step_tokens)
    assert run(server, asked(3)) == alone
    assert run(server, asked(3)) == alone, "from the memory, and from the prefix cache"
    stats = server.stats()
    assert 0 < stats.accepted_tokens < stats.draft_tokens
    assert (server.scheduler.preemptions > 0) == (blocks == 14)
    assert server.scheduler.cache_hits > 0 or blocks == 14


def test_the_first_layers_draft_with_the_adapter(adapted: ModelRunner, alone: dict[str, list[int]]) -> None:
    """All layers, as the first ones of a model of more: every guess is right, of the adapters too."""
    drafter = FirstLayersDrafter(adapted, 2, serve(adapted).noise)
    server = serve(adapted, drafts=ActiveDrafts("model", model=drafter))
    assert run(server, asked(3)) == alone
    assert server.stats().accepted_tokens == server.stats().draft_tokens > 0


def test_no_prefix_is_shared_between_adapters(adapted: ModelRunner) -> None:
    server = serve(adapted)
    longest = [request for request in asked(3) if len(request.prompt) == 131]
    first = [run(server, [request]) for request in longest]
    assert server.scheduler.cache_hits == 0
    assert [run(server, [request]) for request in longest] == first
    tile = adapted.shared_tile
    assert server.scheduler.cache_hits == 4 * (130 // tile * tile)


def test_scopes_of_adapters_tenants_and_salts_are_all_apart() -> None:
    params = SamplingParams()
    made = [
        GenerationRequest("r", (1,), params, tenant=tenant, salt=salt, lora_id=lora_id).scope
        for tenant in ("", "1", "a")
        for salt in ("", "1", "\0", "1\0", "1\0a", "\na", "a\n1\0")
        for lora_id in (0, 1, 11)
    ]
    assert len(set(made)) == len(made)


def test_the_audit_replays_an_answer_with_its_adapter(adapted: ModelRunner) -> None:
    server = serve(adapted, audit=1.0)
    run(server, asked(3))
    while server.audit.pending:
        server.rest()
    assert server.stats().audits == len(asked(3))
    assert server.stats().audit_mismatches == 0


def test_a_request_for_an_adapter_that_is_not_there_fails_alone(adapted: ModelRunner) -> None:
    server = serve(adapted)
    wrong = replace(asked(0)[0], lora_id=4)
    server.accept(wrong)
    (event,) = server.step().events
    assert (event.error, event.refused) == ("there is no adapter 4", "request")


def test_steps_with_adapters_are_no_graphs_and_others_may_be(
    folders: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    class Found(Exception):  # noqa: N818  not an error
        pass

    def find(_size: object) -> None:
        raise Found

    model = build("cuda", "llama", folders)
    monkeypatch.setattr(model, "_find_graph", find)
    with pytest.raises(Found):
        model.execute([Chunk([1, 2], 0, [0], 1, 2)])
    assert model.execute([Chunk([1, 2], 0, [0], 1, 2, 1)]).logits.shape == (1, 61)


def test_the_start_up_check_finds_rows_of_adapters_that_depend_on_their_number(
    folders: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    def add(self: LowRankProduct, x: torch.Tensor, rows: torch.Tensor, out: torch.Tensor) -> None:
        real(self, x, rows, out)
        out[rows] += 1e-3 * len(rows)

    real = LowRankProduct.add
    monkeypatch.setattr(LowRankProduct, "add", add)
    model = ModelRunner(network("llama"), blocks=BLOCKS, max_length=LENGTH, adapters=read(folders[:1]))
    report = check_batch_invariance(model, max_num_batched_tokens=64, limit_seconds=120)
    assert (report.guarantee, "logits depend on the number of rows" in report.reason) == (
        "distribution",
        True,
    )


def test_small_products_are_checked_by_their_own_shapes_and_once_for_adapters_alike(
    folders: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    tried = list[tuple[int, int]]()
    real = invariance_check.find_invariant_kernel

    def find(product: BatchInvariantLinear, deadline: float) -> MatmulKernel:
        tried.append(product.shape)
        return real(product, deadline)

    monkeypatch.setattr(invariance_check, "find_invariant_kernel", find)
    model = build("cpu", "llama", [folders[0], folders[0]])
    assert {(12, 32), (32, 4), (16, 4), (8, 32), (64, 4), (4, 32), (4, 64)} <= {*tried}
    assert len(tried) == len(set(tried))
    passes = list[int]()
    forward = ModelRunner.forward
    monkeypatch.setattr(
        ModelRunner, "forward", lambda self, chunks, *rest: passes.append(1) or forward(self, chunks, *rest)
    )
    check_adapters(model, float("inf"), 50, (20, 20, 10))
    assert len(passes) == 2 + 3
    check_adapters(model, float("inf"), 30, (20, 20, 10))
    assert len(passes) == 2 + 3 + 2 + 2, "of a context shorter than what is tried"
