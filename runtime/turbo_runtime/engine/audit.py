"""The audit: some finished answers are computed once more without speculation, while there is nothing else to
do. What differs is a fault of drafting, of batching, of the cache or of the arithmetic, counted and logged.

An answer is replayed as plain decoding would have written it, one token after the other and alone, from its
own law at the beginning. Nothing is taken from the prefix cache, so that what is wrong there shows too, and
nothing is left to it, to the drafters or to what goodput has learnt. Blocks come as a request's do, and go
back as soon as requests might want them.

Fed is the answer as it was given. Under `bytes` each token must be the one that the replay draws; up to the
first that is not, this is the same as letting it write by itself. Under `law` near-ties fall either way, so
a token only must lie as near to the best as rounding can put it (`sampling.nearness`).
"""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Sequence as Tokens
from dataclasses import dataclass
from hashlib import blake2b

import torch
from torch import Tensor

from turbo_runtime.contract.load import Guarantee
from turbo_runtime.engine.scheduler import Scheduler
from turbo_runtime.engine.sequence import Sequence
from turbo_runtime.kv_cache.block_pool import PROMPT_TILE
from turbo_runtime.messages import GenerationRequest
from turbo_runtime.models.runner import Chunk, ModelRunner
from turbo_runtime.sampling.grammar.compiler import GrammarError
from turbo_runtime.sampling.grammar.matcher import SpentError
from turbo_runtime.sampling.registry import SamplerRegistry
from turbo_runtime.sampling.sampler import NoTokenError, Sampler
from turbo_runtime.speculation.verification import verify

log = logging.getLogger(__name__)

MOST_WAITING = 16  # answers kept until there is time; the oldest is dropped for one more

# How far a logit may be off under `law`, in roundings of the row's greatest. Between one row at a time and
# many, and beyond what shifts all alike and so changes nothing, SmolLM2-135M's were off by up to 16 in
# float32 (6e-5) and 2.3 in bfloat16 (0.56); deeper models add up more. In float32 room costs nothing, since a
# wrong token lies whole logits below the best; in bfloat16 it costs sight, so there it is not twice as much.
_ROUNDINGS = {torch.float32: 128.0, torch.bfloat16: 4.0}


@dataclass(frozen=True, slots=True)
class AuditTerms:
    """What is audited, and by which measure."""

    share: float = 0.0  # of finished answers
    guarantee: Guarantee = "bytes"


@dataclass(frozen=True, slots=True)
class _Finished:
    submit: GenerationRequest
    answer: tuple[int, ...]
    reason: str  # why it ended


@dataclass(frozen=True, slots=True)
class _Replay:
    finished: _Finished
    law: Sampler
    sequence: Sequence  # without keys: the prefix cache neither gives nor gets any of it


class Audit:
    """Keeps answers until there is time, and replays them in small steps."""

    def __init__(
        self, model: ModelRunner, scheduler: Scheduler, laws: SamplerRegistry, terms: AuditTerms
    ) -> None:
        self._model = model
        self._scheduler = scheduler
        self._laws = laws
        self._terms = terms
        self._waiting: deque[_Finished] = deque(maxlen=MOST_WAITING)
        self._replay: _Replay | None = None
        self._off = _ROUNDINGS[model.pool.dtype] * torch.finfo(model.pool.dtype).eps

    @property
    def pending(self) -> bool:
        """Whether there is anything to do."""
        return self._replay is not None or bool(self._waiting)

    @property
    def table(self) -> Tokens[int]:
        """The blocks that it holds."""
        return self._replay.sequence.table if self._replay else ()

    def offer(self, submit: GenerationRequest, answer: Tokens[int], reason: str) -> None:
        """An answer ended by itself.

        Whether it is taken depends on its id alone: no state, the same whatever the traffic, and no period
        that traffic could have too. Those without a draft are as good: batch, cache and arithmetic had a part
        in them as well.
        """
        digest = blake2b(submit.request_id.encode(), digest_size=8).digest()
        if int.from_bytes(digest, "big") < self._terms.share * 2.0**64:
            self._waiting.append(_Finished(submit, tuple(answer), reason))

    def make_room(self) -> None:
        """Before a step is planned: let go of all blocks if requests might want them; begin again later."""
        if self._replay and self._scheduler.most_wanted > self._scheduler.ledger.num_available:
            finished = self._replay.finished
            self._end()
            if len(self._waiting) < MOST_WAITING:  # else it is the oldest, which is dropped
                self._waiting.appendleft(finished)

    def step(self) -> bool | None:
        """Compute a little, while no request runs or waits: a tile of a prompt, or one token. Whether the
        answer held, once that is known; an audit that fails is logged and no result.
        """
        replay = self._replay = self._replay or self._begin()
        if replay is None:
            return None
        try:
            row = self._compute(replay.sequence)
            held = None if row is None else self._judge(replay, row)
        except SpentError:  # by others: nothing is known of this answer
            self._end()
            return None
        except Exception:  # it is no request's fault: the engine goes on
            log.exception("the audit of request %s failed", replay.finished.submit.request_id)
            self._end()
            return None
        if held is not None:
            self._end()
        return held

    def _begin(self) -> _Replay | None:
        while self._waiting:
            finished = self._waiting.popleft()
            law = self._laws.again(finished.submit)
            if law is not None:  # else its grammar would have to be compiled, and other requests to wait
                return _Replay(finished, law, Sequence(finished.submit, list(finished.submit.prompt), ()))
        return None

    def _end(self) -> None:
        if self._replay:
            self._scheduler.ledger.trim(self._replay.sequence.table, 0)
            self._replay = None

    def _compute(self, sequence: Sequence) -> Tensor | None:
        """The logits (vocabulary,) after its tokens so far, or None where more of the prompt must come."""
        start, count = sequence.computed, min(sequence.missing, PROMPT_TILE)
        end = start + count
        rows = int(end == len(sequence.tokens))
        self._scheduler.prefixes.extend(sequence.table, end)
        chunk = Chunk(sequence.tokens[start:end], start, sequence.table, rows, sequence.prompt_length)
        forward = self._model.forward([chunk])
        sequence.computed = end
        return forward.logits[0] if rows else None

    def _judge(self, replay: _Replay, row: Tensor) -> bool | None:
        """Whether the answer held, at its end or at the first token that did not; None before."""
        finished, sequence = replay.finished, replay.sequence
        place = sequence.generated
        token, last = finished.answer[place], place + 1 == len(finished.answer)
        ending = verify(
            lambda _: token, (), stop_ids=replay.law.stop_ids, room=self._scheduler.room(sequence)
        ).finish_reason
        if ending != (finished.reason if last else None) or not self._agrees(replay, row, token):
            # where, and never what: prompts and answers are not for logs
            log.error(
                "audit: the answer to request %s is not what the model gives without speculation "
                "(guarantee %s): it differs from token %d of %d on",
                *(finished.submit.request_id, self._terms.guarantee, place + 1, len(finished.answer)),
            )
            return False
        sequence.tokens.append(token)
        return True if last else None

    def _agrees(self, replay: _Replay, row: Tensor, token: int) -> bool:
        law, tokens = replay.law, replay.sequence.tokens
        try:
            if self._terms.guarantee == "bytes":
                return law.token(row, tokens) == token
            return law.excess(row, tokens, token, self._off * float(row.abs().max())) <= 0
        except SpentError:
            raise
        except (NoTokenError, GrammarError):  # there was a token, and here is none
            return False
