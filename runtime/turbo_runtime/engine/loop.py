"""The engine's loop: one step is drain, schedule, propose, forward, verify, fold, emit.

One thread owns the scheduler, the model and the drafter; the server is another process that sends and
receives the messages of `request.py`.
"""

from __future__ import annotations

import logging
from dataclasses import replace

from torch import Tensor

from turbo_runtime.drafters.suffix import SuffixDrafter
from turbo_runtime.engine.grammar import GrammarError, Grammars
from turbo_runtime.engine.laws import Laws
from turbo_runtime.engine.model import PagedModel
from turbo_runtime.engine.part import Part, lay_out
from turbo_runtime.engine.request import Cancel, EngineStats, Step, Submit, TokenEvent
from turbo_runtime.engine.sampling.answer import AnswerLaw, NoTokenError
from turbo_runtime.engine.sampling.noise import Noise
from turbo_runtime.engine.sampling.step import TokenAt, tokens_of_step
from turbo_runtime.engine.scheduler import Scheduler
from turbo_runtime.engine.sequence import Sequence, Work
from turbo_runtime.engine.verify import Verdict, verify

log = logging.getLogger(__name__)

_COMPILE_WAIT_SECONDS = 0.005  # with nothing else to do; the inbox is looked into after each


class Engine:
    """Serves sequences step by step."""

    def __init__(
        self,
        model: PagedModel,
        scheduler: Scheduler,
        drafter: SuffixDrafter,
        grammars: Grammars | None = None,
    ) -> None:
        self.model = model
        self.scheduler = scheduler
        self.drafter = drafter
        self.noise = Noise(model.vocabulary, model.device)
        self.laws = Laws(self.noise, grammars)
        self._events: list[TokenEvent] = []  # of the step in progress
        self._stats = EngineStats()

    @property
    def idle(self) -> bool:
        """Whether there is nothing to compute and nothing to tell."""
        return not (self.scheduler.running or self.scheduler.waiting or self.laws.compiling or self._events)

    def accept(self, message: Submit | Cancel) -> None:
        """Take one message of the server in; what is wrong with it becomes an event of the next step."""
        if isinstance(message, Cancel):
            self.laws.end(message.request_id)
            sequence = self.scheduler.find(message.request_id)
            if sequence:  # else it ended while the message was under way
                self._end(sequence)
            return
        try:
            self._check_ids(message)
            if self.laws.begin(message):
                self._add(message)
        except ValueError as error:
            self._refuse(message, error)

    def step(self) -> Step:
        """Compute one step for everything that runs."""
        for submit, error in self.laws.compiled():
            if error is None:
                self._add(submit)
            else:
                self._refuse(submit, error)
        plan = self.scheduler.plan()
        parts = [self._part(work) for work in plan.work]
        if parts:
            logits = self.model.forward([part.chunk() for part in parts]).logits
            lay_out(parts, logits)
            yielding = [part for part in parts if part.work.yields]
            for part in parts:
                if not part.work.yields:
                    self.scheduler.fold(part.work, [])
            drawn = tokens_of_step(logits, [part.rows() for part in yielding], self.noise)
            for part, token_at in zip(yielding, drawn, strict=True):
                self._advance(part, token_at, logits)
        elif self.laws.compiling:
            self.laws.wait(_COMPILE_WAIT_SECONDS)
        return Step(tuple(self._take_events()), self.stats())

    def stats(self) -> EngineStats:
        """The state now, and the counters."""
        running, waiting = self.scheduler.running, self.scheduler.waiting
        return replace(
            self._stats,
            running_requests=len(running),
            waiting_requests=len(waiting),
            running_tokens=sum(s.computed for s in running),
            waiting_tokens=sum(len(s.tokens) for s in waiting),
            kv_blocks_used=self.scheduler.ledger.num_used,
            preemptions=self.scheduler.preemptions,
        )

    def _check_ids(self, submit: Submit) -> None:
        """An id without an embedding would fail the pass of everybody in the step."""
        if not all(0 <= token < self.model.vocabulary for token in submit.prompt):
            raise ValueError(f"token ids must lie between 0 and {self.model.vocabulary - 1}")

    def _add(self, submit: Submit) -> None:
        """Queue an answer that has its law, or refuse it."""
        try:
            self.scheduler.add(submit)
        except ValueError as error:
            self._refuse(submit, error)
            return
        self._count(prompts=1, prompt_tokens=len(submit.prompt))

    def _refuse(self, submit: Submit, error: ValueError) -> None:
        self.laws.end(submit.request_id)
        self._events.append(
            TokenEvent(submit.request_id, finish_reason="error", error=str(error), refused=True)
        )

    def _part(self, work: Work) -> Part:
        law = self.laws[work.sequence.submit.request_id]
        return Part(work, law, self._propose(work, law))

    def _propose(self, work: Work, law: AnswerLaw) -> list[int]:
        if not work.yields or not work.draft_limit:
            return []
        sequence = work.sequence
        forced = law.forced(sequence.tokens)[: work.draft_limit]
        if forced:
            return forced
        drafts = self.drafter.propose(sequence.submit.request_id, sequence.tokens, work.draft_limit)
        return list(law.allowed_prefix(sequence.tokens, drafts))

    def _advance(self, part: Part, token_at: TokenAt, logits: Tensor) -> None:
        """Verify one sequence's rows, book the result, tell it; a failure takes only this sequence down."""
        work, drafted, law = part.work, part.drafts, part.law
        sequence = work.sequence
        request_id = sequence.submit.request_id
        try:
            verdict = verify(token_at, drafted, stop_ids=law.stop_ids, room=self.scheduler.room(sequence))
            logprobs = part.logprobs(logits, verdict.tokens)
        except (NoTokenError, GrammarError) as error:
            self._end(sequence)
            self._events.append(TokenEvent(request_id, finish_reason="error", error=str(error)))
            return
        except Exception as error:
            log.exception("request %s failed", request_id)
            self._end(sequence)
            self._events.append(
                TokenEvent(
                    request_id, finish_reason="error", error=f"the engine failed on this request: {error}"
                )
            )
            return
        self.scheduler.fold(work, list(verdict.tokens))
        self._count_verdict(verdict, len(drafted))
        self._events.append(
            TokenEvent(
                request_id,
                verdict.tokens,
                verdict.finish_reason,
                None,
                len(drafted),
                verdict.accepted,
                logprobs,
                law.take_prompt_logprobs(),
            )
        )
        if verdict.finish_reason:
            self._end(sequence)

    def _end(self, sequence: Sequence) -> None:
        request_id = sequence.submit.request_id
        self.scheduler.finish(sequence)
        self.laws.end(request_id)
        self.drafter.observe(request_id, sequence.tokens, sequence.prompt_length)

    def _take_events(self) -> list[TokenEvent]:
        events, self._events = self._events, []
        return events

    def _count(self, **increments: int) -> None:
        grown = {name: getattr(self._stats, name) + by for name, by in increments.items()}
        self._stats = replace(self._stats, **grown)

    def _count_verdict(self, verdict: Verdict, drafted: int) -> None:
        self._count(generated_tokens=len(verdict.tokens))
        if not drafted:
            return
        self._count(drafts=1, draft_tokens=drafted, accepted_tokens=verdict.accepted)
        per_position = list(self._stats.accepted_per_position)
        per_position += [0] * (drafted - len(per_position))
        for position in range(verdict.accepted):
            per_position[position] += 1
        self._stats = replace(self._stats, accepted_per_position=tuple(per_position))
