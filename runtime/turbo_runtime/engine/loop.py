"""The engine's loop: one step is schedule, propose, forward, verify, fold, tell.

One thread owns the scheduler, the model and the drafters; the server is another process that sends and
receives the messages of `request.py`.
"""

from __future__ import annotations

import logging
import time

from turbo_runtime.drafters.proposer import Proposer
from turbo_runtime.engine.audit import Audit, AuditTerms
from turbo_runtime.engine.batch import BatchEntry, compute, lay_out
from turbo_runtime.engine.scheduler import Scheduler
from turbo_runtime.engine.sequence import Sequence
from turbo_runtime.engine.speculator import Speculator
from turbo_runtime.engine.stats import Counters
from turbo_runtime.messages import Abort, EngineStats, GenerationRequest, StepOutput, TokenEvent
from turbo_runtime.models.matmul import padded_rows
from turbo_runtime.models.runner import Forward, ModelRunner
from turbo_runtime.sampling.grammar.compiler import GrammarError
from turbo_runtime.sampling.grammar.matcher import Grammars, SpentError
from turbo_runtime.sampling.noise import Noise
from turbo_runtime.sampling.registry import SamplerRegistry
from turbo_runtime.sampling.sampler import NOT_FINITE, NoTokenError
from turbo_runtime.sampling.step import TokenAt, tokens_of_step
from turbo_runtime.speculation.controller import GoodputController
from turbo_runtime.speculation.verification import verify

log = logging.getLogger(__name__)

NO_AUDIT = AuditTerms()
_COMPILE_WAIT_SECONDS = 0.005  # with nothing else to do; the inbox is looked into after each


class Engine:
    """Serves sequences step by step."""

    def __init__(
        self,
        model: ModelRunner,
        scheduler: Scheduler,
        drafters: Proposer,
        grammars: Grammars | None = None,
        control: GoodputController | None = None,
        audit: AuditTerms = NO_AUDIT,
    ) -> None:
        """`control`: by default one that has measured nothing yet."""
        self.model = model
        self.scheduler = scheduler
        self.speculation = Speculator(
            drafters, GoodputController(None, padded_rows) if control is None else control
        )
        self.noise = Noise(model.vocabulary, model.device)
        self.laws = SamplerRegistry(self.noise, grammars)
        self.audit = Audit(model, scheduler, self.laws, audit)
        self._arrived: dict[str, float] = {}  # when an answer that waits for its first step came
        self._queued: dict[str, float] = {}  # how long one waited that has no token yet
        self._checked = True  # the books, since the last step
        self._events: list[TokenEvent] = []  # of the step in progress
        self._counters = Counters()

    @property
    def idle(self) -> bool:
        """Whether there is nothing to compute and nothing to tell."""
        return not (self.scheduler.running or self.scheduler.waiting or self.laws.compiling or self._events)

    def accept(self, message: GenerationRequest | Abort) -> None:
        """Take one message of the server in; what is wrong with it becomes an event of the next step."""
        if isinstance(message, Abort):
            sequence = self.scheduler.find(message.request_id)
            if sequence:  # else it ended while the message was under way
                self._end(sequence)
            else:
                self.laws.end(message.request_id)
                self._arrived.pop(message.request_id, None)
            return
        if message.request_id in self.laws:  # whatever was told under this id would reach the other's client
            log.error("request %s is here already and is not taken in again", message.request_id)
            return
        self._arrived[message.request_id] = time.monotonic()
        try:
            self._check_ids(message)
            if self.laws.begin(message):
                self._add(message)
        except ValueError as error:
            self._refuse(message, error)

    def step(self) -> StepOutput:
        """Compute one step for everything that runs."""
        self.speculation.drafters.poll(time.monotonic())
        self._checked = False
        for submit, error in self.laws.compiled():
            if error is None:
                self._add(submit)
            else:
                self._refuse(submit, error)
        self.audit.make_room()
        plan = self.scheduler.plan(self.speculation.demand.of)
        names = ((work, work.sequence.submit.request_id) for work in plan.work)
        parts = [BatchEntry(work, self.laws[name]) for work, name in names if self.laws.ready(name)]
        if parts:
            began = time.perf_counter()
            self._note_start(parts)
            self.speculation.propose(parts)
            before = time.perf_counter()
            forward = compute(self.model, parts)
            after = time.perf_counter()
            logits = forward.logits
            lay_out(parts, logits)
            yielding = [part for part in parts if part.work.yields and not part.broken]
            for part in parts:
                if part.broken:
                    self._cannot(part.work.sequence, NOT_FINITE)
                elif not part.work.yields:
                    self.scheduler.fold(part.work, [])
            drawn = tokens_of_step(logits, [part.rows() for part in yielding], self.noise)
            for part, token_at in zip(yielding, drawn, strict=True):
                self._advance(part, token_at, forward)
            seconds = time.perf_counter() - began
            self.speculation.learn(seconds)
            self._counters.count_step(seconds, after - before)
        elif self.laws.compiling:
            self.laws.wait(_COMPILE_WAIT_SECONDS)
        return StepOutput(tuple(self._take_events()), self.stats())

    def stats(self) -> EngineStats:
        """The state now, and the counters."""
        running, waiting = self.scheduler.running, self.scheduler.waiting
        counts, drafters = self._counters, self.speculation.drafters
        answering, plain = self.speculation.control.answering_seconds
        return EngineStats(
            prompts=counts.prompts,
            prompt_tokens=counts.prompt_tokens,
            generated_tokens=counts.generated_tokens,
            drafts=counts.drafts,
            draft_tokens=counts.draft_tokens,
            accepted_tokens=counts.accepted_tokens,
            accepted_per_position=tuple(counts.accepted_per_position),
            chosen_drafts=tuple(counts.chosen_drafts),
            begun_prompt_tokens=counts.begun_prompt_tokens,
            step_seconds=counts.step_seconds,
            forward_seconds=counts.forward_seconds,
            answering_seconds=answering,
            plain_answering_seconds=plain,
            audits=counts.audits,
            audit_mismatches=counts.audit_mismatches,
            running_requests=len(running),
            waiting_requests=len(waiting),
            running_tokens=sum(s.computed for s in running),
            waiting_tokens=sum(len(s.tokens) for s in waiting),
            kv_blocks_used=self.scheduler.ledger.num_used - len(self.audit.table),  # those are to be had
            preemptions=self.scheduler.preemptions,
            prefix_cache_queries=self.scheduler.prefixes.queries,
            prefix_cache_hits=self.scheduler.prefixes.hits,
            speedup=self.speculation.control.speedup,
            draft_version=drafters.version,
            by_draft=counts.by_draft(drafters.versions),
            draft_problem=drafters.problem,
        )

    def rest(self) -> None:
        """What is done while there is nothing to compute, a little at a time. While `audit.pending` there is
        more to do, which a message should not wait for.

        Raises BrokenLedger when the books of the cache do not add up: then no answer is to be trusted.
        """
        self.speculation.drafters.poll(time.monotonic())
        if not self._checked:
            self.scheduler.check(self.audit.table)
            self._checked = True
        self.speculation.rest()
        held = self.audit.step()
        if held is not None:
            self._counters.count_audit(held)
            self._checked = False  # it had blocks too

    def _check_ids(self, submit: GenerationRequest) -> None:
        """An id without an embedding would fail the pass of everybody in the step."""
        if not all(0 <= token < self.model.vocabulary for token in submit.prompt):
            raise ValueError(f"token ids must lie between 0 and {self.model.vocabulary - 1}")

    def _add(self, submit: GenerationRequest) -> None:
        """Queue an answer that has its law, or refuse it."""
        try:
            self.scheduler.add(submit)
        except ValueError as error:
            self._refuse(submit, error)
            return
        self._counters.count_prompt(len(submit.prompt))

    def _refuse(self, submit: GenerationRequest, error: ValueError) -> None:
        self.laws.end(submit.request_id)
        self._arrived.pop(submit.request_id, None)
        self._events.append(
            TokenEvent(submit.request_id, finish_reason="error", error=str(error), refused=True)
        )

    def _note_start(self, parts: list[BatchEntry]) -> None:
        now = time.monotonic()
        for part in parts:
            request_id = part.work.sequence.submit.request_id
            arrived = self._arrived.pop(request_id, None)
            if arrived is not None:
                self._queued[request_id] = now - arrived

    def _advance(self, part: BatchEntry, token_at: TokenAt, forward: Forward) -> None:
        """Verify one sequence's rows, book the result, tell it; a failure takes only this sequence down."""
        drafts, law, sequence = part.drafts, part.law, part.work.sequence
        request_id = sequence.submit.request_id
        try:
            verdict = verify(token_at, drafts, stop_ids=law.stop_ids, room=self.scheduler.room(sequence))
            logprobs = part.logprobs(forward.logits, verdict.tokens)
        except SpentError:
            self.laws.renew(request_id)  # nothing is booked: this step comes again
            return
        except (NoTokenError, GrammarError) as error:
            self._cannot(sequence, str(error))
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
        self.scheduler.fold(part.work, list(verdict.tokens))
        self.speculation.observe(part, verdict, forward.hidden[part.first + len(verdict.tokens) - 1])
        chosen = self.speculation.drafters.name_of(sequence.submit.draft)
        self._counters.count_verdict(verdict, len(drafts), part.draft, chosen)
        first = sequence.generated == len(verdict.tokens)
        if first:
            self._counters.begun_prompt_tokens += sequence.prompt_length
        self._events.append(
            TokenEvent(
                request_id,
                verdict.tokens,
                verdict.finish_reason,
                drafted=len(drafts),
                accepted=verdict.accepted,
                logprobs=logprobs,
                prompt_logprobs=law.take_prompt_logprobs(),
                cached_tokens=sequence.cached if first else None,
                queued_seconds=self._queued.pop(request_id, None),
                speedup=self.speculation.control.speedup_of(request_id),
            )
        )
        if verdict.finish_reason:
            self.audit.offer(
                sequence.submit, sequence.tokens[sequence.prompt_length :], verdict.finish_reason
            )
            self._end(sequence)

    def _cannot(self, sequence: Sequence, why: str) -> None:
        self._end(sequence)
        self._events.append(
            TokenEvent(sequence.submit.request_id, finish_reason="error", error=why, refused=True)
        )

    def _end(self, sequence: Sequence) -> None:
        submit = sequence.submit
        self.scheduler.finish(sequence)
        self.laws.end(submit.request_id)
        self.speculation.finish(submit.request_id, sequence.tokens, sequence.prompt_length, submit.scope)
        for kept in (self._arrived, self._queued):
            kept.pop(submit.request_id, None)

    def _take_events(self) -> list[TokenEvent]:
        events, self._events = self._events, []
        return events
