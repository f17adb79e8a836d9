"""Cores of the embedded node as accelerators, in sizes of which several pods fit on two cores."""

from __future__ import annotations

from typing import Any

from turbo_operator.api import API_VERSION, TURBOACCELERATOR


def accelerator(name: str, quantity: str, memory_gib: int) -> dict[str, Any]:
    """A TurboAccelerator of so many cores, priced."""
    return {
        "apiVersion": API_VERSION,
        "kind": TURBOACCELERATOR,
        "metadata": {"name": name},
        "spec": {
            "resourceName": "cpu",
            "quantity": quantity,
            "memory": f"{memory_gib}Gi",
            "pricing": {"perAcceleratorHour": {"onDemand": "0.04"}, "source": "set by the test"},
        },
    }
