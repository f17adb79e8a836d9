"""A tiny random model, its tokenizer, and requests that between them use every parameter: for proofs that
need thousands of answers.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import AutoModelForCausalLM, LlamaConfig, PreTrainedModel, PreTrainedTokenizerFast

from turbo_runtime.messages import Grammar
from turbo_runtime.models.attention.metadata import IMPLEMENTATION, register
from turbo_runtime.models.attention.pool import KVCacheSpec, KVPool
from turbo_runtime.models.runner import ModelRunner
from turbo_runtime.sampling.grammar.matcher import Grammars

END = 0
VOCABULARY = 270  # 256 bytes, an end and a few merges, padded
POSITIONS = 256
SCHEMA = {
    "type": "array",
    "items": {"type": "object", "properties": {"a": {"enum": ["x", "yy"]}}, "required": ["a"]},
    "minItems": 3,
    "maxItems": 3,
    "x-guidance": {"whitespace_flexible": False},
}
# what a request may ask for; between them every parameter that changes the text or what is told of it
WANTED: tuple[dict[str, Any], ...] = (
    {"temperature": 0.0},
    {"temperature": 0.0, "repetition_penalty": 1.3, "frequency_penalty": 0.4},
    {"temperature": 0.0, "presence_penalty": -1.5},
    {"temperature": 1.0, "top_p": 0.8, "min_p": 0.05},
    {"temperature": 1.4, "top_k": 6, "logit_bias": ((7, 3.0), (9, -50.0))},
    {"temperature": 0.3, "min_tokens": 12, "stop_token_ids": frozenset(range(40))},
    {"temperature": 0.0, "bad_words": ((5,), (17, 23), (31, 31, 31))},
    {"temperature": 1.0, "logprobs": 3, "prompt_logprobs": 2},
    {"temperature": 2.0, "grammar": Grammar("json_schema", json.dumps(SCHEMA)), "max_tokens": 150},
    {"temperature": 1.0, "grammar": Grammar("regex", "([a-f]{1,4}-){3,9}"), "frequency_penalty": 0.3},
    {"temperature": 0.8},
)


class DeviceRunner(ModelRunner):
    """With the cache and the attention of a device for which torch's paged attention is no choice."""

    def allocate_layers(self, blocks: int, shape: KVCacheSpec, layers: int) -> KVPool:
        """Return a cache that is not for compiled code."""
        return KVPool(shape, layers=layers, blocks=blocks, dtype=self.dtype, device=self.device)


def network(
    implementation: str = IMPLEMENTATION,
    *,
    vocabulary: int = VOCABULARY,
    positions: int = POSITIONS,
    layers: int = 2,
) -> PreTrainedModel:
    """The same random weights at every call."""
    register()
    config = LlamaConfig(
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=layers,
        num_attention_heads=4,
        num_key_value_heads=2,
        vocab_size=vocabulary,
        max_position_embeddings=positions,
        initializer_range=0.4,
    )
    torch.manual_seed(1)
    model = AutoModelForCausalLM.from_config(config, attn_implementation=implementation, dtype=torch.float32)
    assert isinstance(model, PreTrainedModel)
    return model.eval().requires_grad_(False)


def tokenizer(
    texts: Sequence[str] = (json.dumps([{"a": "x"}, {"a": "yy"}]),) * 9, vocabulary: int = 264
) -> Tokenizer:
    """Bytes, and a few merges of `texts`, by default of what answers to SCHEMA hold; id 0 ends a text."""
    made = Tokenizer(models.BPE())
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary,
        special_tokens=["<end>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    made.train_from_iterator(texts, trainer)
    return made


def write(folder: Path, layers: int = 2) -> None:
    """The model as a folder that `turbo serve` takes."""
    network("eager", layers=layers).save_pretrained(folder)
    PreTrainedTokenizerFast(tokenizer_object=tokenizer(), eos_token="<end>").save_pretrained(folder)


def grammars(folder: Path) -> Grammars:
    """Grammars over that tokenizer, whose file is written into `folder`."""
    file = folder / "tokenizer.json"
    tokenizer().save(str(file))
    return Grammars(file, VOCABULARY, {END})
