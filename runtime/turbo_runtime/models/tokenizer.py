"""The model's tokenizer, written out as files that the server reads without torch."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from transformers import AutoTokenizer

from turbo_runtime.model_files.hub import hub_errors
from turbo_runtime.model_files.source import ModelError, find


@dataclass(frozen=True, slots=True)
class ExportedTokenizer:
    """What the engine itself needs of a tokenizer, for grammars."""

    file: Path  # tokenizer.json; may be missing, where the tokenizer has no such form
    end_ids: frozenset[int]  # of its end-of-sequence token


def export_tokenizer(model: str, revision: str | None, directory: Path) -> ExportedTokenizer:
    """Save the tokenizer and its chat template (tokenizer.json and companions) into `directory`; raises
    ModelError with a sentence.
    """
    source = find(model, revision)
    try:
        with hub_errors():
            tokenizer = AutoTokenizer.from_pretrained(source.name, **source.arguments())
    except ModelError:
        raise
    except (OSError, ValueError, KeyError) as error:
        first = (str(error) or type(error).__name__).strip().splitlines()[0]
        raise ModelError(f"the tokenizer of {model} cannot be read: {first}") from error
    tokenizer.save_pretrained(directory)
    end = tokenizer.eos_token_id
    return ExportedTokenizer(directory / "tokenizer.json", frozenset(() if end is None else (int(end),)))
