"""The method `eagle3`: trains the layer, evaluates it, and saves it."""

from __future__ import annotations

import math
import random
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import LlamaConfig

from turbo_runtime.distill.data.examples import Text, TrainingBatch, TrainingExamples
from turbo_runtime.distill.data.responses import Completion
from turbo_runtime.distill.eagle3.checkpoint import save_eagle3
from turbo_runtime.distill.eagle3.layer import STREAMS, Eagle3
from turbo_runtime.distill.errors import DistillError
from turbo_runtime.distill.loss import Words
from turbo_runtime.distill.recipe import Recipe
from turbo_runtime.distill.target import LIKELIEST, TargetModel
from turbo_runtime.drafters.heads.checkpoint import tensors_digest
from turbo_runtime.messages import SamplingParams

_HEAD_DIM = 64  # of the layer's attention where the target's own is latent


class Eagle3Student:
    """A layer in float32, whatever the target's dtype."""

    def __init__(self, draft: Eagle3, recipe: Recipe) -> None:
        self.draft = draft
        self.module: nn.Module = draft
        self.depth, self.vocabulary = recipe.depth, draft.vocabulary
        self.guessers = list(draft.parameters())
        self._rows = recipe.rows

    def steps(self, completions: Sequence[Completion]) -> int:
        """Count steps of so many responses that they have about the recipe's rows."""
        return math.ceil(len(completions) / self._batch_size([len(c.tokens) for c in completions]))

    def lessons(self, material: Sequence[Text], lot: int) -> Iterator[Sequence[Text]]:
        """Yield whole responses, mixed."""
        batch_size = self._batch_size([len(text.answer) for text in material])
        mixed = list(material)
        random.Random(lot).shuffle(mixed)  # noqa: S311  a shuffle, no secret
        for first in range(0, len(mixed), batch_size):
            yield mixed[first : first + batch_size]

    def review(self, material: Sequence[Text]) -> Iterator[Text]:
        """Yield each response."""
        return iter(material)

    def guess(self, lesson: Text) -> tuple[Tensor, TrainingBatch]:
        """Return the logits behind each token of the response but its last."""
        batch = lesson.answer.pick(lesson.answer.teaching, self.depth)
        return self.draft(lesson.streams[:-1].float(), lesson.tokens[:-1], batch.before), batch

    def settle(self, judges: Sequence[Text]) -> None:
        """Learn nothing more: vLLM and SGLang use no confidence."""

    def _batch_size(self, lengths: Sequence[int]) -> int:
        return max(1, round(self._rows * len(lengths) / sum(lengths)))


class Eagle3Method:
    """A layer for one target."""

    def __init__(self, served: TargetModel, model: str, recipe: Recipe, params: SamplingParams) -> None:
        """`model`: name or path of the target in the checkpoint; `params`: of the distribution that is learnt
        in addition to the tokens.
        """
        self.name = "eagle3"
        self._served, self._model, self._recipe, self._params = served, model, recipe, params
        embedding, config = served.target.embedding, served.model.config
        count = int(config.num_hidden_layers)
        self._layers = (2, count // 2, count - 3)  # the default of vLLM and SGLang
        if self._layers != tuple(sorted({*self._layers})):
            raise DistillError(
                f"eagle3 sees three layers of the model, and it has {count} in all; train heads instead"
            )
        self.row_bytes = STREAMS * embedding.shape[1] * embedding.itemsize + LIKELIEST * 8 + 16

    def rows(self, completion: Completion) -> int:
        """Count the tokens of prompt and response."""
        return len(completion.asked.prompt) + len(completion.tokens)

    def read(self, completions: Sequence[Completion]) -> list[Text]:
        """Compute the streams and examples."""
        return list(self._served.texts(completions, self._params, self._layers))

    def examples(self, material: Sequence[Text]) -> TrainingExamples:
        """Concatenate those of all responses."""
        return TrainingExamples.joined([text.answer for text in material])

    def student(self, vocabulary: Tensor) -> Eagle3Student:
        """Create a layer with random weights."""
        torch.manual_seed(self._recipe.seed)
        target = self._served.target
        output = target.output_rows(vocabulary.to(target.embedding.device)).float()
        config = layer_config(self._served.model.config)
        return Eagle3Student(Eagle3(config, target.embedding, output, vocabulary), self._recipe)

    @torch.inference_mode()
    def taken(
        self, student: Eagle3Student, completions: Sequence[Completion]
    ) -> Iterator[tuple[Completion, list[int]]]:
        """Draft greedily, as vLLM does."""
        words = Words(student.vocabulary, len(self._served.target.embedding))
        texts = self._served.texts(completions, self._params, self._layers)
        for completion, text in zip(completions, texts, strict=True):
            logits, batch = student.guess(text)
            right = (logits.argmax(-1) == words(batch.wanted)).cumprod(1).sum(1)
            left = text.answer.left[text.answer.teaching]
            yield completion, torch.minimum(right, left - 1).tolist()

    def heads(self, student: Eagle3Student) -> None:
        """Return None: the engine Turbo cannot draft with it."""

    def draft_weights(self, student: Eagle3Student) -> int:
        """Count the layer and the rows of the LM head, read again for each token."""
        return student.depth * (sum(map(Tensor.numel, student.guessers)) + student.draft.output.numel())

    def digest(self, student: Eagle3Student) -> str:
        """Digest tensors and vocabulary."""
        return tensors_digest(student.draft, student.vocabulary)

    def save(
        self, folder: Path, student: Eagle3Student, version: str, domain: str, training: Mapping[str, Any]
    ) -> None:
        """Write the format of `speculators`."""
        digest, architectures = self._served.target.digest, self._served.model.config.architectures
        save_eagle3(
            folder,
            student.draft,
            depth=student.depth,
            layers=self._layers,
            verifier={"name_or_path": self._model, "architectures": list(architectures or ())},
            turbo={
                "version": version,
                "target_digest": digest,
                "domain": domain,
                "training": dict(training),
            },
        )


def layer_config(target: Any) -> LlamaConfig:
    """Return a layer like the target's own, with Llama's attention whatever the target's is."""
    width, num_heads = int(target.hidden_size), int(target.num_attention_heads)
    num_kv_heads = int(target.num_key_value_heads)
    head_dim = int(getattr(target, "head_dim", None) or width // num_heads)
    if hasattr(target, "kv_lora_rank"):  # latent attention
        head_dim, num_heads = _HEAD_DIM, max(1, width // _HEAD_DIM)
        num_kv_heads = num_heads
    rope = dict(target.rope_parameters)
    return LlamaConfig(
        vocab_size=target.vocab_size,
        hidden_size=width,
        intermediate_size=target.intermediate_size,
        num_hidden_layers=1,
        num_attention_heads=num_heads,
        num_key_value_heads=num_kv_heads,
        head_dim=head_dim,
        hidden_act="silu",
        max_position_embeddings=target.max_position_embeddings,
        rms_norm_eps=target.rms_norm_eps,
        rope_parameters={"rope_type": "default", "rope_theta": rope.get("rope_theta", 10000.0)},
        attention_bias=False,
        mlp_bias=False,
        tie_word_embeddings=False,
    )
