"""A draft for a domain, trained on the engine's answers to prompts that are in no run: heads, and the answers
themselves. And one that brings answers alone.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path

from engines import fresh, run

from peers.domains import trimmed
from turbo_dev.fitting import fit, say, words_of, write
from turbo_runtime.distill.data.responses import is_looping
from turbo_runtime.drafters.draft_memory import (
    MAX_MIB,
    PROMPT_TAIL,
    Answer,
    DraftMemory,
    select_answers,
    write_memory,
)
from turbo_runtime.drafters.loader import ActiveDrafts, DraftLoader
from turbo_runtime.drafters.proposer import Proposer
from turbo_runtime.drafters.target import Target
from turbo_runtime.engine.loop import Engine
from turbo_runtime.messages import GenerationRequest

_HEADS, _RANK = 4, 64
# Of 100 to 1,600 steps, those with the smallest cross-entropy on the JSON answers that are held out. Of the
# other domains too few answers are left to tell: any number is as good.
_STEPS, _RATE = 400, 0.004
_JUDGES = 4  # every so many-th answer says how sure the heads may be


class Learning:
    """Fits once for each set of prompts, and loads as a server does: nothing is known of an earlier run."""

    def __init__(self, engine: Engine, digest: str, folder: Path) -> None:
        """`digest` is the model's; artefacts are written into `folder`."""
        decoder = engine.model.decoder
        self._engine = engine
        self._target = Target(digest, decoder.embedding, decoder.output_rows)
        self._folder = folder
        self._brought: dict[tuple[tuple[int, ...], ...], DraftMemory] = {}
        self._learnt: dict[tuple[tuple[int, ...], ...], Path] = {}  # files that name heads

    def drafters(self, requests: Sequence[GenerationRequest]) -> Proposer:
        """What a server has that starts with a draft which learnt from the answers to these."""
        key = tuple(request.prompt for request in requests)
        if key not in self._learnt:
            folder = self._folder / str(len(self._learnt))
            self._learn(requests, folder)
            self._learnt[key] = folder / "drafts.json"
        in_use = DraftLoader(self._target, self._engine.noise).load(self._learnt[key])
        if in_use.problem:
            raise RuntimeError(in_use.problem)
        return _started(in_use)

    def starting(self, requests: Sequence[GenerationRequest]) -> Proposer:
        """What a server has that starts with a draft which brings the answers to these."""
        key = tuple(request.prompt for request in requests)
        if key not in self._brought:
            plain = [replace(one, params=replace(one.params, draft_method="off")) for one in requests]
            said = run(fresh(self._engine), plain, len(plain))
            self._brought[key] = _memory((one.prompt, said[one.request_id].tokens) for one in requests)
        return _started(ActiveDrafts(memories=(self._brought[key],)))

    def _learn(self, requests: Sequence[GenerationRequest], folder: Path) -> None:
        stop = list(requests[0].params.stop_token_ids)
        answered = list(zip(requests, say(fresh(self._engine), requests), strict=True))
        answered = [pair for pair in answered if not is_looping(trimmed(pair[1].tokens, stop))] or answered
        said = [one for _, one in answered]
        few = len(said) < _JUDGES
        heads = fit(
            self._target,
            said if few else [one for number, one in enumerate(said) if number % _JUDGES],
            words_of(said),
            heads=_HEADS,
            markov_rank=_RANK,
            steps=_STEPS,
            rate=_RATE,
            judges=[] if few else said[::_JUDGES],
        )
        write(folder / "heads", heads, self._target, "fitted")
        memory = _memory((request.prompt, one.tokens) for request, one in answered)
        write_memory(folder / "heads", memory, self._target.digest)
        (folder / "drafts.json").write_text(json.dumps({"heads": "heads"}), encoding="utf-8")


def _memory(answers: Iterable[tuple[Sequence[int], Sequence[int]]]) -> DraftMemory:
    """Of prompts and the answers to them."""
    texts = ((*prompt[-PROMPT_TAIL:], *answer) for prompt, answer in answers)
    return select_answers(map(Answer, texts), MAX_MIB)


def _started(drafts: ActiveDrafts) -> Proposer:
    """The drafters of a server that has been idle for a while."""
    drafters = Proposer(drafts)
    while drafters.waiting:
        drafters.read(1 << 12)
    return drafters
