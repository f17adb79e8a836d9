"""The engine on tiny random models: what transformers says, in any company and under any pressure."""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable, Sequence

import pytest
import torch
from transformers import (
    AutoModelForCausalLM,
    DeepseekV3Config,
    Gemma3TextConfig,
    GptOssConfig,
    LlamaConfig,
    MistralConfig,
    MixtralConfig,
    Phi3Config,
    PreTrainedConfig,
    PreTrainedModel,
    Qwen2Config,
    Qwen3Config,
    Qwen3MoeConfig,
)

from turbo_dev.drafting import EveryDraft, NoDraft, RandomDrafts
from turbo_dev.tiny_engine import DeviceRunner
from turbo_runtime.drafters.proposer import Proposer
from turbo_runtime.engine.loop import Engine
from turbo_runtime.engine.scheduler import Scheduler
from turbo_runtime.engine.startup import invariance_check
from turbo_runtime.engine.startup.invariance_check import check_batch_invariance
from turbo_runtime.kv_cache.block_pool import BlockPool
from turbo_runtime.messages import Abort, GenerationRequest, SamplingParams
from turbo_runtime.models.attention.metadata import IMPLEMENTATION, register
from turbo_runtime.models.matmul import padded_rows
from turbo_runtime.models.runner import ModelRunner
from turbo_runtime.sampling.sampler import Sampler
from turbo_runtime.speculation.controller import GoodputController

SIZES = {
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "vocab_size": 61,
    "max_position_embeddings": 256,
}
SLIDING = ["sliding_attention", "full_attention"]
CONFIGS: dict[str, Callable[[], PreTrainedConfig]] = {
    "llama": lambda: LlamaConfig(**SIZES),
    "qwen2": lambda: Qwen2Config(**SIZES),
    "qwen3": lambda: Qwen3Config(**SIZES, head_dim=8),
    "mistral, sliding": lambda: MistralConfig(**SIZES, sliding_window=48),
    "mixtral": lambda: MixtralConfig(**SIZES, num_local_experts=4),
    "qwen3 with experts": lambda: Qwen3MoeConfig(
        **SIZES, head_dim=8, num_experts=8, num_experts_per_tok=2, moe_intermediate_size=16
    ),
    "phi3": lambda: Phi3Config(**SIZES, pad_token_id=0),
    "gemma 3": lambda: Gemma3TextConfig(**SIZES, head_dim=8, sliding_window=32, layer_types=SLIDING),
    "gpt-oss": lambda: GptOssConfig(
        **SIZES,
        head_dim=16,
        num_local_experts=4,
        num_experts_per_tok=2,
        sliding_window=20,
        layer_types=SLIDING,
    ),
    "deepseek v3": lambda: DeepseekV3Config(
        **{**SIZES, "num_key_value_heads": 4},
        q_lora_rank=16,
        kv_lora_rank=24,
        qk_rope_head_dim=8,
        qk_nope_head_dim=8,
        v_head_dim=8,
        first_k_dense_replace=1,
        moe_intermediate_size=16,
        n_routed_experts=8,
        num_experts_per_tok=2,
        n_group=4,
        topk_group=2,
    ),
}
LENGTH = 200
WHOLE = (
    "llama",
    "qwen2",
    "qwen3",
    "deepseek v3",
    "gpt-oss",
)  # between them all that attention and experts do
ON_DEVICES = ("llama", "deepseek v3", "gpt-oss")


pytestmark = pytest.mark.usefixtures("one_thread")


def network(name: str, implementation: str) -> PreTrainedModel:
    """The same random weights at every call; a wide initialisation, so that tokens are no near-ties."""
    register()
    config = CONFIGS[name]()
    config.initializer_range = 0.4
    torch.manual_seed(1)
    model = AutoModelForCausalLM.from_config(config, attn_implementation=implementation, dtype=torch.float32)
    assert isinstance(model, PreTrainedModel)
    return model.eval().requires_grad_(False)


@pytest.fixture(
    scope="module",
    params=[*((name, ModelRunner) for name in WHOLE), *((name, DeviceRunner) for name in ON_DEVICES)],
    ids=[*WHOLE, *(f"{name} on a device" for name in ON_DEVICES)],
)
def paged(request: pytest.FixtureRequest) -> tuple[str, ModelRunner]:
    name, runner = request.param
    return name, checked(name, runner)


def checked(name: str, runner: type[ModelRunner] = ModelRunner) -> ModelRunner:
    model = runner(network(name, IMPLEMENTATION), blocks=64, max_length=LENGTH)
    report = check_batch_invariance(model, max_num_batched_tokens=64, limit_seconds=60)
    assert report.guarantee == "bitwise", report.reason
    return model


def engine(
    model: ModelRunner,
    *,
    blocks: int = 64,
    step_tokens: int = 64,
    drafts: int = 8,
    running: int = 8,
    control: GoodputController | None = None,
) -> Engine:
    scheduler = Scheduler(
        BlockPool(blocks),
        max_num_seqs=running,
        max_num_batched_tokens=step_tokens,
        max_draft_tokens=drafts,
        max_length=min(LENGTH, blocks * 16),
    )
    return Engine(model, scheduler, Proposer(), control=EveryDraft() if control is None else control)


def ask(number: int, prompt: Sequence[int], tokens: int = 40, **params: object) -> GenerationRequest:
    wanted = {"temperature": 0.0, "max_tokens": tokens, **params}
    return GenerationRequest(f"r{number}", tuple(prompt), SamplingParams(**wanted))  # type: ignore[arg-type]


def run(server: Engine, requests: Sequence[GenerationRequest]) -> dict[str, list[int]]:
    for request in requests:
        server.accept(request)
    answers: dict[str, list[int]] = {request.request_id: [] for request in requests}
    while not server.idle:
        for event in server.step().events:
            assert event.error is None
            answers[event.request_id].extend(event.tokens)
    return answers


def prompts(count: int) -> list[list[int]]:
    generator = torch.Generator().manual_seed(2)
    lengths = torch.randint(1, 90, (count,), generator=generator).tolist()
    return [torch.randint(0, 61, (length,), generator=generator).tolist() for length in lengths]


def test_greedy_answers_are_those_of_transformers(paged: tuple[str, ModelRunner]) -> None:
    require_transformers_answers(*paged)


@pytest.mark.parametrize("name", sorted({*CONFIGS} - {*WHOLE}))
def test_other_families_answer_as_transformers_does_and_the_same_in_any_company(name: str) -> None:
    model, alone = checked(name), dict[str, list[int]]()
    require_transformers_answers(name, model)
    for request in mixed(method="off"):
        alone |= run(engine(model), [request])
    server = engine(model, step_tokens=33)
    assert run(server, mixed()) == alone
    assert server.scheduler.cache_hits == 0
    assert run(server, mixed()) == alone
    assert server.scheduler.cache_hits > 0


def require_transformers_answers(name: str, model: ModelRunner) -> None:
    reference = network(name, "eager")
    requests = [ask(i, prompt) for i, prompt in enumerate(prompts(6))]
    answers = run(engine(model), requests)
    for request in requests:
        ids = torch.tensor([request.prompt])
        said = reference.generate(
            ids,
            attention_mask=torch.ones_like(ids),
            max_new_tokens=40,
            do_sample=False,
            pad_token_id=0,
            eos_token_id=None,
        )
        assert answers[request.request_id] == said[0, len(request.prompt) :].tolist()


MIXED = [
    {"temperature": 0.0},
    {"temperature": 1.0, "seed": 5},
    {"temperature": 0.7, "seed": 6, "top_p": 0.9},
    {"temperature": 1.3, "seed": 7, "top_k": 20, "presence_penalty": 0.4},
]


def mixed(method: str = "auto") -> list[GenerationRequest]:
    return [
        ask(i, prompt, **MIXED[i % len(MIXED)], draft_method=method) for i, prompt in enumerate(prompts(9))
    ]


@pytest.fixture(scope="module")
def alone(paged: tuple[str, ModelRunner]) -> dict[str, list[int]]:
    """Every answer computed alone, without speculation."""
    torch.set_num_threads(1)
    answers: dict[str, list[int]] = {}
    for request in mixed(method="off"):
        answers |= run(engine(paged[1]), [request])
    return answers


@pytest.mark.parametrize("drafts", [0, 1, 3, 8])
def test_any_number_of_drafts_in_any_company_gives_the_same_tokens(
    paged: tuple[str, ModelRunner], alone: dict[str, list[int]], drafts: int
) -> None:
    assert run(engine(paged[1], drafts=drafts), mixed()) == alone


@pytest.mark.parametrize(
    "control",
    [lambda: GoodputController(None, padded_rows), NoDraft, lambda: RandomDrafts(1), lambda: RandomDrafts(2)],
    ids=["measured", "none", "random", "random otherwise"],
)
def test_any_choice_of_drafts_gives_the_same_tokens(
    paged: tuple[str, ModelRunner], alone: dict[str, list[int]], control: Callable[[], GoodputController]
) -> None:
    choosing = control()
    assert run(engine(paged[1], control=choosing), mixed()) == alone
    assert not choosing._meters  # nothing is kept of requests that ended


@pytest.mark.parametrize("step_tokens", [1, 7, 33])
def test_prompts_in_chunks_of_any_size_give_the_same_tokens(
    paged: tuple[str, ModelRunner], alone: dict[str, list[int]], step_tokens: int
) -> None:
    assert run(engine(paged[1], step_tokens=step_tokens), mixed()) == alone


def test_preempted_and_computed_again_gives_the_same_tokens(
    paged: tuple[str, ModelRunner], alone: dict[str, list[int]]
) -> None:
    server = engine(paged[1], blocks=13)
    assert run(server, mixed()) == alone
    assert server.scheduler.preemptions > 0
    assert server.scheduler.block_pool.num_used == 0


def test_drafts_are_accepted_and_rejected_in_these_tests(paged: tuple[str, ModelRunner]) -> None:
    server = engine(paged[1])
    run(server, mixed())
    stats = server.stats()
    assert 0 < stats.accepted_tokens < stats.draft_tokens
    assert sum(stats.accepted_per_position) == stats.accepted_tokens


def test_a_slow_machine_verifies_the_same_drafts_in_these_tests(
    paged: tuple[str, ModelRunner], monkeypatch: pytest.MonkeyPatch
) -> None:
    def counts() -> tuple[int, int]:
        server = engine(paged[1])
        run(server, mixed())
        return server.stats().draft_tokens, server.stats().accepted_tokens

    expected = counts()
    ticks = itertools.count()
    monkeypatch.setattr(time, "perf_counter", lambda: float(next(ticks)) ** 2)
    assert counts() == expected


def test_a_cancelled_request_changes_nobody_elses_answer(
    paged: tuple[str, ModelRunner], alone: dict[str, list[int]]
) -> None:
    server = engine(paged[1])
    requests = mixed()
    for request in requests:
        server.accept(request)
    answers: dict[str, list[int]] = {request.request_id: [] for request in requests}
    steps = 0
    while not server.idle:
        for event in server.step().events:
            answers[event.request_id].extend(event.tokens)
        steps += 1
        if steps == 3:
            server.accept(Abort("r1"))
            server.accept(Abort("r7"))
            server.accept(Abort("nobody"))
    for number in (0, 2, 3, 4, 5, 6, 8):
        assert answers[f"r{number}"] == alone[f"r{number}"]
    assert len(answers["r1"]) < 40
    assert server.scheduler.block_pool.num_used == 0


def test_a_request_that_breaks_takes_only_itself_down(
    paged: tuple[str, ModelRunner], alone: dict[str, list[int]], monkeypatch: pytest.MonkeyPatch
) -> None:
    real = Sampler.collect

    def failing(law: Sampler, *rest: object) -> int:
        if law.params.top_k == 20:
            raise ArithmeticError("out of luck")
        return real(law, *rest)  # type: ignore[arg-type]

    monkeypatch.setattr(Sampler, "collect", failing)
    server = engine(paged[1])
    for request in mixed():
        server.accept(request)
    answers: dict[str, list[int]] = {}
    errors: dict[str, str] = {}
    while not server.idle:
        for event in server.step().events:
            if event.error:
                errors[event.request_id] = event.error
            answers.setdefault(event.request_id, []).extend(event.tokens)
    assert set(errors) == {"r3", "r7"}
    assert "out of luck" in errors["r3"]
    for number in (0, 1, 2, 4, 5, 6, 8):
        assert answers[f"r{number}"] == alone[f"r{number}"]
    assert server.scheduler.block_pool.num_used == 0


def test_a_prompt_that_is_too_long_is_told_so_and_a_stop_token_ends_an_answer(
    paged: tuple[str, ModelRunner], alone: dict[str, list[int]]
) -> None:
    server = engine(paged[1])
    server.accept(ask(0, [1] * LENGTH))
    (event,) = server.step().events
    assert event.finish_reason == "error"
    assert event.error is not None
    assert "from 1 to 199" in event.error
    stop = alone["r0"][7]
    first = alone["r0"].index(stop)
    answers = run(engine(paged[1]), [ask(0, mixed()[0].prompt, stop_token_ids=frozenset({stop}))])
    assert answers["r0"] == alone["r0"][: first + 1]


@pytest.mark.parametrize("token", [-1, 61])
def test_an_id_that_the_model_does_not_have_fails_its_own_request_alone(
    paged: tuple[str, ModelRunner], alone: dict[str, list[int]], token: int
) -> None:
    server = engine(paged[1])
    server.accept(ask(99, [1, token]))
    server.accept(mixed()[0])
    events = []
    while not server.idle:
        events += server.step().events
    errors = {event.request_id: event.error for event in events if event.error}
    assert errors == {"r99": "token ids must lie between 0 and 60"}
    assert [token for event in events for token in event.tokens] == alone["r0"]


def test_the_check_gives_up_in_time_and_says_why(paged: tuple[str, ModelRunner]) -> None:
    began = time.monotonic()
    report = check_batch_invariance(paged[1], max_num_batched_tokens=64, limit_seconds=0.0)
    assert report.guarantee == "distribution"
    assert "too long" in report.reason
    assert time.monotonic() - began < 5


def test_what_only_makes_it_faster_costs_no_guarantee_where_time_is_short(
    paged: tuple[str, ModelRunner], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(invariance_check, "OPTIONAL_FRACTION", 0.0)
    report = check_batch_invariance(paged[1], max_num_batched_tokens=64, limit_seconds=60)
    assert report.guarantee == "bitwise", report.reason
