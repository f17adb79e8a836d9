"""What tests ask of the ranks of a model that is cut up: each runs these in its own process."""

from __future__ import annotations

from pathlib import Path

from turbo_runtime.models.runner import ModelRunner


def weight_bytes(model: ModelRunner) -> int:
    """Bytes of a rank's products, each weight once, and of its embedding."""
    products = sum(one.shape[0] * one.shape[1] * one.dtype.itemsize for one in model.decoder.products())
    return products + model.decoder.embedding.nbytes


def kernels(model: ModelRunner) -> set[str]:
    """The kernels of a rank's products."""
    return {product.form.name for product in model.decoder.products()}


def rank_pids(engine: int) -> list[int]:
    """The processes that an engine has started, without multiprocessing's own."""
    children = Path(f"/proc/{engine}/task/{engine}/children").read_text().split()
    return [int(c) for c in children if "resource_tracker" not in Path(f"/proc/{c}/cmdline").read_text()]
