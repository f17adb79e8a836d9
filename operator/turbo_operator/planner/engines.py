"""What the planner must know of each engine: its own ceilings, and which methods it has. Pure data."""

from __future__ import annotations

from dataclasses import dataclass

from turbo_operator.api import OFF, EngineName, Method
from turbo_runtime.contract.config import RuntimeConfig

_TURBO = RuntimeConfig(model="")


@dataclass(frozen=True, slots=True)
class Engine:
    """One engine at its defaults."""

    name: EngineName
    max_running: int  # requests decoded together
    max_step_tokens: int  # of one pass, prompts and drafts together
    methods: tuple[str, ...]
    quantized: bool  # serves weights as they are stored, instead of converting them
    forgets: bool  # its cache drops what a sliding window has passed


# The runtime's own ceilings are read from its contract, not repeated here. vLLM's are its defaults for a
# server: max_num_seqs 256, max_num_batched_tokens 2048.
ENGINES = (
    Engine(
        EngineName.TURBO,
        _TURBO.max_running,
        _TURBO.max_step_tokens,
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
