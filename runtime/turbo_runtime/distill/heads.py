"""The method `heads`: Turbo heads on the last hidden state, which the engine Turbo drafts with."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from turbo_runtime.distill.data.examples import (
    UNKNOWN,
    TrainingBatch,
    TrainingExamples,
    chance_of_acceptance,
    positions_in,
)
from turbo_runtime.distill.data.responses import Completion
from turbo_runtime.distill.recipe import Recipe
from turbo_runtime.distill.target import LIKELIEST, TargetModel
from turbo_runtime.drafters.heads import Heads, HeadsConfig, HeadsDrafter, save_heads
from turbo_runtime.drafters.interface import DraftRequest
from turbo_runtime.messages import SamplingParams
from turbo_runtime.sampling.noise import answer_key

_BATCH = 256  # positions drafted for together
_REVIEW_ROWS = 256  # that are read together where nothing is learnt from them
_CONFIDENCE_STEPS, _CONFIDENCE_RATE = 300, 0.01


class HeadsStudent:
    """Heads in float32, whatever the target's dtype."""

    def __init__(self, heads: Heads, recipe: Recipe) -> None:
        self.module, self.depth, self.vocabulary = heads, heads.heads, heads.vocabulary
        self.guessers = [heads.block, heads.block_bias, heads.markov_in, heads.markov_out]
        self.passes = 1  # over all weights, for all tokens of a draft
        self.words = positions_in(heads.vocabulary, len(heads.embedding))
        self._recipe = recipe

    def steps(self, completions: Sequence[Completion]) -> int:
        """Count steps of the recipe's rows."""
        return math.ceil(sum(len(completion.tokens) - 1 for completion in completions) / self._recipe.rows)

    def batches(self, material: TrainingExamples, seed: int) -> Iterator[Sequence[TrainingBatch]]:
        """Yield rows of all responses, mixed."""
        rows = material.teaching
        mixed = torch.randperm(len(rows), generator=torch.Generator().manual_seed(seed))
        for chosen in torch.split(rows[mixed.to(rows.device)], self._recipe.rows):
            yield [material.pick(chosen, self.depth)]

    def review(self, material: TrainingExamples) -> Iterator[TrainingBatch]:
        """Yield some rows at a time."""
        for chosen in torch.split(material.teaching, _REVIEW_ROWS):
            yield material.pick(chosen, self.depth)

    def guess(self, batch: TrainingBatch) -> tuple[Tensor, TrainingBatch]:
        """Return the logits of all heads."""
        return self.module(batch.hidden.float(), batch.before)[0], batch

    def settle(self, validation: TrainingExamples) -> None:
        """Train the confidences on responses that nothing else was learnt from: heads are far surer of what
        they have seen than of anything else. A head's is needed only where all before it were right.
        """
        heads, recipe = self.module, self._recipe
        clues, taken, known = self._clues(validation)
        weight = known * torch.cat([torch.ones_like(taken[:, :1]), taken[:, :-1].cumprod(1)], 1)
        parameters = [heads.confidence, heads.confidence_bias]
        optimizer = torch.optim.AdamW(parameters, lr=_CONFIDENCE_RATE, weight_decay=recipe.weight_decay)
        generator = torch.Generator().manual_seed(recipe.seed)
        for step in range(_CONFIDENCE_STEPS):
            for group in optimizer.param_groups:
                group["lr"] = _CONFIDENCE_RATE * (1 - step / _CONFIDENCE_STEPS)
            rows = torch.randint(len(taken), (recipe.rows,), generator=generator).to(taken.device)
            logits = torch.stack([heads.certainty(clues[rows, head], head) for head in range(self.depth)], 1)
            losses = nn.functional.binary_cross_entropy_with_logits(logits, taken[rows], reduction="none")
            loss = (losses * weight[rows]).sum() / weight[rows].sum()
            optimizer.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            optimizer.step()

    @torch.no_grad()
    def _clues(self, validation: TrainingExamples) -> tuple[Tensor, Tensor, Tensor]:
        """Return the inputs of the confidences (rows, heads, width + rank + 1), the chance that each head's
        token is accepted (rows, heads), and whether that is known: it is not behind a response's end.
        """
        clues, taken, known = [], [], []
        for batch in self.review(validation):
            logits, states, m = self.module(batch.hidden.float(), batch.before)
            inputs = [self.module.clues(states[j], m[:, j], logits[:, j]) for j in range(self.depth)]
            clues.append(torch.stack(inputs, 1))
            taken.append(chance_of_acceptance(logits, batch, self.words, self._recipe.temperature))
            known.append(batch.wanted != UNKNOWN)
        return torch.cat(clues), torch.cat(taken), torch.cat(known)


class HeadsMethod:
    """Heads for one target."""

    student: HeadsStudent

    def __init__(self, served: TargetModel, recipe: Recipe, params: SamplingParams) -> None:
        """`params`: of the distribution that is learnt in addition to the tokens."""
        self._served, self._recipe, self._params = served, recipe, params
        embedding = served.target.embedding
        self.target_vocabulary = len(embedding)
        self.row_bytes = embedding.shape[1] * embedding.itemsize + LIKELIEST * 8 + 16

    def rows(self, completion: Completion) -> int:
        """Count its tokens."""
        return len(completion.tokens)

    def read(self, completions: Sequence[Completion]) -> TrainingExamples:
        """Compute the examples."""
        return TrainingExamples.joined(list(self._served.examples(completions, self._params)))

    def examples(self, material: TrainingExamples) -> TrainingExamples:
        """Return the material: heads learn from nothing else."""
        return material

    def begin(self, vocabulary: Tensor) -> None:
        """Create heads that repeat the LM head."""
        torch.manual_seed(self._recipe.seed)
        target = self._served.target
        output = target.output_rows(vocabulary.to(target.embedding.device)).float()
        self.student = HeadsStudent(self._create(output, vocabulary), self._recipe)

    def accepted_counts(self, completions: Sequence[Completion]) -> Iterator[tuple[Completion, list[int]]]:
        """Draft with the drafter that serves."""
        drafter = HeadsDrafter(self.heads(), self._served.noise)
        remaining = iter(completions)
        for examples in self._served.examples(completions, self._params):
            at = 0
            while at < len(examples):
                completion, first = next(remaining), at
                at += len(completion.tokens)
                yield completion, count_accepted(completion, examples.hidden[first:at], drafter)

    def heads(self) -> Heads:
        """Copy them into the target's dtype."""
        target, vocabulary = self._served.target, self.student.vocabulary
        copy = self._create(target.output_rows(vocabulary), vocabulary)
        copy.load_state_dict(self.student.module.state_dict())
        return copy.to(target.embedding.dtype).eval().requires_grad_(False)

    def save(self, folder: Path, version: str, domain: str, training: dict[str, Any]) -> None:
        """Write what `load_heads` reads."""
        target, heads = self._served.target, self.student.module
        config = HeadsConfig(
            version=version,
            heads=heads.heads,
            width=target.embedding.shape[1],
            markov_rank=self._recipe.markov_rank,
            vocabulary_size=len(heads.vocabulary),
            target_vocabulary_size=len(target.embedding),
            target_digest=target.digest,
            domain=domain,
            training=training,
        )
        save_heads(folder, config, heads)

    def _create(self, output: Tensor, vocabulary: Tensor) -> Heads:
        embedding, recipe = self._served.target.embedding, self._recipe
        return Heads(embedding, output, vocabulary, heads=recipe.depth, markov_rank=recipe.markov_rank)


def count_accepted(completion: Completion, states: Tensor, drafter: HeadsDrafter) -> list[int]:
    """Count the right tokens of a draft behind each token of the response but the last, made with the noise
    and the `states` (tokens, width) that the response was drawn with.
    """
    request, text, length = completion.request, completion.text, len(completion.request.prompt)
    key = answer_key(request.seed, request.prompt, request.choice)
    requests = (
        DraftRequest("", text[: length + at + 1], length, len(text), "", key, request.temperature, states[at])
        for at in range(len(completion.tokens) - 1)
    )
    counts: list[int] = []
    while batch := list(islice(requests, _BATCH)):
        drafter.begin(batch)
        lengths, live = [0] * len(batch), [True] * len(batch)
        while any(live):
            right: list[int | None] = []
            offers = drafter.next_candidates([0.0] * len(batch))
            for index, (drafted, offer) in enumerate(zip(batch, offers, strict=True)):
                at = len(drafted.tokens) + lengths[index]
                live[index] &= offer is not None and at < len(text) - 1 and offer.token == text[at]
                lengths[index] += live[index]
                right.append(offer.token if offer is not None and live[index] else None)
            drafter.advance(right)
        counts += lengths
    return counts
