"""Drafts of a smaller model with the same tokenizer, or of the first layers of the served model itself.

A draft model has a KV cache of its own, in the blocks of the served model's. It computes prompts in the steps
that compute them for the served model; whatever else it has not seen yet, such as drafted tokens that were
committed without it, comes before its next guess.

The first layers need none: what they have cached for committed tokens is what the served model has, and the
slots of drafted tokens are overwritten when the served model verifies them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from tokenizers import Tokenizer
from torch import Tensor

from turbo_runtime.drafters.autoregressive import AutoregressiveDrafter
from turbo_runtime.drafters.block_contents import BlockContents, CachedSequence
from turbo_runtime.drafters.interface import ComputedTokens, DraftRequest
from turbo_runtime.drafters.target import DraftError, Target
from turbo_runtime.kv_cache.block_pool import BLOCK_SIZE
from turbo_runtime.model_files.source import Source
from turbo_runtime.models.attention.metadata import Rule
from turbo_runtime.models.compiled.elementwise_kernel import compile_elementwise
from turbo_runtime.models.loader import load_config, load_model
from turbo_runtime.models.matmul import FREE_FORMS
from turbo_runtime.models.runner import ModelRunner, kv_bytes_per_block
from turbo_runtime.models.step_batch import Chunk
from turbo_runtime.sampling.draw_kernel import compile_draw
from turbo_runtime.sampling.noise import Noise

_CATCH_UP = 256  # tokens of all requests, before the guesses of a step; the rest waits for the next
_FOLLOW = 512  # tokens of a prompt, in a step that computes it


class FirstLayersDrafter(AutoregressiveDrafter):
    """The drafter `model` of the served model's own first layers."""

    name = "model"

    def __init__(self, target: ModelRunner, layers: int, noise: Noise) -> None:
        super().__init__(noise, f"first-{layers}-layers")
        self._runner = target.first_layers(layers)

    def open(self, requests: Sequence[DraftRequest]) -> dict[int, list[int]]:
        """The last token is all that the served model has not computed."""
        self._at = {i: len(request.tokens) - 1 for i, request in enumerate(requests) if request.table}
        return {index: [requests[index].tokens[-1]] for index in self._at}

    def guess(self, requests: Sequence[DraftRequest], fed: Mapping[int, list[int]]) -> Tensor:
        """A pass over all."""
        chunks = []
        for index, tokens in fed.items():
            request, start = requests[index], self._at[index]
            table = list(request.table)
            chunks.append(Chunk(tokens, start, table, 1, request.prompt_length, request.lora_id))
        try:
            logits = self._runner.forward(chunks).logits
        except Exception:
            self._runner.clear(chunks)  # the served model must not find there what is no number
            raise
        for index, tokens in fed.items():
            self._at[index] += len(tokens)
        return logits


@dataclass(slots=True)
class _Growing:
    """A draft of this step."""

    sequence: CachedSequence
    at: int  # position of the next token to compute


class ModelDrafter(AutoregressiveDrafter):
    """The drafter `model` of another model."""

    name = "model"
    follows = True

    def __init__(
        self, runner: ModelRunner, noise: Noise, version: str = "", block_size: int = BLOCK_SIZE
    ) -> None:
        """`block_size`: of the served model's blocks, each of which is one or several of the runner's."""
        super().__init__(noise, version)
        self._runner = runner
        self._parts = block_size // runner.pool.block_size
        self._contents = BlockContents(runner.pool.blocks // self._parts, block_size)
        self._sequences: dict[str, CachedSequence] = {}

    @torch.inference_mode()
    def follow(self, computed: Sequence[ComputedTokens], _layers: Sequence[int] = ()) -> None:
        """Compute the prompts that the step computed."""
        chunks = []
        for part in computed:
            if part.decoded:  # comes with the next guess
                continue
            end = min(part.end, self._runner.max_length)
            sequence = self._sequence(part.request_id, part.scope)
            start = self._computed(sequence, part.tokens, end, part.table)
            if start < end:
                span = range(start, min(end, start + _FOLLOW))
                chunks.append(self._chunk(sequence, part, span, span.stop))
        if chunks:
            self._runner.forward(chunks)

    def open(self, requests: Sequence[DraftRequest]) -> dict[int, list[int]]:
        """Compute what was not followed, a bounded number of tokens a step."""
        self._growing: dict[int, _Growing] = {}
        opened: dict[int, list[int]] = {}
        chunks, budget = list[Chunk](), _CATCH_UP
        for index, request in enumerate(requests):
            tokens, last = request.tokens, len(request.tokens) - 1
            if not request.table or last + request.limit > self._runner.max_length:
                continue
            sequence = self._sequence(request.request_id, request.scope)
            start = self._computed(sequence, tokens, last, request.table)
            span = range(start, min(last, start + budget))
            budget -= len(span)
            if span.stop < last:
                if span:
                    chunks.append(self._chunk(sequence, request, span, span.stop))
                continue
            self._growing[index] = _Growing(sequence, start)
            opened[index] = list(tokens[start:])
        if chunks:
            self._runner.forward(chunks)
        return opened

    def guess(self, requests: Sequence[DraftRequest], fed: Mapping[int, list[int]]) -> Tensor:
        """A pass over all."""
        chunks = []
        for index, tokens in fed.items():
            request, draft = requests[index], self._growing[index]
            known = len(request.tokens)
            if draft.at < known:
                self._note(draft.sequence, request, range(draft.at, known), known - 1 + request.limit)
            draft.sequence.drafted += tokens[max(0, known - draft.at) :]
            table = self._blocks(request.table)
            chunks.append(Chunk(self._known(tokens), draft.at, table, 1, request.prompt_length))
            draft.at += len(tokens)
        return self._runner.forward(chunks).logits

    def finish(self, request_id: str, *_: object) -> None:
        """Forget the request; its blocks keep their marks."""
        self._sequences.pop(request_id, None)

    def _sequence(self, request_id: str, scope: str) -> CachedSequence:
        return self._sequences.setdefault(request_id, CachedSequence(scope))

    def _computed(
        self, sequence: CachedSequence, tokens: Sequence[int], end: int, table: Sequence[int]
    ) -> int:
        """Where to go on, before `end`."""
        sequence.accept(tokens, end)
        return self._contents.computed(sequence, tokens, end, table)

    def _chunk(
        self, sequence: CachedSequence, text: ComputedTokens | DraftRequest, span: range, reach: int
    ) -> Chunk:
        """The input for committed tokens that nothing is guessed behind."""
        self._note(sequence, text, span, reach)
        tokens = self._known(text.tokens[span.start : span.stop])
        return Chunk(tokens, span.start, self._blocks(text.table), 0, text.prompt_length)

    def _note(
        self, sequence: CachedSequence, text: ComputedTokens | DraftRequest, span: range, reach: int
    ) -> None:
        self._contents.mark(sequence, text.tokens, span, text.table, reach)
        sequence.computed = span.stop

    def _blocks(self, table: Sequence[int]) -> list[int]:
        """The runner's blocks of a table."""
        parts = self._parts
        return [block * parts + part for block in table for part in range(parts)]

    def _known(self, tokens: Sequence[int]) -> Sequence[int]:
        """Replace ids beyond the model's vocabulary, which no tokenizer gives."""
        return [min(token, self._runner.vocabulary - 1) for token in tokens]


def load_first_layers(layers: int, target: Target, noise: Noise) -> FirstLayersDrafter:
    """Draft with so many of the served model's layers. Raises DraftError."""
    runner = target.served()
    count = int(runner.config.num_hidden_layers)
    if not 1 <= layers < count:
        raise DraftError(f"layers is {layers} and the model has {count}; draft with fewer, at least 1")
    return FirstLayersDrafter(runner, layers, noise)


def load_draft_model(folder: Path, target: Target, noise: Noise) -> ModelDrafter:
    """Load a draft model in the served one's dtype. Raises DraftError or ModelError."""
    served = target.served()
    _check_tokenizer(folder, target)
    source = Source(str(folder))
    device = target.draft_device or served.device
    target.check_memory(folder, token_bytes(folder, served.dtype), device)
    model = load_model(source, served.dtype, device)
    runner = served.beside(model, min(int(model.config.max_position_embeddings), served.max_length))
    runner.rule = Rule(exact=False)
    if device.type == "cpu":
        # where a GPU serves, nothing else has compiled them: no step waits for it
        compile_elementwise(served.dtype == torch.bfloat16)
        compile_draw()
        for product in runner.decoder.products():
            product.adopt_first(FREE_FORMS if product.heads == 1 else product.free_forms)
    own_noise = noise if noise.device == device else Noise(noise.vocabulary, device)
    return ModelDrafter(runner, own_noise, folder.name, served.pool.block_size)


def token_bytes(folder: Path, dtype: torch.dtype) -> int:
    """Memory of a token in the draft model's KV cache. Raises ModelError."""
    return kv_bytes_per_block(load_config(Source(str(folder))), dtype, 1)


def _check_tokenizer(folder: Path, target: Target) -> None:
    """Raise DraftError unless the token ids mean the same to both models."""
    if target.tokenizer is None or not target.tokenizer.is_file():
        raise DraftError(
            f"{folder}: the served model has no tokenizer.json to compare; draft without a model"
        )
    served = _vocabulary(target.tokenizer)
    own = _vocabulary(folder / "tokenizer.json")
    if served != own:
        token = min(token for token in {*served, *own} if served.get(token) != own.get(token))
        raise DraftError(
            f"{folder}: its tokenizer is not the served model's: the id of {token!r} is {own.get(token)} and "
            f"not {served.get(token)}; name a model with the same tokenizer"
        )


def _vocabulary(file: Path) -> dict[str, int]:
    try:
        return Tokenizer.from_file(str(file)).get_vocab()
    except Exception as error:  # the library raises nothing narrower
        raise DraftError(
            f"{file} cannot be read: {error}; copy the model again, with its tokenizer"
        ) from error
