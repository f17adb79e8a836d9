"""The method `eagle3`: one decoder layer that drafts from the target's own features.

At place i the layer sees the token x_{i+1} and the features f_i of the target at i, the residual streams that
enter three of its layers, fused by one product; it guesses x_{i+2}. Then it goes on with what it computed
itself in place of the features, a token further each time (Li et al., arXiv 2503.01840). Parameters have the
names of the `speculators` format, so that vLLM and SGLang load what is learnt here as we do.

It learns at all places of an answer at once: in each further step a place sees the keys that the first step
left at and before it, and of the steps since then its own alone, as in drafting.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, cast

import torch
from safetensors.torch import save_file
from torch import Tensor, nn
from transformers import LlamaConfig
from transformers.models.llama import modeling_llama as llama

from turbo_runtime.distill.data.examples import Text, TrainingBatch, TrainingExamples, positions_in
from turbo_runtime.distill.data.responses import Completion, shuffled
from turbo_runtime.distill.recipe import Recipe, UnsupportedModelError
from turbo_runtime.distill.target import LIKELIEST, TargetModel
from turbo_runtime.distill.workspace import CONFIG_FILE
from turbo_runtime.files import write_whole, write_whole_by
from turbo_runtime.messages import SamplingParams

STREAMS = 3  # layers of the target whose input it reads
WEIGHTS_FILE = "model.safetensors"
FORMAT_VERSION = "0.9.0"  # of `speculators`, that this was checked with
_HEAD_DIM = 64  # of the layer's attention where the target's own is latent


class Attention(nn.Module):
    """Grouped queries; token and state come in side by side."""

    def __init__(self, config: LlamaConfig) -> None:
        super().__init__()
        width, self.head_dim = config.hidden_size, config.head_dim
        self.kv_heads = config.num_key_value_heads
        queries, keys = config.num_attention_heads * self.head_dim, self.kv_heads * self.head_dim
        self.q_proj = nn.Linear(2 * width, queries, bias=False)
        self.k_proj = nn.Linear(2 * width, keys, bias=False)
        self.v_proj = nn.Linear(2 * width, keys, bias=False)
        self.o_proj = nn.Linear(queries, width, bias=False)

    def split(self, projected: Tensor) -> Tensor:
        """Split queries, keys or values (n, heads x head_dim) into (KV heads, group, n, head_dim)."""
        return projected.view(len(projected), self.kv_heads, -1, self.head_dim).permute(1, 2, 0, 3)


class Block(nn.Module):
    """The decoder layer."""

    def __init__(self, config: LlamaConfig) -> None:
        super().__init__()
        width, epsilon = config.hidden_size, config.rms_norm_eps
        self.input_layernorm = llama.LlamaRMSNorm(width, epsilon)
        self.hidden_norm = llama.LlamaRMSNorm(width, epsilon)
        self.self_attn = Attention(config)
        self.post_attention_layernorm = llama.LlamaRMSNorm(width, epsilon)
        self.mlp = llama.LlamaMLP(config)

    def join(self, embedded: Tensor, state: Tensor) -> Tensor:
        """Join embeddings and states (n, width) to (n, 2 width)."""
        return torch.cat([self.input_layernorm(embedded), self.hidden_norm(state)], -1)

    def update(self, state: Tensor, attended: Tensor) -> Tensor:
        """Return the state (m, width) behind the layer; `attended` (KV heads, group, m, head_dim)."""
        state = state + self.self_attn.o_proj(attended.permute(2, 0, 1, 3).flatten(1))
        return state + cast("Tensor", self.mlp(self.post_attention_layernorm(state)))


class Eagle3(nn.Module):
    """Parameters are the draft's own; embedding and LM head are the target's and never trained."""

    embedding: Tensor
    output: Tensor
    vocabulary: Tensor

    def __init__(self, config: LlamaConfig, embedding: Tensor, output: Tensor, vocabulary: Tensor) -> None:
        """`config` of the layer; `embedding` (target vocabulary, width); `output` (V, width), the LM head's
        rows of `vocabulary` (V,) int64, ascending ids of the target.
        """
        super().__init__()
        self.config = config
        width = config.hidden_size
        self.register_buffer("embedding", embedding, persistent=False)
        self.register_buffer("output", output, persistent=False)
        self.register_buffer("vocabulary", vocabulary.to(embedding.device), persistent=False)
        self.fc = nn.Linear(STREAMS * width, width, bias=False)
        self.layers = nn.ModuleList([Block(config)])
        self.norm = llama.LlamaRMSNorm(width, config.rms_norm_eps)
        self._rotary = llama.LlamaRotaryEmbedding(config)
        self.to(embedding.device)

    def forward(self, streams: Tensor, tokens: Tensor, before: Tensor) -> Tensor:
        """Guess behind the last m places of a text: streams (n, 3 width), tokens (n,) behind each place,
        before (m, depth) the guessed ones, beginning with the last m of `tokens` -> logits (m, depth, V).
        """
        (block,) = self.layers
        assert isinstance(block, Block)
        attention = block.self_attn
        count, rows = len(tokens), len(before)
        state = self.fc(streams)
        inputs = block.join(self._embed(tokens), state)
        places = torch.arange(count, device=tokens.device)
        at = places[count - rows :]
        key = self._rotate(attention.split(attention.k_proj(inputs)), places)
        value = attention.split(attention.v_proj(inputs))
        hidden = places > at[:, None]  # (m, n): what comes later
        own: list[tuple[Tensor, Tensor]] = []
        inputs, state = inputs[count - rows :], state[count - rows :]
        logits = []
        for step in range(before.shape[1]):
            if step:
                inputs = block.join(self._embed(before[:, step]), state)
                left_key = self._rotate(attention.split(attention.k_proj(inputs)), at + step)
                own.append((left_key, attention.split(attention.v_proj(inputs))))
            query = self._rotate(attention.split(attention.q_proj(inputs)), at + step)
            state = block.update(state, _attend(query, key, value, hidden, own))
            logits.append(self.norm(state) @ self.output.T)
        return torch.stack(logits, 1)

    def _embed(self, tokens: Tensor) -> Tensor:
        return self.embedding[tokens].to(self.fc.weight.dtype)

    def _rotate(self, x: Tensor, places: Tensor) -> Tensor:
        """Rotate x (KV heads, group, n, head_dim) by its places (n,)."""
        return cast("Tensor", llama.apply_rotary_pos_emb(x, x, *self._rotary(x, places[None]))[0])


def _attend(
    query: Tensor, key: Tensor, value: Tensor, hidden: Tensor, own: list[tuple[Tensor, Tensor]]
) -> Tensor:
    """Attend with query (KV heads, group, m, head_dim) to key and value (KV heads, 1, n, head_dim) but those
    `hidden` (m, n), and to a place's `own` of each step since (KV heads, 1, m, head_dim).
    """
    scale = query.shape[-1] ** -0.5
    scores = [(query @ key.transpose(-1, -2)).masked_fill(hidden, -torch.inf)]
    scores += [(query * left).sum(-1, keepdim=True) for left, _ in own]
    weights = (torch.cat(scores, -1) * scale).softmax(-1)
    first = key.shape[2]
    attended: Tensor = weights[..., :first] @ value
    for number, (_, left) in enumerate(own):
        attended = attended + weights[..., first + number, None] * left
    return attended


class Eagle3Student:
    """A layer in float32, whatever the target's dtype."""

    def __init__(self, draft: Eagle3, recipe: Recipe) -> None:
        self.module, self.depth, self.vocabulary = draft, recipe.depth, draft.vocabulary
        self.guessers, self.passes = list(draft.parameters()), recipe.depth  # one for each token
        self.words = positions_in(draft.vocabulary, len(draft.embedding))
        self._rows = recipe.rows

    def steps(self, completions: Sequence[Completion]) -> int:
        """Count steps of so many responses that they have about the recipe's rows."""
        return math.ceil(len(completions) / self._batch_size([len(c.tokens) for c in completions]))

    def batches(self, material: Sequence[Text], seed: int) -> Iterator[Sequence[Text]]:
        """Yield whole responses, mixed."""
        batch_size = self._batch_size([len(text.answer) for text in material])
        mixed = shuffled(material, seed)
        for first in range(0, len(mixed), batch_size):
            yield mixed[first : first + batch_size]

    def review(self, material: Sequence[Text]) -> Iterator[Text]:
        """Yield each response."""
        return iter(material)

    def guess(self, text: Text) -> tuple[Tensor, TrainingBatch]:
        """Return the logits behind each token of the response but its last."""
        batch = text.answer.pick(text.answer.teaching, self.depth)
        return self.module(text.streams[:-1].float(), text.tokens[:-1], batch.before), batch

    def settle(self, validation: Sequence[Text]) -> None:
        """Learn nothing more: the format has no confidence."""

    def _batch_size(self, lengths: Sequence[int]) -> int:
        return max(1, round(self._rows * len(lengths) / sum(lengths)))


class Eagle3Method:
    """A layer for one target."""

    student: Eagle3Student

    def __init__(self, served: TargetModel, model: str, recipe: Recipe, params: SamplingParams) -> None:
        """`model`: what the checkpoint calls the target; `params`: of the distribution that is learnt too."""
        self._served, self._model, self._recipe, self._params = served, model, recipe, params
        embedding, count = served.target.embedding, int(served.model.config.num_hidden_layers)
        self._layers = (2, count // 2, count - 3)  # the default of vLLM and SGLang
        if self._layers != tuple(sorted({*self._layers})):
            raise UnsupportedModelError(
                f"eagle3 needs a model of 7 layers or more, and this one has {count}; train heads instead"
            )
        self.target_vocabulary = len(embedding)
        self.row_bytes = STREAMS * embedding.shape[1] * embedding.itemsize + LIKELIEST * 8 + 16

    def rows(self, completion: Completion) -> int:
        """Count the tokens of prompt and response."""
        return len(completion.text)

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
    def accepted_counts(self, completions: Sequence[Completion]) -> Iterator[tuple[Completion, list[int]]]:
        """Draft greedily, as vLLM does."""
        texts = self._served.texts(completions, self._params, self._layers)
        for completion, text in zip(completions, texts, strict=True):
            logits, batch = self.student.guess(text)
            right = (logits.argmax(-1) == self.student.words[batch.wanted]).cumprod(1).sum(1)
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
        vocabulary, dtype = draft.vocabulary.cpu(), draft.embedding.dtype
        own = {**draft.state_dict(), "lm_head.weight": draft.output}
        allowed = torch.zeros(len(draft.embedding), dtype=torch.bool)
        allowed[vocabulary] = True
        tensors = {  # in the target's dtype; without embeddings, of which engines share the target's
            **{name: value.detach().to(dtype).cpu().contiguous() for name, value in own.items()},
            "d2t": vocabulary - torch.arange(len(vocabulary)),  # added to a drafted id
            "t2d": allowed,
        }
        write_whole_by(folder / WEIGHTS_FILE, lambda scratch: save_file(tensors, scratch, {"format": "pt"}))
        write_whole(folder / CONFIG_FILE, json.dumps(document, indent=2) + "\n")


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
