"""One answer being computed, and its part of a step. Knows no torch and no clock."""

from __future__ import annotations

from dataclasses import dataclass, field

from turbo_runtime.kv_cache.block_pool import BLOCK_SIZE
from turbo_runtime.messages import GenerationRequest


@dataclass(slots=True, eq=False)
class Sequence:
    """One answer being computed; only the scheduler changes it, and the audit those that it replays."""

    submit: GenerationRequest
    tokens: list[int]  # prompt and committed answer
    keys: tuple[bytes, ...]  # of the prompt's blocks that may be shared (`prefix.block_keys`)
    computed: int = 0  # leading tokens whose keys and values are in the cache
    table: list[int] = field(default_factory=list)  # blocks, in order of position
    shared: int = 0  # leading blocks of the table that the prefix cache knows: they are only read
    cached: int | None = None  # prompt tokens found in the prefix cache; None before it is first admitted

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
        """Committed tokens not computed yet; 1 while decoding."""
        return len(self.tokens) - self.computed

    @property
    def shareable(self) -> tuple[bytes, ...]:
        """Keys of the blocks that it may take from the prefix cache.

        The last token is always computed, since its logits are wanted; with `prompt_logprobs` all are.
        """
        if self.submit.params.prompt_logprobs is not None:
            return ()
        return self.keys[: (len(self.tokens) - 1) // BLOCK_SIZE]


@dataclass(frozen=True, slots=True)
class ScheduledTokens:
    """One sequence's part of a step: `count` committed tokens from position `start`, then up to `draft_limit`
    drafted ones.
    """

    sequence: Sequence
    start: int
    count: int
    draft_limit: int

    @property
    def yields(self) -> bool:
        """Whether the last committed token is among them, so that new tokens come of it."""
        return self.start + self.count == len(self.sequence.tokens)


@dataclass(frozen=True, slots=True)
class SchedulerOutput:
    """The work of one step and who had to give its blocks up for it. Blocks for every token of it are
    reserved.
    """

    work: tuple[ScheduledTokens, ...]
    preempted: tuple[Sequence, ...] = ()
