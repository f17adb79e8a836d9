"""The engine's step: schedule, propose, forward, verify, update, report.

One thread owns the scheduler, the model and the drafters; the server is another process (`messages`).
"""

from __future__ import annotations

import logging
import time
from collections import Counter, defaultdict

from turbo_runtime.contract.documents import Guarantee
from turbo_runtime.drafters.proposer import Proposer
from turbo_runtime.drafters.suffix import SuffixDrafter
from turbo_runtime.engine.audit import Audit
from turbo_runtime.engine.scheduler import Scheduler
from turbo_runtime.engine.speculator import BatchEntry, Speculator
from turbo_runtime.messages import (
    Abort,
    DraftStats,
    EngineStats,
    GenerationRequest,
    Refused,
    StepOutput,
    TokenEvent,
)
from turbo_runtime.models.runner import Forward, ModelRunner, is_out_of_memory
from turbo_runtime.sampling.dense import DENSE
from turbo_runtime.sampling.draw_kernel import compile_draw
from turbo_runtime.sampling.grammar.compiler import GrammarError
from turbo_runtime.sampling.grammar.matcher import Grammars, SpentError
from turbo_runtime.sampling.noise import Noise
from turbo_runtime.sampling.registry import SamplerRegistry
from turbo_runtime.sampling.sampler import (
    NOT_FINITE,
    NotFiniteError,
    NoTokenError,
    SampledTokens,
    SamplingMetadata,
)
from turbo_runtime.sampling.search import SEARCH
from turbo_runtime.speculation.controller import GoodputController
from turbo_runtime.speculation.verification import VerificationResult, verify

log = logging.getLogger(__name__)

_MAX_FAILURES = 8  # of passes one after the other
_GROW_AFTER = 1024  # passes without a failure, after which steps that shrank for want of memory grow again
_COMPILE_WAIT_SECONDS = 0.005  # with nothing else to do; the inbox is checked after each


class Engine:
    """Serves sequences step by step."""

    def __init__(
        self,
        model: ModelRunner,
        scheduler: Scheduler,
        drafters: Proposer,
        grammars: Grammars | None = None,
        control: GoodputController | None = None,
        audit_fraction: float = 0.0,
        guarantee: Guarantee = "bitwise",
    ) -> None:
        """`control`: by default one without measurements."""
        self.model = model
        self.scheduler = scheduler
        self.speculation = Speculator(drafters, control or GoodputController(None, model.padded_rows))
        self.noise = Noise(model.vocabulary, model.device)
        self._kernels = DENSE if model.asynchronous else SEARCH
        if self._kernels is SEARCH:
            compile_draw()  # no request waits for it
        self.samplers = SamplerRegistry(self.noise, grammars)
        self.audit = Audit(model, scheduler, self.samplers, audit_fraction, guarantee, self._kernels)
        self._arrived: dict[str, float] = {}  # arrival times of answers that wait for their first step
        self._queued: dict[str, float] = {}  # waiting times of answers without a token
        self._failures = 0  # of passes, one after the other
        self._passes = 0  # since steps shrank or grew
        self._checked = True  # the block pool, since the last step
        self._events: list[TokenEvent] = []  # of the step in progress
        self._totals: Counter[str] = Counter()  # by the field of `EngineStats`
        self._by_draft: defaultdict[str, Counter[str]] = defaultdict(Counter)  # by that of `DraftStats`
        self._accepted_per_position: Counter[int] = Counter()
        self._verified_draft_length: Counter[int] = Counter()
        self._step_seconds = self._forward_seconds = 0.0

    @property
    def idle(self) -> bool:
        """Whether there is nothing to compute and nothing to report."""
        return not (
            self.scheduler.running or self.scheduler.waiting or self.samplers.compiling or self._events
        )

    def accept(self, message: GenerationRequest | Abort) -> None:
        """Take a message of the server; an invalid one becomes an event of the next step."""
        if isinstance(message, Abort):
            self._end(message.request_id)
            return
        if message.request_id in self.samplers:  # its events would reach the other's client
            log.error("request %s is here already and is not taken in again", message.request_id)
            return
        self._arrived[message.request_id] = time.monotonic()
        try:
            # an id without an embedding would fail the step of all requests
            if not all(0 <= token < self.model.vocabulary for token in message.prompt):
                raise ValueError(f"token ids must lie between 0 and {self.model.vocabulary - 1}")
            if not 0 <= message.lora_id <= len(self.model.adapter_shapes):
                raise ValueError(f"there is no adapter {message.lora_id}")
            if self.samplers.begin(message):
                self._add(message)
        except ValueError as error:
            self._reject(message.request_id, error)

    def step(self) -> StepOutput:
        """Compute one step for all running answers."""
        self.speculation.drafters.poll(time.monotonic())
        self._checked = False
        for request, error in self.samplers.compiled():
            self._add(request, error)
        self.audit.yield_blocks()
        self.scheduler.copies = not self.speculation.drafters.reads_streams  # copied positions have none
        plan = self.scheduler.schedule(self.speculation.demand.predict, self.samplers.ready)
        self.model.copy_blocks(self.scheduler.take_copies())
        names = [work.sequence.request_id for work in plan]
        parts = [BatchEntry(work, self.samplers[name]) for name, work in zip(names, plan, strict=True)]
        if parts:
            start_time = time.perf_counter()
            if self._arrived:
                now = time.monotonic()
                self._queued |= {
                    name: now - self._arrived.pop(name) for name in names if name in self._arrived
                }
            self.speculation.propose(parts)
            try:
                layers = self.speculation.stream_layers(parts)
                forward, sampled = self._compute(parts, layers)
            except Exception as error:
                self._recover(parts, error)
            else:
                self._failures = 0
                self._grow()
                self._finish_step(parts, forward, sampled)
                self.speculation.follow(parts, forward.streams, layers)
                seconds = time.perf_counter() - start_time
                self.speculation.learn(seconds)
                self._tell_speedups()
                self._step_seconds += seconds
        elif self.samplers.compiling:
            self.samplers.wait(_COMPILE_WAIT_SECONDS)
        events, self._events = self._events, []
        return StepOutput(tuple(events), self.stats())

    def close(self) -> None:
        """End the other ranks, and what compiles grammars; no step follows."""
        self.samplers.close()
        self.model.followers.stop()

    def stats(self) -> EngineStats:
        """Return the state and the counters."""
        running, waiting = self.scheduler.running, self.scheduler.waiting
        drafters, (answering, plain) = self.speculation.drafters, self.speculation.control.generation_seconds
        versions = drafters.versions
        self._by_draft = defaultdict(Counter, {name: self._by_draft[name] for name in versions})
        return EngineStats(
            **self._totals,
            step_seconds=self._step_seconds,
            forward_seconds=self._forward_seconds,
            accepted_per_position=_to_tuple(self._accepted_per_position),
            verified_draft_length=_to_tuple(self._verified_draft_length),
            by_draft=tuple(
                DraftStats(name, version, **self._by_draft[name]) for name, version in versions.items()
            ),
            generation_seconds=answering,
            baseline_generation_seconds=plain,
            running_requests=len(running),
            waiting_requests=len(waiting),
            running_tokens=sum(s.computed for s in running),
            waiting_tokens=sum(len(s.tokens) for s in waiting),
            kv_blocks_used=self.scheduler.block_pool.num_used - len(self.audit.table),  # available on demand
            preemptions=self.scheduler.preemptions,
            prefix_cache_queries=self.scheduler.cache_queries,
            prefix_cache_hits=self.scheduler.cache_hits,
            speedup=self.speculation.control.speedup,
            draft_version=next(iter(versions.values())),
            draft_error=drafters.problem,
        )

    def rest(self) -> None:
        """Do a little background work while the engine is idle; there is more while `audit.pending`. Raises
        CorruptBlockPoolError if the block pool is inconsistent: then no answer can be trusted.
        """
        self.speculation.drafters.poll(time.monotonic())
        if not self._checked:
            self.scheduler.check(self.audit.table)
            self._checked = True
        self.speculation.rest()
        passed = self.audit.step()
        if passed is not None:
            self._totals.update(audits=1, audit_mismatches=int(not passed))
            self._checked = False  # it had blocks too

    def _add(self, request: GenerationRequest, error: ValueError | None = None) -> None:
        """Queue an answer that has its sampler, or reject it; `error`: why it has none."""
        try:
            if error:
                raise error
            self.scheduler.add(request)
            self._totals.update(prompts=1, prompt_tokens=len(request.prompt))
        except ValueError as rejection:
            self._reject(request.request_id, rejection)

    def _compute(
        self, parts: list[BatchEntry], layers: tuple[int, ...]
    ) -> tuple[Forward, list[SampledTokens | None]]:
        """Compute and draw all parts in one pass, with the inputs of `layers`, and fetch the tokens: None for
        a part whose committed tokens have states that are NaN or infinite. A NaN of a draft spoils the tokens
        computed with it, and must not decide whether an answer goes on: a second pass leaves such drafts out.
        The other parts get the same bits again.
        """
        while True:
            _lay_out(parts)
            start_time = time.perf_counter()
            chunks = [part.chunk() for part in parts]
            forward = self.model.execute(chunks, layers)
            computed = time.perf_counter()
            # while a device computes
            metadata = SamplingMetadata([part.rows() for part in parts], self.model.vocabulary)
            self.speculation.read_on(parts, overlapped=self.model.asynchronous)
            sampled = metadata.sample(forward.logits, self.noise, self._kernels)
            finite, *arrays = self._kernels.fetch(forward.finite, *sampled)
            self._forward_seconds += (
                time.perf_counter() if self.model.asynchronous else computed
            ) - start_time
            broken = [number for number, whole in enumerate(finite.tolist()) if not whole]
            self.model.clear([chunks[number] for number in broken])
            drafted = [parts[number] for number in broken if parts[number].drafts]
            for part in drafted:
                part.drafts = []
            if not drafted:
                read: list[SampledTokens | None] = [*metadata.read(*arrays)]
                for number in broken:
                    read[number] = None
                return forward, read

    def _finish_step(
        self, parts: list[BatchEntry], forward: Forward, sampled: list[SampledTokens | None]
    ) -> None:
        """Verify and book what the parts computed."""
        for part, tokens in zip(parts, sampled, strict=True):
            if tokens is None:
                self._fail(part.work.sequence.request_id, NOT_FINITE)
                continue
            if part.prompt:
                part.sampler.prompt_logprobs.read(tokens.prompt_logprobs(), part.prompt)
            if part.work.yields:
                self._advance(part, tokens, forward)
            else:
                self.scheduler.update_from_output(part.work, [])

    def _recover(self, parts: list[BatchEntry], error: Exception) -> None:
        """Go on after a pass that failed, of which nothing is booked. For want of memory it is tried again as
        a smaller step; otherwise, or if there is no smaller one, its requests fail and no others. Raises the
        error if passes fail one after the other: then nothing that is computed here can be relied on.
        """
        log.exception("a pass over %d requests failed", len(parts))
        self.model.clear([part.chunk() for part in parts])
        if is_out_of_memory(error) and self.scheduler.shrink_step():
            log.warning("steps have at most %d tokens from now on", self.scheduler.max_num_batched_tokens)
            self._passes = 0
            return
        self._failures += 1
        if self._failures > _MAX_FAILURES:
            raise error
        for part in parts:
            sentence = f"the engine failed in a step of this request: {error}; try again"
            self._fail(part.work.sequence.request_id, sentence)

    def _grow(self) -> None:
        """Give back some of what steps lost for want of memory: what took it may be gone. If it is not, one
        more pass fails and is tried again.
        """
        self._passes += 1
        if self._passes >= _GROW_AFTER:
            self._passes = 0
            if self.scheduler.grow_step():
                log.info("steps have up to %d tokens again", self.scheduler.max_num_batched_tokens)

    def _advance(self, part: BatchEntry, sampled: SampledTokens, forward: Forward) -> None:
        """Verify one sequence's rows, book and report the result; a failure ends only this sequence."""
        drafts, sampler, sequence = part.drafts, part.sampler, part.work.sequence
        request_id = sequence.request_id
        try:
            room = self.scheduler.room(sequence)
            verdict = verify(sampled.token_at, drafts, stop_ids=sampler.stop_ids, room=room)
            logprobs = sampled.logprobs(verdict.tokens)
        except SpentError:
            self.samplers.renew(request_id)  # nothing is booked: the step is repeated
            return
        except NotFiniteError as error:
            self._fail(request_id, str(error))
            return
        except (NoTokenError, GrammarError) as error:
            self._reject(request_id, error)
            return
        except Exception as error:
            log.exception("request %s failed", request_id)
            self._fail(request_id, f"the engine failed on this request: {error}")
            return
        self.scheduler.update_from_output(part.work, list(verdict.tokens))
        self.speculation.observe(part, verdict, forward.hidden)
        self._count(part, verdict)
        first = sequence.generated == len(verdict.tokens)
        if first:
            self._totals["begun_prompt_tokens"] += sequence.prompt_length
        event = TokenEvent(
            request_id,
            verdict.tokens,
            verdict.finish_reason,
            drafted=len(drafts),
            accepted=verdict.accepted,
            logprobs=logprobs,
            prompt_logprobs=sampler.prompt_logprobs.take(),
            cached_tokens=sequence.cached if first else None,
            queued_seconds=self._queued.pop(request_id, None),
        )
        self._events.append(event)
        if verdict.finish_reason:
            self.audit.offer(sequence, verdict.finish_reason)
            self._end(request_id)

    def _tell_speedups(self) -> None:
        """Add to each event what this step, too, has shown: an answer may have had no other."""
        speedup_of = self.speculation.control.speedup_of
        self._events = [
            event if (speedup := speedup_of(event.request_id)) is None else TokenEvent(*event[:-1], speedup)
            for event in self._events
        ]
        self.speculation.forget_ended()

    def _count(self, part: BatchEntry, verdict: VerificationResult) -> None:
        """Count a part's verified tokens, which its draft proposed or its grammar forces."""
        drafted, accepted = len(part.drafts), verdict.accepted
        self._totals["generated_tokens"] += len(verdict.tokens)
        self._verified_draft_length[drafted] += 1
        if drafted:
            counts = {"drafts": 1, "draft_tokens": drafted, "accepted_tokens": accepted}
            learnt = part.draft.drafted_without
            own, own_accepted = (learnt(SuffixDrafter.name, n) for n in (drafted, accepted))
            name = self.speculation.drafters.name_of(part.work.sequence.request.draft)
            self._totals.update(counts)
            self._by_draft[name].update(counts, own_draft_tokens=own, own_accepted_tokens=own_accepted)
            self._accepted_per_position.update({n: int(n < accepted) for n in range(drafted)})

    def _reject(self, request_id: str, error: ValueError) -> None:
        """End an answer whose request is at fault."""
        self._fail(request_id, str(error), "grammar" if isinstance(error, GrammarError) else "request")

    def _fail(self, request_id: str, error: str, refused: Refused | None = None) -> None:
        self._end(request_id)
        self._events.append(TokenEvent(request_id, finish_reason="error", error=error, refused=refused))

    def _end(self, request_id: str) -> None:
        """Release all that is held for a request, wherever it is."""
        sequence = self.scheduler.find(request_id)
        if sequence is not None:
            self.scheduler.finish(sequence)
            self.speculation.finish(sequence)
        self.samplers.end(request_id)
        self._arrived.pop(request_id, None)
        self._queued.pop(request_id, None)


def _to_tuple(counts: Counter[int]) -> tuple[int, ...]:
    return tuple(counts[index] for index in range(max(counts, default=-1) + 1))


def _lay_out(parts: list[BatchEntry]) -> None:
    """Assign each part its rows among the step's."""
    row = 0
    for part in parts:
        part.first = row + len(part.prompt)
        row = part.first + (len(part.drafts) + 1 if part.work.yields else 0)
