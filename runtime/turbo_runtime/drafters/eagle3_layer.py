"""The layer of an EAGLE-3 draft, and its folder in the format of `speculators`.

`config.json` names the layers of the model whose inputs are its features, and the layer's own shape;
`model.safetensors` has its weights, the LM head of the tokens that it can draft, and `d2t` (what to add to a
drafted id for the model's). Embeddings are its own, or the model's where the folder has none.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor
from transformers import LlamaConfig
from transformers.activations import ACT2FN
from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding

from turbo_runtime.drafters.target import DraftError, Target
from turbo_runtime.files import read_object
from turbo_runtime.models.attention.metadata import StepMetadata
from turbo_runtime.models.attention.pool import cache_shape
from turbo_runtime.models.layers.primitives import Affine, GatedMLP, RMSNorm, Rope, fused
from turbo_runtime.models.matmul import FREE_FORMS, BatchInvariantLinear

KIND = "speculators_model_type"  # the key of `config.json` that tells the format
CONFIG_FILE, WEIGHTS_FILE = "config.json", "model.safetensors"
_LAYER = "layers.0."
_OPTIONS = ("norm_before_residual", "norm_before_fc", "norm_output", "fc_norm")
_ABSENT = {"norm_before_residual": True}  # what engines take for granted


class Eagle3Layer:
    """The layer with its products packed: what it computes may differ in last bits from training."""

    def __init__(
        self,
        config: LlamaConfig,
        tensors: Mapping[str, Tensor],
        embedding: Tensor,
        max_length: int,
        options: Mapping[str, bool],
    ) -> None:
        """`tensors` by their names in the format; `embedding` (vocabulary, width) of the model's tokens."""
        self.embedding, self.cache = embedding, cache_shape(config)
        self._options, epsilon = options, config.rms_norm_eps
        self._vocabulary = len(embedding)
        weights = {
            name: tensor.to(embedding) for name, tensor in tensors.items() if name not in ("d2t", "t2d")
        }

        def product(*names: str) -> BatchInvariantLinear:
            parts = [Affine(weights[f"{name}.weight"], weights.get(f"{name}.bias")) for name in names]
            made = fused(*parts)
            if embedding.device.type == "cpu":
                made.adopt_first(FREE_FORMS)
            return made

        def norm(name: str) -> RMSNorm:
            return RMSNorm(SimpleNamespace(weight=weights[f"{name}.weight"], variance_epsilon=epsilon))

        attention, mlp = f"{_LAYER}self_attn.", f"{_LAYER}mlp."
        self._fc = product("fc")
        self._project = product(*(f"{attention}{name}_proj" for name in "qkv"))
        self._output = product(f"{attention}o_proj")
        gate_up, down = product(f"{mlp}gate_proj", f"{mlp}up_proj"), product(f"{mlp}down_proj")
        self._mlp = GatedMLP(gate_up, down, ACT2FN[config.hidden_act])
        self._input_norm, self._hidden_norm = norm(f"{_LAYER}input_layernorm"), norm(f"{_LAYER}hidden_norm")
        self._mlp_norm, self._norm = norm(f"{_LAYER}post_attention_layernorm"), norm("norm")
        self._fuse_norm = norm("input_norm") if options["norm_before_fc"] else None
        count = self._fc.shape[1] // embedding.shape[1]
        self._stream_norms = [norm(f"fc_norm.{i}") for i in range(count)] if options["fc_norm"] else []
        self._rope = Rope(LlamaRotaryEmbedding(config), max_length, embedding)
        self._head = product("lm_head")
        self._ids: Tensor | None = None  # of the model, by drafted id; None: the same
        if "d2t" in tensors:
            drafted = tensors["d2t"].to(embedding.device, torch.int64)
            self._ids = drafted + torch.arange(len(drafted), device=embedding.device)

    def fuse(self, streams: Tensor) -> Tensor:
        """Features (places, layers x width) -> (places, width)."""
        if self._fuse_norm:
            streams = self._fuse_norm(streams)
        if self._stream_norms:
            parts = streams.chunk(len(self._stream_norms), -1)
            streams = torch.cat(
                [norm(part) for norm, part in zip(self._stream_norms, parts, strict=True)], -1
            )
        return self._fc(streams)

    def __call__(self, tokens: Tensor, states: Tensor, positions: Tensor, step: StepMetadata) -> Tensor:
        """tokens (places,) behind the places, states (places, width) -> states behind the layer."""
        heads, kv_heads, rows = self.cache.heads, self.cache.kv_heads, len(tokens)
        normed = self._hidden_norm(states)
        residual = normed if self._options["norm_before_residual"] else states
        inputs = torch.cat([self._input_norm(self.embedding[tokens]), normed], -1)
        projected = self._project(inputs).view(rows, heads + 2 * kv_heads, -1)
        rotated = self._rope.at(positions)(projected[:, : heads + kv_heads])
        scaling = self.cache.key_width**-0.5
        value = projected[:, heads + kv_heads :]
        attended = step.attend(0, rotated[:, :heads], rotated[:, heads:], value, scaling)
        states = residual + self._output(attended.flatten(1))
        states = states + self._mlp(self._mlp_norm(states))
        return self._norm(states) if self._options["norm_output"] else states

    def logits(self, states: Tensor) -> Tensor:
        """(rows, width) -> (rows, the model's vocabulary) float32; -inf for what it cannot draft."""
        normed = states if self._options["norm_output"] else self._norm(states)
        logits = self._head(normed).float()
        if self._ids is None:
            return logits
        return logits.new_full((len(logits), self._vocabulary), -torch.inf).index_copy_(1, self._ids, logits)


def read_config(folder: Path) -> dict[str, Any]:
    """Read `config.json` of an EAGLE-3 draft. Raises DraftError."""
    document = read_object(folder / CONFIG_FILE, DraftError, "name a folder of an EAGLE-3 draft")
    if (kind := document.get(KIND)) != "eagle3":
        raise DraftError(
            f"{folder}: the engine Turbo cannot draft with method {kind}; name an EAGLE-3 draft, a draft "
            "model or Turbo heads"
        )
    return document


def layer_config(folder: Path, document: Mapping[str, Any]) -> LlamaConfig:
    """Return the layer's shape. Raises DraftError."""
    values = dict(document.get("transformer_layer_config") or {})
    layers, family = values.get("num_hidden_layers", 1), values.get("model_type", "llama")
    if layers != 1 or family != "llama":
        raise DraftError(f"{folder}: it has {layers} layers of {family}; name a draft of one layer of llama")
    return LlamaConfig(**values)


def token_bytes(folder: Path, dtype: torch.dtype) -> int:
    """Memory of a token in its KV cache. Raises DraftError."""
    config = layer_config(folder, read_config(folder))
    return cache_shape(config).elements * dtype.itemsize


def load_layer(folder: Path, target: Target) -> tuple[Eagle3Layer, tuple[int, ...], str]:
    """Load a folder for the served model -> the layer, the layers that are its features, and its version.
    Raises DraftError.
    """
    document = read_config(folder)
    config, runner = layer_config(folder, document), target.served()
    own = document.get("turbo") or {}
    digest = own.get("target_digest", target.digest)
    if digest != target.digest:
        raise DraftError(
            f"{folder}: this draft belongs to the model {digest}, and {target.digest} is served; name one "
            "that was trained for it"
        )
    count = int(runner.config.num_hidden_layers)
    layers = tuple(document.get("eagle_aux_hidden_state_layer_ids") or (2, count // 2, count - 3))
    if not all(isinstance(layer, int) and 0 <= layer < count for layer in layers):
        raise DraftError(
            f"{folder}: it reads the layers {layers} and the model has {count}; name its own draft"
        )
    tensors = _read_weights(folder)
    vocabulary, width = target.embedding.shape
    embedding = tensors.pop("embed_tokens.weight", target.embedding).to(target.embedding)
    options = {name: bool(document.get(name, _ABSENT.get(name, False))) for name in _OPTIONS}
    _check_shapes(folder, config, tensors, options, len(layers) * width)
    drafted = len(tensors["lm_head.weight"])
    ids = tensors.get("d2t", torch.zeros(drafted, dtype=torch.int64)) + torch.arange(drafted)
    if len(ids) != drafted or ids.min() < 0 or ids.max() >= vocabulary or len(embedding) < vocabulary:
        raise DraftError(f"{folder}: it drafts tokens that the model does not have; name its own draft")
    if embedding.shape[1] != config.hidden_size:
        raise DraftError(
            f"{folder}: its width is {config.hidden_size} and that of the embeddings {embedding.shape[1]}; "
            "name the model's own draft"
        )
    layer = Eagle3Layer(config, tensors, embedding[:vocabulary], runner.max_length, options)
    return layer, layers, str(own.get("version") or folder.name)


def _read_weights(folder: Path) -> dict[str, Tensor]:
    """The tensors by the names of the format; older folders call the layer `midlayer`."""
    try:
        (folder / WEIGHTS_FILE).open("rb").close()  # safetensors calls any trouble a missing file
        # not mapped: a copy over the file in use would end the process
        tensors = load_file(folder / WEIGHTS_FILE, backend="pread")
    except (OSError, SafetensorError) as error:
        raise DraftError(f"{folder / WEIGHTS_FILE} cannot be read: {error}; copy the folder again") from error
    for name, value in tensors.items():
        if value.is_floating_point() and not bool(value.isfinite().all()):
            raise DraftError(
                f"{folder / WEIGHTS_FILE}: {name} has values that are no numbers; train it again"
            )
    return {name.replace("midlayer.", _LAYER): value for name, value in tensors.items()}


def _check_shapes(
    folder: Path,
    config: LlamaConfig,
    tensors: Mapping[str, Tensor],
    options: Mapping[str, bool],
    features: int,
) -> None:
    """Raise DraftError where a weight is missing, has another shape, or is none of the format's."""
    width, inner, cache = config.hidden_size, config.intermediate_size, cache_shape(config)
    queries, keys = cache.heads * cache.key_width, cache.kv_heads * cache.key_width
    attention, mlp = f"{_LAYER}self_attn.", f"{_LAYER}mlp."
    expected: dict[str, tuple[int, ...]] = {
        "fc.weight": (width, features),
        "norm.weight": (width,),
        f"{_LAYER}input_layernorm.weight": (width,),
        f"{_LAYER}hidden_norm.weight": (width,),
        f"{_LAYER}post_attention_layernorm.weight": (width,),
        f"{attention}q_proj.weight": (queries, 2 * width),
        f"{attention}k_proj.weight": (keys, 2 * width),
        f"{attention}v_proj.weight": (keys, 2 * width),
        f"{attention}o_proj.weight": (width, queries),
        f"{mlp}gate_proj.weight": (inner, width),
        f"{mlp}up_proj.weight": (inner, width),
        f"{mlp}down_proj.weight": (width, inner),
    }
    if options["norm_before_fc"]:
        expected["input_norm.weight"] = (features,)
    shapes = {name: tuple(value.shape) for name, value in tensors.items()}
    head = shapes.pop("lm_head.weight", ())
    others = {name for name in shapes if name in ("d2t", "t2d") or name.endswith("_proj.bias")}
    if options["fc_norm"]:
        others |= {name for name in shapes if name.startswith("fc_norm.")}
    shapes = {name: shape for name, shape in shapes.items() if name not in others}
    if shapes != expected or len(head) != 2 or head[1] != width:
        wrong = next(
            (n for n in sorted({*shapes, *expected}) if shapes.get(n) != expected.get(n)), "lm_head.weight"
        )
        raise DraftError(
            f"{folder / WEIGHTS_FILE}: {wrong} is {shapes.get(wrong, head or 'missing')} and its "
            f"configuration wants {expected.get(wrong, 'no such tensor')}; name a draft of this model"
        )
