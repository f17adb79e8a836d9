"""What the operator can render and the runtime can run now: one table, which a later ability extends.

A candidate beyond it is weighed all the same and shown as NotYetSupported where it would do better than the
plan, or would do at all.
"""

from __future__ import annotations

from dataclasses import dataclass

from turbo_operator.api import EngineName, Method, Placement
from turbo_operator.api.constants import OFF
from turbo_runtime.contract.model import ModelShape

REMEDY = "is not supported yet"


@dataclass(frozen=True, slots=True)
class Abilities:
    """What may be chosen."""

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
        """What the engine cannot do with the model, as the end of a sentence; None where it can serve it."""
        if shape.architecture not in self.architectures:
            return f"architecture {shape.architecture} {REMEDY}"
        if shape.experts and not self.experts:
            return f"a model with routed experts {REMEDY}"
        if shape.kv_latent and not self.latent_attention:
            return f"latent attention (MLA) {REMEDY}"
        if shape.quantization is not None and shape.quantization not in self.quantizations:
            return f"serving {shape.quantization} weights {REMEDY}"
        return None

    def longest(self, shape: ModelShape) -> int:
        """Tokens of the longest request that can be served of a model that can."""
        return shape.max_served if self.lack_of_model(shape) is None else shape.max_position

    def lack(
        self, engine: str, method: str, placement: Placement | None, accelerators: int, nodes: int
    ) -> str | None:
        """What one replica would need beside the model, as the end of a sentence; None where nothing."""
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


NOW = Abilities(
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
