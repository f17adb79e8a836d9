"""Copies between the host and a device: what a step sends is enqueued, what it fetches waits once."""

from __future__ import annotations

from typing import Any

import torch
from numpy.typing import NDArray
from torch import Tensor

Array = NDArray[Any]


def upload(values: Array, device: torch.device) -> Tensor:
    """Put an array on `device`. From pinned memory the copy is enqueued and nobody waits for it; torch keeps
    the memory until then, and reuses it.
    """
    tensor = torch.from_numpy(values)
    if device.type == "cpu":
        return tensor
    return tensor.pin_memory().to(device, non_blocking=True)


def download(*tensors: Tensor) -> list[Array]:
    """Fetch tensors of any shapes and types to the host, in one copy: the only place where a step waits for
    the device.
    """
    # a tensor of one element is contiguous whatever its stride, which a view of bytes minds
    flat = (tensor.contiguous().as_strided((tensor.numel(),), (1,)) for tensor in tensors)
    whole = torch.cat([each.view(torch.uint8) for each in flat])
    data = whole.cpu().numpy()
    arrays: list[Array] = []
    start = 0
    for tensor in tensors:
        end = start + tensor.numel() * tensor.element_size()
        kind = torch.empty(0, dtype=tensor.dtype).numpy().dtype
        arrays.append(data[start:end].view(kind).reshape(tensor.shape))
        start = end
    return arrays


def host_arrays(*tensors: Tensor) -> list[Array]:
    """Return the arrays of tensors of the host, which share their memory."""
    return [tensor.numpy() for tensor in tensors]
