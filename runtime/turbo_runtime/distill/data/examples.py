"""What drafts learn from: each token of a response, the state that it was drawn from, and what follows."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, fields
from itertools import chain

import torch
from torch import Tensor

from turbo_runtime.distill.data.responses import Completion
from turbo_runtime.distill.recipe import Recipe

UNKNOWN = -1  # in place of a token behind the end of the response


@dataclass(frozen=True)
class TrainingExamples:
    """A row for each token of some responses, one response behind the other."""

    hidden: Tensor  # (rows, width), in the target's dtype
    tokens: Tensor  # (rows,) int64: the token drawn from it
    left: Tensor  # (rows,) int64: tokens of the same response behind that
    likely: Tensor  # (rows, kept) int32: the likeliest ids of the target's distribution there
    chances: Tensor  # (rows, kept) float32: their probabilities

    @classmethod
    def of(
        cls, hidden: Tensor, answers: Sequence[Sequence[int]], likely: Tensor, chances: Tensor
    ) -> TrainingExamples:
        """Build the rows of `answers`; the tensors have a row for each of their tokens."""
        tokens = torch.tensor([*chain.from_iterable(answers)], device=hidden.device)
        left = torch.cat([torch.arange(len(answer) - 1, -1, -1, device=hidden.device) for answer in answers])
        return cls(hidden, tokens, left, likely, chances)

    @classmethod
    def joined(cls, parts: Sequence[TrainingExamples]) -> TrainingExamples:
        """Concatenate."""
        return cls(*(torch.cat([getattr(part, field.name) for part in parts]) for field in fields(cls)))

    def __len__(self) -> int:
        return len(self.tokens)

    @property
    def teaching(self) -> Tensor:
        """Number the rows that a token follows."""
        return self.left.nonzero().squeeze(1)

    def pick(self, rows: Tensor, heads: int) -> TrainingBatch:
        """Gather what heads learn at these rows."""
        ahead = torch.arange(heads, device=rows.device)
        known = ahead < self.left[rows, None]
        at = torch.where(known, rows[:, None] + ahead, rows[:, None])  # of the token before the guessed one
        then = torch.where(known, at + 1, rows[:, None])
        return TrainingBatch(
            self.hidden[rows],
            self.tokens[at],
            torch.where(known, self.tokens[then], UNKNOWN),
            self.likely[then],
            self.chances[then] * known[..., None],
        )


@dataclass(frozen=True)
class TrainingBatch:
    """Rows to learn from, each for all heads at once."""

    hidden: Tensor  # (rows, width)
    before: Tensor  # (rows, heads): the token before the one to guess
    wanted: Tensor  # (rows, heads): the one to guess; UNKNOWN behind the end
    likely: Tensor  # (rows, heads, kept): ids that the target finds likeliest there
    chances: Tensor  # (rows, heads, kept): their probabilities; 0 behind the end


@dataclass(frozen=True)
class Text:
    """One prompt with its response, for a layer that drafts a token at a time."""

    streams: Tensor  # (n, layers x width): of every token of prompt and response but the last
    tokens: Tensor  # (n,) int64: the token behind each
    # Of the response's tokens, which are the last of `tokens`; its `hidden` are rows of `streams`.
    answer: TrainingExamples

    @classmethod
    def of(cls, completion: Completion, streams: Tensor, examples: TrainingExamples, first: int) -> Text:
        """Build from the `examples` of several responses, of which this one's begin at row `first`."""
        count, text = len(completion.tokens), completion.text
        columns = (examples.tokens, examples.left, examples.likely, examples.chances)
        own = (column[first : first + count].clone() for column in columns)
        tokens = torch.tensor(text[1:], device=streams.device)
        return cls(streams, tokens, TrainingExamples(streams[-count:], *own))


def choose_vocabulary(
    answers: Iterable[tuple[int, ...]], examples: TrainingExamples, target_size: int, size: int
) -> Tensor:
    """Choose at most `size` ids, ascending, that the draft can propose: those most often in `answers` and in
    what the target's distribution at `examples` might have drawn. A product over all of `target_size` would
    cost more than it brings (FR-Spec, arXiv 2502.14856).
    """
    counts = torch.bincount(torch.tensor([*chain.from_iterable(answers)]), minlength=target_size)
    mass = torch.zeros(target_size, dtype=torch.float64)
    mass.index_add_(0, examples.likely.flatten().long().cpu(), examples.chances.flatten().double().cpu())
    scores = counts.double() + mass * (counts.sum() / max(1, len(examples)))
    return scores.topk(min(size, int((scores > 0).sum()))).indices.sort().values


def positions_in(vocabulary: Tensor, target_vocabulary: int) -> Tensor:
    """Return by id of the target its position in a draft's vocabulary (V,), ascending ids, or UNKNOWN."""
    # the last is that of an id that is UNKNOWN itself
    positions = torch.full((target_vocabulary + 1,), UNKNOWN, device=vocabulary.device)
    positions[vocabulary] = torch.arange(len(vocabulary), device=vocabulary.device)
    return positions


def training_loss(logits: Tensor, batch: TrainingBatch, words: Tensor, recipe: Recipe) -> Tensor:
    """Return the loss of the guesses: logits (rows, heads, V) -> a scalar. `words`: of `positions_in`.

    Cross-entropy with the tokens, cross-entropy with the target's distribution (its probabilities outside the
    vocabulary left out), and total variation, which is 1 - acceptance of drafts that are drawn from the
    maximal coupling (Leviathan, Kalman, Matias, arXiv 2211.17192), a little more than shared noise gives.
    """
    log_q = (logits.float() / recipe.learned_temperature).log_softmax(-1)  # as drafts are drawn
    wanted = words[batch.wanted.long()]
    likely = words[batch.likely.long()]
    chances = torch.where(likely == UNKNOWN, 0.0, batch.chances)
    log_likely = log_q.gather(-1, likely.clamp(min=0))
    total = logits.new_zeros(logits.shape[:2], dtype=torch.float32)
    if recipe.words:
        entropy = -log_q.gather(-1, wanted.clamp(min=0)[..., None]).squeeze(-1)
        total = total + recipe.words * torch.where(wanted == UNKNOWN, 0.0, entropy)
    if recipe.distribution_loss_weight:
        total = total - recipe.distribution_loss_weight * (chances * log_likely).sum(-1)
    if recipe.variation:
        common = torch.minimum(chances, log_likely.exp()).sum(-1)
        total = total + recipe.variation * (chances.sum(-1) - common)
    known = batch.wanted != UNKNOWN
    weight = recipe.head_decay ** torch.arange(logits.shape[1], device=logits.device) * known
    return (total * weight).sum() / weight.sum().clamp(min=1)


def chance_of_acceptance(logits: Tensor, batch: TrainingBatch, words: Tensor, temperature: float) -> Tensor:
    """Return the chance (rows, heads) that each head's token is accepted, all before it being right: where
    the target is greedy whether it is the response's token, else that of two draws sharing Gumbel noise,

        P(both draw i) = 1 / sum_j max(p_j / p_i, q_j / q_i)        (Daliri, Musco, Suresh, arXiv 2408.07978)

    summed over the ids that are kept of the target's distribution; all others count as one.
    """
    if not temperature:
        return (logits.argmax(-1) == words[batch.wanted.long()]).float()
    likely = words[batch.likely.long()]
    p = batch.chances
    q = (logits.float() / temperature).softmax(-1).gather(-1, likely.clamp(min=0))
    q = torch.where((likely == UNKNOWN) | (p == 0), 0.0, q)
    both = (p > 0) & (q > 0)
    safe_p, safe_q = torch.where(both, p, 1.0), torch.where(both, q, 1.0)
    rest = torch.maximum(
        (1 - p.sum(-1, keepdim=True)).clamp(min=0) / safe_p,
        (1 - q.sum(-1, keepdim=True)).clamp(min=0) / safe_q,
    )
    rivals = torch.maximum(p[..., None, :] / safe_p[..., None], q[..., None, :] / safe_q[..., None]).sum(-1)
    return torch.where(both, 1 / (rivals + rest), 0.0).sum(-1)
