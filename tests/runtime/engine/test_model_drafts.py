"""A draft model that is the served model itself guesses every token: whatever its cache, its rollback or its
noise got wrong would be refused. So does the model's own stack of layers.
"""

from __future__ import annotations

import gc
import random
import weakref
from collections.abc import Callable, Sequence
from dataclasses import replace

import pytest
import torch
from torch import Tensor
from transformers import AutoModelForCausalLM, LlamaConfig, Olmo2Config

from turbo_dev.drafting import EveryDraft, RandomDrafts
from turbo_dev.fitting import say
from turbo_dev.tiny_engine import network
from turbo_runtime.drafters.autoregressive import AutoregressiveDrafter
from turbo_runtime.drafters.interface import Drafter, DraftRequest, TokenCandidate
from turbo_runtime.drafters.loader import ActiveDrafts
from turbo_runtime.drafters.model import FirstLayersDrafter, ModelDrafter
from turbo_runtime.drafters.proposer import Guarded, Proposer
from turbo_runtime.engine.loop import Engine
from turbo_runtime.messages import GenerationRequest
from turbo_runtime.models.attention.metadata import IMPLEMENTATION, AttentionMetadata, Rule, register
from turbo_runtime.models.layers.primitives import Hidden
from turbo_runtime.models.runner import Forward, ModelRunner
from turbo_runtime.models.step_batch import Chunk

from .conftest import BLOCKS, LONGEST

MakeEngine = Callable[..., Engine]
Answers = dict[str, list[int]]
FEW_BLOCKS = 14  # the longest sequence may have 13


class Counted(ModelRunner):
    """Counts what it computes."""

    tokens = 0

    def forward(self, chunks: Sequence[Chunk], layers: Sequence[int] = ()) -> Forward:
        self.tokens += sum(len(chunk.tokens) for chunk in chunks)
        return super().forward(chunks, layers)


def itself() -> Counted:
    runner = Counted(network(), blocks=BLOCKS, max_length=LONGEST)
    runner.rule = Rule(exact=False)
    return runner


def drafter_of(kind: str, engine: Engine) -> AutoregressiveDrafter:
    if kind == "layers":
        return FirstLayersDrafter(engine.model, 2, engine.noise)
    return ModelDrafter(itself(), engine.noise)


def answers_of(server: Engine, requests: Sequence[GenerationRequest], problem: str = "") -> Answers:
    for request in requests:
        server.accept(request)
    answers: Answers = {request.request_id: [] for request in requests}
    while not server.idle:
        for event in server.step().events:
            assert event.error is None
            answers[event.request_id].extend(event.tokens)
        server.scheduler.check()
    assert server.speculation.drafters.problem == problem
    return answers


@pytest.fixture(scope="module")
def asked(
    make_engine: MakeEngine, ask: Callable[..., list[GenerationRequest]]
) -> tuple[list[GenerationRequest], Answers]:
    """Greedy and sampled requests, some with equal prompts, and their answers alone and without drafts."""
    wanted = [*ask(0.0)[1::2], *ask(0.8)[::2], ask(0.8)[9]]
    said = {each.request_id: say(make_engine(), [each])[0].tokens for each in wanted}
    # every other answer ends by a token in the midst of it, and so in the midst of a draft
    stops = {name: frozenset({tokens[17]}) for name, tokens in list(said.items())[::2]}
    wanted = [
        replace(each, params=replace(each.params, stop_token_ids=stops.get(each.request_id, frozenset())))
        for each in wanted
    ]
    for name, stop in stops.items():
        end = next(place for place, token in enumerate(said[name]) if token in stop)
        said[name] = said[name][: end + 1]
    return wanted, said


@pytest.mark.parametrize(
    ("kind", "control", "blocks", "step_tokens"),
    [
        ("model", EveryDraft, BLOCKS, 48),
        ("model", RandomDrafts, FEW_BLOCKS, 70),
        ("layers", RandomDrafts, FEW_BLOCKS, 70),
        ("layers", EveryDraft, BLOCKS, 48),
    ],
)
def test_a_draft_of_the_model_itself_is_always_accepted(
    make_engine: MakeEngine,
    asked: tuple[list[GenerationRequest], Answers],
    kind: str,
    control: type[EveryDraft],
    blocks: int,
    step_tokens: int,
) -> None:
    wanted, alone = asked
    drafts = ActiveDrafts("model", model=drafter_of(kind, make_engine()))
    chosen = RandomDrafts(3) if control is RandomDrafts else control()
    server = make_engine(Proposer(drafts), chosen, blocks=blocks, step_tokens=step_tokens)
    assert answers_of(server, wanted) == alone
    stats = server.stats()
    assert stats.accepted_tokens == stats.draft_tokens > 0.3 * stats.generated_tokens
    assert (stats.preemptions > 0) == (blocks == FEW_BLOCKS)
    assert stats.prefix_cache_hits > 0 or blocks == FEW_BLOCKS


def test_it_computes_every_token_once_and_what_was_refused_again(
    make_engine: MakeEngine, asked: tuple[list[GenerationRequest], Answers]
) -> None:
    runner = itself()
    request, tokens = asked[0][9], asked[1][asked[0][9].request_id]
    server = make_engine(Proposer(ActiveDrafts("model", model=ModelDrafter(runner, make_engine().noise))))
    assert answers_of(server, [request])[request.request_id] == tokens
    # the last token, and of a last full draft the one before, are never computed
    most = len(request.prompt) + len(tokens)
    assert most - 8 <= runner.tokens <= most


class Spoiling(Drafter):
    """Puts wrong tokens among the drafts."""

    name = "spoiling"

    def begin(self, requests: Sequence[DraftRequest]) -> None:
        self._count, self._random = len(requests), random.Random(len(requests))

    def next_candidates(self, _best_confidence: Sequence[float]) -> list[TokenCandidate | None]:
        wrong = TokenCandidate(5, 0.89, 0)
        return [wrong if self._random.random() < 0.3 else None for _ in range(self._count)]

    def advance(self, tokens: Sequence[int | None]) -> None:
        """Nothing is remembered."""


@pytest.mark.parametrize("kind", ["model", "layers"])
def test_behind_refused_drafts_of_others_its_guesses_are_right_again(
    make_engine: MakeEngine,
    asked: tuple[list[GenerationRequest], Answers],
    kind: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    wanted, alone = asked
    drafter = drafter_of(kind, make_engine())
    monkeypatch.setattr(drafter, "confidence", lambda *_: 0.8)
    results: list[bool] = []
    monkeypatch.setattr(drafter, "learn", lambda _, accepted: results.append(accepted))
    proposer = Proposer(ActiveDrafts("auto", model=drafter))
    proposer._guards[0] = Guarded(Spoiling())
    server = make_engine(proposer, RandomDrafts(7), step_tokens=70)
    assert answers_of(server, wanted) == alone
    stats = server.stats()
    assert 0 < stats.accepted_tokens < stats.draft_tokens
    assert len(results) > 200
    assert all(results)


def test_what_an_equal_prompt_has_computed_is_not_computed_again(
    make_engine: MakeEngine, asked: tuple[list[GenerationRequest], Answers]
) -> None:
    runner = itself()
    request = asked[0][9]
    server = make_engine(Proposer(ActiveDrafts("model", model=ModelDrafter(runner, make_engine().noise))))
    answers_of(server, [request])
    before = runner.tokens
    second = replace(request, request_id="second")
    assert answers_of(server, [second])["second"] == asked[1][request.request_id]
    tile = server.model.shared_tile
    whole = len(request.prompt) // tile * tile
    assert runner.tokens - before <= before - whole
    runner.tokens = 0
    answers_of(server, [replace(request, request_id="third", tenant="another")])
    assert runner.tokens >= len(request.prompt), "another tenant's time must not tell what was said here"


def test_a_draft_that_comes_while_answers_run_catches_up(
    make_engine: MakeEngine, asked: tuple[list[GenerationRequest], Answers], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("turbo_runtime.drafters.model._CATCH_UP", 40)
    wanted, alone = asked
    drafters = Proposer(ActiveDrafts("model"))
    server = make_engine(drafters)
    for request in wanted:
        server.accept(request)
    events = [event for _ in range(9) for event in server.step().events]
    assert server.stats().drafts == 0
    drafters._use(ActiveDrafts("model", model=drafter_of("model", server)))
    while not server.idle:
        events += server.step().events
    answers: Answers = {request.request_id: [] for request in wanted}
    for event in events:
        answers[event.request_id].extend(event.tokens)
    assert answers == alone
    stats = server.stats()
    assert stats.accepted_tokens == stats.draft_tokens > 100


@pytest.mark.parametrize("kind", ["model", "layers"])
def test_a_draft_that_fails_in_the_midst_of_a_pass_is_left_out_and_spoils_nothing(
    make_engine: MakeEngine, asked: tuple[list[GenerationRequest], Answers], kind: str
) -> None:
    wanted, alone = asked
    drafter = drafter_of(kind, make_engine())
    runner = drafter._runner  # type: ignore[attr-defined]
    hidden, passes = runner.decoder.hidden, 0

    def failing(tokens: Tensor, step: AttentionMetadata, layers: Sequence[int]) -> Hidden:
        nonlocal passes
        passes += 1
        if passes > 30:
            pool = runner.pool
            nothing = torch.full((step.tokens, pool.kv_heads, pool.key_width), torch.nan)
            pool.write(0, step._slots[: step.tokens], nothing, nothing)
            raise MemoryError("in the second layer")
        result: Hidden = hidden(tokens, step, layers)
        return result

    runner.decoder.hidden = failing
    proposer = Proposer(ActiveDrafts("auto", model=drafter))
    server = make_engine(proposer)
    assert answers_of(server, wanted, "the drafter model failed: MemoryError: in the second layer") == alone


@pytest.mark.parametrize("kind", [LlamaConfig, Olmo2Config])
def test_the_first_layers_are_a_model_of_so_many_and_leave_the_whole_as_it_was(
    kind: type[LlamaConfig],
) -> None:
    sizes = network().config.to_dict()
    register()
    torch.manual_seed(1)
    model = AutoModelForCausalLM.from_config(
        kind(**{**sizes, "num_hidden_layers": 3}), attn_implementation=IMPLEMENTATION
    )
    runner = ModelRunner(model.eval().requires_grad_(False), blocks=4, max_length=64)
    chunk = [Chunk(list(range(1, 30)), 0, [0, 1], 3, 29)]
    whole = runner.forward(chunk).logits
    stored = [keys.clone() for keys in runner.pool.keys]
    (entering,) = torch.unbind(runner.forward([chunk[0]._replace(logit_rows=29)], (2,)).streams[None])
    first = runner.first_layers(2).forward(chunk)
    assert all(torch.equal(now, before) for now, before in zip(runner.pool.keys, stored, strict=True))
    norm = model.get_decoder().norm
    torch.testing.assert_close(first.hidden, norm(entering[-3:]))
    assert torch.equal(runner.forward(chunk).logits, whole)


@pytest.mark.parametrize("kind", [LlamaConfig, Olmo2Config])
def test_the_weights_of_a_draft_model_go_with_the_last_who_knows_it(kind: type[LlamaConfig]) -> None:
    """Those of a draft that is replaced, too: the heap that an engine starts with is not collected."""
    register()
    model = AutoModelForCausalLM.from_config(
        kind(**network().config.to_dict()), attn_implementation=IMPLEMENTATION
    )
    runner = ModelRunner(model.eval().requires_grad_(False), blocks=4, max_length=64)
    weights = [weakref.ref(product._stored) for product in runner.decoder.products()]
    gc.collect()
    gc.disable()
    try:
        del model, runner
        assert [weight() for weight in weights if weight() is not None] == []
    finally:
        gc.enable()
