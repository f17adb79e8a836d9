"""One sequence's part of a step: what is computed for it, and which rows of the step's logits are its own."""

from __future__ import annotations

from dataclasses import dataclass, field

from torch import Tensor

from turbo_runtime.drafters.interface import Draft
from turbo_runtime.engine.sequence import ScheduledTokens
from turbo_runtime.messages import TokenLogprob
from turbo_runtime.models.runner import Chunk, Forward, ModelRunner
from turbo_runtime.sampling.logprobs import token_logprobs
from turbo_runtime.sampling.sampler import Sampler
from turbo_runtime.sampling.step import AnswerRows


@dataclass(slots=True)
class BatchEntry:
    """Its rows are those of prompt tokens whose log probabilities are wanted, then, where the work yields,
    one after the tokens so far and one after each draft.
    """

    work: ScheduledTokens
    law: Sampler
    drafts: list[int] = field(default_factory=list)  # that are verified
    draft: Draft = field(default_factory=Draft)  # that was proposed, of which `drafts` are the first
    prompt: range = field(init=False)  # positions of the former
    first: int = field(init=False)  # of the latter among the step's rows
    broken: bool = False  # its committed tokens have states that are no numbers

    def __post_init__(self) -> None:
        self.prompt = self.law.prompt_rows(self.work.start, self.work.count)

    def chunk(self) -> Chunk:
        """What the model computes; its rows stand at the chunk's end without a gap."""
        sequence, work = self.work.sequence, self.work
        tokens = sequence.tokens[work.start : work.start + work.count] + self.drafts
        answer = len(self.drafts) + 1 if work.yields else 0
        return Chunk(tokens, work.start, sequence.table, len(self.prompt) + answer, sequence.prompt_length)

    def rows(self) -> AnswerRows:
        """The answer's rows, to be drawn from."""
        return AnswerRows(self.law, self.work.sequence.tokens, self.drafts, self.first)

    def logprobs(self, logits: Tensor, tokens: tuple[int, ...]) -> tuple[TokenLogprob, ...]:
        """Of the committed `tokens`, from the step's logits; empty where they were not asked for."""
        top = self.law.params.logprobs
        if top is None:
            return ()
        return tuple(token_logprobs(logits[self.first : self.first + len(tokens)], tokens, top))


def compute(model: ModelRunner, parts: list[BatchEntry]) -> Forward:
    """One pass over all parts; those that are `broken` say so afterwards.

    Where drafts were computed, the committed tokens are tried once more without any: a draft's state that is
    no number spoils those that are computed beside it, and whether an answer goes on must not depend on what
    was drafted. That the others are computed twice changes nothing: they get the same bits in the same slots.
    """
    forward = model.forward([part.chunk() for part in parts])
    drafted = [parts[number] for number in forward.broken if parts[number].drafts]
    if drafted:
        for part in drafted:
            part.drafts = []
        forward = model.forward([part.chunk() for part in parts])
    for number in forward.broken:
        parts[number].broken = True
    return forward


def lay_out(parts: list[BatchEntry], logits: Tensor) -> None:
    """Tell each part where its rows are among the step's, and read those of prompts."""
    row = 0
    for part in parts:
        if not part.broken:
            part.law.read_prompt(logits[row : row + len(part.prompt)], part.prompt)
        part.first = row + len(part.prompt)
        row = part.first + (len(part.drafts) + 1 if part.work.yields else 0)
