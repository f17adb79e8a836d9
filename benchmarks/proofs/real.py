"""The real model: the same bytes in any company, and the same logits however positions are computed."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from unittest.mock import patch

import torch
from engines import Answer, Encode, as_new, fresh, run
from harness import prompts
from torch import Tensor

from turbo_dev.coupling import MUTANTS, Verifier
from turbo_dev.drafting import EveryDraft
from turbo_dev.eagle3_draft import write
from turbo_runtime.contract.config import DraftMethod
from turbo_runtime.drafters.eagle3 import load_eagle3
from turbo_runtime.drafters.loader import ActiveDrafts
from turbo_runtime.drafters.model import FirstLayersDrafter
from turbo_runtime.drafters.proposer import Proposer
from turbo_runtime.drafters.target import Target
from turbo_runtime.engine import loop
from turbo_runtime.engine.loop import Engine
from turbo_runtime.messages import EngineStats, GenerationRequest, SamplingParams
from turbo_runtime.models.step_batch import Chunk

ANSWER_TOKENS, MATE_TOKENS = 64, 24
BROKEN_REQUESTS = 6
LOGIT_ANSWERS, LOGIT_POSITIONS_EACH = 5, 40
SAMPLING = (  # of the requests with a temperature, in turn
    SamplingParams(temperature=1.0),
    SamplingParams(temperature=0.7, top_p=0.9),
    SamplingParams(temperature=1.0, top_k=40, min_p=0.02),
    SamplingParams(temperature=0.8, top_k=20, top_p=0.95, frequency_penalty=0.3),
)


@dataclass(frozen=True)
class Mix:
    """One way to answer all requests, others coming and going beside them."""

    drafts: int
    batch: int
    longest: int  # of the cache: blocks of so many longest sequences
    step_tokens: int
    drafter: DraftMethod = "auto"

    @property
    def every(self) -> bool:
        """Whether all drafts are verified: a pass of these takes too long to pay for so small a model."""
        return self.drafter in ("model", "eagle3")


MIXES = (
    Mix(8, 1, 32, 512),
    Mix(8, 4, 32, 512),
    Mix(3, 16, 32, 512),
    Mix(12, 32, 32, 96),
    Mix(8, 8, 2, 160),
    Mix(4, 8, 32, 160, "model"),
    Mix(4, 8, 2, 160, "eagle3"),
)
FIRST_LAYERS = 28  # of 30, that draft as `model`


def requests_of(encode: Encode, count: int, stop: Sequence[int]) -> list[GenerationRequest]:
    """Prompts of all domains: greedy and sampled in turn, each sampled one with a seed of its own; for the
    model itself and for two adapters.
    """
    rows = prompts()
    chosen = [rows[number * len(rows) // count] for number in range(count)]
    requests = []
    for number, row in enumerate(chosen):
        params = SAMPLING[number // 2 % len(SAMPLING)] if number % 2 else SamplingParams(temperature=0.0)
        params = replace(params, seed=number, max_tokens=ANSWER_TOKENS, stop_token_ids=frozenset(stop))
        prompt = tuple(encode(row["prompt"]))
        requests.append(GenerationRequest(row["id"], prompt, params, lora_id=number % 3))
    return requests


def alone(engine: Engine, requests: Sequence[GenerationRequest]) -> dict[str, Answer]:
    """Every answer without drafts, one at a time, none of them with a cached prompt."""
    return {
        r.request_id: run(fresh(engine), [as_new(r, r.request_id, draft_method="off")], 1)[r.request_id]
        for r in requests
    }


def mixed(
    engine: Engine, requests: Sequence[GenerationRequest], mix: Mix, alone: Mapping[str, Answer]
) -> tuple[dict[str, Answer], EngineStats]:
    """Every answer with drafts, in another order, a stranger with every third request. `alone`: the answers
    that an EAGLE-3 layer is fitted to.
    """
    longest = max(len(r.prompt) for r in requests) + ANSWER_TOKENS
    server = fresh(
        engine,
        drafters=_drafters(engine, mix.drafter, [[*r.prompt, *alone[r.request_id].tokens] for r in requests]),
        control=EveryDraft() if mix.every else None,
        blocks=mix.longest * engine.scheduler.block_pool.blocks_for(longest),
        max_length=longest,
        max_num_seqs=mix.batch,
        max_num_batched_tokens=mix.step_tokens,
        max_draft_tokens=mix.drafts,
    )
    crowd: list[GenerationRequest] = []
    for number, request in enumerate(reversed(requests)):
        crowd.append(request)
        if number % 3 == 0:
            crowd.append(as_new(request, f"mate-{number}", seed=1000 + number, max_tokens=MATE_TOKENS))
    return run(server, crowd, mix.batch + 2, check=True), server.stats()


def _drafters(engine: Engine, drafter: DraftMethod, texts: Sequence[Sequence[int]]) -> Proposer:
    """The model's own first layers, or an EAGLE-3 layer that knows the texts; else memory alone."""
    if drafter == "model":
        layers = FirstLayersDrafter(engine.model, FIRST_LAYERS, engine.noise)
        return Proposer(ActiveDrafts("model", model=layers))
    if drafter != "eagle3":
        return Proposer()
    decoder = engine.model.decoder
    target = Target("", decoder.embedding, decoder.output_rows, engine.model)
    count = engine.model.config.num_hidden_layers
    words = torch.tensor(sorted({token for text in texts for token in text}))
    with tempfile.TemporaryDirectory() as folder:
        write(Path(folder), target, engine.model, words, (2, count // 2, count - 3), texts)
        return Proposer(ActiveDrafts("eagle3", eagle3=load_eagle3(Path(folder), target, engine.noise)))


def caught(engine: Engine, requests: Sequence[GenerationRequest], answers: dict[str, Answer]) -> int:
    """How many of the broken verifiers give any other answer, where every draft is verified."""
    few = requests[:BROKEN_REQUESTS]

    def differs(mutant: Verifier) -> bool:
        with patch.object(loop, "verify", mutant):
            found = run(fresh(engine, control=EveryDraft()), few, BROKEN_REQUESTS)
        return any(found[r.request_id] != answers[r.request_id] for r in few)

    return sum(map(differs, MUTANTS))


@dataclass(frozen=True, slots=True)
class _Mate:
    """Another sequence of the batch: its tokens and its blocks."""

    tokens: Sequence[int]
    table: list[int]


def compared_logits(
    engine: Engine, requests: Sequence[GenerationRequest], answers: dict[str, Answer]
) -> tuple[int, int]:
    """How many positions were looked at, and of them those whose logits are not bit-equal in all of: at once,
    in chunks, row by row, as verification beside mates.
    """
    compared = different = 0
    longest = sorted(requests, key=lambda r: len(answers[r.request_id].tokens), reverse=True)
    mate = list(longest[0].prompt)
    for request in longest[:LOGIT_ANSWERS]:
        tokens = [*request.prompt, *answers[request.request_id].tokens]
        wanted = range(max(0, len(tokens) - LOGIT_POSITIONS_EACH), len(tokens))
        blocks_for = engine.scheduler.block_pool.blocks_for
        blocks = blocks_for(len(tokens))
        tables = [list(range(n * blocks, (n + 1) * blocks)) for n in range(5)]
        beside = _Mate(mate, list(range(5 * blocks, 5 * blocks + blocks_for(len(mate)))))
        prompt = len(request.prompt)
        at_once = _computed(engine, tokens, prompt, tables[0], len(tokens))
        ways = (
            _computed(engine, tokens, prompt, tables[1], 1),
            _computed(engine, tokens, prompt, tables[2], 5, beside),
            _computed(engine, tokens, prompt, tables[3], 9),
            _computed(engine, tokens, prompt, tables[4], 37, beside),
        )
        equal = [all(torch.equal(at_once[i], way[i]) for way in ways) for i in wanted]
        compared += len(equal)
        different += equal.count(False)
    return compared, different


def _computed(
    engine: Engine,
    tokens: Sequence[int],
    prompt_length: int,
    table: list[int],
    length: int,
    mate: _Mate | None = None,
) -> Tensor:
    """Logits (tokens, vocabulary) of a sequence that is computed in runs of `length`."""
    parts = []
    for start in range(0, len(tokens), length):
        these = tokens[start : start + length]
        # the mate changes its length from step to step, as a batch does
        other = []
        if mate:
            beside = mate.tokens[: 1 + start % len(mate.tokens)]
            other = [Chunk(beside, 0, mate.table, 1, len(mate.tokens), 1)]
        forward = engine.model.forward([*other, Chunk(these, start, table, len(these), prompt_length)])
        parts.append(forward.logits[len(other) :])
    return torch.cat(parts)
