"""The model of the contest as each competitor reads it: the same float32 numbers, out of one GGUF file."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import numpy as np

from turbo_dev.paths import cache_root
from turbo_dev.progress import step
from turbo_runtime.models.loader import export_tokenizer, gguf_parsed_once


def float32_folder(source: Path) -> Path:
    """A folder of safetensors with configuration and tokenizer, made once."""
    return _made(source, f"{source.stem}-float32", _write_folder)


def float32_gguf(source: Path) -> Path:
    """A GGUF file of unquantised tensors, with the metadata of `source`, made once."""
    return _made(source, f"{source.stem}-float32.gguf", _write_gguf)


def _made(source: Path, name: str, write: Any) -> Path:
    target = cache_root() / "peers" / "weights" / name
    if not target.exists():
        unfinished = target.with_name(f"unfinished-{name}")
        if unfinished.is_dir():
            shutil.rmtree(unfinished)
        target.parent.mkdir(parents=True, exist_ok=True)
        with step(f"write {name}", "20 s"):
            write(source, unfinished)
        unfinished.replace(target)
    return target


def _write_folder(source: Path, target: Path) -> None:
    import torch
    from transformers import AutoModelForCausalLM

    target.mkdir()
    with gguf_parsed_once():
        export_tokenizer(str(source), None, target)
        read: Any = AutoModelForCausalLM.from_pretrained(
            source.parent, gguf_file=source.name, dtype=torch.float32
        )
    # what was read of quantised tensors cannot be written as it is
    del read.config.quantization_config
    model: Any = AutoModelForCausalLM.from_config(read.config, dtype=torch.float32)
    model.load_state_dict(read.state_dict())
    model.generation_config = read.generation_config
    model.save_pretrained(target)


def _write_gguf(source: Path, target: Path) -> None:
    import gguf

    reader: Any = gguf.GGUFReader(source)
    architecture = str(reader.fields["general.architecture"].contents())
    writer: Any = gguf.GGUFWriter(target, architecture)
    for name, each in reader.fields.items():
        if name.startswith("GGUF.") or name == "general.architecture":
            continue
        kind = each.types[0]
        inner = each.types[-1] if kind == gguf.GGUFValueType.ARRAY else None
        value = int(gguf.LlamaFileType.ALL_F32) if name == "general.file_type" else each.contents()
        writer.add_key_value(name, value, kind, sub_type=inner)
    for tensor in reader.tensors:
        numbers = gguf.dequantize(tensor.data, tensor.tensor_type)
        shape = tuple(reversed(tensor.shape.tolist()))  # the format names the fastest dimension first
        writer.add_tensor(tensor.name, np.ascontiguousarray(numbers, dtype=np.float32).reshape(shape))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
