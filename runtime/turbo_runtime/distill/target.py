"""The target as `turbo serve` serves it, in this process: it responds, and shows its hidden states. And
another server that responds, such as vLLM: any that completes prompts of token ids.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from turbo_runtime.client.client import Server, ServerError, work_off
from turbo_runtime.contract.config import RuntimeConfig
from turbo_runtime.distill.data.examples import Text, TrainingExamples
from turbo_runtime.distill.data.responses import Completion, TokenizedPrompt, render_turns
from turbo_runtime.distill.recipe import DistillError, TransientError
from turbo_runtime.drafters.loader import ActiveDrafts
from turbo_runtime.drafters.proposer import Proposer
from turbo_runtime.drafters.target import Target
from turbo_runtime.engine.loop import Engine
from turbo_runtime.engine.startup.builder import start_engine
from turbo_runtime.messages import GenerationRequest, SamplingParams
from turbo_runtime.models.loader import export_tokenizer
from turbo_runtime.models.step_batch import Chunk
from turbo_runtime.prompts import Prompt, PromptsError
from turbo_runtime.speculation.controller import GoodputController
from turbo_runtime.tokenization.tokenizer import ServedTokenizer, TemplateRefusalError

LIKELIEST = 16  # tokens that are kept of each distribution; the rest is never drafted
MAX_REQUESTS = 32  # to another server at a time
_PATH, _TOKENS = "/v1/completions", "return_token_ids"  # the latter is vLLM's; others may refuse it
_PAUSES = (1.0, 4.0, 16.0, 64.0)  # seconds before another try where a server is busy or away
_BUSY = (429, 500, 502, 503, 504, None)
_WHOLE = ("stop", "length")  # reasons for which a whole response ends
# Without these a server would apply the model's own settings, which the distribution asked for has none of.
_NEUTRAL = {"min_p": 0.0, "repetition_penalty": 1.0, "presence_penalty": 0.0, "frequency_penalty": 0.0}


class TargetModel:
    """A model, loaded, checked and measured once; each engine of it starts with empty memories."""

    def __init__(self, config: RuntimeConfig) -> None:
        """Raises ModelError."""
        with tempfile.TemporaryDirectory() as folder:
            export_tokenizer(config.model, config.revision, Path(folder))
            self.tokenizer = ServedTokenizer(Path(folder))
        self._engine, self.ready = start_engine(config, time.monotonic())
        self._pool = self._engine.scheduler.block_pool
        self._blocks = self._pool.num_blocks
        self.model = self._engine.model
        self.noise = self._engine.noise
        self.stop_ids = self.tokenizer.eos_token_ids | frozenset(self.ready.eos_token_ids)

    @property
    def target(self) -> Target:
        """Return what drafts share with it."""
        decoder = self.model.decoder
        return Target(self.ready.digest or "", decoder.embedding, decoder.output_rows, self.model)

    def engines(self, drafts: Sequence[ActiveDrafts]) -> list[Engine]:
        """Create an engine for each, with its own part of the KV cache; older ones may not be used again."""
        first, blocks = self._engine.scheduler, self._blocks // len(drafts)
        engines = []
        for part, active in enumerate(drafts):
            length = min(first.max_length, blocks * self._pool.block_size)
            scheduler = replace(first, block_pool=self._pool.part(blocks, blocks * part), max_length=length)
            controller = GoodputController(None, self.model.padded_rows)
            controller.cost = self._engine.speculation.control.cost
            engines.append(Engine(self.model, scheduler, Proposer(active), None, controller))
        return engines

    def can_hold(self, engines: int, requests: int, tokens: int) -> bool:
        """Whether the KV cache fits so many requests of so many tokens in each of so many engines."""
        return self._blocks // engines >= requests * self._pool.blocks_for(tokens)

    def encode(self, prompt: Prompt) -> tuple[int, ...]:
        """Tokenize the prompt as the server does. Raises PromptsError."""
        if prompt.written:
            return self.tokenizer.encode_written(prompt.written)
        if not prompt.messages:
            return self.tokenizer.encode(prompt.text)
        if (template := self.tokenizer.template) is None:
            raise PromptsError("the model has no chat template; add --completions to take prompts as is")
        try:
            return self.tokenizer.encode_written(template.render(render_turns(prompt)))
        except TemplateRefusalError as error:
            raise PromptsError(
                f"prompt {prompt.name}: the model's chat template refuses it: {error}"
            ) from error

    def answer(
        self,
        prompts: Sequence[TokenizedPrompt],
        params: SamplingParams,
        answered: Callable[[], None] = lambda: None,
    ) -> list[tuple[int, ...]]:
        """Respond to all together without drafts, each at its temperature; call `answered` after each."""
        (engine,) = self.engines([ActiveDrafts("off")])
        for number, prompt in enumerate(prompts):
            own = replace(params, temperature=prompt.temperature)
            engine.accept(GenerationRequest(str(number), prompt.prompt, own, choice=prompt.choice))
        responses: list[list[int]] = [[] for _ in prompts]
        while not engine.idle:
            for event in engine.step().events:
                if event.error:
                    raise DistillError(f"a prompt cannot be answered: {event.error}; leave it out")
                responses[int(event.request_id)] += event.tokens
                if event.finish_reason is not None:
                    answered()
        return [tuple(tokens) for tokens in responses]

    def examples(
        self, completions: Sequence[Completion], params: SamplingParams
    ) -> Iterator[TrainingExamples]:
        """Read the responses again, some at a time; the distributions are those under `params`."""
        return (self._read(batch, params)[0] for batch in self._batches(completions))

    def texts(
        self, completions: Sequence[Completion], params: SamplingParams, layers: Sequence[int]
    ) -> Iterator[Text]:
        """As `examples`, with the inputs of those layers for the last hidden state, prompts included."""
        for batch in self._batches(completions):
            examples, streams = self._read(batch, params, layers)
            start = row = 0
            for completion in batch:
                end = start + len(completion.text) - 1
                yield Text.of(completion, streams[start:end].clone(), examples, row)
                start, row = end, row + len(completion.tokens)

    def _batches(self, completions: Sequence[Completion]) -> Iterator[list[Completion]]:
        """As many together as one step and the KV cache fit, but for last tokens: nothing follows them."""
        max_tokens = self._engine.scheduler.max_num_batched_tokens
        batch: list[Completion] = []
        tokens = blocks = 0
        for completion in completions:
            length = len(completion.text) - 1
            tokens, blocks = tokens + length, blocks + self._pool.blocks_for(length)
            if batch and (tokens > max_tokens or blocks > self._blocks):
                yield batch
                batch, tokens, blocks = [], length, self._pool.blocks_for(length)
            batch.append(completion)
        if batch:
            yield batch

    def _read(
        self, completions: Sequence[Completion], params: SamplingParams, layers: Sequence[int] = ()
    ) -> tuple[TrainingExamples, Tensor]:
        """Return the examples, and the streams (tokens read, layers x width) of prompts and responses."""
        rows, streams = list[tuple[Tensor, Tensor, Tensor]](), list[Tensor]()
        for chunks in self._passes(completions):
            forward = self.model.forward(chunks, layers)
            if not forward.finite.all():
                raise DistillError("the model's hidden states are no numbers: it cannot be learned from")
            rows.append((forward.hidden.clone(), *_likeliest(forward.logits, params)))
            if forward.streams is not None:
                streams.append(forward.streams)
        states, likely, chances = (torch.cat(column) for column in zip(*rows, strict=True))
        responses = [completion.tokens for completion in completions]
        examples = TrainingExamples.of(states, responses, likely, chances)
        return examples, torch.cat(streams) if streams else torch.empty(0)

    def _passes(self, completions: Sequence[Completion]) -> Iterator[list[Chunk]]:
        """Yield one pass over several short responses, or several over one that is longer than a step."""
        max_tokens, pool = self._engine.scheduler.max_num_batched_tokens, self._pool.part(self._blocks, 0)
        texts = [completion.text[:-1] for completion in completions]
        tables = [pool.take(pool.blocks_for(len(text))) for text in texts]
        chunks: list[Chunk] = []
        for completion, text, table in zip(completions, texts, tables, strict=True):
            first = len(completion.request.prompt) - 1  # the state that the first token was drawn from
            for start in range(0, len(text), max_tokens):
                piece = text[start : start + max_tokens]
                rows = min(len(piece), max(0, start + len(piece) - first))
                chunks.append(Chunk(piece, start, table, rows, len(text)))
                if len(text) > max_tokens:
                    yield chunks
                    chunks = []
        if chunks:
            yield chunks


def _likeliest(logits: Tensor, params: SamplingParams) -> tuple[Tensor, Tensor]:
    """Return ids (rows, LIKELIEST) int32 and probabilities, 0 for ids that top-k and top-p leave out."""
    logits = logits if params.temperature == 1 else logits / params.temperature
    top = logits.topk(min(LIKELIEST, logits.shape[1]))
    chances = (top.values - logits.logsumexp(-1, keepdim=True)).exp()
    if params.top_k:
        chances[:, params.top_k :] = 0
        chances = chances / chances.sum(-1, keepdim=True) if params.top_k <= LIKELIEST else chances
    if params.top_p < 1:
        left_out = chances.cumsum(-1) - chances >= params.top_p
        reached = chances.sum(-1, keepdim=True) >= params.top_p  # else ids beyond these are kept
        chances = chances.masked_fill(left_out, 0)
        chances = torch.where(reached, chances / chances.sum(-1, keepdim=True), chances / params.top_p)
    return top.indices.to(torch.int32), chances


class Endpoint:
    """A model of a server."""

    def __init__(self, server: Server, model: str, encode: Callable[[str], tuple[int, ...]]) -> None:
        """`encode` tokenizes the text of a server that returns no tokens. Such responses lack the token that
        ended them, and their tokens may differ from those that were drawn.
        """
        self._server, self._model, self._encode = server, model, encode
        self._returns_tokens = True

    def answer(
        self,
        prompts: Sequence[TokenizedPrompt],
        params: SamplingParams,
        answered: Callable[[], None] = lambda: None,
    ) -> list[tuple[int, ...]]:
        """As `TargetModel.answer`. Raises DistillError."""
        responses: list[tuple[int, ...]] = [()] * len(prompts)

        def work(number: int) -> None:
            responses[number] = self._try(prompts[number], params)
            answered()

        try:
            work_off(range(len(prompts)), work, MAX_REQUESTS)
        except ServerError as error:
            failed = TransientError if error.status in _BUSY else DistillError
            raise failed(f"a prompt is not answered: {error}") from error
        return responses

    def _try(self, prompt: TokenizedPrompt, params: SamplingParams) -> tuple[int, ...]:
        body: dict[str, Any] = {
            "model": self._model,
            "prompt": list(prompt.prompt),
            "max_tokens": params.max_tokens,
            "temperature": prompt.temperature,
            "top_p": params.top_p,
            "top_k": params.top_k,
            "seed": params.seed + prompt.choice,
            **_NEUTRAL,
        }
        pauses = list(_PAUSES)
        while True:
            extra = {_TOKENS: True} if self._returns_tokens else {}
            try:
                return self._complete({**body, **extra})
            except ServerError as error:
                if extra and error.status == 400 and _TOKENS in str(error):
                    self._returns_tokens = False
                elif pauses and error.status in _BUSY:
                    time.sleep(pauses.pop(0))
                else:
                    raise

    def _complete(self, body: dict[str, Any]) -> tuple[int, ...]:
        text, reason, tokens = "", None, list[int]()
        for event in self._server.stream(body, path=_PATH):
            for choice in event.get("choices") or ():
                text += choice.get("text") or ""
                tokens += choice.get("token_ids") or ()
                reason = choice.get("finish_reason") or reason
        if reason not in _WHOLE:
            raise ServerError(f"{self._server.url} broke an answer off: its finish_reason is {reason}.")
        return tuple(tokens) or self._encode(text)
