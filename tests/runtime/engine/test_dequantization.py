"""Quantized folders give the weights that their formats stand for, whatever wrote them; the rest is refused.

The packers here follow the formats' own descriptions, number by number, and share nothing with what unpacks.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import AutoModelForCausalLM, GptOssConfig, LlamaConfig, Qwen3MoeConfig

from turbo_runtime.model_files.inspector import inspect_model
from turbo_runtime.model_files.source import ModelError, find
from turbo_runtime.models.loader import load_model

GROUP = 16
Tensors = dict[str, Tensor]
Packed = tuple[
    Tensors, Tensor
]  # what is stored beside each other, and the matrix (out, in) that it stands for

pytestmark = pytest.mark.usefixtures("one_thread")


def draw(shape: tuple[int, ...], low: int, high: int) -> Tensor:
    return torch.randint(low, high, shape)


def words(rows: Tensor, bits: int, order: tuple[int, ...] | None = None) -> Tensor:
    """Numbers (n, k) -> int32 words (n, k / per word), the first of a word in its lowest bits."""
    per_word = 32 // bits
    order = order or tuple(range(per_word))
    made = []
    for row in rows.tolist():
        row += [0] * (-len(row) % per_word)
        line = []
        for start in range(0, len(row), per_word):
            word = sum(row[start + column] << (bits * place) for place, column in enumerate(order))
            line.append(word - (1 << 32) if word >= 1 << 31 else word)
        made.append(line)
    return torch.tensor(made, dtype=torch.int32)


def positive(*shape: int) -> Tensor:
    return torch.rand(shape) * 0.1 + 0.01


def fp8_blocks(out: int, width: int) -> Packed:
    """Blocks of 48 x 32, of which the last ones are not full."""
    stored, scale = torch.randn(out, width).to(torch.float8_e4m3fn), positive(-(-out // 48), -(-width // 32))
    true = torch.empty(out, width)
    for row in range(out):
        for column in range(width):
            true[row, column] = stored[row, column].float() * scale[row // 48, column // 32]
    return {"weight": stored, "weight_scale_inv": scale}, true


def fp8_tensor(out: int, width: int) -> Packed:
    stored, scale = torch.randn(out, width).to(torch.float8_e4m3fn), torch.tensor(0.03)
    parts = {"weight": stored, "weight_scale": scale, "input_scale": torch.tensor(2.0)}
    return parts, stored.float() * scale


def fp8_rows(out: int, width: int) -> Packed:
    stored, scale = torch.randn(out, width).to(torch.float8_e4m3fn), positive(out, 1).bfloat16()
    return {"weight": stored, "weight_scale": scale}, stored.float() * scale.float()


def int8_rows(out: int, width: int) -> Packed:
    stored, scale, zero = draw((out, width), -128, 128), positive(out, 1), draw((out, 1), -9, 9)
    parts = {"weight": stored.to(torch.int8), "weight_scale": scale, "weight_zero_point": zero.to(torch.int8)}
    return parts, (stored - zero).float() * scale


def packed(bits: int, asymmetric: bool, by_index: bool) -> Callable[[int, int], Packed]:
    half = 1 << (bits - 1)

    def pack(out: int, width: int) -> Packed:
        groups = width // GROUP
        numbers, scale = draw((out, width), -half, half), positive(out, groups).bfloat16()
        zero = draw((out, groups), -half, half) if asymmetric else torch.zeros(out, groups, dtype=torch.int64)
        group = torch.arange(width) // GROUP
        parts = {
            "weight_packed": words(numbers + half, bits),
            "weight_scale": scale,
            "weight_shape": torch.tensor([out, width]),
        }
        if asymmetric:
            parts["weight_zero_point"] = words((zero + half).t(), bits).t().contiguous()
        if by_index:
            group = group[torch.randperm(width)]
            parts["weight_g_idx"] = group.to(torch.int32)
        return parts, (numbers - zero[:, group]).float() * scale.float()[:, group]

    return pack


def gptq(bits: int, less: int, by_index: bool) -> Callable[[int, int], Packed]:
    """`less`: what zero points are stored less by."""

    def pack(out: int, width: int) -> Packed:
        numbers, scale = draw((width, out), 0, 1 << bits), positive(width // GROUP, out).half()
        zero = draw((width // GROUP, out), 1, 1 << bits)
        group = torch.arange(width) // GROUP
        group = group[torch.randperm(width)] if by_index else group
        parts = {
            "qweight": words(numbers.t(), bits).t().contiguous(),
            "qzeros": words(zero - less, bits),
            "scales": scale,
            "g_idx": group.to(torch.int32),
        }
        return parts, ((numbers - zero[group]).float() * scale.float()[group]).t().contiguous()

    return pack


def awq(out: int, width: int) -> Packed:
    """Of eight columns the lowest bits of a word hold the first, then the third, fifth and seventh."""
    order = (0, 2, 4, 6, 1, 3, 5, 7)
    numbers, scale = draw((width, out), 0, 16), positive(width // GROUP, out).half()
    zero = draw((width // GROUP, out), 0, 16)
    group = torch.arange(width) // GROUP
    parts = {"qweight": words(numbers, 4, order), "qzeros": words(zero, 4, order), "scales": scale}
    return parts, ((numbers - zero[group]).float() * scale.float()[group]).t().contiguous()


def compressed(kind: str, bits: int, strategy: str, **words: object) -> dict[str, Any]:
    weights = {"num_bits": bits, "type": kind, "strategy": strategy, **words}
    form = (
        "float-quantized" if kind == "float" else "pack-quantized" if strategy == "group" else "int-quantized"
    )
    group = {"targets": ["Linear"], "weights": weights, "input_activations": None}
    return {
        "quant_method": "compressed-tensors",
        "format": form,
        "ignore": ["lm_head"],
        "config_groups": {"group_0": group},
    }


FP8: dict[str, Any] = {"quant_method": "fp8", "activation_scheme": "dynamic"}
AWQ: dict[str, Any] = {
    "quant_method": "awq",
    "bits": 4,
    "group_size": GROUP,
    "version": "gemm",
    "zero_point": True,
}
GPTQ: dict[str, Any] = {
    "quant_method": "gptq",
    "bits": 4,
    "group_size": GROUP,
    "desc_act": False,
    "sym": True,
}
FORMATS: dict[str, tuple[dict[str, Any], Callable[[int, int], Packed]]] = {
    "fp8, blocks": ({**FP8, "weight_block_size": [48, 32]}, fp8_blocks),
    "fp8, one scale": ({**FP8, "activation_scheme": "static"}, fp8_tensor),
    "compressed fp8, rows": (compressed("float", 8, "channel"), fp8_rows),
    "compressed fp8, blocks": (
        compressed("float", 8, "block", block_structure=[48, 32]),
        lambda out, width: (
            (made := fp8_blocks(out, width))
            and {"weight": made[0]["weight"], "weight_scale": made[0]["weight_scale_inv"]},
            made[1],
        ),
    ),
    "compressed int8": (compressed("int", 8, "channel"), int8_rows),
    "compressed int4": (compressed("int", 4, "group"), packed(4, asymmetric=False, by_index=False)),
    "compressed int4, zeros": (compressed("int", 4, "group"), packed(4, asymmetric=True, by_index=True)),
    "compressed int8, packed": (compressed("int", 8, "group"), packed(8, asymmetric=True, by_index=False)),
    "gptq": (GPTQ, gptq(4, 1, by_index=False)),
    "gptq, in order of activation": ({**GPTQ, "desc_act": True}, gptq(4, 1, by_index=True)),
    "gptq, second version": ({**GPTQ, "checkpoint_format": "gptq_v2"}, gptq(4, 0, by_index=False)),
    "gptq, 8 bits": ({**GPTQ, "bits": 8}, gptq(8, 1, by_index=False)),
    "awq": (AWQ, awq),
}
SIZES: dict[str, Any] = {
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "vocab_size": 61,
    "max_position_embeddings": 64,
}
DENSE = LlamaConfig(**SIZES, attention_bias=True, eos_token_id=7)


def write(folder: Path, config: Any, section: dict[str, Any], pack: Callable[[int, int], Packed]) -> Tensors:
    """Write a folder with every matrix of the layers packed; return what the model's weights are, by name."""
    torch.manual_seed(1)
    AutoModelForCausalLM.from_config(config).save_pretrained(folder)
    stored: Tensors = {}
    true = load_file(folder / "model.safetensors")
    for name, tensor in list(true.items()):
        module, _, leaf = name.rpartition(".")
        if leaf == "weight" and "_proj" in module:
            parts, true[name] = pack(*tensor.shape)
            stored |= {f"{module}.{part}": each for part, each in parts.items()}
        else:
            stored[name] = tensor
    save_file(stored, folder / "model.safetensors", {"format": "pt"})
    configure(folder, section)
    return true


def configure(folder: Path, section: dict[str, Any]) -> None:
    path = folder / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "quantization_config": section}))


def loaded(folder: Path, dtype: torch.dtype = torch.float32) -> Tensors:
    model = load_model(find(str(folder), None), dtype, torch.device("cpu"))
    assert model.generation_config.eos_token_id == model.config.eos_token_id
    return dict(model.named_parameters())


@pytest.mark.parametrize("name", FORMATS)
def test_the_weights_are_those_that_the_format_stands_for(name: str, tmp_path: Path) -> None:
    true = write(tmp_path, DENSE, *FORMATS[name])
    for dtype in (torch.float32, torch.bfloat16):
        found = loaded(tmp_path, dtype)
        assert found.keys() == true.keys()
        for key, weight in true.items():
            assert torch.equal(found[key], weight.to(dtype)), key
    shape = inspect_model(str(tmp_path)).shape
    assert shape.parameters == sum(weight.numel() for weight in true.values())
    assert shape.quantized_parameters == sum(
        weight.numel() for key, weight in true.items() if "_proj.w" in key
    )
    assert shape.dequantizable


def test_experts_are_put_together_after_they_are_dequantized(tmp_path: Path) -> None:
    config = Qwen3MoeConfig(
        **SIZES,
        head_dim=16,
        num_experts=4,
        num_experts_per_tok=2,
        moe_intermediate_size=32,
    )
    true, found = write(tmp_path, config, *FORMATS["awq"]), loaded(tmp_path)
    for expert in range(4):
        root = f"model.layers.1.mlp.experts.{expert}"
        both = torch.cat([true[f"{root}.gate_proj.weight"], true[f"{root}.up_proj.weight"]])
        assert torch.equal(found["model.layers.1.mlp.experts.gate_up_proj"][expert], both)
        assert torch.equal(
            found["model.layers.1.mlp.experts.down_proj"][expert], true[f"{root}.down_proj.weight"]
        )


FP4 = (0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0)


def test_the_experts_of_gpt_oss_are_dequantized_from_mxfp4(tmp_path: Path) -> None:
    config = GptOssConfig(**SIZES, head_dim=16, num_local_experts=2, num_experts_per_tok=1)
    torch.manual_seed(1)
    AutoModelForCausalLM.from_config(config).save_pretrained(tmp_path)
    stored, true = load_file(tmp_path / "model.safetensors"), dict[str, Tensor]()
    for name in [name for name in stored if name.endswith(("gate_up_proj", "down_proj"))]:
        experts, width, out = stored.pop(name).shape
        codes, exponents = draw((experts, out, width), 0, 16), draw((experts, out, width // 32), 120, 130)
        sign = 1 - 2 * (codes >> 3)
        numbers = torch.tensor(FP4)[codes & 7] * sign * torch.exp2(exponents - 127.0).repeat_interleave(32, 2)
        true[name] = numbers.transpose(1, 2)
        pairs = codes.view(experts, out, width // 32, 16, 2)
        stored[f"{name}_blocks"] = (pairs[..., 0] + 16 * pairs[..., 1]).to(torch.uint8)
        stored[f"{name}_scales"] = exponents.to(torch.uint8)
    save_file(stored, tmp_path / "model.safetensors", {"format": "pt"})
    configure(
        tmp_path, {"quant_method": "mxfp4", "modules_to_not_convert": ["model.embed_tokens", "lm_head"]}
    )
    found = loaded(tmp_path)
    assert len(true) == 4
    for name, weight in true.items():
        assert torch.equal(found[name], weight), name
    shape = inspect_model(str(tmp_path)).shape
    assert shape.quantized_parameters == sum(each.numel() for each in true.values())


@pytest.mark.parametrize(
    ("section", "said"),
    [
        ({"quant_method": "bitsandbytes", "load_in_4bit": True}, "quant_method is bitsandbytes"),
        ({"quant_algo": "NVFP4"}, "quant_method is nvfp4"),
        ({**AWQ, "version": "gemv"}, "version is gemv"),
        ({**AWQ, "bits": 3}, "bits is 3, and weights are dequantized for 4 alone"),
        ({**GPTQ, "bits": 2}, "bits is 2, and weights are dequantized for 4, 8 alone"),
        ({**GPTQ, "checkpoint_format": "marlin"}, "checkpoint_format is marlin"),
        (
            {**compressed("int", 4, "group"), "format": "nvfp4-pack-quantized"},
            "format is nvfp4-pack-quantized",
        ),
        (compressed("int", 2, "group"), "config_groups.group_0.weights.num_bits is 2"),
        (compressed("float", 4, "group"), "config_groups.group_0.weights.num_bits is 4"),
        (
            {**compressed("int", 8, "channel"), "config_groups": {"a": {"targets": ["Linear"]}}},
            "config_groups.a.weights.type is None",
        ),
        (
            {**compressed("int", 8, "channel"), "sparsity_config": {"format": "sparse-24-bitmask"}},
            "sparsity_config.format is sparse-24-bitmask",
        ),
        (
            {"quant_method": "mxfp4"},
            "quant_method is mxfp4, and weights are dequantized from it for GPT-OSS alone",
        ),
    ],
)
def test_another_format_is_refused_by_its_word(section: dict[str, Any], said: str, tmp_path: Path) -> None:
    DENSE.architectures = ["LlamaForCausalLM"]
    DENSE.save_pretrained(tmp_path)
    configure(tmp_path, section)
    with pytest.raises(ModelError) as caught:
        loaded(tmp_path)
    assert f"quantization_config.{said}" in str(caught.value)
    assert "choose a checkpoint" in str(caught.value)


@pytest.mark.parametrize(
    ("leaf", "other", "said"),
    [
        ("weight_scale_inv", {}, "is stored as F8_E4M3 without a scale that is known beside it"),
        (
            "weight_scale_inv",
            {"weight_scale_inv": torch.ones(3, 3)},
            "3 scales do not fit 64 rows or columns",
        ),
    ],
)
def test_weights_that_lack_what_scales_them_are_refused(
    leaf: str, other: Tensors, said: str, tmp_path: Path
) -> None:
    write(tmp_path, DENSE, *FORMATS["fp8, blocks"])
    stored, module = load_file(tmp_path / "model.safetensors"), "model.layers.1.self_attn.q_proj"
    del stored[f"{module}.{leaf}"]
    save_file(
        stored | {f"{module}.{name}": each for name, each in other.items()}, tmp_path / "model.safetensors"
    )
    with pytest.raises(ModelError, match=said):
        loaded(tmp_path)


def test_a_weight_is_refused_by_its_own_sentence_while_others_are_still_read(tmp_path: Path) -> None:
    many = LlamaConfig(**{**SIZES, "num_hidden_layers": 30}, eos_token_id=7)
    write(tmp_path, many, *FORMATS["fp8, blocks"])
    stored, name = load_file(tmp_path / "model.safetensors"), "model.layers.0.self_attn.q_proj"
    stored[f"{name}.weight_scale_inv"] = torch.ones(3, 3)
    save_file(stored, tmp_path / "model.safetensors")
    for _ in range(4):
        with pytest.raises(ModelError, match="3 scales do not fit 64 rows or columns"):
            loaded(tmp_path)
