"""What the engines can do, and what of it the operator can render and the runtime can run now. Pure.

The planner evaluates a candidate beyond that all the same, and reports it as NotYetSupported where it would
do better than the plan, or would do at all.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from functools import cache

from turbo_operator.api import OFF, EngineName, Method, Placement, Speculation, TurboDeploymentSpec
from turbo_runtime.contract.config import CPU_LIMITS, GPU_LIMITS, BatchLimits, RuntimeConfig
from turbo_runtime.contract.documents import ModelShape
from turbo_runtime.shapes.parallel import describe_uncut

LACK = "is not supported yet"
UNDIVIDED = "engine Turbo does not divide the model among"
SUPPORTED_METHODS = {  # that can be chosen, by engine
    EngineName.TURBO: frozenset(map(str, (Method.SUFFIX, Method.EAGLE3, Method.DRAFT_MODEL, OFF))),
    EngineName.VLLM: frozenset(
        map(str, (Method.SUFFIX, Method.N_GRAM, Method.EAGLE3, Method.MTP, Method.DRAFT_MODEL, OFF))
    ),
}
# Methods whose drafts join the suffix drafts as pods run, once there are any.
TRAINED_METHODS = frozenset({str(Method.TURBO_HEADS)})
ARCHITECTURES = frozenset(
    {
        "DeepseekV2ForCausalLM",
        "DeepseekV3ForCausalLM",
        "Gemma3ForCausalLM",
        "GptOssForCausalLM",
        "LlamaForCausalLM",
        "MistralForCausalLM",
        "MixtralForCausalLM",
        "Olmo2ForCausalLM",
        "Phi3ForCausalLM",
        "Qwen2ForCausalLM",
        "Qwen3ForCausalLM",
        "Qwen3MoeForCausalLM",
    }
)
# Those that the trainer reads and vLLM 0.32 drafts for: of the others its model classes lack SupportsEagle3.
EAGLE3_TARGETS = ARCHITECTURES - {"Gemma3ForCausalLM", "MixtralForCausalLM", "Olmo2ForCausalLM"}
IDLE_DRAFTS_LACK = (
    "vLLM drafts as many tokens for whatever load in data-parallel groups, and no number of them saves time "
    "at every load: leave parallelism.data out, or do without drafts"
)
SLOW_DRAFT_LACK = (
    "a pass of speculation.draftModel takes longer there than its tokens save: name a smaller draft, leave "
    "draftModel out, or say where it is to run all the same, in speculation.placement"
)
ROUTERS = frozenset({"gate", "router"})  # of routed experts, as architectures call them
LORA_RANKS = (1, 8, 16, 32, 64, 128, 256, 320, 512)  # that vLLM makes room for
LORA_VOCABULARY = 258_048  # tokens, of vLLM: vllm/lora/layers/logits_processor.py


@dataclass(frozen=True, slots=True)
class Engine:
    """One engine at its defaults."""

    name: EngineName
    on_cpus: BatchLimits
    on_gpus: BatchLimits
    max_draft_tokens: int  # per request and step where the spec names no ceiling
    methods: tuple[str, ...]
    quantized: bool  # serves weights as they are stored, instead of converting them
    forgets: bool  # its cache drops what a sliding window has passed
    # Methods that only a spec that names them gets. vLLM drafts as many tokens for whatever load, so that
    # guesses of which no gain is known may cost time. EAGLE-3 drafts of Turbo are for those who have one.
    by_name: frozenset[str] = frozenset()
    cores_reserve: int = 0  # bytes that its processes hold on cores, in addition to what ours do


VLLM_LIMITS = BatchLimits(max_num_seqs=256, max_num_batched_tokens=2048)  # its defaults for a server
# The runtime's own limits are read from its contract, not repeated here.
ENGINES = (
    Engine(
        EngineName.TURBO,
        CPU_LIMITS,
        GPU_LIMITS,
        RuntimeConfig(model="").max_draft_tokens,
        tuple(map(str, (Method.SUFFIX, Method.TURBO_HEADS, Method.EAGLE3, Method.DRAFT_MODEL, OFF))),
        quantized=False,
        forgets=False,
        by_name=frozenset({str(Method.EAGLE3)}),
    ),
    Engine(
        EngineName.VLLM,
        VLLM_LIMITS,
        VLLM_LIMITS,
        8,  # it drafts as many in every step, whatever they cost
        tuple(map(str, (Method.EAGLE3, Method.MTP, Method.DRAFT_MODEL, Method.N_GRAM, Method.SUFFIX, OFF))),
        quantized=True,
        forgets=True,
        by_name=frozenset(map(str, (Method.SUFFIX, Method.N_GRAM))),
        cores_reserve=2 << 30,  # measured: three interpreters with torch of together 3.4 GiB
    ),
)


def engine_of(name: EngineName) -> Engine:
    """Return the engine of a name."""
    return next(engine for engine in ENGINES if engine.name == name)


def describe_model_lack(shape: ModelShape) -> str | None:
    """Describe what the engine cannot do with the model, as the end of a sentence; None if it can."""
    remedy = f"{LACK} on engine Turbo: write engine.type: VLLM"
    if shape.architecture not in ARCHITECTURES:
        return f"architecture {shape.architecture} {remedy}"
    if shape.unsupported:
        return f"{shape.unsupported} {remedy}"
    if shape.quantization is None or shape.dequantizable:
        return None
    return f"serving {shape.quantization} weights of this format {remedy}"


def lora_rank(rank: int) -> int:
    """Return the rank that vLLM makes room for where the largest adapter has `rank`."""
    return next((known for known in LORA_RANKS if known >= rank), LORA_RANKS[-1])


def describe_engine_lack(
    spec: TurboDeploymentSpec, engine: EngineName, method: str, *, is_on_cpu: bool
) -> str | None:
    """Describe why an engine is not taken on this hardware, as the end of a sentence; None if it may be.

    The start-up micro-benchmark has never run on a GPU: what Turbo's step times are taken to be there is
    fitted to other engines. vLLM's image for CPUs is another one than that for GPUs.
    """
    if engine == EngineName.TURBO:
        if is_on_cpu or len(spec.engines) == 1:
            return None
        return "nobody has run engine Turbo on a GPU yet: write engine.type: Turbo to try it"
    if spec.engine.image is None and is_on_cpu:
        remedy = "name it in engine.image"
        if spec.engine.type != EngineName.VLLM:
            remedy = "write engine.type: VLLM, and the image in engine.image"
        return f"vLLM needs an image for CPUs: {remedy}"
    if spec.engine.image is None and method == Method.SUFFIX:
        return (
            "vLLM needs the package arctic-inference for Suffix: name an image with it in engine.image, or "
            "write speculation.method: NGram"
        )
    return None


def describe_adapter_lack(
    spec: TurboDeploymentSpec,
    shape: ModelShape,
    engine: EngineName,
    tensor: int,
    modules: Collection[str] = (),
) -> str | None:
    """Describe why the engine has no adapters of the model, as the end of a sentence; None if it has, or
    there are none. `modules` are the last parts of the names of those that they change, where known.
    """
    if not spec.adapters:
        return None
    if engine == EngineName.TURBO:
        if tensor > 1:
            return "engine Turbo cuts up no adapters: write engine.type: VLLM, or leave adapters out"
        changed = "latent attention" if shape.kv_latent else ""
        if shape.experts and not ROUTERS.isdisjoint(modules):
            changed = changed or "routers"
        return f"engine Turbo has no adapters of {changed}: write engine.type: VLLM" if changed else None
    if shape.vocab_size <= LORA_VOCABULARY:
        return None
    return (
        f"vLLM serves adapters of vocabularies of up to {LORA_VOCABULARY} tokens, and the model has "
        f"{shape.vocab_size}: leave spec.adapters out"
    )


def describe_draft_lack(method: str, speculation: Speculation, *, is_there: bool) -> str | None:
    """Describe the draft that a method needs and the spec does not name, as the end of a sentence; whether a
    trained one `is_there` that fits.
    """
    if method != Method.EAGLE3 or is_there or (speculation.draft_model and speculation.method == method):
        return None
    if speculation.draft_ref is not None:
        return f"TurboDraft {speculation.draft_ref.name} cannot be loaded: the condition DraftReady says why"
    if speculation.training is not None:
        return "no EAGLE-3 draft of the model was trained and promoted yet"
    if speculation.draft_model is not None:
        return "write speculation.method: EAGLE3 if speculation.draftModel is an EAGLE-3 draft of the model"
    return (
        "no EAGLE-3 draft of the model is named: write speculation.method: EAGLE3, and the draft in "
        "speculation.draftModel.uri or speculation.draftRef, or write speculation.training"
    )


def describe_division_lack(shape: ModelShape, tensor: int, groups: int, *, is_gguf: bool) -> str | None:
    """Describe why engine Turbo does not divide the model so, as the end of a sentence: among `tensor`
    accelerators in each of so many `groups`, nodes or data-parallel ones. None if it does.
    """
    if groups > 1:
        return (
            f"a replica on several nodes or of data-parallel groups with engine Turbo {LACK}: write "
            "engine.type: VLLM"
        )
    if tensor == 1:
        return None
    uncut = describe_uncut(
        shape.architecture,
        heads=shape.heads,
        kv_heads=shape.kv_heads,
        mlp_width=shape.mlp_width,
        is_quantized=shape.quantization is not None,
        size=tensor,
    )
    if is_gguf or not shape.mlp_width:
        uncut = "a GGUF file is not cut up" if is_gguf else "its intermediate_size is not known"
    if uncut is None:
        return None
    return f"{UNDIVIDED} {tensor} accelerators ({uncut}): write engine.type: VLLM"


def divides(shape: ModelShape, tensor: int) -> bool:
    """Whether vLLM divides the heads among so many accelerators: KV heads too are whole on each, or each of
    them on as many as any other (QKVParallelLinear in vllm/model_executor/layers/linear.py).
    """
    whole = shape.kv_heads % tensor == 0 or tensor % shape.kv_heads == 0
    return whole and shape.heads % tensor == 0


def describe_heads_lack(shape: ModelShape, draft: ModelShape | None, method: str, tensor: int) -> str | None:
    """Describe why vLLM does not divide the model, or a draft model, which it divides alike, among `tensor`
    accelerators, as the end of a sentence; None if it does.
    """
    parts = [("model", shape), *([("draft model", draft)] if method == Method.DRAFT_MODEL and draft else [])]
    for name, part in parts:
        if not divides(part, tensor):
            fitting = [str(size) for size in range(1, 65) if all(divides(it, size) for _, it in parts)]
            return (
                f"vLLM does not divide the {name}'s {part.heads} heads and {part.kv_heads} KV heads among "
                f"{tensor} accelerators: write one of {', '.join(fitting)} in parallelism.tensor"
            )
    return None


@cache
def describe_lack(
    engine: EngineName, method: str, placement: Placement | None, accelerators: int
) -> str | None:
    """Describe what drafts of a method lack where so many `accelerators` share the model, as the end of a
    sentence.
    """
    is_turbo = engine == EngineName.TURBO
    other = "VLLM" if is_turbo else "Turbo"
    if method not in SUPPORTED_METHODS[engine]:
        remedy = f"write engine.type: {other}, or another speculation.method"
        if method in TRAINED_METHODS and is_turbo:
            remedy = "write speculation.training or speculation.draftRef, and heads draft once there are any"
        return f"speculation with {method} on engine {engine} {LACK}: {remedy}"
    if placement not in (None, Placement.COLOCATED) and not is_turbo:
        return (
            f"a draft placed {placement} on engine {engine} {LACK}: write engine.type: Turbo, or "
            "speculation.placement: Colocated"
        )
    if is_turbo and accelerators > 1 and method in (Method.EAGLE3, Method.DRAFT_MODEL):
        return (
            f"speculation with {method} for a model on {accelerators} accelerators with engine Turbo {LACK}: "
            "write parallelism.tensor: 1, or engine.type: VLLM"
        )
    return None


def describe_placement_lack(
    placement: Placement | None, *, is_on_cpu: bool, has_room: bool, has_host: bool
) -> str | None:
    """Describe why a draft is not placed so, as the end of a sentence; `has_room`: whether a node has one
    more accelerator than the model takes, `has_host`: whether a TurboAccelerator states the speed of cores.
    """
    if placement == Placement.SEPARATE and is_on_cpu:
        return "a draft of a model on cores is on cores too: write speculation.placement: CPU"
    if placement == Placement.SEPARATE and not has_room:
        return (
            "its nodes have no accelerator more for the draft: write speculation.placement: Colocated, or "
            "set spec.countPerNode on the TurboAccelerator"
        )
    if placement == Placement.CPU and not (is_on_cpu or has_host):
        return (
            "no TurboAccelerator states the speed of cores: create one with resourceName cpu, "
            "memoryBandwidthGBps and tflops, or write speculation.placement: Colocated"
        )
    return None
