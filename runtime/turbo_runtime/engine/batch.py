"""One sequence's part of a step: its tokens, and its rows of the step's logits."""

from __future__ import annotations

from dataclasses import dataclass, field

from torch import Tensor

from turbo_runtime.drafters.interface import Draft
from turbo_runtime.engine.scheduler import ScheduledTokens
from turbo_runtime.messages import TokenLogprob
from turbo_runtime.models.runner import Chunk, Forward, ModelRunner
from turbo_runtime.sampling.logprobs import token_logprobs
from turbo_runtime.sampling.sampler import AnswerRows, Sampler


@dataclass(slots=True)
class BatchEntry:
    """Its rows: of prompt tokens with log probabilities; then, if it yields, of the answer and each draft."""

    work: ScheduledTokens
    sampler: Sampler
    drafts: list[int] = field(default_factory=list)  # to verify
    draft: Draft = field(default_factory=Draft)  # the proposed one; `drafts` are its first tokens
    prompt: range = field(init=False)  # positions of the former
    first: int = field(init=False)  # of the latter among the step's rows
    broken: bool = False  # its committed tokens have states that are NaN or infinite

    def __post_init__(self) -> None:
        self.prompt = self.sampler.prompt_logprobs.rows(self.work.start, self.work.count)

    def chunk(self) -> Chunk:
        """Build the input of the model; the rows stand at the chunk's end without a gap."""
        sequence, work = self.work.sequence, self.work
        tokens = sequence.tokens[work.start : work.start + work.count] + self.drafts
        answer = len(self.drafts) + 1 if work.yields else 0
        return Chunk(tokens, work.start, sequence.table, len(self.prompt) + answer, sequence.prompt_length)

    def rows(self) -> AnswerRows:
        """Return the answer's rows, to draw from."""
        return AnswerRows(self.sampler, self.work.sequence.tokens, self.drafts, self.first)

    def logprobs(self, logits: Tensor, tokens: tuple[int, ...]) -> tuple[TokenLogprob, ...]:
        """Return those of the committed `tokens`; empty if not requested."""
        top = self.sampler.params.logprobs
        if top is None:
            return ()
        return tuple(token_logprobs(logits[self.first : self.first + len(tokens)], tokens, top))


def compute(model: ModelRunner, parts: list[BatchEntry]) -> Forward:
    """Compute all parts in one pass, and mark the `broken` ones. A NaN of a draft spoils the tokens computed
    with it, and must not decide whether an answer goes on: a second pass leaves such drafts out. The other
    parts get the same bits again.
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
    """Assign each part its rows among the step's, and read those of prompts."""
    row = 0
    for part in parts:
        if not part.broken:
            part.sampler.prompt_logprobs.read(logits[row : row + len(part.prompt)], part.prompt)
        part.first = row + len(part.prompt)
        row = part.first + (len(part.drafts) + 1 if part.work.yields else 0)
