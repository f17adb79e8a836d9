"""Which tokens heads can draft: a product over all of the target's would cost more than it brings (FR-Spec,
arXiv 2502.14856).
"""

from __future__ import annotations

import torch
from torch import Tensor

from turbo_runtime.distill.data.examples import TrainingExamples


def choose_vocabulary(said: Tensor, places: TrainingExamples, size: int) -> Tensor:
    """The `size` ids, ascending, that come most often: `said` (target vocabulary,) counts them in the answers
    that are learnt from, and the target's law at `places` tells which others might have been said. An id
    that neither knows of is left out.
    """
    mass = torch.zeros(len(said), dtype=torch.float64)
    mass.index_add_(0, places.likely.flatten().long().cpu(), places.chances.flatten().double().cpu())
    scores = said.double() + mass * (said.sum() / max(1, len(places)))
    best = scores.topk(min(size, int((scores > 0).sum()))).indices
    return best.sort().values


def counted(answers: list[tuple[int, ...]], vocabulary: int) -> Tensor:
    """How often each id was said."""
    return torch.bincount(torch.tensor([token for one in answers for token in one]), minlength=vocabulary)
