"""At start a GGUF file is parsed once, and what is read is what it says."""

from __future__ import annotations

from pathlib import Path

import gguf
import numpy as np
import pytest

from turbo_runtime.model_files.inspector import inspect_model
from turbo_runtime.model_files.source import find
from turbo_runtime.models.loader import gguf_parsed_once, load_config


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "tiny.gguf"
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_name("tiny")
    writer.add_context_length(64)
    writer.add_embedding_length(8)
    writer.add_block_count(1)
    writer.add_feed_forward_length(16)
    writer.add_head_count(2)
    writer.add_head_count_kv(1)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_vocab_size(10)
    writer.add_tensor("token_embd.weight", np.zeros((10, 8), dtype=np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


@pytest.fixture
def parsed(monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    """Every file that gguf parses."""
    real, seen = gguf.GGUFReader, []

    def counted(path: Path) -> gguf.GGUFReader:
        seen.append(Path(path))
        return real(path)

    monkeypatch.setattr(gguf, "GGUFReader", counted)
    return seen


def test_digest_and_transformers_configuration_come_of_one_parsing(file: Path, parsed: list[Path]) -> None:
    apart = inspect_model(str(file)), load_config(find(str(file), None)).to_dict()
    assert parsed == [file, file]
    parsed.clear()
    with gguf_parsed_once():
        together = inspect_model(str(file)), load_config(find(str(file), None)).to_dict()
    assert parsed == [file]
    assert together == apart


def test_afterwards_a_file_is_read_anew_also_when_loading_failed(file: Path, parsed: list[Path]) -> None:
    def failing() -> None:
        with gguf_parsed_once():
            inspect_model(str(file))
            raise LookupError

    with pytest.raises(LookupError):
        failing()
    inspect_model(str(file))
    assert parsed == [file, file]
