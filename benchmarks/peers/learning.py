"""Heads for a domain, fitted to the engine's answers to prompts that nobody is asked."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Sequence
from pathlib import Path

from engines import fresh

from peers.domains import trimmed
from peers.looping import loops
from turbo_dev.fitting import fit, say, words_of, write
from turbo_runtime.drafters.drafters import Drafters, InUse, load_drafts
from turbo_runtime.drafters.heads.artefact import Target
from turbo_runtime.engine.loop import Engine
from turbo_runtime.engine.request import Submit

_HEADS, _RANK = 4, 64
_STEPS, _RATE = 120, 0.003


class Learning:
    """Fits once for each set of prompts."""

    def __init__(self, engine: Engine, digest: str) -> None:
        """`digest` is the model's."""
        decoder = engine.model.decoder
        self._engine = engine
        self._target = Target(digest, decoder.embedding, decoder.output_rows)
        self._learnt: dict[tuple[tuple[int, ...], ...], InUse] = {}

    def drafters(self, requests: Sequence[Submit]) -> Drafters:
        """Suffix and heads, nothing remembered."""
        key = tuple(request.prompt for request in requests)
        if key not in self._learnt:
            self._learnt[key] = self._learn(requests)
        return Drafters(self._learnt[key])

    def _learn(self, requests: Sequence[Submit]) -> InUse:
        stop = list(requests[0].params.stop_token_ids)
        said = say(fresh(self._engine), requests)
        said = [one for one in said if not loops(trimmed(one.tokens, stop))] or said
        heads = fit(
            self._target, said, words_of(said), heads=_HEADS, markov_rank=_RANK, steps=_STEPS, rate=_RATE
        )
        with tempfile.TemporaryDirectory() as folder:
            write(Path(folder) / "heads", heads, self._target, "fitted")
            selection = Path(folder) / "drafts.json"
            selection.write_text(json.dumps({"heads": "heads"}), encoding="utf-8")
            return load_drafts(selection, self._target, self._engine.noise)
