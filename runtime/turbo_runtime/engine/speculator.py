"""The drafts of a step: what the grammar forces, else what the drafters have, as far as it is worth it."""

from __future__ import annotations

import time
from collections.abc import Hashable, Iterable, Sequence
from itertools import takewhile

from torch import Tensor

from turbo_runtime.drafters.interface import Coupling, DraftRequest
from turbo_runtime.drafters.proposer import Proposer
from turbo_runtime.engine.batch import BatchEntry
from turbo_runtime.speculation.background_indexer import Reading
from turbo_runtime.speculation.controller import DraftOutcome, GoodputController, StepTimes
from turbo_runtime.speculation.demand import Demand
from turbo_runtime.speculation.step_cost import StepShape
from turbo_runtime.speculation.verification import VerificationResult

_FORCED = 1.0  # chance that a token is accepted which the grammar leaves no choice about


class Speculator:
    """Gives the parts of one step their drafts, then learns what became of them."""

    def __init__(self, drafters: Proposer, control: GoodputController) -> None:
        self.drafters = drafters
        self.control = control
        self.demand = Demand()
        self._hidden: dict[str, Tensor] = {}  # the state that an answer's last token was drawn from
        self._shape = StepShape(0)  # of the step in progress, without drafts
        self._asked: set[str] = set()  # requests of it that the drafters were asked for
        self._heads: dict[str, Hashable | None] = {}  # those that draft for its requests, where they pay
        self._outcomes: list[DraftOutcome] = []  # of it
        self._ended: list[str] = []  # requests whose last step is still to be learnt from
        self._reading = Reading()
        self._read = self._drafting = 0.0  # seconds of it

    def propose(self, parts: Sequence[BatchEntry]) -> None:
        """Set `draft` and `drafts` of the parts: verified is what promises most tokens a second."""
        began = time.perf_counter()
        self._outcomes.clear()
        self._shape = _shape(parts)
        able = [part for part in parts if part.work.yields and part.work.draft_limit]
        self._ask(able, sum(part.work.yields for part in parts))
        self._drafting = time.perf_counter() - began
        self._read_on(parts)
        drafting = [part for part in able if part.drafts]
        answers = sum(part.work.yields for part in parts)
        survivals = [
            part.draft.survival[: len(part.drafts)] or [_FORCED] * len(part.drafts) for part in drafting
        ]
        counts = self.control.choose(survivals, self._shape, answers, self._drafting)
        for part, count in zip(drafting, counts, strict=True):
            del part.drafts[count:]

    def observe(self, part: BatchEntry, verdict: VerificationResult, state: Tensor) -> None:
        """What was committed for a part, and the hidden state that its last token was drawn from."""
        request_id = part.work.sequence.submit.request_id
        self.drafters.observe(part.draft, verdict.tokens)
        self.demand.book(request_id, len(part.drafts), part.work.draft_limit)
        drafted, won = len(part.drafts), len(verdict.tokens) - 1
        verified = part.draft.cut(drafted)
        more = sum(evidence.instead is None for evidence in verified.evidence)
        gained = sum(
            (token == said) - (evidence.instead == said)
            for evidence, token, said in zip(verified.evidence, verified.tokens, verdict.tokens, strict=False)
        )
        asked, heads = request_id in self._asked, self._heads.get(request_id)
        self._outcomes.append(DraftOutcome(request_id, asked, drafted, won, heads, more, gained))
        if self.drafters.use_hidden:
            self._hidden[request_id] = state.clone()  # not the view, which keeps everybody's rows

    def learn(self, seconds: float) -> None:
        """The whole step took so long."""
        if self._outcomes or self._shape.tile_reads:
            self.control.learn(
                self._shape,
                self._outcomes,
                StepTimes(
                    self._drafting,
                    seconds - self._drafting - self._read,
                    self._read,
                    self.drafters.heads_seconds if self._asked else {},
                ),
            )
        for request_id in self._ended:
            self.control.forget(request_id)
            self.demand.forget(request_id)
        self._ended.clear()

    def finish(self, request_id: str, tokens: Sequence[int], prompt_length: int, scope: str) -> None:
        """The request ended: `tokens` are prompt and answer so far."""
        self.drafters.finish(request_id, tokens, prompt_length, scope)
        self._ended.append(request_id)
        self._hidden.pop(request_id, None)

    def rest(self) -> None:
        """What is done while there is nothing to compute, a little at a time."""
        self._reading.rest(self.drafters)

    def _read_on(self, parts: Sequence[BatchEntry]) -> None:
        """Read prompts while they are computed, so that they are known when their answers begin, and what
        was answered before.
        """
        for part in parts:
            sequence = part.work.sequence
            params = sequence.submit.params
            if not sequence.generated and params.drafting != "off" and params.max_draft_tokens != 0:
                self.drafters.expect(sequence.submit.request_id, sequence.tokens, params.drafting)
        self._read = self._reading.step(self.drafters, self.control.spare(self._shape))

    def _ask(self, able: Sequence[BatchEntry], answers: int) -> None:
        """Give each part all that there is for it and may be worth a row of this step, of so many answers."""
        wanting: list[BatchEntry] = []
        for part in able:
            forced = part.law.forced(part.work.sequence.tokens)
            part.drafts = _before_end(part, forced[: part.work.draft_limit])
            if not forced:
                wanting.append(part)
        self._asked = self.control.to_draft(part.work.sequence.submit.request_id for part in wanting)
        wanting = [part for part in wanting if part.work.sequence.submit.request_id in self._asked]
        if not wanting:
            return
        least = self.control.least_survival(self._shape, answers)
        wants = [self._want(part) for part in wanting]
        self._heads = {want.request_id: self.drafters.heads_of(want.drafting, want.name) for want in wants}
        proposed = self.drafters.propose(wants, least, self.control.heads_pay)
        for part, draft in zip(wanting, proposed, strict=True):
            part.draft = draft
            part.drafts = _before_end(part, part.law.allowed_prefix(part.work.sequence.tokens, draft.tokens))

    def _want(self, part: BatchEntry) -> DraftRequest:
        sequence, law = part.work.sequence, part.law
        submit = sequence.submit
        return DraftRequest(
            submit.request_id,
            sequence.tokens,
            sequence.prompt_length,
            part.work.draft_limit,
            submit.scope,
            Coupling(law.key, 0.0 if law.greedy else law.params.temperature),
            self._hidden.get(submit.request_id),
            law.params.drafting,
            submit.draft,
        )


def _before_end(part: BatchEntry, tokens: Iterable[int]) -> list[int]:
    """The tokens before one that ends the answer: that one is had for nothing, as the bonus of the others."""
    return list(takewhile(lambda token: token not in part.law.stop_ids, tokens))


def _shape(parts: Sequence[BatchEntry]) -> StepShape:
    """The step without drafts. A part of several tokens is a prompt's, or one computed again."""
    works = [part.work for part in parts]
    return StepShape(
        sum(work.count for work in works),
        sum(work.start + 1 for work in works if work.count == 1),
        sum(work.count * (work.start + work.count) for work in works if work.count > 1),
    )
