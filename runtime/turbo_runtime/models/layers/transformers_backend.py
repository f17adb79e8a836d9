"""Any other decoder-only architecture, by transformers' own modules: their attention goes through the paged
pool, and every `nn.Linear` computes by a form.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator
from copy import copy

from torch import Tensor, nn
from transformers import PreTrainedModel

from turbo_runtime.models.attention.metadata import StepMetadata
from turbo_runtime.models.layers.primitives import Decoder, Hidden, Layer, Product, RowWise, Site
from turbo_runtime.models.matmul import BatchInvariantLinear

_LAYER = re.compile(r"(?:^|\.)(layers\.\d+\..+)$")


class RowLinear(nn.Module, Layer):
    """Stands in for an `nn.Linear`, with the same weights."""

    def __init__(self, linear: nn.Linear) -> None:
        super().__init__()
        bias = None if linear.bias is None else linear.bias.detach()
        self.product: Product = BatchInvariantLinear(linear.weight.detach(), bias)

    def forward(self, x: Tensor) -> Tensor:
        """x (..., in) -> (..., out)."""
        return self.product(x.reshape(-1, x.shape[-1])).view(*x.shape[:-1], -1)


class ModuleDecoder(Decoder):
    """The whole model."""

    # What the library does to all rows at once, as rotations, may end in fewer values than a register takes,
    # with other bits.
    row_unit = 4

    def __init__(self, model: PreTrainedModel) -> None:
        """Replace the linear layers of `model`, which has `attn_implementation=IMPLEMENTATION`."""
        layers = replace_linears(model)
        self._body = model.get_decoder()
        self._head = model.get_output_embeddings().product
        self._names = [name for name, layer in layers.items() if layer.product is not self._head]
        self._linears = [layers[name] for name in self._names]
        self.embedding: Tensor = model.get_input_embeddings().weight.detach()
        inner = int(model.config.intermediate_size)
        self._norms_and_activations = [
            RowWise(type(module).__name__, width, module)
            for name, module in self._body.named_modules()
            if (width := inner if name.endswith("act_fn") else _width_of(module))
        ]

    def hidden(self, tokens: Tensor, step: StepMetadata, layers: Collection[int]) -> Hidden:
        """tokens (rows) -> (rows, width); and what enters `layers`."""
        outputs = self._body(
            input_ids=tokens[None],
            position_ids=step.positions[None],
            use_cache=False,
            output_hidden_states=list(layers),
            paged_step=step,
        )
        return outputs.last_hidden_state[0], {layer: outputs.hidden_states[layer][0] for layer in layers}

    def row_wise(self) -> Iterator[RowWise]:
        """Yield the operations of the library's modules."""
        yield from self._norms_and_activations

    def sites(self) -> Iterator[Site]:
        """Yield the products that adapters may change: all of its layers."""
        for name, linear in zip(self._names, self._linears, strict=True):
            if found := _LAYER.search(name):
                yield Site.single(linear, "product", found[1])

    def first_layers(self, count: int) -> ModuleDecoder:
        """Return the model without its later layers, which shares all weights."""
        shallow, body = copy(self), copy(self._body)
        body.config = copy(self._body.config)
        body.config.num_hidden_layers = count
        shallow._body = body
        return shallow


def replace_linears(model: nn.Module) -> dict[str, RowLinear]:
    """Replace every `nn.Linear` of the model, the LM head included, and return the replacements."""
    layers = {name: RowLinear(part) for name, part in model.named_modules() if type(part) is nn.Linear}
    for name, layer in layers.items():
        model.set_submodule(name, layer)
    return layers


def _width_of(module: nn.Module) -> int:
    """Row width of a norm, 0 for every other module."""
    weight = getattr(module, "weight", None)
    return int(weight.shape[0]) if isinstance(weight, Tensor) and weight.dim() == 1 else 0
