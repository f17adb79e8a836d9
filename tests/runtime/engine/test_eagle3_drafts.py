"""The EAGLE-3 layer in the engine guesses what it guesses where it is trained, and changes no answer."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor

from turbo_dev.drafting import RandomDrafts
from turbo_dev.eagle3_draft import write
from turbo_dev.fitting import say
from turbo_dev.tiny_engine import VOCABULARY
from turbo_runtime.distill.eagle3 import Eagle3
from turbo_runtime.drafters.eagle3 import Eagle3Drafter, load_eagle3
from turbo_runtime.drafters.interface import DraftRequest
from turbo_runtime.drafters.loader import ActiveDrafts
from turbo_runtime.drafters.proposer import Proposer
from turbo_runtime.drafters.target import Target
from turbo_runtime.engine.loop import Engine
from turbo_runtime.kv_cache.block_pool import blocks_for
from turbo_runtime.messages import GenerationRequest
from turbo_runtime.models.runner import ModelRunner
from turbo_runtime.models.step_batch import Chunk

from .conftest import BLOCKS

MakeEngine = Callable[..., Engine]
LAYERS = (0, 1, 1)  # the tiny model has two
FEW_BLOCKS = 14


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("eagle3")


@pytest.fixture(scope="module")
def trained(tiny_model: ModelRunner, target: Target, folder: Path) -> Eagle3:
    """Written as training does: it drafts two tokens of three."""
    every = torch.arange(VOCABULARY)
    return write(folder, target, tiny_model, every[every % 3 > 0], LAYERS)


@pytest.fixture
def drafter(
    target: Target, tiny_model: ModelRunner, trained: Eagle3, folder: Path, make_engine: MakeEngine
) -> Eagle3Drafter:
    served = replace(target, runner=tiny_model)
    return load_eagle3(folder, served, make_engine().noise)


class Recorded(Proposer):
    """Keeps what the drafter guessed from, and its logits."""

    def __init__(self, drafter: Eagle3Drafter) -> None:
        super().__init__(ActiveDrafts("eagle3"))
        self.drafts = ActiveDrafts("eagle3", eagle3=drafter)
        self.guesses: list[tuple[tuple[int, ...], Tensor]] = []
        guess, requests = drafter.guess, dict[int, list[int]]()

        def recorded(asked: Sequence[DraftRequest], fed: Mapping[int, list[int]]) -> Tensor:
            logits = guess(asked, fed)
            for row, (index, tokens) in enumerate(fed.items()):
                if not tokens:
                    requests[index] = []
                requests[index] += tokens
                text = (len(asked[index].tokens), *asked[index].tokens, *requests[index])
                self.guesses.append((text, logits[row].clone()))
            return logits

        drafter.guess = recorded  # type: ignore[method-assign]


@torch.inference_mode()
def logits_of(model: ModelRunner, draft: Eagle3, text: Sequence[int], known: int, start: int = 0) -> Tensor:
    """The logits (depth, V) of training behind each place from the last known one, where features are known
    from `start` on, and the first of them stand for those before in its block.
    """
    tokens = list(text[:known])
    table = list(range(blocks_for(known, model.pool.block_size)))
    forward = model.forward([Chunk(tokens[:-1], 0, table, 0, known)], LAYERS)
    assert forward.streams is not None
    before = torch.tensor([text[known - 1 :]])
    size = model.pool.block_size
    first = start // size * size
    streams = forward.streams[first:].clone()
    streams[: start - first] = streams[start - first]
    logits: Tensor = draft(streams, torch.tensor(tokens[first + 1 :]), before)[0]
    return logits


def run(server: Engine, requests: Sequence[GenerationRequest]) -> dict[str, list[int]]:
    for request in requests:
        server.accept(request)
    answers = defaultdict[str, list[int]](list)
    while not server.idle:
        for event in server.step().events:
            assert event.error is None
            answers[event.request_id].extend(event.tokens)
    assert server.speculation.drafters.problem == ""
    return answers


@pytest.mark.parametrize(("blocks", "step_tokens"), [(BLOCKS, 48), (FEW_BLOCKS, 70)])
def test_it_guesses_in_the_engine_what_it_guesses_where_it_is_trained(
    make_engine: MakeEngine,
    ask: Callable[..., list[GenerationRequest]],
    tiny_model: ModelRunner,
    drafter: Eagle3Drafter,
    trained: Eagle3,
    blocks: int,
    step_tokens: int,
) -> None:
    wanted = [*ask(0.0)[1::2], *ask(0.8)[::2]]
    alone = {one.request_id: say(make_engine(), [one])[0].tokens for one in wanted}
    recorded = Recorded(drafter)
    recorded._use(recorded.drafts)
    server = make_engine(recorded, RandomDrafts(5), blocks=blocks, step_tokens=step_tokens)
    assert run(server, wanted) == alone
    stats = server.stats()
    assert stats.draft_tokens > 0
    assert (stats.preemptions > 0) == (blocks == FEW_BLOCKS)
    deep = [guess for guess in recorded.guesses if len(guess[0]) - 1 - guess[0][0] > 1]
    assert len(deep) > 20
    for (known, *text), logits in [*recorded.guesses[::9], *deep[::9]]:
        expected = logits_of(tiny_model, trained, text, known)[len(text) - known]
        torch.testing.assert_close(logits[trained.vocabulary], expected, rtol=1e-3, atol=1e-3)
        assert logits[0] == -torch.inf


def test_a_draft_that_comes_late_sees_what_is_computed_from_then_on(
    make_engine: MakeEngine,
    ask: Callable[..., list[GenerationRequest]],
    tiny_model: ModelRunner,
    drafter: Eagle3Drafter,
    trained: Eagle3,
) -> None:
    cached, *running = (ask(0.0)[9], ask(0.8)[1], ask(0.8)[8])
    recorded = Recorded(drafter)
    server = make_engine(recorded)
    run(server, [cached])
    for request in running:
        server.accept(request)
    for _ in range(9):
        server.step()
    starts = {sequence.request.prompt: sequence.computed for sequence in server.scheduler.running}
    recorded._use(recorded.drafts)
    run(server, [again := replace(cached, request_id="again")])
    size, tile = tiny_model.pool.block_size, tiny_model.shared_tile
    whole = len(cached.prompt) // tile * tile
    starts[again.prompt] = min(whole, (len(cached.prompt) - 1) // size * size)
    assert len({start % size for start in starts.values()}) > 1
    for (known, *text), logits in recorded.guesses[::5]:
        start = next(at for prompt, at in starts.items() if tuple(text[: len(prompt)]) == prompt)
        expected = logits_of(tiny_model, trained, text, known, start)[len(text) - known]
        torch.testing.assert_close(logits[trained.vocabulary], expected, rtol=1e-3, atol=1e-3)


@pytest.fixture
def recording(make_engine: MakeEngine, drafter: Eagle3Drafter) -> tuple[Engine, Recorded]:
    """An engine whose layer's guesses are kept."""
    recorded = Recorded(drafter)
    recorded._use(recorded.drafts)
    return make_engine(recorded), recorded


def test_an_equal_prompt_finds_what_the_layer_has_computed(
    recording: tuple[Engine, Recorded],
    ask: Callable[..., list[GenerationRequest]],
    tiny_model: ModelRunner,
    trained: Eagle3,
) -> None:
    server, recorded = recording
    request = ask(0.0)[9]
    run(server, [request])
    recorded.guesses.clear()
    run(server, [replace(request, request_id="again")])
    assert server.stats().prefix_cache_hits > 0
    for (known, *text), logits in recorded.guesses[::9]:
        expected = logits_of(tiny_model, trained, text, known)[len(text) - known]
        torch.testing.assert_close(logits[trained.vocabulary], expected, rtol=1e-3, atol=1e-3)


def test_a_prompt_that_begins_like_a_cached_one_is_followed_from_the_block_where_they_part(
    recording: tuple[Engine, Recorded],
    ask: Callable[..., list[GenerationRequest]],
    tiny_model: ModelRunner,
    trained: Eagle3,
) -> None:
    server, recorded = recording
    request, size = ask(0.0)[9], tiny_model.pool.block_size
    first = tuple(n % 50 + 1 for n in range(6 * size))
    parting = (*first[: 4 * size + size // 2], *first[:size])
    run(server, [replace(request, request_id="first", prompt=first)])
    recorded.guesses.clear()
    run(server, [replace(request, request_id="parting", prompt=parting)])
    assert recorded.guesses
    for (known, *text), logits in recorded.guesses[::5]:
        expected = logits_of(tiny_model, trained, text, known)[len(text) - known]
        torch.testing.assert_close(logits[trained.vocabulary], expected, rtol=1e-3, atol=1e-3)
