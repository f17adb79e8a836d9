"""A live answer, and its part of a step. Knows no torch and no clock."""

from __future__ import annotations

from dataclasses import dataclass, field

from turbo_runtime.kv_cache.block_pool import BLOCK_SIZE
from turbo_runtime.messages import GenerationRequest


@dataclass(slots=True, eq=False)
class Sequence:
    """A live answer, changed only by the scheduler, or by the audit that replays it."""

    submit: GenerationRequest
    tokens: list[int]  # prompt and committed answer
    keys: tuple[bytes, ...]  # of the prompt's shareable blocks (`prefix_cache.block_keys`)
    computed: int = 0  # leading tokens with keys and values in the cache
    table: list[int] = field(default_factory=list)  # blocks, in order of position
    shared: int = 0  # leading blocks in the prefix cache, which are only read
    cached: int | None = None  # prompt tokens found in the prefix cache; None before the first admission

    @property
    def prompt_length(self) -> int:
        """Tokens of the prompt."""
        return len(self.submit.prompt)

    @property
    def generated(self) -> int:
        """Committed tokens of the answer."""
        return len(self.tokens) - len(self.submit.prompt)

    @property
    def missing(self) -> int:
        """Committed tokens still to compute; 1 while decoding."""
        return len(self.tokens) - self.computed

    @property
    def shareable(self) -> tuple[bytes, ...]:
        """Keys of blocks to take from the prefix cache: before the last token; none for `prompt_logprobs`."""
        if self.submit.params.prompt_logprobs is not None:
            return ()
        return self.keys[: (len(self.tokens) - 1) // BLOCK_SIZE]


@dataclass(frozen=True, slots=True)
class ScheduledTokens:
    """One sequence's part of a step: `count` committed tokens from `start`, then `draft_limit` drafts."""

    sequence: Sequence
    start: int
    count: int
    draft_limit: int

    @property
    def yields(self) -> bool:
        """Whether the last committed token is among them, so that they give new tokens."""
        return self.start + self.count == len(self.sequence.tokens)


@dataclass(frozen=True, slots=True)
class SchedulerOutput:
    """The work of one step, with blocks reserved for every token, and the sequences preempted for it."""

    work: tuple[ScheduledTokens, ...]
    preempted: tuple[Sequence, ...] = ()
