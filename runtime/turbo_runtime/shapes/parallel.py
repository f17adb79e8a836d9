"""Which models can be cut up among ranks, each with a part of every layer: the runtime refuses the others,
and the operator plans none of them.
"""

from __future__ import annotations

PARALLEL_ARCHITECTURES = ("LlamaForCausalLM", "MistralForCausalLM", "Qwen2ForCausalLM", "Qwen3ForCausalLM")


def describe_uncut(
    architecture: str, *, heads: int, kv_heads: int, mlp_width: int, is_quantized: bool, size: int
) -> str | None:
    """Describe why a model is not cut up among `size` ranks, as a clause; None if it can be. `mlp_width` are
    the values between the products of an MLP.
    """
    if architecture not in PARALLEL_ARCHITECTURES:
        return f"{architecture} is not cut up; {', '.join(PARALLEL_ARCHITECTURES)} are"
    if is_quantized:
        return "quantized weights are not cut up; use those in bfloat16"
    if mlp_width % size:
        return f"{size} ranks do not divide the model's intermediate_size of {mlp_width}; use fewer"
    copies, rest = divmod(size, kv_heads)
    if kv_heads < size and (rest or heads // kv_heads % copies):
        return (
            f"each of the model's {kv_heads} KV heads would be on several of {size} ranks, which must share "
            f"its {heads // kv_heads} query heads evenly; use fewer"
        )
    return None
