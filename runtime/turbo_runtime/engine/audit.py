"""The audit: recomputes some finished answers without speculation while the engine is idle. A difference is a
fault of drafting, of batching, of the cache or of the arithmetic; it is counted and logged.

A replay decodes the answer token by token and alone, with a fresh sampler. It takes nothing from the prefix
cache, so that errors there show too, and leaves nothing to the cache, the drafters or the goodput control.
Its blocks are those that no request uses, cached ones too, and go back as soon as requests might need them.

The replay reads the answer as given. Under `bitwise` it must draw each token itself; up to the first
mismatch this equals free decoding. Under `distribution` near-ties fall either way, so a token only must lie
as near to the best as rounding can put it (`truncation.excess`).
"""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Sequence as Tokens
from hashlib import blake2b
from typing import NamedTuple

import torch
from torch import Tensor

from turbo_runtime.contract.documents import Guarantee
from turbo_runtime.engine.scheduler import Scheduler, Sequence
from turbo_runtime.kv_cache.block_pool import PROMPT_TILE
from turbo_runtime.models.runner import ModelRunner
from turbo_runtime.models.step_batch import Chunk
from turbo_runtime.sampling.grammar.compiler import GrammarError
from turbo_runtime.sampling.grammar.matcher import SpentError
from turbo_runtime.sampling.registry import SamplerRegistry
from turbo_runtime.sampling.rows import RowKernels
from turbo_runtime.sampling.sampler import NoTokenError, Sampler
from turbo_runtime.speculation.verification import verify

log = logging.getLogger(__name__)

MAX_WAITING = 16  # answers; the oldest is dropped for one more

# How far a logit may be off under `distribution`, in multiples of what `startup.rounding` measured on this
# model, as a share of the row's greatest; and what is taken for it where nothing was measured, in roundings:
# SmolLM2-135M's. Other texts are off by more than the measured one. In float32 a wide margin costs nothing,
# since a wrong token lies whole logits below the best. In bfloat16 it hides errors, so there it is narrow.
_SAFETY = {torch.float32: 8.0, torch.bfloat16: 3.0}
_USUAL = {torch.float32: 16.0, torch.bfloat16: 1.5}


class _Replay(NamedTuple):
    finished: Sequence
    reason: str  # why it ended
    sampler: Sampler
    sequence: Sequence  # without keys: the prefix cache has no part in it


class Audit:
    """Keeps answers until the engine is idle, and replays them in small steps."""

    def __init__(
        self,
        model: ModelRunner,
        scheduler: Scheduler,
        samplers: SamplerRegistry,
        fraction: float,
        guarantee: Guarantee,
        kernels: RowKernels,
    ) -> None:
        """`fraction`: of finished answers; `guarantee`: the one that they must meet; `kernels` draw."""
        self._model, self._scheduler, self._samplers, self._kernels = model, scheduler, samplers, kernels
        self._fraction, self._guarantee = fraction, guarantee
        self._waiting: deque[tuple[Sequence, str]] = deque(maxlen=MAX_WAITING)
        self._replay: _Replay | None = None
        self.expect(_USUAL[model.pool.dtype] * torch.finfo(model.pool.dtype).eps)

    def expect(self, rounding: float) -> None:
        """Take this as what rounding does to the model's logits, as a share of a row's greatest."""
        dtype = self._model.pool.dtype
        self._off = _SAFETY[dtype] * max(rounding, torch.finfo(dtype).eps)

    @property
    def pending(self) -> bool:
        """Whether there is anything to do."""
        return self._replay is not None or bool(self._waiting)

    @property
    def table(self) -> Tokens[int]:
        """The blocks of the replay."""
        return self._replay.sequence.table if self._replay else ()

    def offer(self, finished: Sequence, reason: str) -> None:
        """Offer an answer that ended by itself, with drafts or without; its id alone decides."""
        digest = blake2b(finished.request_id.encode(), digest_size=8).digest()
        if int.from_bytes(digest, "big") < self._fraction * 2.0**64:
            self._waiting.append((finished, reason))

    def yield_blocks(self) -> None:
        """Release all blocks if the next step might need them, and begin again later."""
        if self._replay and self._scheduler.max_demand > self._scheduler.block_pool.num_available:
            finished, reason = self._replay[:2]
            self._end()
            if len(self._waiting) < MAX_WAITING:  # else drop it as the oldest
                self._waiting.appendleft((finished, reason))

    def step(self) -> bool | None:
        """Compute a tile of a prompt or one token; whether the answer passed, once known."""
        replay = self._replay = self._replay or self._begin()
        if replay is None:
            return None
        passed = None
        try:
            row = self._compute(replay.sequence)
            passed = None if row is None else self._compare(replay, row)
            if passed is None:
                return None
        except SpentError:  # by others: nothing is known of this answer
            pass
        except Exception:  # the engine goes on
            log.exception("the audit of request %s failed", replay.finished.request_id)
        self._end()
        return passed

    def _begin(self) -> _Replay | None:
        while self._waiting:
            finished, reason = self._waiting.popleft()
            request = finished.request
            sampler = self._samplers.again(request)
            if sampler is not None:  # else its grammar would need compilation, and other requests would wait
                return _Replay(finished, reason, sampler, Sequence(request, list(request.prompt), ()))
        return None

    def _end(self) -> None:
        if self._replay:
            self._scheduler.block_pool.trim(self._replay.sequence.table, 0)
            self._replay = None

    def _compute(self, sequence: Sequence) -> Tensor | None:
        """Return the logits (vocabulary,) after its tokens, or None within the prompt."""
        start, count = sequence.computed, min(sequence.missing, PROMPT_TILE)
        end = start + count
        rows = int(end == len(sequence.tokens))
        self._scheduler.block_pool.extend(sequence.table, end)
        tokens, lora_id = sequence.tokens[start:end], sequence.request.lora_id
        chunk = Chunk(tokens, start, sequence.table, rows, sequence.prompt_length, lora_id)
        try:
            forward = self._model.forward([chunk])
        except Exception:
            self._model.clear([chunk])  # the next holders of its blocks must not find what is no number
            raise
        sequence.computed = end
        return forward.logits[0] if rows else None

    def _compare(self, replay: _Replay, row: Tensor) -> bool | None:
        """Whether the answer passed, at its end or at the first mismatch; None before."""
        finished, sequence = replay.finished, replay.sequence
        token = finished.tokens[len(sequence.tokens)]
        place, length = sequence.generated + 1, finished.generated
        last = place == length
        ending = verify(
            lambda _: token, (), stop_ids=replay.sampler.stop_ids, room=self._scheduler.room(sequence)
        ).finish_reason
        if ending != (replay.reason if last else None) or not self._agrees(replay, row, token):
            # the place alone: prompts and answers are not for logs
            log.error(
                "audit: the answer to request %s is not what the model gives without speculation "
                "(guarantee %s): it differs from token %d of %d on",
                *(finished.request_id, self._guarantee, place, length),
            )
            return False
        sequence.tokens.append(token)
        return True if last else None

    def _agrees(self, replay: _Replay, row: Tensor, token: int) -> bool:
        sampler, tokens = replay.sampler, replay.sequence.tokens
        try:
            if self._guarantee == "bitwise":
                return sampler.token(row, tokens, self._kernels) == token
            return sampler.excess(row, tokens, token, self._off * float(row.abs().max())) <= 0
        except SpentError:
            raise
        except (NoTokenError, GrammarError):  # there is no token
            return False
