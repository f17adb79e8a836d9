"""Turbo heads fitted in seconds to an engine's own answers, for tests and benchmarks of drafting with them.

No trainer: cross-entropy on what was said and the confidences on whether the likeliest token was it, without
held-out answers, schedules or resuming.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn import Parameter

from turbo_runtime.drafters.heads import Heads, HeadsConfig, save_heads
from turbo_runtime.drafters.proposer import Proposer
from turbo_runtime.drafters.target import Target
from turbo_runtime.engine.loop import Engine
from turbo_runtime.engine.speculator import BatchEntry, Speculator
from turbo_runtime.messages import GenerationRequest
from turbo_runtime.speculation.verification import VerificationResult

from .drafting import NoDraft

_NOTHING = -1  # in place of a wanted token that the answer or the vocabulary does not have


@dataclass(frozen=True)
class Said:
    """An answer, and the model's last hidden state that each of its tokens was drawn from."""

    tokens: list[int]
    states: Tensor  # (tokens, width)


def say(engine: Engine, requests: Sequence[GenerationRequest]) -> list[Said]:
    """Answers of an engine that has nothing to do, all at once and without drafts."""
    recorder = _Recorder()
    before, engine.speculation = engine.speculation, recorder
    tokens: defaultdict[str, list[int]] = defaultdict(list)
    for request in requests:
        engine.accept(replace(request, params=replace(request.params, draft_method="off")))
    while not engine.idle:
        for event in engine.step().events:
            if event.error:
                raise RuntimeError(event.error)
            tokens[event.request_id] += event.tokens
    engine.speculation = before
    return [
        Said(tokens[name], torch.stack(recorder.states[name])) for name in (r.request_id for r in requests)
    ]


class _Recorder(Speculator):
    def __init__(self) -> None:
        super().__init__(Proposer(), NoDraft())
        self.states: defaultdict[str, list[Tensor]] = defaultdict(list)

    def observe(self, part: BatchEntry, verdict: VerificationResult, hidden: Tensor) -> None:
        super().observe(part, verdict, hidden)
        state = hidden[part.first + len(verdict.tokens) - 1]
        self.states[part.work.sequence.request_id].append(state.clone())


def words_of(said: Sequence[Said]) -> Tensor:
    """All tokens of the answers, ascending: a vocabulary for heads."""
    return torch.tensor(sorted({token for one in said for token in one.tokens}))


def fit(
    target: Target,
    said: Sequence[Said],
    vocabulary: Tensor,
    *,
    heads: int,
    markov_rank: int,
    steps: int,
    rows: int = 256,
    rate: float = 0.02,
    judges: Sequence[Said] = (),
) -> Heads:
    """Heads over `vocabulary` (V,) after so many steps of Adam, each on `rows` places drawn at random; the
    same for the same arguments.

    `judges` are answers that the confidences alone are fitted to, in the end: on few answers heads are far
    surer of what they have seen than of anything else. Without, confidences are fitted to `said` too.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        found = Heads(
            target.embedding.float(),
            target.output_rows(vocabulary).float(),
            vocabulary,
            heads=heads,
            markov_rank=markov_rank,
        ).train()
        sure = [found.confidence, found.confidence_bias]
        guess = [found.block, found.block_bias, found.markov_in, found.markov_out]
        if judges:
            _descend(found, guess, _Places.of(said, found), steps, rows, rate, _guessing)
            _descend(found, sure, _Places.of(judges, found), steps // 4, rows, rate, _sureness)
        else:
            _descend(found, guess + sure, _Places.of(said, found), steps, rows, rate, _both)
    return found.eval().requires_grad_(False)


@dataclass(frozen=True)
class _Places:
    """What is known at each token of some answers."""

    hidden: Tensor  # (places, width)
    before: Tensor  # (places, heads) ids of the target
    wanted: Tensor  # (places, heads) places in the vocabulary

    @classmethod
    def of(cls, said: Sequence[Said], heads: Heads) -> _Places:
        places = torch.full((len(heads.embedding),), _NOTHING)
        places[heads.vocabulary] = torch.arange(len(heads.vocabulary))
        known = torch.cat([_windows(one.tokens, heads.heads) for one in said])
        wanted = torch.where(known == _NOTHING, _NOTHING, places[known])
        return cls(torch.cat([one.states for one in said]).float(), known[:, :-1], wanted[:, 1:])

    def some(self, count: int) -> _Places:
        chosen = torch.randint(len(self.hidden), (min(count, len(self.hidden)),))
        return _Places(self.hidden[chosen], self.before[chosen], self.wanted[chosen])


def _windows(tokens: list[int], heads: int) -> Tensor:
    """(tokens, heads + 1): each token and those behind it."""
    padded = torch.tensor(tokens + [_NOTHING] * heads)
    return padded.unfold(0, heads + 1, 1)


def _descend(
    heads: Heads,
    parameters: list[Parameter],
    places: _Places,
    steps: int,
    rows: int,
    rate: float,
    loss_of: Callable[[Tensor, Tensor, _Places], Tensor],
) -> None:
    optimizer = torch.optim.Adam(parameters, lr=rate)
    for step in range(steps):
        for group in optimizer.param_groups:
            group["lr"] = rate * (1 - step / steps)
        chosen = places.some(rows)
        logits, states, m = heads(chosen.hidden, chosen.before.clamp(min=0))
        each = range(heads.heads)
        clues = [heads.clues(states[j], m[:, j], logits[:, j]) for j in each]
        certainty = torch.stack([heads.certainty(clues[j], j) for j in each], 1)
        loss = loss_of(logits, certainty, chosen)
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()


def _guessing(logits: Tensor, _certainty: Tensor, places: _Places) -> Tensor:
    return F.cross_entropy(logits.flatten(0, 1), places.wanted.flatten(), ignore_index=_NOTHING)


def _sureness(logits: Tensor, certainty: Tensor, places: _Places) -> Tensor:
    known = places.before != _NOTHING
    right = (logits.argmax(-1) == places.wanted).float()
    return F.binary_cross_entropy_with_logits(certainty[known], right[known])


def _both(logits: Tensor, certainty: Tensor, places: _Places) -> Tensor:
    return _guessing(logits, certainty, places) + _sureness(logits, certainty, places)


def write(folder: Path, heads: Heads, target: Target, version: str) -> None:
    """The artefact of such heads."""
    width, rank = heads.markov_in.shape
    save_heads(
        folder,
        HeadsConfig(
            version=version,
            heads=heads.heads,
            width=width,
            markov_rank=rank,
            vocabulary_size=len(heads.vocabulary),
            target_vocabulary_size=len(target.embedding),
            target_digest=target.digest,
        ),
        heads,
    )
