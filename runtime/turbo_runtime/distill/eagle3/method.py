"""How such a layer is trained, judged and written down."""

from __future__ import annotations

import math
import random
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import LlamaConfig

from turbo_runtime.distill.data.examples import TrainingBatch
from turbo_runtime.distill.data.responses import Completion
from turbo_runtime.distill.data.texts import Text, Texts
from turbo_runtime.distill.eagle3.checkpoint import save_eagle3
from turbo_runtime.distill.eagle3.layer import STREAMS, Eagle3
from turbo_runtime.distill.errors import DistillError
from turbo_runtime.distill.loss import Words
from turbo_runtime.distill.recipe import Recipe
from turbo_runtime.distill.target import LIKELIEST, TargetModel
from turbo_runtime.drafters.heads.checkpoint import tensors_digest
from turbo_runtime.messages import SamplingParams

_HEAD = 64  # dimensions of an attention head where the target's own are of another kind


class Eagle3Student:
    """A layer in float32, whatever the target's dtype."""

    def __init__(self, draft: Eagle3, recipe: Recipe) -> None:
        self.draft = self.module = draft
        self.depth, self.vocabulary = recipe.depth, draft.vocabulary
        self.guessers = list(draft.parameters())
        self._rows = recipe.rows

    def steps(self, said: Sequence[Completion]) -> int:
        """Of so many answers each that they have about `rows` places."""
        return math.ceil(len(said) / self._together([len(one.tokens) for one in said]))

    def lessons(self, material: Texts, lot: int) -> Iterator[Sequence[Text]]:
        """Answers as a whole, in another order each time."""
        together = self._together([len(text.answer) for text in material.texts])
        mixed = list(material.texts)
        random.Random(lot).shuffle(mixed)  # noqa: S311  a shuffle, no secret
        for first in range(0, len(mixed), together):
            yield mixed[first : first + together]

    def review(self, material: Texts) -> Iterator[Text]:
        """Each answer."""
        return iter(material.texts)

    def guess(self, lesson: Text) -> tuple[Tensor, TrainingBatch]:
        """Behind each token of the answer but its last."""
        lessons = lesson.answer.pick(lesson.answer.teaching, self.depth)
        return self.draft(lesson.streams[:-1].float(), lesson.tokens[:-1], lessons.before), lessons

    def settle(self, judges: Texts) -> None:
        """Nothing more: the engines that draft with it ask for no confidence."""

    def _together(self, lengths: Sequence[int]) -> int:
        return max(1, round(self._rows * len(lengths) / sum(lengths)))


class Eagle3Method:
    """Of one target."""

    name = "eagle3"

    def __init__(self, served: TargetModel, model: str, recipe: Recipe, law: SamplingParams) -> None:
        """`model`: name or path of the target, as the artefact names it; `law` is told beside the words."""
        self._served, self._model, self._recipe, self._law = served, model, recipe, law
        embedding, config = served.target.embedding, served.model.config
        count = int(config.num_hidden_layers)
        self._layers = (2, count // 2, count - 3)  # as vLLM and SGLang take them unless told otherwise
        if self._layers != tuple(sorted({*self._layers})):
            raise DistillError(
                f"eagle3 sees three layers of the model, and it has {count} in all; train heads instead"
            )
        self.row_bytes = STREAMS * embedding.shape[1] * embedding.itemsize + LIKELIEST * 8 + 16

    def rows(self, said: Completion) -> int:
        """One for each token of prompt and answer."""
        return len(said.asked.prompt) + len(said.tokens)

    def read(self, said: Sequence[Completion]) -> Texts:
        """All of them."""
        return Texts(list(self._served.texts(said, self._law, self._layers)))

    def student(self, vocabulary: Tensor) -> Eagle3Student:
        """With weights drawn at random."""
        torch.manual_seed(self._recipe.seed)
        target = self._served.target
        output = target.output_rows(vocabulary.to(target.embedding.device)).float()
        config = layer_config(self._served.model.config)
        return Eagle3Student(Eagle3(config, target.embedding, output, vocabulary), self._recipe)

    @torch.inference_mode()
    def taken(
        self, student: Eagle3Student, said: Sequence[Completion]
    ) -> Iterator[tuple[Completion, list[int]]]:
        """Drafted greedily, as vLLM does."""
        words = Words(student.vocabulary, len(self._served.target.embedding))
        for one, text in zip(said, self._served.texts(said, self._law, self._layers), strict=True):
            logits, lessons = student.guess(text)
            right = (logits.argmax(-1) == words(lessons.wanted)).cumprod(1).sum(1)
            left = text.answer.left[text.answer.teaching]
            yield one, torch.minimum(right, left - 1).tolist()

    def heads(self, student: Eagle3Student) -> None:
        """The engine Turbo cannot draft with it."""

    def draft_weights(self, student: Eagle3Student) -> int:
        """The layer and the rows of the LM head anew for each token."""
        return student.depth * (sum(map(Tensor.numel, student.guessers)) + student.draft.output.numel())

    def digest(self, student: Eagle3Student) -> str:
        """Of tensors and vocabulary."""
        return tensors_digest(student.draft, student.vocabulary)

    def save(
        self, folder: Path, student: Eagle3Student, version: str, domain: str, training: Mapping[str, Any]
    ) -> None:
        """In the format of `speculators`."""
        target, draft = self._served.target, student.draft
        save_eagle3(
            folder,
            draft,
            depth=student.depth,
            layers=self._layers,
            verifier={
                "name_or_path": self._model,
                "architectures": list(self._served.model.config.architectures or ()),
            },
            turbo={
                "version": version,
                "target_digest": target.digest,
                "domain": domain,
                "training": dict(training),
            },
        )


def layer_config(target: Any) -> LlamaConfig:
    """A layer like the target's own, with Llama's attention whatever the target's is."""
    width, heads = int(target.hidden_size), int(target.num_attention_heads)
    kv_heads, each = int(target.num_key_value_heads), int(getattr(target, "head_dim", None) or width // heads)
    if hasattr(target, "kv_lora_rank"):  # latent attention
        each, heads = _HEAD, max(1, width // _HEAD)
        kv_heads = heads
    rope = dict(target.rope_parameters)
    return LlamaConfig(
        vocab_size=target.vocab_size,
        hidden_size=width,
        intermediate_size=target.intermediate_size,
        num_hidden_layers=1,
        num_attention_heads=heads,
        num_key_value_heads=kv_heads,
        head_dim=each,
        hidden_act="silu",
        max_position_embeddings=target.max_position_embeddings,
        rms_norm_eps=target.rms_norm_eps,
        rope_parameters={"rope_type": "default", "rope_theta": rope.get("rope_theta", 10000.0)},
        attention_bias=False,
        mlp_bias=False,
        tie_word_embeddings=False,
    )
