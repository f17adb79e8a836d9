"""What the engines can do, and what of it the operator can render and the runtime can run now. Pure.

The planner evaluates a candidate beyond that all the same, and reports it as NotYetSupported where it would
do better than the plan, or would do at all.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache

from turbo_operator.api import OFF, EngineName, Method, Placement
from turbo_runtime.contract.config import RuntimeConfig
from turbo_runtime.contract.documents import ModelShape

REMEDY = "is not supported yet"
SUPPORTED_METHODS = frozenset({str(Method.SUFFIX), OFF})  # that can be chosen
# Methods whose drafts join the suffix drafts as pods run, once there are any.
TRAINED_METHODS = frozenset({str(Method.TURBO_HEADS)})
ARCHITECTURES = frozenset(
    {
        "DeepseekV2ForCausalLM",
        "DeepseekV3ForCausalLM",
        "LlamaForCausalLM",
        "MistralForCausalLM",
        "Qwen2ForCausalLM",
        "Qwen3ForCausalLM",
    }
)
_TURBO = RuntimeConfig(model="")


@dataclass(frozen=True, slots=True)
class Engine:
    """One engine at its defaults."""

    name: EngineName
    max_num_seqs: int  # requests decoded together
    max_num_batched_tokens: int  # of one pass, prompts and drafts together
    methods: tuple[str, ...]
    quantized: bool  # serves weights as they are stored, instead of converting them
    forgets: bool  # its cache drops what a sliding window has passed


# The runtime's own limits are read from its contract, not repeated here. vLLM's are its defaults for a
# server: max_num_seqs 256, max_num_batched_tokens 2048.
ENGINES = (
    Engine(
        EngineName.TURBO,
        _TURBO.max_num_seqs,
        _TURBO.max_num_batched_tokens,
        (str(Method.SUFFIX), str(Method.TURBO_HEADS), str(Method.EAGLE3), str(Method.DRAFT_MODEL), OFF),
        quantized=False,
        forgets=False,
    ),
    Engine(
        EngineName.VLLM,
        256,
        2048,
        (str(Method.SUFFIX), str(Method.EAGLE3), str(Method.MTP), str(Method.DRAFT_MODEL), OFF),
        quantized=True,
        forgets=True,
    ),
)


def describe_model_lack(shape: ModelShape) -> str | None:
    """Describe what the engine cannot do with the model, as the end of a sentence; None if it can."""
    if shape.architecture not in ARCHITECTURES:
        return f"architecture {shape.architecture} {REMEDY}"
    return None if shape.quantization is None else f"serving {shape.quantization} weights {REMEDY}"


def max_length(shape: ModelShape) -> int:
    """Return the tokens of the longest request that a model can serve."""
    return shape.max_served if describe_model_lack(shape) is None else shape.max_position


@cache
def describe_lack(
    engine: str, method: str, placement: Placement | None, accelerators: int, nodes: int
) -> str | None:
    """Describe what one replica needs in addition to the model, as the end of a sentence."""
    lacks = {
        f"engine {engine}": engine != EngineName.TURBO,
        "a replica on more than one node": nodes > 1,
        f"speculation with {method}": method not in SUPPORTED_METHODS,
        f"a draft placed {placement}": placement is not None,
        "a replica on more than one accelerator": accelerators > 1,
    }
    return next((f"{what} {REMEDY}" for what, is_lacking in lacks.items() if is_lacking), None)
