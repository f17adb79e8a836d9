"""The parts that layers of several architectures share, all under the row rule of `matmul`."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers.activations import SiLUActivation

from turbo_runtime.models.compiled import elementwise
from turbo_runtime.models.layers.loops import find_row_unit, split_rows
from turbo_runtime.models.matmul import BatchInvariantLinear

Hidden = tuple[Tensor, dict[int, Tensor]]  # after the final norm; and the residual streams into some layers

Product = Callable[[Tensor], Tensor]  # of x (rows, in), to (rows, out)


@dataclass(frozen=True, slots=True)
class RowWise:
    """A function of rows (rows, width) whose rows must not depend on their number or place."""

    name: str
    width: int
    apply: Callable[[Tensor], Tensor]


@dataclass(frozen=True, slots=True)
class Site:
    """A product that adapters may change."""

    owner: Any
    attribute: str  # of the owner, which is the product
    modules: dict[str, int]  # of the checkpoint, such as layers.3.mlp.up_proj; their outputs side by side

    @property
    def product(self) -> BatchInvariantLinear:
        """The model's own product."""
        product = getattr(self.owner, self.attribute)
        assert isinstance(product, BatchInvariantLinear)
        return product

    @classmethod
    def single(cls, owner: Any, attribute: str, module: str) -> Site:
        """Of one module alone."""
        return cls(owner, attribute, {module: getattr(owner, attribute).shape[0]})


class Layer:
    """A part of a model that names its operations to the start-up check, those of its parts included.

    None may hold itself, its own operations neither: what is in a circle is freed by garbage collection
    alone, and an engine's heap is exempt from it (`process.freeze_heap`) while drafts come and go.
    """

    def products(self) -> Iterator[BatchInvariantLinear]:
        """Yield every product with weights."""
        for part in self._parts():
            if isinstance(part, BatchInvariantLinear):
                yield part
            elif isinstance(part, Layer):
                yield from part.products()

    def row_wise(self) -> Iterator[RowWise]:
        """Yield every other operation that could mix rows."""
        if (own := self.checked()) is not None:
            yield own
        for part in self._parts():
            if isinstance(part, Layer):
                yield from part.row_wise()

    def checked(self) -> RowWise | None:
        """Return its own operation that could mix rows, if it has one."""
        return None

    def _parts(self) -> Iterator[Any]:
        for value in vars(self).values():
            yield from value if isinstance(value, list) else (value,)


class Decoder(Layer):
    """A whole model."""

    row_unit = 1  # a step's rows are a multiple of it
    _head: BatchInvariantLinear

    def sites(self) -> Iterator[Site]:
        """Yield the products that adapters may change."""
        raise NotImplementedError

    def logits(self, hidden: Tensor) -> Tensor:
        """(rows, width) -> (rows, vocabulary)."""
        return self._head(hidden)

    def output_rows(self, ids: Tensor) -> Tensor:
        """Return rows (n, width) of the LM head for ids (n)."""
        return self._head.output_rows(ids)


class Affine(NamedTuple):
    """The weights of a linear layer."""

    weight: Tensor  # (out, in)
    bias: Tensor | None  # (out)

    @classmethod
    def from_linear(cls, linear: nn.Linear) -> Affine:
        """Read them from a transformers module."""
        return cls(linear.weight.detach(), None if linear.bias is None else linear.bias.detach())

    def reordered(self, order: Tensor) -> Affine:
        """Put the outputs in another order (out)."""
        order = order.to(self.weight.device)
        return Affine(self.weight[order], None if self.bias is None else self.bias[order])


def find_parts(module: Any, *choices: tuple[str, ...]) -> dict[str, nn.Linear]:
    """Return the linear layers of a transformers module by the first of these sets of names that it has."""
    names = next(names for names in choices if hasattr(module, names[0]))
    return {name: getattr(module, name) for name in names}


def fused(*layers: nn.Linear | Affine) -> BatchInvariantLinear:
    """Build one product that gives the outputs of all these layers side by side."""
    parts = [layer if isinstance(layer, Affine) else Affine.from_linear(layer) for layer in layers]
    weight = parts[0].weight if len(parts) == 1 else torch.cat([part.weight for part in parts])
    if all(part.bias is None for part in parts):
        return BatchInvariantLinear(weight)
    biases = [weight.new_zeros(len(part.weight)) if part.bias is None else part.bias for part in parts]
    return BatchInvariantLinear(weight, torch.cat(biases))


def _norm_weight(module: Any) -> tuple[Tensor, float]:
    """The weight and epsilon of an RMSNorm; Gemma's is one more than what it stores, in float32."""
    if type(module).__name__.startswith("Gemma"):
        return 1 + module.weight.detach().float(), float(module.eps)
    return module.weight.detach(), float(module.variance_epsilon)


class RMSNorm(Layer):
    """x / sqrt(mean(x²) + epsilon) * weight over the last dimension (Zhang, Sennrich, arXiv 1910.07467)."""

    def __init__(self, module: Any) -> None:
        self.weight, self.epsilon = _norm_weight(module)
        self._wide = self.weight.float()  # for compiled code

    def checked(self) -> RowWise:
        """The norm."""
        return RowWise("RMSNorm", self.weight.shape[0], self)

    def __call__(self, x: Tensor) -> Tensor:
        """x (rows, width) -> the same."""
        if x.is_cpu:
            return elementwise.norm(x, self._wide, self.epsilon)
        wide = x.to(self.weight.dtype)
        return F.rms_norm(wide, self.weight.shape, self.weight, self.epsilon).to(x.dtype)

    def add(self, x: Tensor, more: Tensor | None) -> tuple[Tensor, Tensor]:
        """x and `more` (rows, width) -> their sum, perhaps in place of x, and its norm."""
        if more is None:
            return x, self(x)
        if x.is_cpu:
            return x, elementwise.norm(x, self._wide, self.epsilon, more)
        x = x + more
        return x, self(x)


class HeadNorm(Layer):
    """RMSNorm of each query and key head, in one go."""

    def __init__(self, query: Any, key: Any, heads: int, kv_heads: int) -> None:
        weight, self.epsilon = _norm_weight(query)
        self.weight = torch.cat([weight.expand(heads, -1), _norm_weight(key)[0].expand(kv_heads, -1)])
        width = self.weight.shape[-1]
        # on a CPU, where torch's own falls apart into more operations: by the sum of the squares, with what
        # makes a mean of it in the weight
        self._by_sum, self._epsilon = self.weight.float() * width**0.5, self.epsilon * width

    def checked(self) -> RowWise:
        """The norm of all heads of a row."""
        shape = self.weight.shape
        return RowWise("the norm of heads", shape.numel(), lambda x: self(x.view(-1, *shape)).view_as(x))

    def __call__(self, x: Tensor) -> Tensor:
        """x (rows, query and key heads, width)."""
        if x.is_cpu:
            wide = x.float()
            scale: Tensor = torch.linalg.vector_norm(wide, 2, -1, True).square_().add_(self._epsilon).rsqrt_()
            normed: Tensor = (wide * scale).mul_(self._by_sum)
            return normed.to(x.dtype)
        return (F.rms_norm(x, x.shape[-1:], None, self.epsilon) * self.weight).to(x.dtype)


Rotation = Callable[[Tensor], Tensor]  # of x (rows, heads, width), perhaps in place


class Rope:
    """Rotary position embeddings (Su et al., arXiv 2104.09864), computed once: none depends on the batch."""

    def __init__(self, rotary: nn.Module, max_length: int, like: Tensor, *kind: str) -> None:
        """`rotary` is a transformers module, asked for a `kind` of layer where it has several; positions
        below `max_length`; dtype and device of `like`.
        """
        positions = torch.arange(max_length, device=like.device)[None]
        angles = rotary(like.new_empty(1, 1, 1), positions, *kind)
        if isinstance(angles, Tensor):  # DeepSeek-V2's has one complex number for each pair
            angles = tuple(torch.cat([part, part], -1).to(like.dtype) for part in (angles.real, angles.imag))
        cos, sin = angles
        if not torch.equal(*sin.chunk(2, -1)):  # GPT-OSS has each angle once
            cos, sin = torch.cat([cos, cos], -1), torch.cat([sin, sin], -1)
        half = sin.shape[-1] // 2
        self._cos: Tensor = cos[0]
        self._sin = torch.cat([-sin[0, :, :half], sin[0, :, half:]], -1)  # its first half negated

    def at(self, positions: Tensor) -> Rotation:
        """Return the rotation of each row, by its position (rows)."""
        if positions.is_cpu:
            return partial(elementwise.rotate, cos=self._cos, sin=self._sin, positions=positions.long())
        cos, sin = self._cos[positions][:, None], self._sin[positions][:, None]

        def rotate(x: Tensor) -> Tensor:
            width = cos.shape[-1]
            turned = x if x.shape[-1] == width else x[..., :width]  # some models turn a part of each head
            # products and a sum: a fused multiply-add would round by where a row happens to stand
            swapped = turned.roll(width // 2, -1).mul_(sin)
            turned = (turned * cos).add_(swapped)
            return turned if x.shape[-1] == width else torch.cat([turned, x[..., width:]], -1)

        return rotate


class GatedMLP(Layer):
    """down(act(gate(x)) * up(x)) (Shazeer, arXiv 2002.05202)."""

    def __init__(
        self,
        gate_up: BatchInvariantLinear,
        down: BatchInvariantLinear,
        activation: Callable[[Tensor], Tensor],
    ) -> None:
        """`gate_up` gives both gate and up, side by side."""
        self.activation = activation
        self.gate_up: Product = gate_up
        self.down: Product = down
        self.parts: dict[str, int] = {}  # what gives gate and up in a checkpoint, with its outputs
        self._width = gate_up.shape[0]
        # by compiled code, which takes rows one by one
        self._is_compiled = isinstance(activation, SiLUActivation | nn.SiLU) and gate_up.device.type == "cpu"

    @property
    def row_unit(self) -> int:
        """What the number of rows must be a multiple of."""
        return 1 if self._is_compiled else find_row_unit(self._width // 2)

    def checked(self) -> RowWise:
        """The gated activation."""
        return RowWise("the gated activation", self._width, self.gated)

    @classmethod
    def from_module(cls, module: Any) -> GatedMLP:
        """Take the weights of a transformers module."""
        parts = find_parts(module, ("gate_up_proj",), ("gate_proj", "up_proj"))
        activation = module.activation_fn if len(parts) == 1 else module.act_fn
        mlp = cls(fused(*parts.values()), fused(module.down_proj), activation)
        mlp.parts = {name: part.out_features for name, part in parts.items()}
        return mlp

    def sites(self, prefix: str) -> Iterator[Site]:
        """Yield the products that adapters may change, of the module `prefix`."""
        if self.parts:
            yield Site(self, "gate_up", {f"{prefix}.{name}": size for name, size in self.parts.items()})
            yield Site.single(self, "down", f"{prefix}.down_proj")

    def gated(self, gate_up: Tensor) -> Tensor:
        """(rows, 2 * inner) -> (rows, inner)."""
        if self._is_compiled:
            return elementwise.gate(gate_up)
        if not gate_up.is_cpu:
            return self._gate(gate_up)
        parts = split_rows(len(gate_up), self._width // 2, torch.get_num_threads())
        if len(parts) == 1:
            return self._gate(gate_up)
        return torch.cat([self._gate(part) for part in gate_up.split_with_sizes(parts)])

    def _gate(self, gate_up: Tensor) -> Tensor:
        gate, up = gate_up.chunk(2, -1)
        return self.activation(gate).mul_(up)

    def __call__(self, x: Tensor) -> Tensor:
        """x (rows, width) -> the same."""
        return self.down(self.gated(self.gate_up(x)))


class ClampedMLP(GatedMLP):
    """GPT-OSS's: down((clamp(up(x)) + 1) * g * sigmoid(alpha * g)), g = min(gate(x), limit)."""

    def __init__(
        self, gate_up: BatchInvariantLinear, down: BatchInvariantLinear, alpha: float, limit: float
    ) -> None:
        self.limit = limit
        super().__init__(gate_up, down, lambda gate: gate * torch.sigmoid(gate * alpha))

    def _gate(self, gate_up: Tensor) -> Tensor:
        gate, up = gate_up.chunk(2, -1)
        return (up.clamp(-self.limit, self.limit) + 1) * self.activation(gate.clamp(max=self.limit))
