"""What `turbo inspect` counts is what the engine will load and serve."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import gguf
import numpy as np
import pytest
from safetensors.numpy import save_file

from turbo_runtime.cli.serve import inspect
from turbo_runtime.contract.documents import ModelInfo, ModelShape
from turbo_runtime.model_files.inspector import inspect_model
from turbo_runtime.model_files.source import ModelError

CONFIG = {
    "architectures": ["MistralForCausalLM"],
    "num_attention_heads": 2,
    "hidden_size": 8,
    "num_hidden_layers": 1,
    "vocab_size": 10,
    "max_position_embeddings": 256,
}


def folder(path: Path, **config: object) -> Path:
    (path / "config.json").write_text(json.dumps(CONFIG | config))
    return path


def weights(path: Path, elements: int) -> None:
    save_file({path.name: np.zeros(elements, dtype=np.float32)}, path)


def test_a_second_copy_of_the_weights_is_not_counted(tmp_path: Path) -> None:
    folder(tmp_path)
    weights(tmp_path / "model.safetensors", 100)
    weights(tmp_path / "consolidated.safetensors", 100)
    facts = inspect_model(str(tmp_path))
    assert facts.shape.parameters == 100
    assert facts.weight_bytes == (tmp_path / "model.safetensors").stat().st_size


def test_of_sharded_weights_the_index_says_which_files_count(tmp_path: Path) -> None:
    folder(tmp_path)
    names = [f"model-0000{part}-of-00002.safetensors" for part in (1, 2)]
    for name in (*names, "consolidated.safetensors"):
        weights(tmp_path / name, 100)
    index = {"weight_map": {f"layer.{i}": name for i, name in enumerate(names)}}
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps(index))
    assert inspect_model(str(tmp_path)).shape.parameters == 200


@pytest.mark.parametrize(
    "index",
    [
        *("{", "{}", "[]", "null", '{"weight_map": []}', '{"weight_map": {}}'),
        *('{"weight_map": {"w": 1}}', '{"weight_map": {"w": ["model.safetensors"]}}'),
    ],
)
def test_a_broken_index_is_refused_in_a_sentence_that_names_it(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], index: str
) -> None:
    weights(folder(tmp_path) / "model.safetensors", 1)
    (tmp_path / "model.safetensors.index.json").write_text(index)
    assert inspect([str(tmp_path)]) == 3
    expected = "model.safetensors.index.json does not say in which files the weights are (weight_map): down"
    assert expected in capsys.readouterr().err


def test_a_file_that_the_index_names_and_is_not_beside_it_may_still_come(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (folder(tmp_path) / "sub").mkdir()
    weights(tmp_path / "sub" / "model.safetensors", 1)
    index = {"weight_map": {"w": "sub/model.safetensors"}}
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps(index))
    assert inspect([str(tmp_path)]) == 1
    said = capsys.readouterr().err
    assert "index.json names sub/model.safetensors, which is missing from the folder: add it" in said


@pytest.mark.parametrize(("layers", "lacking"), [("0 1 2", None), ("0 1 2 3", None), ("0 2", 1), ("0 1", 2)])
def test_weights_that_lack_a_layer_are_refused_by_its_number(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], layers: str, lacking: int | None
) -> None:
    tensors = {
        f"model.layers.{layer}.mlp.up_proj.weight": np.zeros(1, np.float32) for layer in layers.split()
    }
    save_file(tensors, folder(tmp_path, num_hidden_layers=3) / "model.safetensors")
    assert inspect([str(tmp_path)]) == (0 if lacking is None else 3)
    sentence = f"the weights have no layer {lacking} of the 3 that config.json describes: fetch all files of"
    assert (sentence in capsys.readouterr().err) == (lacking is not None)


@pytest.mark.parametrize(
    ("config", "window"),
    [
        ({}, 0),
        ({"sliding_window": None}, 0),
        ({"sliding_window": 64}, 64),
        ({"sliding_window": 64, "use_sliding_window": False}, 0),
        ({"sliding_window": 1024}, 0),
    ],
)
def test_a_sliding_window_counts_where_it_is_shorter_than_the_context(
    tmp_path: Path, config: dict[str, object], window: int
) -> None:
    folder(tmp_path, **config)
    weights(tmp_path / "model.safetensors", 1)
    shape = inspect_model(str(tmp_path)).shape
    assert shape.max_position == 256
    assert shape.sliding_window == window


def stored(path: Path, tensors: dict[str, tuple[str, int]], **config: object) -> ModelShape:
    """The shape of a checkpoint whose tensors have these types and numbers of elements."""
    folder(path, **config)
    widths = {"F32": 4, "BF16": 2, "I32": 4, "U8": 1, "I8": 1, "F8_E4M3": 1}
    head, end = {}, 0
    for name, (dtype, elements) in tensors.items():
        start, end = end, end + elements * widths[dtype]
        head[name] = {"dtype": dtype, "shape": [elements], "data_offsets": [start, end]}
    text = json.dumps(head).encode()
    (path / "model.safetensors").write_bytes(len(text).to_bytes(8, "little") + text + bytes(end))
    return inspect_model(str(path)).shape


AWQ = {"quant_method": "awq", "bits": 4}
GPTQ = {"quant_method": "gptq", "bits": 8}
NVFP4 = {"quant_method": "modelopt", "quant_algo": "NVFP4"}
LAYER = "model.layers.0.mlp.down_proj"


@pytest.mark.parametrize(
    ("how", "tensors", "quantization"),
    [
        (AWQ, {"qweight": ("I32", 10), "qzeros": ("I32", 5), "scales": ("BF16", 5)}, "int4"),
        (GPTQ, {"qweight": ("I32", 20), "qzeros": ("I32", 5), "g_idx": ("I32", 5)}, "int8"),
        (
            NVFP4,
            {"weight": ("U8", 40), "weight_scale": ("F8_E4M3", 5), "weight_scale_2": ("F32", 1)},
            "nvfp4",
        ),
        ({"quant_method": "mxfp4"}, {"weight_blocks": ("U8", 40), "weight_scales": ("U8", 5)}, "mxfp4"),
        ({"quant_method": "fp8"}, {"weight": ("F8_E4M3", 80), "weight_scale_inv": ("F32", 2)}, "fp8"),
        (None, {"weight": ("F8_E4M3", 80)}, "fp8"),
    ],
)
def test_packed_weights_are_counted_as_what_they_stand_for_and_scales_are_not(
    tmp_path: Path, how: object, tensors: dict[str, tuple[str, int]], quantization: str
) -> None:
    named = {f"{LAYER}.{name}": it for name, it in tensors.items()}
    shape = stored(tmp_path, {**named, "model.norm.weight": ("BF16", 8)}, quantization_config=how)
    assert (shape.quantization, shape.quantized_parameters, shape.parameters) == (quantization, 80, 88)
    assert shape.dtype == "bfloat16"


def test_experts_embedding_and_layers_ahead_are_told_by_their_names(tmp_path: Path) -> None:
    tensors = {
        "model.embed_tokens.weight": ("BF16", 100),
        "model.layers.0.mlp.experts.3.up_proj.weight": ("BF16", 60),
        "model.layers.0.mlp.shared_experts.up_proj.weight": ("BF16", 7),
        "model.layers.0.scale": ("BF16", 3),  # learned, since nothing is quantised
        "model.layers.1.mlp.up_proj.weight": ("BF16", 1000),
        "mtp.fc.weight": ("BF16", 1000),
        "lm_head.weight": ("BF16", 100),
    }
    words = {"num_local_experts": 8, "num_experts_per_tok": 2, "num_nextn_predict_layers": 1}
    shape = stored(tmp_path, tensors, **words)
    assert (shape.parameters, shape.expert_parameters, shape.embedding_parameters) == (270, 60, 100)
    assert (shape.experts, shape.experts_per_token, shape.mtp_layers) == (8, 2, 1)
    tied = stored(tmp_path, tensors, **words, tie_word_embeddings=True)
    assert (tied.parameters, tied.embedding_parameters) == (170, 0)


def test_latent_attention_is_read_beside_the_weights(tmp_path: Path) -> None:
    latent = {"kv_lora_rank": 4, "qk_rope_head_dim": 2, "qk_nope_head_dim": 3, "v_head_dim": 2}
    shape = stored(tmp_path, {"model.norm.weight": ("BF16", 8)}, **latent)
    assert (shape.kv_latent, shape.head_dim, shape.kv_heads) == (6, 5, 2)
    facts = inspect_model(str(tmp_path))
    assert ModelInfo.from_json(facts.to_json()) == facts


def test_a_configuration_of_no_language_model_is_refused_in_a_sentence(tmp_path: Path) -> None:
    above = "a whole number above 0"
    served = "decoder-only models with attention have one, and no others are served."
    for words, expected in (
        ({"vocab_size": None}, f"config.json of MistralForCausalLM has no vocab_size, {above}: {served}"),
        ({"vocab_size": "many"}, f"config.json: vocab_size must be {above}, not 'many'."),
        (
            {"architectures": ["MambaForCausalLM"], "num_attention_heads": None},
            f"config.json of MambaForCausalLM has no num_attention_heads, {above}: {served}",
        ),
    ):
        folder(tmp_path, **words)
        weights(tmp_path / "model.safetensors", 1)
        with pytest.raises(ModelError) as caught:
            inspect_model(str(tmp_path))
        assert str(caught.value) == expected


def gguf_shape(path: Path, tensors: dict[str, int], **words: int | list[int]) -> ModelShape:
    """The shape of a GGUF file whose tensors have these numbers of float32 elements."""
    writer = gguf.GGUFWriter(path, "llama")
    sizes = {"block_count": 2, "context_length": 256, "embedding_length": 8, "attention.head_count": 2}
    for word, value in (sizes | {"vocab_size": 10} | words).items():
        add = writer.add_array if isinstance(value, list) else writer.add_uint32
        add(f"llama.{word.replace('__', '.')}", value)
    for name, elements in tensors.items():
        writer.add_tensor(name, np.zeros(elements, dtype=np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return inspect_model(str(path)).shape


def test_of_a_gguf_file_embedding_and_window_are_told(tmp_path: Path) -> None:
    tensors = {"token_embd.weight": 80, "blk.0.ffn_up.weight": 64}
    tied = gguf_shape(tmp_path / "tied.gguf", tensors)
    assert (tied.parameters, tied.embedding_parameters, tied.experts) == (144, 0, 0)
    assert (tied.max_position, tied.sliding_window, tied.sliding_layers) == (256, 0, 0)
    assert tied.mlp_width == 0  # it does not say
    words = {"attention__sliding_window": 64, "feed_forward_length": 16}
    untied = gguf_shape(tmp_path / "untied.gguf", {**tensors, "output.weight": 80}, **words)
    assert (untied.parameters, untied.embedding_parameters) == (224, 80)
    assert (untied.max_position, untied.sliding_window, untied.sliding_layers) == (256, 64, 2)
    assert untied.mlp_width == 16
    by_layer = gguf_shape(tmp_path / "layers.gguf", tensors, feed_forward_length=[16, 32])
    assert by_layer.mlp_width == 32


def test_of_a_gguf_file_experts_are_told(tmp_path: Path) -> None:
    words = {"expert_count": 8, "expert_used_count": 2, "feed_forward_length": 16}
    tensors = {"token_embd.weight": 80, "blk.0.ffn_up_exps.weight": 640, "blk.0.ffn_up_shexp.weight": 64}
    shape = gguf_shape(tmp_path / "mixture.gguf", tensors, **words)
    assert (shape.experts, shape.experts_per_token, shape.expert_parameters) == (8, 2, 640)
    assert shape.mlp_width == 0  # what stands there is one expert's in some files, a dense layer's in others


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda file: file[:-4], "model.safetensors has 1"),
        (lambda file: file + b"more", "bytes and should have 1"),
        (lambda file: file[:30], "model.safetensors is not a safetensors file"),
        (lambda file: file.replace(b"data_offsets", b"data_places_"), "is not a safetensors file"),
        (lambda file: b"", "model.safetensors is not a safetensors file"),
    ],
    ids=["cut off", "too long", "within its head", "without places", "empty"],
)
def test_a_damaged_file_of_weights_is_refused_and_named(
    change: Callable[[bytes], bytes], said: str, tmp_path: Path
) -> None:
    path = folder(tmp_path) / "model.safetensors"
    weights(path, 20)
    path.write_bytes(change(path.read_bytes()))
    with pytest.raises((ModelError, OSError)) as caught:
        inspect_model(str(tmp_path))
    assert said in str(caught.value)
    is_short = "unless it is being copied still" in str(caught.value)
    assert isinstance(caught.value, OSError) == is_short  # it may become whole
    assert is_short == (said == "model.safetensors has 1")
