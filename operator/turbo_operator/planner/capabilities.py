"""What the engines can do, and what of it the operator can render and the runtime can run now. Pure.

The planner evaluates a candidate beyond `NOW` all the same, and reports it as NotYetSupported where it would
do better than the plan, or would do at all.
"""

from __future__ import annotations

from dataclasses import dataclass

from turbo_operator.api import OFF, EngineName, Method, Placement
from turbo_runtime.contract.config import RuntimeConfig
from turbo_runtime.contract.model import ModelShape

REMEDY = "is not supported yet"
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


@dataclass(frozen=True, slots=True)
class Capabilities:
    """What the planner may choose."""

    engines: frozenset[str]
    methods: frozenset[str]
    trained: frozenset[str]  # methods whose drafts join the suffix drafts as pods run, once there are any
    placements: frozenset[str]  # of a draft that takes memory
    accelerators_per_replica: int
    nodes_per_replica: int
    architectures: frozenset[str]
    quantizations: frozenset[str]  # of weights that are served as they are stored
    experts: bool
    latent_attention: bool

    def lack_of_model(self, shape: ModelShape) -> str | None:
        """Describe what the engine cannot do with the model, as the end of a sentence; None if it can."""
        if shape.architecture not in self.architectures:
            return f"architecture {shape.architecture} {REMEDY}"
        if shape.experts and not self.experts:
            return f"a model with routed experts {REMEDY}"
        if shape.kv_latent and not self.latent_attention:
            return f"latent attention (MLA) {REMEDY}"
        if shape.quantization is not None and shape.quantization not in self.quantizations:
            return f"serving {shape.quantization} weights {REMEDY}"
        return None

    def max_length(self, shape: ModelShape) -> int:
        """Return the tokens of the longest request that a model can serve."""
        return shape.max_served if self.lack_of_model(shape) is None else shape.max_position

    def lack(
        self, engine: str, method: str, placement: Placement | None, accelerators: int, nodes: int
    ) -> str | None:
        """Describe what one replica needs in addition to the model, as the end of a sentence."""
        if engine not in self.engines:
            return f"engine {engine} {REMEDY}"
        if nodes > self.nodes_per_replica:
            return f"a replica on more than one node {REMEDY}"
        if method not in self.methods:
            return f"speculation with {method} {REMEDY}"
        if placement is not None and placement not in self.placements:
            return f"a draft placed {placement} {REMEDY}"
        if accelerators > self.accelerators_per_replica:
            return f"a replica on more than one accelerator {REMEDY}"
        return None


NOW = Capabilities(
    engines=frozenset({EngineName.TURBO}),
    methods=frozenset({str(Method.SUFFIX), OFF}),
    trained=frozenset({str(Method.TURBO_HEADS)}),
    placements=frozenset(),
    accelerators_per_replica=1,
    nodes_per_replica=1,
    architectures=frozenset(
        {
            "DeepseekV2ForCausalLM",
            "DeepseekV3ForCausalLM",
            "LlamaForCausalLM",
            "MistralForCausalLM",
            "Qwen2ForCausalLM",
            "Qwen3ForCausalLM",
        }
    ),
    quantizations=frozenset(),
    experts=True,
    latent_attention=True,
)
