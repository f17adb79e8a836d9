"""A sequence's part of a step, and its drafts: what its grammar forces, else the drafters', as they pay."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from functools import partial
from itertools import takewhile

import torch
from torch import Tensor

from turbo_runtime.contract.config import DraftMethod
from turbo_runtime.drafters.interface import ComputedTokens, Draft, DraftRequest
from turbo_runtime.drafters.proposer import Proposer
from turbo_runtime.engine import scheduler
from turbo_runtime.models.step_batch import Chunk
from turbo_runtime.sampling.sampler import AnswerRows, Sampler
from turbo_runtime.speculation.controller import Demand, DraftOutcome, GoodputController, StepTimes
from turbo_runtime.speculation.step_cost import StepShape
from turbo_runtime.speculation.verification import VerificationResult

_FORCED = 1.0  # acceptance of a token that the grammar forces
_MIN_SLICE, _MAX_SLICE = 32, 1024  # tokens of a step; fewer are not worth the call, and wait for the next
_IDLE_SLICE = 2048  # tokens at a time while there is nothing else to do
_MAX_DEBT = 16.0  # shares of a step
_PACE = 1e-5  # seconds per token before the first measurement
_LEARN = 0.2  # weight of the newest slice in the pace


_NO_DRAFT = Draft()


@dataclass(slots=True)
class BatchEntry:
    """A sequence's rows of a step: prompt tokens that need log probabilities, then its output and drafts."""

    work: scheduler.ScheduledTokens
    sampler: Sampler
    drafts: list[int] = field(default_factory=list)  # to verify
    draft: Draft = _NO_DRAFT  # the proposed one; `drafts` are its first tokens
    prompt: range = field(init=False)  # positions of the former
    first: int = field(init=False)  # of the latter among the step's rows

    def __post_init__(self) -> None:
        self.prompt = self.sampler.prompt_logprobs.rows(self.work.start, self.work.count)

    def chunk(self) -> Chunk:
        """Build the input of the model; the rows stand at the chunk's end without a gap."""
        sequence, work = self.work.sequence, self.work
        tokens = sequence.tokens[work.start : work.start + work.count] + self.drafts
        answer = len(self.drafts) + 1 if work.yields else 0
        rows, request = len(self.prompt) + answer, sequence.request
        return Chunk(tokens, work.start, sequence.table, rows, sequence.prompt_length, request.lora_id)

    def rows(self) -> AnswerRows:
        """Return its rows, to draw from and to score."""
        prompt = self.sampler.prompt_logprobs.tokens(self.prompt) if self.prompt else ()
        tokens = self.work.sequence.tokens
        return AnswerRows(self.sampler, tokens, self.drafts, self.first, prompt, self.work.yields)


class Reading:
    """Lets drafters read prompts and finished answers for later steps, in slices of a share of every step."""

    def __init__(self, clock: Callable[[], float] = time.perf_counter) -> None:
        self._clock = clock
        self._pace = _PACE
        self._spare = 0.0  # unused seconds of earlier steps

    def step(self, reader: Proposer, spare_of_step: Callable[[], float]) -> float:
        """Read for about the spare seconds of the step; the seconds it took."""
        if not reader.waiting:
            self._spare = 0.0
            return 0.0
        spare = spare_of_step()
        self._spare += spare
        tokens = min(_MAX_SLICE, int(self._spare / self._pace))
        if tokens < _MIN_SLICE:
            return 0.0
        seconds = self.read(reader, tokens)
        # later steps make up for a slow slice, unless only a stall of the machine explains it
        self._spare = min(0.0, max(self._spare - seconds, -_MAX_DEBT * spare))
        return seconds

    def read(self, reader: Proposer, tokens: int) -> float:
        """Read so many tokens; the seconds it took."""
        start_time = self._clock()
        num_read = reader.read(tokens)
        seconds = self._clock() - start_time
        if num_read:
            self._pace += _LEARN * (max(seconds / num_read, 1e-7) - self._pace)
        return seconds


class Speculator:
    """Drafts for the parts of each step, and learns from the results."""

    def __init__(self, drafters: Proposer, control: GoodputController) -> None:
        self.drafters = drafters
        self.control = control
        self.demand = Demand()
        self._reads_hidden = False  # whether a drafter does, in this step
        self._hidden: dict[str, Tensor] = {}  # the states that gave the answers' last tokens
        self._shape = StepShape(0)  # of the step in progress, without drafts
        self._drafted: set[str] = set()  # its requests that drafters draft for
        self._outcomes: list[DraftOutcome] = []  # of it
        self._ended: list[str] = []  # requests whose last step is still to learn from
        self._reading = Reading()
        self._read = self._drafting = 0.0  # seconds of it

    def propose(self, parts: Sequence[BatchEntry]) -> None:
        """Set `draft` and `drafts` of the parts to those that promise most tokens a second."""
        start_time = time.perf_counter()
        self._outcomes.clear()
        self._shape, self._reads_hidden = _shape(parts), self.drafters.reads_hidden
        able = [part for part in parts if part.work.yields and part.work.draft_limit]
        answers = sum(part.work.yields for part in parts)
        self._draft(able, answers)
        self._drafting = time.perf_counter() - start_time
        self._read = 0.0
        drafting = [part for part in able if part.drafts]
        acceptances = [
            self.control.trust.apply(part.draft.cumulative_acceptance[: len(part.drafts)])
            or [_FORCED] * len(part.drafts)
            for part in drafting
        ]
        counts = self.control.select_draft_lengths(acceptances, self._shape, answers, self._drafting)
        for part, count in zip(drafting, counts, strict=True):
            del part.drafts[count:]

    def read_on(self, parts: Sequence[BatchEntry], *, overlapped: bool) -> None:
        """Index prompts while they are computed, and finished answers; `overlapped` with a device's work."""
        for part in parts:
            sequence = part.work.sequence
            if sequence.generated:
                continue
            params = sequence.request.params
            if params.draft_method != "off" and params.max_draft_tokens != 0:
                self.drafters.expect(sequence.request_id, sequence.tokens, params.draft_method)
        seconds = self._reading.step(self.drafters, partial(self.control.spare, self._shape))
        self._read += 0.0 if overlapped else seconds

    def observe(self, part: BatchEntry, verdict: VerificationResult, hidden: Tensor) -> None:
        """Learn a part's committed tokens; `hidden` (rows, width) are the states of the step's rows."""
        request_id = part.work.sequence.request_id
        drafted, won = len(part.drafts), len(verdict.tokens) - 1
        if self._reads_hidden:
            self._hidden[request_id] = hidden[part.first + won].clone()  # a view would keep all rows
        if part.work.count == 1:  # a prompt's step has no promise, and not all drafters draft in it
            self.demand.book(request_id, drafted, part.work.draft_limit)
        proposed = request_id in self._drafted
        if not part.draft.tokens:
            self._outcomes.append(
                DraftOutcome(request_id, proposed, drafted, won, costly_key=part.draft.costly_key)
            )
            return
        self.drafters.observe(part.draft, verdict.tokens)
        origins = part.draft.origins[:drafted]
        more = sum(origin.fallback_token is None for origin in origins)
        gained = sum(
            (token == actual) - (origin.fallback_token == actual)
            for origin, token, actual in zip(origins, part.draft.tokens, verdict.tokens, strict=False)
        )
        claimed, right = part.draft.compare(verdict.tokens)
        self._outcomes.append(
            DraftOutcome(
                request_id, proposed, drafted, won, claimed, right, part.draft.costly_key, more, gained
            )
        )

    def stream_layers(self, parts: Sequence[BatchEntry]) -> tuple[int, ...]:
        """Layers of the model whose input drafters need of this step."""
        if not self.drafters.follows:
            return ()
        return self.drafters.stream_layers(map(_choice, parts), self.control.costly_pay)

    def follow(self, parts: Sequence[BatchEntry], streams: Tensor | None, layers: tuple[int, ...]) -> None:
        """Let drafters with a KV cache of their own read what a step has committed; `streams` (tokens of all
        parts, layers x width). Comes after the step's updates; it is reading, for later steps.
        """
        if not self.drafters.follows:
            return
        start_time = time.perf_counter()
        computed, row = [], 0
        for part in parts:
            work, sequence = part.work, part.work.sequence
            first, row = row, row + work.count + len(part.drafts)
            count = sequence.computed - work.start
            if count <= 0 or not sequence.table or part.sampler.params.max_draft_tokens == 0:
                continue
            rows = torch.empty(count, 0, 0)
            if streams is not None:
                rows = streams[first : first + count].view(count, len(layers), -1)
            tokens = ComputedTokens(
                sequence.request_id,
                sequence.tokens,
                sequence.prompt_length,
                sequence.request.scope,
                sequence.table,
                work.start,
                sequence.computed,
                work.count == 1,
                rows,
            )
            computed.append((tokens, *_choice(part)))
        self.drafters.follow(computed, layers, self.control.costly_pay)
        self._read += time.perf_counter() - start_time

    def learn(self, seconds: float) -> None:
        """Learn from the time of the whole step."""
        if self._outcomes or self._shape.tile_reads:
            rest = seconds - self._drafting - self._read
            costly = self.drafters.costly_seconds if self._drafted else {}
            times = StepTimes(self._drafting, rest, self._read, costly)
            self.control.learn(self._shape, self._outcomes, times)

    def forget_ended(self) -> None:
        """Forget the requests that ended, once what their last step taught has been read."""
        for request_id in self._ended:
            self.control.forget(request_id)
            self.demand.forget(request_id)
        self._ended.clear()

    def finish(self, sequence: scheduler.Sequence) -> None:
        """End a request."""
        request = sequence.request
        self.drafters.finish(request.request_id, sequence.tokens, sequence.prompt_length, request.scope)
        self._ended.append(request.request_id)
        self._hidden.pop(request.request_id, None)

    def rest(self) -> None:
        """Do a little background work while the engine is idle."""
        if self.drafters.waiting:
            self._reading.read(self.drafters, _IDLE_SLICE)

    def _draft(self, able: Sequence[BatchEntry], answers: int) -> None:
        """Give each part all drafts that may be worth a row of this step, which has `answers`."""
        free: dict[str, BatchEntry] = {}  # by request, without forced tokens
        for part in able:
            forced = part.sampler.forced(part.work.sequence.tokens)
            part.drafts = _before_end(part, forced[: part.work.draft_limit])
            if not forced:
                free[part.work.sequence.request_id] = part
        chosen = list(free.values()) if self.control.asks else []
        self._drafted = set(free) if chosen else set()
        if not chosen:
            return
        min_acceptance = self.control.min_acceptance(self._shape, answers)
        requests = [self._draft_request(part) for part in chosen]
        worth = self.control.token_seconds(self._shape, answers)
        proposed = self.drafters.propose(requests, min_acceptance, self.control.costly_pay, worth)
        for part, draft in zip(chosen, proposed, strict=True):
            part.draft = draft
            allowed = part.sampler.allowed_prefix(part.work.sequence.tokens, draft.tokens)
            part.drafts = _before_end(part, allowed)

    def _draft_request(self, part: BatchEntry) -> DraftRequest:
        sequence, sampler = part.work.sequence, part.sampler
        request = sequence.request
        return DraftRequest(
            request.request_id,
            sequence.tokens,
            sequence.prompt_length,
            part.work.draft_limit,
            request.scope,
            sampler.key,
            sampler.rule.temperature,
            self._hidden.get(request.request_id),
            sampler.params.draft_method,
            request.draft,
            sequence.table if part.work.count == 1 else (),
            request.lora_id,
        )


def _choice(part: BatchEntry) -> tuple[DraftMethod, str]:
    """The method and the draft that the part's request chose."""
    return part.sampler.params.draft_method, part.work.sequence.request.draft


def _before_end(part: BatchEntry, tokens: Iterable[int]) -> list[int]:
    """The tokens before one that ends the answer, which comes for free as the bonus of the others."""
    return list(takewhile(lambda token: token not in part.sampler.stop_ids, tokens))


def _shape(parts: Sequence[BatchEntry]) -> StepShape:
    """The step without drafts. A part of several tokens is a prompt's, or a recomputation."""
    works = [part.work for part in parts]
    return StepShape(
        sum(work.count for work in works),
        sum(work.start + 1 for work in works if work.count == 1),
        sum(work.count * (work.start + work.count) for work in works if work.count > 1),
    )
