"""Shapes from a `config.json`: counts are the published ones, and what cannot be read is refused."""

from __future__ import annotations

import dataclasses
import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from turbo_operator.catalog import UnknownShapeError, shapes
from turbo_runtime.contract.documents import ModelInfo, ModelShape

CONFIG: dict[str, Any] = {
    "architectures": ["LlamaForCausalLM"],
    "num_hidden_layers": 30,
    "hidden_size": 576,
    "intermediate_size": 1536,
    "num_attention_heads": 9,
    "num_key_value_heads": 3,
    "vocab_size": 49152,
    "max_position_embeddings": 8192,
    "tie_word_embeddings": True,
    "torch_dtype": "bfloat16",
}

HUB = "safetensors total on the hub's model card"
# Published counts of all parameters, a tied embedding once. Where a source counts more, the row says what.
PUBLISHED = {
    "HuggingFaceTB/SmolLM2-135M": (134_515_008, HUB),
    "HuggingFaceTB/SmolLM2-360M": (361_821_120, HUB),
    "HuggingFaceTB/SmolLM2-1.7B": (1_711_376_384, HUB),
    "HuggingFaceTB/SmolLM3-3B": (3_075_098_624, HUB),
    "TinyLlama/TinyLlama-1.1B-Chat-v1.0": (1_100_048_384, HUB),
    "meta-llama/Llama-2-7b-hf": (6_738_415_616, HUB),
    "meta-llama/Llama-2-70b-hf": (68_976_648_192, HUB),
    "meta-llama/Llama-3.1-8B-Instruct": (8_030_261_248, HUB),
    "meta-llama/Llama-3.1-70B-Instruct": (70_553_706_496, HUB),
    "meta-llama/Llama-3.1-405B-Instruct": (405_853_388_800, HUB),
    "meta-llama/Llama-3.3-70B-Instruct": (70_553_706_496, HUB),
    "meta-llama/Llama-3.2-1B": (1_235_814_400, HUB),
    "meta-llama/Llama-3.2-3B": (3_212_749_824, HUB),
    "meta-llama/Llama-4-Scout-17B-16E-Instruct": (108_641_793_536, f"{HUB}, vision tower included"),
    "meta-llama/Llama-4-Maverick-17B-128E-Instruct": (401_583_781_376, f"{HUB}, vision tower included"),
    "mistralai/Mistral-7B-v0.1": (7_241_732_096, HUB),
    "mistralai/Mistral-7B-Instruct-v0.3": (7_248_023_552, HUB),
    "mistralai/Mistral-Nemo-Instruct-2407": (12_247_782_400, HUB),
    "mistralai/Mistral-Small-24B-Instruct-2501": (23_572_403_200, HUB),
    "mistralai/Mixtral-8x7B-v0.1": (46_702_792_704, HUB),
    "mistralai/Mixtral-8x22B-Instruct-v0.1": (140_630_071_296, HUB),
    "Qwen/Qwen2.5-0.5B": (494_032_768, HUB),
    "Qwen/Qwen2.5-1.5B": (1_543_714_304, HUB),
    "Qwen/Qwen2.5-3B": (3_085_938_688, HUB),
    "Qwen/Qwen2.5-7B": (7_615_616_512, HUB),
    "Qwen/Qwen2.5-14B": (14_770_033_664, HUB),
    "Qwen/Qwen2.5-32B": (32_763_876_352, HUB),
    "Qwen/Qwen2.5-72B": (72_706_203_648, HUB),
    "Qwen/Qwen3-0.6B": (596_049_920, "sum of the tensors, the head stored a second time left out"),
    "Qwen/Qwen3-4B": (4_022_468_096, HUB),
    "Qwen/Qwen3-8B": (8_190_735_360, HUB),
    "Qwen/Qwen3-14B": (14_768_307_200, HUB),
    "Qwen/Qwen3-32B": (32_762_123_264, HUB),
    "Qwen/Qwen3-30B-A3B": (30_532_122_624, HUB),
    "Qwen/Qwen3-235B-A22B": (235_093_634_560, HUB),
    "Qwen/Qwen3-Coder-480B-A35B-Instruct": (480_154_875_392, HUB),
    "Qwen/Qwen1.5-MoE-A2.7B": (14_315_784_192, HUB),
    "deepseek-ai/DeepSeek-R1": (671_000_000_000, "arXiv 2412.19437: 671B, the module of 14B for MTP apart"),
    "deepseek-ai/DeepSeek-V3": (671_000_000_000, "arXiv 2412.19437: 671B, the module of 14B for MTP apart"),
    "deepseek-ai/DeepSeek-V2-Lite": (15_706_484_224, HUB),
    "deepseek-ai/DeepSeek-R1-Distill-Qwen-1.5B": (1_777_088_000, HUB),
    "deepseek-ai/DeepSeek-R1-Distill-Qwen-7B": (7_615_616_512, HUB),
    "deepseek-ai/DeepSeek-R1-Distill-Llama-8B": (8_030_261_248, HUB),
    "deepseek-ai/DeepSeek-R1-Distill-Qwen-14B": (14_770_033_664, HUB),
    "deepseek-ai/DeepSeek-R1-Distill-Qwen-32B": (32_763_876_352, HUB),
    "deepseek-ai/DeepSeek-R1-Distill-Llama-70B": (70_553_706_496, HUB),
    "moonshotai/Kimi-K2-Instruct": (1_026_000_000_000, "hub's model card: 1T, 1,026B of them stored"),
    "zai-org/GLM-5": (744_000_000_000, "hub's model card: 744B"),
    "zai-org/GLM-4.5": (355_000_000_000, "arXiv 2508.06471: 355B"),
    "zai-org/GLM-4.5-Air": (106_000_000_000, "arXiv 2508.06471: 106B"),
    "MiniMaxAI/MiniMax-M2": (228_700_000_000, "hub's model card: 229B"),
    "openai/gpt-oss-20b": (20_910_000_000, "arXiv 2508.10925, table 1: 20.91B"),
    "openai/gpt-oss-120b": (116_830_000_000, "arXiv 2508.10925, table 1: 116.83B"),
    "google/gemma-2b": (2_506_172_416, HUB),
    "google/gemma-7b": (8_537_680_896, HUB),
    "google/gemma-2-2b": (2_614_341_888, HUB),
    "google/gemma-2-9b": (9_241_705_984, HUB),
    "google/gemma-2-27b": (27_227_128_320, HUB),
    "google/gemma-3-1b-it": (999_885_952, HUB),
    "google/gemma-3-270m": (268_098_176, HUB),
    "microsoft/phi-2": (2_779_683_840, HUB),
    "microsoft/Phi-3-mini-4k-instruct": (3_821_079_552, HUB),
    "microsoft/Phi-3-medium-128k-instruct": (13_960_238_080, HUB),
    "microsoft/phi-4": (14_659_507_200, HUB),
    "microsoft/Phi-4-mini-instruct": (3_836_021_760, HUB),
    "microsoft/Phi-3.5-MoE-instruct": (41_873_153_344, HUB),
    "allenai/OLMo-2-1124-7B": (7_298_617_344, HUB),
    "allenai/OLMo-2-1124-13B": (13_716_198_400, HUB),
    "allenai/OLMoE-1B-7B-0924": (6_919_161_856, HUB),
    "bigcode/starcoder2-3b": (3_030_371_328, HUB),
    "bigcode/starcoder2-7b": (7_173_923_840, HUB),
    "bigcode/starcoder2-15b": (15_957_889_024, HUB),
    "CohereLabs/c4ai-command-r-v01": (34_980_831_232, HUB),
    "ibm-granite/granite-3.1-8b-instruct": (8_170_848_256, HUB),
    "ByteDance-Seed/Seed-OSS-36B-Instruct": (36_151_104_512, HUB),
    "01-ai/Yi-34B": (34_388_917_248, HUB),
}


def shipped(name: str) -> ModelShape:
    shape = shapes.shipped(name)
    assert shape is not None
    return shape


@pytest.mark.parametrize("name", PUBLISHED)
def test_parameters_are_within_one_per_cent_of_the_published_count(name: str) -> None:
    published, _ = PUBLISHED[name]
    assert abs(shipped(name).parameters - published) <= 0.01 * published


# Parameters that one token passes through, as published: shows experts, shared ones and dense layers apart.
@pytest.mark.parametrize(
    ("name", "published"),
    [
        ("deepseek-ai/DeepSeek-V3", 37e9),
        ("moonshotai/Kimi-K2-Instruct", 32e9),
        ("Qwen/Qwen3-30B-A3B", 3.3e9),
        ("Qwen/Qwen3-235B-A22B", 22e9),
        ("mistralai/Mixtral-8x7B-v0.1", 12.9e9),
        ("meta-llama/Llama-4-Maverick-17B-128E-Instruct", 17e9),
    ],
)
def test_active_parameters_are_those_published(name: str, published: float) -> None:
    it = shipped(name)
    active = it.parameters - it.expert_parameters * (1 - it.experts_per_token / it.experts)
    assert active == pytest.approx(published, rel=0.03)


def test_of_latent_attention_one_vector_of_a_layer_is_cached() -> None:
    it = shipped("deepseek-ai/DeepSeek-R1")
    assert (it.kv_latent, it.layers, it.heads, it.head_dim) == (512 + 64, 61, 128, 128 + 64)
    assert it.mtp_layers == 1
    assert (it.experts, it.experts_per_token) == (256, 8)
    assert it.expert_parameters == 58 * 256 * 3 * 7168 * 2048
    assert shipped("Qwen/Qwen3-235B-A22B").kv_latent == 0


@pytest.mark.parametrize(
    ("name", "width"),
    [
        ("meta-llama/Llama-3.1-8B", 14_336),
        ("mistralai/Mixtral-8x7B-v0.1", 2 * 14_336),
        ("Qwen/Qwen1.5-MoE-A2.7B", 4 * 1408 + 5632),  # and a shared expert
        ("deepseek-ai/DeepSeek-R1", 18_432),  # of the first three layers, and of 8 experts and a shared one
        ("meta-llama/Llama-4-Maverick-17B-128E-Instruct", 16_384),
    ],
)
def test_the_widest_mlp_is_a_tokens_own_experts_or_a_dense_layers(name: str, width: int) -> None:
    assert shipped(name).mlp_width == width


def test_sliding_windows_are_counted_by_layer() -> None:
    def windows(name: str) -> tuple[int, int]:
        return shipped(name).sliding_window, shipped(name).sliding_layers

    assert windows("openai/gpt-oss-120b") == (128, 18)
    assert windows("google/gemma-2-9b") == (4096, 21)
    assert windows("google/gemma-3-1b-it") == (512, 22)
    assert windows("mistralai/Mistral-7B-v0.1") == (4096, 32)
    assert windows("mistralai/Mistral-7B-Instruct-v0.3") == (0, 0)
    assert windows("microsoft/Phi-3-mini-128k-instruct") == (0, 0)  # a window longer than the context
    assert windows("Qwen/Qwen2.5-7B") == (0, 0)


def test_an_embedding_that_is_the_head_too_is_multiplied_by_something() -> None:
    assert shipped("Qwen/Qwen3-0.6B").embedding_parameters == 0
    assert shipped("Qwen/Qwen3-8B").embedding_parameters == 151_936 * 4096


# What of the parameters the checkpoints hold in fewer bits, by hand from their modules.
@pytest.mark.parametrize(
    ("name", "kind", "kept"),
    [
        ("nvidia/Llama-3.1-70B-Instruct-FP8", "fp8", 2 * 128_256 * 8192 + 161 * 8192),
        ("Qwen/Qwen2.5-7B-Instruct-AWQ", "int4", 2 * 152_064 * 3584 + 57 * 3584 + 28 * (3584 + 2 * 512)),
        (
            "Qwen/Qwen2.5-7B-Instruct-GPTQ-Int8",
            "int8",
            2 * 152_064 * 3584 + 57 * 3584 + 28 * (3584 + 2 * 512),
        ),
    ],
)
def test_embedding_head_norms_and_biases_keep_their_type(name: str, kind: str, kept: int) -> None:
    it = shipped(name)
    assert it.quantization == kind
    assert it.parameters - it.quantized_parameters == kept


def test_of_gpt_oss_and_kimi_only_experts_are_quantised() -> None:
    assert shipped("openai/gpt-oss-20b").quantization == "mxfp4"
    assert shipped("openai/gpt-oss-20b").quantized_parameters == 24 * 32 * 3 * 2880 * 2880  # biases are not
    kimi = shipped("moonshotai/Kimi-K2-Thinking")
    assert (kimi.quantization, kimi.quantized_parameters) == ("int4", kimi.expert_parameters)


def quantised(**how: Any) -> ModelShape:
    return shapes.from_config({**CONFIG, "quantization_config": how}, "x")


MATRICES = 30 * (576 * (576 + 2 * 192) + 576 * 576 + 3 * 576 * 1536)


@pytest.mark.parametrize(
    ("how", "kind"),
    [
        ({"quant_method": "fp8"}, "fp8"),
        ({"quant_method": "fbgemm_fp8", "modules_to_not_convert": ["lm_head"]}, "fp8"),
        ({"quant_method": "awq", "bits": 4}, "int4"),
        ({"quant_method": "gptq", "bits": 8}, "int8"),
        ({"quant_method": "mxfp4"}, "mxfp4"),
        ({"quant_method": "bitsandbytes", "load_in_4bit": True}, "int4"),
        ({"quant_method": "bitsandbytes", "load_in_8bit": True}, "int8"),
        ({"quant_method": "modelopt", "quant_algo": "NVFP4", "ignore": ["lm_head"]}, "nvfp4"),
        *(
            (
                {
                    "quant_method": "compressed-tensors",
                    "ignore": ["lm_head"],
                    "config_groups": {"group_0": {"targets": ["Linear"], "weights": weights}},
                },
                kind,
            )
            for weights, kind in (
                ({"num_bits": 8, "type": "float"}, "fp8"),
                ({"num_bits": 8, "type": "int"}, "int8"),
                ({"num_bits": 4, "type": "int", "group_size": 128}, "int4"),
                ({"num_bits": 4, "type": "float", "group_size": 16}, "nvfp4"),
                ({"num_bits": 4, "type": "float", "group_size": 32}, "mxfp4"),
            )
        ),
    ],
)
def test_methods_of_quantisation_are_known_by_their_own_words(how: dict[str, Any], kind: str) -> None:
    it = quantised(**how)
    assert (it.quantization, it.quantized_parameters) == (kind, MATRICES)
    assert it.dtype == "bfloat16"


@pytest.mark.parametrize(
    ("kept", "modules"),
    [
        (["model.layers.0.mlp.down_proj"], 1),
        (["mlp.down_proj"], 30),
        (["re:.*down_proj$"], 30),
        (["model.layers.1*.mlp.down_proj"], 11),
        (["model.language_model.layers.2.mlp.down_proj"], 1),
        (["down"], 0),
    ],
)
def test_modules_that_are_kept_are_found_by_name_pattern_and_part(kept: list[str], modules: int) -> None:
    it = quantised(quant_method="fp8", modules_to_not_convert=kept)
    assert it.quantized_parameters == MATRICES - modules * 576 * 1536


@pytest.mark.parametrize(
    ("how", "word"),
    [
        ({"quant_method": "aqlm"}, "quantization_config.quant_method is aqlm"),
        ({"bits": 4}, "quantization_config.quant_method is missing"),
        ({"quant_method": "gptq", "bits": 3}, "quantization_config.bits is 3"),
        (
            {"quant_method": "modelopt", "quant_algo": "MIXED_PRECISION"},
            "quantization_config.quant_algo is MIXED_PRECISION",
        ),
        (
            {
                "quant_method": "compressed-tensors",
                "config_groups": {
                    "a": {"targets": ["re:.*mlp.*"], "weights": {"num_bits": 4, "type": "float"}},
                    "b": {"targets": ["re:.*attn.*"], "weights": {"num_bits": 8, "type": "float"}},
                },
            },
            "the weights of quantization_config.config_groups are of several types",
        ),
    ],
)
def test_a_quantisation_that_is_not_counted_is_refused_by_the_word_that_says_it(
    how: dict[str, Any], word: str
) -> None:
    with pytest.raises(UnknownShapeError, match=f"x is quantized in a way that is not counted: {word}"):
        quantised(**how)


def test_a_decoder_inside_a_model_of_several_inputs_is_read() -> None:
    whole = {
        "architectures": ["Llama4ForConditionalGeneration"],
        "text_config": {**CONFIG, "num_local_experts": 4, "num_experts_per_tok": 1},
    }
    it = shapes.from_config(whole, "x")
    assert it.architecture == "Llama4ForConditionalGeneration"
    assert (it.layers, it.experts, it.dtype) == (30, 4, "bfloat16")


def test_every_shipped_name_has_a_shape_and_no_name_stands_twice() -> None:
    names = list(shapes.table())
    assert len(names) > 200
    for name in names:
        it = shipped(name)
        required = [each.name for each in dataclasses.fields(it) if each.default is dataclasses.MISSING]
        assert all(getattr(it, each) for each in required), name
        assert it.quantized_parameters <= it.parameters
        assert it.expert_parameters < it.parameters


def test_a_hub_id_is_found_in_any_case_and_an_unknown_one_is_not() -> None:
    assert shapes.shipped("qwen/qwen3-8b") == shapes.shipped("Qwen/Qwen3-8B")
    assert shapes.shipped("nobody/nothing") is None


def test_a_configuration_and_what_inspect_prints_give_the_same_shape() -> None:
    from_config = shapes.from_document(json.dumps(CONFIG), "config.json")
    facts = ModelInfo(from_config, "sha256:ab", None, 1)
    assert shapes.from_document(facts.to_json(), "facts.json") == from_config
    assert from_config == shapes.shipped("HuggingFaceTB/SmolLM2-135M")


def test_what_an_older_inspect_printed_is_read_as_a_dense_model_of_unknown_mlps() -> None:
    now = shapes.from_config(CONFIG, "x")
    facts = json.loads(ModelInfo(now, "sha256:ab", None, 1).to_json())
    older = [each.name for each in dataclasses.fields(now) if each.default is dataclasses.MISSING]
    facts["shape"] = {name: facts["shape"][name] for name in older}
    assert shapes.from_document(json.dumps(facts), "facts.json") == dataclasses.replace(now, mlp_width=0)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("GGUF", "is no JSON"),
        ("[]", "holds no JSON object"),
        (json.dumps({**CONFIG, "architectures": ["MambaForCausalLM"]}), "describes MambaForCausalLM"),
        ("{}", "describes no architecture"),
        (json.dumps({**CONFIG, "hidden_size": "many"}), "hidden_size must be a whole number above 0"),
        (json.dumps({**CONFIG, "num_hidden_layers": 0}), "num_hidden_layers must be a whole number above 0"),
        (json.dumps({**CONFIG, "intermediate_size": None}), "LlamaForCausalLM has no intermediate_size"),
        ('{"shape": {}}', "is no output of `turbo inspect`"),
    ],
)
def test_a_shape_that_cannot_be_read_says_why(text: str, said: str) -> None:
    with pytest.raises(UnknownShapeError, match=said):
        shapes.from_document(text, "given.json")


WORDS = sorted({word for config in shapes.table().values() for word in config})
JUNK = st.recursive(
    st.none() | st.booleans() | st.integers(-3, 1 << 70) | st.text(max_size=3) | st.just("re:("),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(WORDS), inner, max_size=3),
    max_leaves=6,
)


@given(
    name=st.sampled_from(list(shapes.table())),
    junk=st.dictionaries(st.sampled_from([*WORDS, "architectures", "text_config"]), JUNK, max_size=4),
)
def test_any_configuration_is_read_or_refused_in_a_sentence(name: str, junk: dict[str, Any]) -> None:
    config = {**shapes.table()[name], **junk}
    try:
        it = shapes.from_config(config, "x")
    except UnknownShapeError as error:
        said = str(error)
    else:
        said = f"{it.architecture}."
        assert it.parameters > 0
        assert 0 <= it.quantized_parameters <= it.parameters
        assert 0 <= it.sliding_layers <= it.layers
    assert said.endswith(".")
