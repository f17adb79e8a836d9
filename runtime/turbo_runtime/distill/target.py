"""The target as `turbo serve` would serve it, in this process: it answers, and tells its hidden states."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import torch
from torch import Tensor

from turbo_runtime.contract.config import RuntimeConfig
from turbo_runtime.distill.data.chat import turns
from turbo_runtime.distill.data.examples import TrainingExamples
from turbo_runtime.distill.data.responses import Completion, TokenizedPrompt
from turbo_runtime.distill.data.texts import Text
from turbo_runtime.distill.errors import DistillError
from turbo_runtime.drafters.heads.checkpoint import Target
from turbo_runtime.drafters.loader import ActiveDrafts
from turbo_runtime.drafters.proposer import Proposer
from turbo_runtime.engine.loop import Engine
from turbo_runtime.engine.scheduler import Scheduler
from turbo_runtime.engine.startup.builder import start_engine
from turbo_runtime.kv_cache.block_pool import BLOCK_SIZE, BlockPool, blocks_for
from turbo_runtime.messages import GenerationRequest, SamplingParams
from turbo_runtime.models.loader import export_tokenizer
from turbo_runtime.models.matmul import padded_rows
from turbo_runtime.models.runner import Chunk
from turbo_runtime.prompts import Prompt, PromptsError
from turbo_runtime.speculation.controller import GoodputController
from turbo_runtime.tokenization.chat_template import TemplateRefusalError
from turbo_runtime.tokenization.tokenizer import ServedTokenizer

LIKELIEST = 16  # tokens of the target's law that are kept of each place; the rest is never worth drafting


class TargetModel:
    """A model, loaded, checked and measured once; every engine of it begins with nothing remembered."""

    def __init__(self, config: RuntimeConfig) -> None:
        """Raises ModelError."""
        with tempfile.TemporaryDirectory() as folder:
            export_tokenizer(config.model, config.revision, Path(folder))
            self.tokenizer = ServedTokenizer(Path(folder))
        self._engine, self.ready = start_engine(config, time.monotonic())
        self._blocks = self._engine.scheduler.ledger.num_blocks
        self.model = self._engine.model
        self.noise = self._engine.noise
        self.stop_ids = self.tokenizer.eos_token_ids | frozenset(self.ready.eos_token_ids)

    @property
    def target(self) -> Target:
        """What heads share with it."""
        decoder = self.model.decoder
        return Target(self.ready.digest or "", decoder.embedding, decoder.output_rows)

    def engine(self, in_use: ActiveDrafts) -> Engine:
        """One that drafts with this and nothing else; only the newest may be used."""
        return self.engines([in_use])[0]

    def engines(self, in_use: Sequence[ActiveDrafts]) -> list[Engine]:
        """One for each. Their steps may be taken in turn: each has its part of the KV cache. Only the newest
        may be used.
        """
        blocks = self._blocks // len(in_use)
        return [self._engine_of(one, BlockPool(blocks, blocks * part)) for part, one in enumerate(in_use)]

    def holds(self, engines: int, requests: int, tokens: int) -> bool:
        """Whether the KV cache has room for so many requests of so many tokens in each of so many engines."""
        return self._blocks // engines >= requests * blocks_for(tokens)

    def _engine_of(self, in_use: ActiveDrafts, ledger: BlockPool) -> Engine:
        first = self._engine.scheduler
        scheduler = Scheduler(
            ledger,
            max_running=first.max_running,
            max_step_tokens=first.max_step_tokens,
            max_draft_tokens=first.max_draft_tokens,
            max_length=min(first.max_length, ledger.num_blocks * BLOCK_SIZE),
            shared_tile=first.shared_tile,
        )
        control = GoodputController(None, padded_rows)
        control.cost = self._engine.speculation.control.cost
        return Engine(self.model, scheduler, Proposer(in_use), None, control)

    def encode(self, prompt: Prompt) -> tuple[int, ...]:
        """The prompt in tokens, as the server would read it. Raises PromptsError."""
        if prompt.written:
            return self.tokenizer.encode_written(prompt.written)
        if not prompt.messages:
            return self.tokenizer.encode(prompt.text)
        if self.tokenizer.template is None:
            raise PromptsError(
                "the model has no chat template; add --completions to take prompts as they are"
            )
        try:
            return self.tokenizer.encode_written(self.tokenizer.template.render(turns(prompt)))
        except TemplateRefusalError as error:
            raise PromptsError(
                f"prompt {prompt.name}: the model's chat template refuses it: {error}"
            ) from error

    def answer(
        self,
        asked: Sequence[TokenizedPrompt],
        params: SamplingParams,
        again: SamplingParams,
        answered: Callable[[], None] = lambda: None,
    ) -> list[tuple[int, ...]]:
        """Answers without drafts, all together, `answered` hearing of each; further answers to a prompt are
        drawn with `again`.
        """
        engine = self.engine(ActiveDrafts("off"))
        for number, one in enumerate(asked):
            law = again if one.choice else params
            engine.accept(GenerationRequest(str(number), one.prompt, law, choice=one.choice))
        told: list[list[int]] = [[] for _ in asked]
        while not engine.idle:
            for event in engine.step().events:
                if event.error:
                    raise DistillError(f"a prompt cannot be answered: {event.error}; leave it out")
                told[int(event.request_id)] += event.tokens
                if event.finish_reason is not None:
                    answered()
        return [tuple(tokens) for tokens in told]

    def places(self, said: Sequence[Completion], law: SamplingParams) -> Iterator[TrainingExamples]:
        """Every token of these answers with the state it was drawn from, some answers at a time: the target
        reads them again. What is kept beside each is the law by temperature, top-k and top-p.
        """
        for batch in self._batches(said):
            yield self._read(batch, law)[0]

    def texts(self, said: Sequence[Completion], law: SamplingParams, layers: Sequence[int]) -> Iterator[Text]:
        """As `places`, with what entered those layers in place of the last hidden state, prompts included."""
        for batch in self._batches(said):
            places, streams = self._read(batch, law, layers)
            start = row = 0
            for one in batch:
                end = start + len(one.asked.prompt) + len(one.tokens) - 1
                yield Text.of(one, streams[start:end].clone(), places, row)
                start, row = end, row + len(one.tokens)

    def _batches(self, said: Sequence[Completion]) -> Iterator[list[Completion]]:
        """As many together as one step and the KV cache take."""
        scheduler = self._engine.scheduler
        batch: list[Completion] = []
        tokens = blocks = 0
        for one in said:
            length = _read_tokens(one)
            tokens, blocks = tokens + length, blocks + blocks_for(length)
            if batch and (tokens > scheduler.max_step_tokens or blocks > self._blocks):
                yield batch
                batch, tokens, blocks = [], length, blocks_for(length)
            batch.append(one)
        if batch:
            yield batch

    def _read(
        self, said: Sequence[Completion], law: SamplingParams, layers: Sequence[int] = ()
    ) -> tuple[TrainingExamples, Tensor]:
        """Places, and the streams (tokens read, layers x width) of prompts and answers."""
        most = self._engine.scheduler.max_step_tokens
        ledger = BlockPool(self._blocks)
        states: list[Tensor] = []
        streams: list[Tensor] = []
        likely: list[Tensor] = []
        chances: list[Tensor] = []
        tables = [ledger.take(blocks_for(_read_tokens(one))) for one in said]
        for chunks in _passes(said, tables, most):
            forward = self.model.forward(chunks, layers)
            if forward.broken:
                raise DistillError("the model's hidden states are no numbers: it cannot be learnt from")
            ids, kept = _likeliest(forward.logits, law)
            states.append(forward.hidden.clone())
            if forward.streams is not None:
                streams.append(forward.streams)
            likely.append(ids)
            chances.append(kept)
        places = TrainingExamples.of(
            torch.cat(states), [one.tokens for one in said], torch.cat(likely), torch.cat(chances)
        )
        return places, torch.cat(streams) if streams else torch.empty(0)


def _likeliest(logits: Tensor, law: SamplingParams) -> tuple[Tensor, Tensor]:
    """Ids (rows, LIKELIEST) int32 and probabilities after temperature, top-k and top-p; those of ids that
    these leave out are 0.
    """
    logits = logits if law.temperature == 1 else logits / law.temperature
    top = logits.topk(min(LIKELIEST, logits.shape[1]))
    chances = (top.values - logits.logsumexp(-1, keepdim=True)).exp()
    if law.top_k:
        chances[:, law.top_k :] = 0
        chances = chances / chances.sum(-1, keepdim=True) if law.top_k <= LIKELIEST else chances
    if law.top_p < 1:
        left_out = chances.cumsum(-1) - chances >= law.top_p
        reached = chances.sum(-1, keepdim=True) >= law.top_p  # else ids are kept beyond those told here
        chances = chances.masked_fill(left_out, 0)
        chances = torch.where(reached, chances / chances.sum(-1, keepdim=True), chances / law.top_p)
    return top.indices.to(torch.int32), chances


def _read_tokens(one: Completion) -> int:
    """The last token is never read: nothing was drawn from its state."""
    return len(one.asked.prompt) + len(one.tokens) - 1


def _passes(said: Sequence[Completion], tables: Sequence[list[int]], most: int) -> Iterator[list[Chunk]]:
    """One pass over several short answers, or several over one that is longer than a step."""
    chunks: list[Chunk] = []
    for one, table in zip(said, tables, strict=True):
        tokens = (*one.asked.prompt, *one.tokens[:-1])
        first = len(one.asked.prompt) - 1  # the state that the first token was drawn from
        for start in range(0, len(tokens), most):
            piece = tokens[start : start + most]
            rows = min(len(piece), max(0, start + len(piece) - first))
            chunks.append(Chunk(piece, start, table, rows, len(tokens)))
            if len(tokens) > most:
                yield chunks
                chunks = []
    if chunks:
        yield chunks
