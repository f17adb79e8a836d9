"""EAGLE-3 drafts (Li et al., arXiv 2503.01840): a decoder layer over the model's own features, from folders
in the format of `speculators`, such as `turbo distill --method eagle3` writes.

At place i the layer sees the token x_{i+1} and the features f_i, what enters some layers of the model at
position i, fused by one product; it guesses x_{i+2}. In place of features that are not known yet it goes on
with its own state, a token further each time. When the model has computed the tokens, the places are computed
again with true features.

Keys and values of place i are in the slot of position i. Where the layer has not seen the model compute the
tokens before, such as a prefix cached before this draft was loaded, it attends to what it has seen since.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from turbo_runtime.drafters.autoregressive import AutoregressiveDrafter
from turbo_runtime.drafters.block_contents import BlockContents, CachedSequence
from turbo_runtime.drafters.eagle3_layer import Eagle3Layer, load_layer, token_bytes
from turbo_runtime.drafters.interface import ComputedTokens, DraftRequest
from turbo_runtime.drafters.target import Target
from turbo_runtime.kv_cache.block_pool import blocks_for
from turbo_runtime.models.runner import ModelRunner
from turbo_runtime.models.step_batch import Chunk, StepBatch
from turbo_runtime.sampling.noise import Noise

_MAX_WAITING = 64  # places of a sequence whose features wait for its next guess


@dataclass(slots=True, eq=False)
class _Sequence:
    """What is known of a sequence."""

    cached: CachedSequence
    first: int = 0  # of its blocks, that the layer attends to
    state: Tensor | None = None  # (width,) behind the place before the last token
    waiting: list[Tensor] = field(default_factory=list)  # features (places, layers x width) to compute
    end: int = 0  # place behind those


@dataclass(frozen=True, slots=True)
class _LayerInput:
    """Consecutive places of one sequence to compute."""

    sequence: _Sequence
    tokens: Sequence[int]  # behind each place
    states: Tensor  # (places, width): fused features, or the state before
    start: int  # the first place
    table: Sequence[int]


class Eagle3Drafter(AutoregressiveDrafter):
    """The drafter `eagle3`."""

    name = "eagle3"
    follows = True

    @torch.inference_mode()
    def __init__(
        self,
        layer: Eagle3Layer,
        stream_layers: tuple[int, ...],
        runner: ModelRunner,
        noise: Noise,
        version: str = "",
    ) -> None:
        """`stream_layers` of the model that `runner` runs: their inputs are the features."""
        super().__init__(noise, version)
        self.stream_layers = stream_layers
        self._layer, self._runner = layer, runner
        self._pool = runner.allocate_layers(runner.pool.blocks, layer.cache, 1)
        self._contents = BlockContents(runner.pool.blocks, runner.pool.block_size)
        self._sequences: dict[str, _Sequence] = {}

    @torch.inference_mode()
    def follow(self, computed: Sequence[ComputedTokens], layers: Sequence[int]) -> None:
        """Compute prompts, and keep the features of answers for their next guess."""
        columns = [layers.index(layer) for layer in self.stream_layers]
        places: list[_LayerInput] = []
        for part in computed:
            sequence = self._sequences.setdefault(part.request_id, _Sequence(CachedSequence(part.scope)))
            if part.start != sequence.end:
                sequence.waiting.clear()
            sequence.waiting.append(part.streams[:, columns].flatten(1))  # a copy: a view would keep all rows
            sequence.end = part.end
            if not part.decoded or sum(map(len, sequence.waiting)) > _MAX_WAITING:
                places.append(self._take_waiting(sequence, part.tokens, part.table))
        if places:
            self._settle(places)

    def open(self, requests: Sequence[DraftRequest]) -> dict[int, list[int]]:
        """Compute the features that came since the last guess."""
        self._states: dict[int, Tensor] = {}
        self._at: dict[int, int] = {}
        opened: dict[int, _Sequence] = {}
        places = []
        for index, request in enumerate(requests):
            sequence, end = self._sequences.get(request.request_id), len(request.tokens) - 1
            if sequence is None or sequence.end != end or not request.table:
                continue
            if sequence.waiting:
                places.append(self._take_waiting(sequence, request.tokens, request.table))
            # drafted places are computed again: no other sequence may trust what they leave
            self._contents.forget(request.table[blocks_for(end, self._contents.block_size) :])
            opened[index] = sequence
        if places:
            self._settle(places)
        for index, sequence in opened.items():
            assert sequence.state is not None
            self._states[index], self._at[index] = sequence.state, sequence.end
        return {index: [] for index in opened}

    def guess(self, requests: Sequence[DraftRequest], fed: Mapping[int, list[int]]) -> Tensor:
        """A pass for each token to compute, of all drafts that have one; most have one or none."""
        for depth in range(max(map(len, fed.values()))):
            drafts = [index for index, tokens in fed.items() if len(tokens) > depth]
            places = [
                _LayerInput(
                    self._sequences[requests[index].request_id],
                    [fed[index][depth]],
                    self._states[index][None],
                    self._at[index],
                    requests[index].table,
                )
                for index in drafts
            ]
            for index, state in zip(drafts, self._compute(places), strict=True):
                self._states[index] = state
                self._at[index] += 1
        return self._layer.logits(torch.stack([self._states[index] for index in fed]))

    def finish(self, request_id: str, *_: object) -> None:
        """Forget the request; its blocks keep their marks."""
        self._sequences.pop(request_id, None)

    def _take_waiting(self, sequence: _Sequence, tokens: Sequence[int], table: Sequence[int]) -> _LayerInput:
        """The places whose features wait. What is missing before in their first block cannot be computed any
        more: the first features that are known stand for those.
        """
        features, end = torch.cat(sequence.waiting), sequence.end
        start = end - len(features)
        sequence.first, begin = self._contents.window(sequence.cached, tokens, start, table)
        if begin < start:
            features = torch.cat([features[:1].expand(start - begin, -1), features])
        self._contents.mark(sequence.cached, tokens, range(begin, end), table, end)
        sequence.cached.computed = end
        return _LayerInput(sequence, tokens[begin + 1 : end + 1], self._layer.fuse(features), begin, table)

    def _settle(self, parts: Sequence[_LayerInput]) -> None:
        """Compute places with true features, and keep the state behind the last of each sequence."""
        states = self._compute(parts)
        ends = np.cumsum([len(part.tokens) for part in parts])
        for part, end in zip(parts, ends.tolist(), strict=True):
            part.sequence.state = states[end - 1].clone()  # a view would keep all rows
            part.sequence.waiting.clear()

    def _compute(self, parts: Sequence[_LayerInput]) -> Tensor:
        """The states (places, width) behind all places."""
        device = self._pool.device
        chunks, before = list[Chunk](), list[int]()
        for part in parts:
            first = part.sequence.first
            missing = first * self._pool.block_size
            chunks.append(Chunk(part.tokens, part.start - missing, list(part.table[first:]), 0, 0))
            before += [missing] * len(part.tokens)
        batch = StepBatch.join(chunks, self._pool.block_size, self._pool.scratch)
        step = self._runner.attention(self._pool, batch)
        positions = torch.from_numpy(batch.positions + before).to(device)
        tokens = torch.from_numpy(batch.tokens).to(device)
        states = self._layer(tokens, torch.cat([part.states for part in parts]), positions, step)
        finite = states.isfinite().all(1).cpu().numpy()
        if not finite.all():  # later readers of the blocks would get NaN, even if masked
            self._pool.clear(torch.from_numpy(batch.slot_mapping[~finite]).to(device))
        return states


def load_eagle3(folder: Path, target: Target, noise: Noise) -> Eagle3Drafter:
    """Load a folder in the format of `speculators`. Raises DraftError."""
    served = target.served()
    target.check_memory(folder, token_bytes(folder, served.dtype), served.device)
    layer, layers, version = load_layer(folder, target)
    return Eagle3Drafter(layer, layers, served, noise, version)
