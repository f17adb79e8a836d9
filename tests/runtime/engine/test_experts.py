"""A mixture of experts gives what transformers' gives, and a row the same bits in any company."""

from __future__ import annotations

import time

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from transformers import DeepseekV3Config
from transformers.models.deepseek_v3.modeling_deepseek_v3 import DeepseekV3MoE

from turbo_runtime.engine.startup.invariance_check import find_invariant_kernel
from turbo_runtime.models.layers.native import Experts
from turbo_runtime.models.layers.primitives import GatedMLP
from turbo_runtime.models.matmul import MatmulKernel, padded_rows

WIDTH, ROWS = 32, 150


pytestmark = pytest.mark.usefixtures("one_thread")


def module(**changes: object) -> DeepseekV3MoE:
    sizes = {"n_routed_experts": 8, "num_experts_per_tok": 3, "n_group": 4, "topk_group": 2, **changes}
    config = DeepseekV3Config(hidden_size=WIDTH, moe_intermediate_size=24, n_shared_experts=1, **sizes)
    config._experts_implementation = "eager"
    torch.manual_seed(0)
    made = DeepseekV3MoE(config).requires_grad_(False)
    for tensor in (*made.parameters(), made.gate.e_score_correction_bias):
        tensor.normal_(0.0, 0.3)
    return made


def experts() -> Experts:
    """In forms that keep rows apart."""
    made, forms = Experts(module()), dict[str, MatmulKernel]()
    for product in made.products():
        if product.name not in forms:
            forms[product.name] = find_invariant_kernel(product, time.monotonic() + 60)
        product.use(forms[product.name])
    return made


def rows() -> Tensor:
    return torch.randn(ROWS, WIDTH, generator=torch.Generator().manual_seed(1))


def padded(x: Tensor) -> Tensor:
    """With rows of padding, of which nothing may be read."""
    idle = padded_rows(len(x), 4) - len(x)
    return torch.cat([x, torch.full((idle, WIDTH), float("inf"))])


@pytest.mark.parametrize(
    "changes",
    [{}, {"n_group": 1, "topk_group": 1}, {"norm_topk_prob": False}, {"num_experts_per_tok": 1}],
    ids=["groups", "one group", "not normalised", "one expert each"],
)
def test_it_is_the_mixture_of_transformers(changes: dict[str, object]) -> None:
    theirs = module(**changes)
    expected = theirs(rows()[None])[0]
    torch.testing.assert_close(Experts(theirs)(rows(), ROWS), expected, atol=1e-4, rtol=1e-4)


@pytest.fixture(scope="module")
def alone() -> tuple[Experts, Tensor]:
    """A mixture, and what each row gets by itself."""
    torch.set_num_threads(1)
    mixture = experts()
    return mixture, torch.cat([mixture(padded(row[None]), 1)[:1] for row in rows()])


@given(st.lists(st.integers(0, ROWS - 1), min_size=1, max_size=ROWS))
@settings(max_examples=30)
def test_a_row_has_the_same_bits_in_any_company_at_any_place(
    alone: tuple[Experts, Tensor], company: list[int]
) -> None:
    mixture, expected = alone
    found = mixture(padded(rows()[company]), len(company))[: len(company)]
    assert torch.equal(found, expected[company])


def test_padding_is_sent_to_no_expert(monkeypatch: pytest.MonkeyPatch) -> None:
    mixture, seen = experts(), list[Tensor]()
    real = GatedMLP.__call__

    def noting(mlp: GatedMLP, x: Tensor) -> Tensor:
        if mlp is not mixture.shared:
            seen.append(x)
        return real(mlp, x)

    monkeypatch.setattr(GatedMLP, "__call__", noting)
    mixture(padded(rows()[:5]), 5)
    assert all(each.isfinite().all() for each in seen)
    assert 3 <= len(seen) <= 8
