"""The model as the server knows it once the engine is ready."""

from __future__ import annotations

from dataclasses import dataclass

from turbo_runtime.messages import EngineReady
from turbo_runtime.tokenization.tokenizer import ServedTokenizer


@dataclass(frozen=True, slots=True)
class ServedModel:
    """The model's name in the API, what the engine reported, and its tokenizer."""

    name: str
    info: EngineReady
    tokenizer: ServedTokenizer

    @property
    def context(self) -> int:
        """Maximum tokens of prompt and answer together: the model's limit or the KV cache's."""
        return min(self.info.max_model_len, self.kv_tokens)

    @property
    def kv_tokens(self) -> int:
        """Capacity of the KV cache in tokens."""
        return self.info.kv_blocks * self.info.block_size

    @property
    def stop_token_ids(self) -> frozenset[int]:
        """Tokens that end an answer, by the model's generation config and by its tokenizer."""
        return self.tokenizer.eos_token_ids | frozenset(self.info.eos_token_ids)


def served_name(model: str, given: str | None) -> str:
    """Return the name in the API: as given, or the last part of a path or hub id, without `.gguf`."""
    return given or model.rstrip("/").rsplit("/", 1)[-1].removesuffix(".gguf")
