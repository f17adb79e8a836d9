"""The method `heads`: Turbo heads on the last hidden state, which the engine Turbo drafts with."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from turbo_runtime.distill.data.examples import UNKNOWN, TrainingBatch, TrainingExamples
from turbo_runtime.distill.data.responses import Completion
from turbo_runtime.distill.evaluation.acceptance import taken_of
from turbo_runtime.distill.loss import Words, chance_of_acceptance
from turbo_runtime.distill.recipe import Recipe
from turbo_runtime.distill.target import LIKELIEST, TargetModel
from turbo_runtime.drafters.heads.checkpoint import HeadsConfig, save_heads, tensors_digest
from turbo_runtime.drafters.heads.drafter import HeadsDrafter
from turbo_runtime.drafters.heads.module import Heads
from turbo_runtime.messages import SamplingParams

_AT_ONCE = 256  # rows that are looked at together where nothing is learnt from them
_SURENESS_STEPS, _SURENESS_RATE = 300, 0.01


class HeadsStudent:
    """Heads in float32, whatever the target's dtype."""

    def __init__(self, heads: Heads, recipe: Recipe) -> None:
        self.heads = self.module = heads
        self.depth, self.vocabulary = heads.heads, heads.vocabulary
        self.guessers = [heads.block, heads.block_bias, heads.markov_in, heads.markov_out]
        self._recipe = recipe
        self._words = Words(heads.vocabulary, len(heads.embedding))

    def steps(self, said: Sequence[Completion]) -> int:
        """Of so many rows each."""
        return math.ceil(sum(len(one.tokens) - 1 for one in said) / self._recipe.rows)

    def lessons(self, material: TrainingExamples, lot: int) -> Iterator[Sequence[TrainingBatch]]:
        """Rows of all answers, mixed."""
        rows = material.teaching
        mixed = torch.randperm(len(rows), generator=torch.Generator().manual_seed(lot))
        for chosen in torch.split(rows[mixed.to(rows.device)], self._recipe.rows):
            yield [material.pick(chosen, self.depth)]

    def review(self, material: TrainingExamples) -> Iterator[TrainingBatch]:
        """Some rows at a time."""
        for chosen in torch.split(material.teaching, _AT_ONCE):
            yield material.pick(chosen, self.depth)

    def guess(self, lesson: TrainingBatch) -> tuple[Tensor, TrainingBatch]:
        """All heads at once."""
        logits, _, _ = self.heads(lesson.hidden.float(), lesson.before)
        return logits, lesson

    def settle(self, judges: TrainingExamples) -> None:
        """The confidences, from answers that nothing else was learnt from: of what they have seen heads are
        far surer than of anything else. A head's is asked for only where all before it were right.
        """
        heads, recipe = self.heads, self._recipe
        clues, taken, known = self._clues(judges)
        asked = known * torch.cat([torch.ones_like(taken[:, :1]), taken[:, :-1].cumprod(1)], 1)
        sure = [heads.confidence, heads.confidence_bias]
        optimizer = torch.optim.AdamW(sure, lr=_SURENESS_RATE, weight_decay=recipe.weight_decay)
        generator = torch.Generator().manual_seed(recipe.seed)
        for step in range(_SURENESS_STEPS):
            for group in optimizer.param_groups:
                group["lr"] = _SURENESS_RATE * (1 - step / _SURENESS_STEPS)
            rows = torch.randint(len(taken), (recipe.rows,), generator=generator).to(taken.device)
            told = torch.stack([heads.certainty(clues[rows, head], head) for head in range(self.depth)], 1)
            each = nn.functional.binary_cross_entropy_with_logits(told, taken[rows], reduction="none")
            loss = (each * asked[rows]).sum() / asked[rows].sum()
            optimizer.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            optimizer.step()

    @torch.no_grad()
    def _clues(self, judges: TrainingExamples) -> tuple[Tensor, Tensor, Tensor]:
        """What confidences are told from (rows, heads, width + rank + 1), the chance that each head's token
        is accepted (rows, heads), and whether that is known: it is not behind an answer's end.
        """
        clues, taken, known = [], [], []
        for lesson in self.review(judges):
            logits, states, m = self.heads(lesson.hidden.float(), lesson.before)
            each = [self.heads.clues(states[j], m[:, j], logits[:, j]) for j in range(self.depth)]
            clues.append(torch.stack(each, 1))
            taken.append(chance_of_acceptance(logits, lesson, self._words, self._recipe.temperature))
            known.append(lesson.wanted != UNKNOWN)
        return torch.cat(clues), torch.cat(taken), torch.cat(known)


class HeadsMethod:
    """Of one target."""

    name = "heads"

    def __init__(self, served: TargetModel, recipe: Recipe, law: SamplingParams) -> None:
        """`law` is told beside the words."""
        self._served, self._recipe, self._law = served, recipe, law
        embedding = served.target.embedding
        self.row_bytes = embedding.shape[1] * embedding.itemsize + LIKELIEST * 8 + 16

    def rows(self, said: Completion) -> int:
        """One for each of its tokens."""
        return len(said.tokens)

    def read(self, said: Sequence[Completion]) -> TrainingExamples:
        """All in one."""
        return TrainingExamples.joined(list(self._served.places(said, self._law)))

    def student(self, vocabulary: Tensor) -> HeadsStudent:
        """Heads that say what the LM head says."""
        torch.manual_seed(self._recipe.seed)
        target = self._served.target
        output = target.output_rows(vocabulary.to(target.embedding.device)).float()
        return HeadsStudent(self._made(output, vocabulary), self._recipe)

    def taken(
        self, student: HeadsStudent, said: Sequence[Completion]
    ) -> Iterator[tuple[Completion, list[int]]]:
        """As drafted by the source that serves."""
        source = HeadsDrafter(self.heads(student), self._served.noise)
        left = list(said)
        for places in self._served.places(said, self._law):
            at = 0
            while at < len(places):
                one = left.pop(0)
                states = places.hidden[at : at + len(one.tokens)]
                yield one, taken_of(one, states, source)
                at += len(one.tokens)

    def heads(self, student: HeadsStudent) -> Heads:
        """As the engine would load them: in the target's dtype."""
        copy = self._made(self._served.target.output_rows(student.vocabulary), student.vocabulary)
        copy.load_state_dict(student.heads.state_dict())
        return copy.to(self._served.target.embedding.dtype).eval().requires_grad_(False)

    def draft_weights(self, student: HeadsStudent) -> int:
        """All heads in one pass, the rows of the LM head once."""
        return sum(each.numel() for each in student.guessers) + student.heads.output.numel()

    def digest(self, student: HeadsStudent) -> str:
        """Of tensors and vocabulary."""
        return tensors_digest(student.heads, student.vocabulary)

    def save(
        self, folder: Path, student: HeadsStudent, version: str, domain: str, training: Mapping[str, Any]
    ) -> None:
        """As `load_heads` reads them."""
        target, heads = self._served.target, student.heads
        config = HeadsConfig(
            version=version,
            heads=heads.heads,
            width=target.embedding.shape[1],
            markov_rank=self._recipe.markov_rank,
            vocabulary_size=len(heads.vocabulary),
            target_vocabulary_size=len(target.embedding),
            target_digest=target.digest,
            domain=domain,
            training=dict(training),
        )
        save_heads(folder, config, heads)

    def _made(self, output: Tensor, vocabulary: Tensor) -> Heads:
        return Heads(
            self._served.target.embedding,
            output,
            vocabulary,
            heads=self._recipe.depth,
            markov_rank=self._recipe.markov_rank,
        )
