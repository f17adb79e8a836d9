"""The method `eagle3`: trains the layer, evaluates it, and saves it."""

from __future__ import annotations

import json
import math
import random
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor
from transformers import LlamaConfig

from turbo_runtime.atomic_write import write_whole, write_whole_by
from turbo_runtime.distill.data.examples import Text, TrainingBatch, TrainingExamples
from turbo_runtime.distill.data.responses import Completion
from turbo_runtime.distill.eagle3.layer import STREAMS, Eagle3
from turbo_runtime.distill.errors import DistillError
from turbo_runtime.distill.loss import Words
from turbo_runtime.distill.recipe import Recipe
from turbo_runtime.distill.target import LIKELIEST, TargetModel
from turbo_runtime.distill.workspace import CONFIG_FILE
from turbo_runtime.messages import SamplingParams

WEIGHTS_FILE = "model.safetensors"
FORMAT_VERSION = "0.9.0"  # of `speculators`, that this was checked with
_HEAD_DIM = 64  # of the layer's attention where the target's own is latent


class Eagle3Student:
    """A layer in float32, whatever the target's dtype."""

    def __init__(self, draft: Eagle3, recipe: Recipe) -> None:
        self.module, self.depth, self.vocabulary = draft, recipe.depth, draft.vocabulary
        self.guessers, self.passes = list(draft.parameters()), recipe.depth  # one for each token
        self.words = Words(draft.vocabulary, len(draft.embedding))
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
        return self.module(lesson.streams[:-1].float(), lesson.tokens[:-1], batch.before), batch

    def settle(self, judges: Sequence[Text]) -> None:
        """Learn nothing more: vLLM and SGLang use no confidence."""

    def _batch_size(self, lengths: Sequence[int]) -> int:
        return max(1, round(self._rows * len(lengths) / sum(lengths)))


class Eagle3Method:
    """A layer for one target."""

    student: Eagle3Student

    def __init__(self, served: TargetModel, model: str, recipe: Recipe, params: SamplingParams) -> None:
        """`model`: name or path of the target in the checkpoint; `params`: of the distribution that is learnt
        in addition to the tokens.
        """
        self._served, self._model, self._recipe, self._params = served, model, recipe, params
        embedding, count = served.target.embedding, int(served.model.config.num_hidden_layers)
        self._layers = (2, count // 2, count - 3)  # the default of vLLM and SGLang
        if self._layers != tuple(sorted({*self._layers})):
            raise DistillError(
                f"eagle3 sees three layers of the model, and it has {count} in all; train heads instead"
            )
        self.target_vocabulary = len(embedding)
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

    def begin(self, vocabulary: Tensor) -> None:
        """Create a layer with random weights."""
        torch.manual_seed(self._recipe.seed)
        target = self._served.target
        output = target.output_rows(vocabulary.to(target.embedding.device)).float()
        config = layer_config(self._served.model.config)
        self.student = Eagle3Student(Eagle3(config, target.embedding, output, vocabulary), self._recipe)

    @torch.inference_mode()
    def taken(self, completions: Sequence[Completion]) -> Iterator[tuple[Completion, list[int]]]:
        """Draft greedily, as vLLM does."""
        texts = self._served.texts(completions, self._params, self._layers)
        for completion, text in zip(completions, texts, strict=True):
            logits, batch = self.student.guess(text)
            right = (logits.argmax(-1) == self.student.words(batch.wanted)).cumprod(1).sum(1)
            left = text.answer.left[text.answer.teaching]
            yield completion, torch.minimum(right, left - 1).tolist()

    def save(self, folder: Path, version: str, domain: str, training: dict[str, Any]) -> None:
        """Write the format of `speculators`, which vLLM and SGLang load; its configuration last."""
        draft, target = self.student.module, self._served.model.config
        document = {
            "architectures": ["Eagle3Speculator"],
            "speculators_model_type": "eagle3",
            "speculators_version": FORMAT_VERSION,
            "draft_vocab_size": len(draft.vocabulary),
            "norm_before_residual": False,
            "target_hidden_size": draft.config.hidden_size,
            "eagle_aux_hidden_state_layer_ids": list(self._layers),
            "transformer_layer_config": draft.config.to_diff_dict() | {"model_type": draft.config.model_type},
            "speculators_config": {
                "algorithm": "eagle3",
                "default_proposal_method": "greedy",
                "proposal_methods": [{"proposal_type": "greedy", "speculative_tokens": self.student.depth}],
                "verifier": {"name_or_path": self._model, "architectures": list(target.architectures or ())},
            },
            "turbo": {
                "version": version,
                "target_digest": self._served.target.digest,
                "domain": domain,
                "training": training,
            },
        }
        tensors = _tensors(draft)
        write_whole_by(folder / WEIGHTS_FILE, lambda scratch: save_file(tensors, scratch, {"format": "pt"}))
        write_whole(folder / CONFIG_FILE, json.dumps(document, indent=2) + "\n")


def _tensors(draft: Eagle3) -> dict[str, Tensor]:
    """In the target's dtype. Embeddings are not among them: engines share the target's."""
    dtype = draft.embedding.dtype
    tensors = {name: value.detach().to(dtype).cpu() for name, value in draft.state_dict().items()}
    vocabulary = draft.vocabulary.cpu()
    allowed = torch.zeros(len(draft.embedding), dtype=torch.bool)
    allowed[vocabulary] = True
    tensors["lm_head.weight"] = draft.output.to(dtype).cpu()
    tensors["d2t"] = vocabulary - torch.arange(len(vocabulary))  # added to a drafted id
    tensors["t2d"] = allowed
    return {name: value.contiguous() for name, value in tensors.items()}


def layer_config(target: Any) -> LlamaConfig:
    """Return a layer like the target's own, with Llama's attention whatever the target's is."""
    width, num_heads = int(target.hidden_size), int(target.num_attention_heads)
    num_kv_heads = int(target.num_key_value_heads)
    head_dim = int(getattr(target, "head_dim", None) or width // num_heads)
    if hasattr(target, "kv_lora_rank"):  # latent attention
        head_dim, num_heads = _HEAD_DIM, max(1, width // _HEAD_DIM)
        num_kv_heads = num_heads
    return LlamaConfig(
        vocab_size=target.vocab_size,
        hidden_size=width,
        intermediate_size=target.intermediate_size,
        num_hidden_layers=1,
        num_attention_heads=num_heads,
        num_key_value_heads=num_kv_heads,
        head_dim=head_dim,
        max_position_embeddings=target.max_position_embeddings,
        rms_norm_eps=target.rms_norm_eps,
        rope_parameters={"rope_type": "default", "rope_theta": target.rope_parameters.get("rope_theta", 1e4)},
    )
