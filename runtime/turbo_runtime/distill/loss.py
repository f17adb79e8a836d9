"""The training loss of a draft, and its chance of acceptance."""

from __future__ import annotations

import torch
from torch import Tensor

from turbo_runtime.distill.data.examples import UNKNOWN, TrainingBatch
from turbo_runtime.distill.recipe import Recipe


def positions_in(vocabulary: Tensor, target_vocabulary: int) -> Tensor:
    """Return by id of the target its position in a draft's vocabulary (V,), ascending ids, or UNKNOWN."""
    # the last is that of an id that is UNKNOWN itself
    positions = torch.full((target_vocabulary + 1,), UNKNOWN, device=vocabulary.device)
    positions[vocabulary] = torch.arange(len(vocabulary), device=vocabulary.device)
    return positions


def guessing(logits: Tensor, batch: TrainingBatch, words: Tensor, recipe: Recipe) -> Tensor:
    """Return the loss of the guesses: logits (rows, heads, V) -> a scalar. `words`: of `positions_in`.

    Cross-entropy with the tokens, cross-entropy with the target's distribution (its probabilities outside the
    vocabulary left out), and total variation, which is 1 - acceptance of drafts that are drawn from the
    maximal coupling (Leviathan, Kalman, Matias, arXiv 2211.17192), a little more than shared noise gives.
    """
    log_q = (logits.float() / recipe.taught_temperature).log_softmax(-1)  # as drafts are drawn
    wanted = words[batch.wanted.long()]
    likely = words[batch.likely.long()]
    chances = torch.where(likely == UNKNOWN, 0.0, batch.chances)
    log_likely = log_q.gather(-1, likely.clamp(min=0))
    total = logits.new_zeros(logits.shape[:2], dtype=torch.float32)
    if recipe.words:
        entropy = -log_q.gather(-1, wanted.clamp(min=0)[..., None]).squeeze(-1)
        total = total + recipe.words * torch.where(wanted == UNKNOWN, 0.0, entropy)
    if recipe.law:
        total = total - recipe.law * (chances * log_likely).sum(-1)
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
