"""GPU nodes that KWOK keeps alive: the real scheduler places pods on them, nothing runs."""

from __future__ import annotations

from typing import Any

from turbo_operator.api import API_VERSION

GPU = "nvidia.com/gpu"


def gpu_accelerator(name: str, price: str, **spec: Any) -> dict[str, Any]:
    """A TurboAccelerator of one GPU of 80 GiB on nodes whose product is its name; `spec` adds to it."""
    return {
        "apiVersion": API_VERSION,
        "kind": "TurboAccelerator",
        "metadata": {"name": name},
        "spec": {
            "resourceName": GPU,
            "memory": "80Gi",
            "nodeSelector": {f"{GPU}.product": name},
            "tolerations": [{"key": "kwok.x-k8s.io/node", "operator": "Exists"}],
            "pricing": {"perAcceleratorHour": {"onDemand": price}, "source": "set by the test"},
            **spec,
        },
    }


def gpu_node(name: str, product: str, gpus: int = 8, memory_mib: int = 81559) -> dict[str, Any]:
    """A Node object with the labels that NVIDIA's GPU feature discovery writes, tainted against real pods.

    `product` is the label nvidia.com/gpu.product ("NVIDIA-H100-80GB-HBM3"), `memory_mib` one GPU's memory.
    """
    room = {"cpu": "128", "memory": "1Ti", "pods": "110", "nvidia.com/gpu": str(gpus)}
    return {
        "apiVersion": "v1",
        "kind": "Node",
        "metadata": {
            "name": name,
            "annotations": {"kwok.x-k8s.io/node": "fake"},
            "labels": {
                "kubernetes.io/arch": "amd64",
                "kubernetes.io/os": "linux",
                "kubernetes.io/hostname": name,
                "nvidia.com/gpu.present": "true",
                "nvidia.com/gpu.product": product,
                "nvidia.com/gpu.count": str(gpus),
                "nvidia.com/gpu.memory": str(memory_mib),
            },
        },
        "spec": {"taints": [{"key": "kwok.x-k8s.io/node", "value": "fake", "effect": "NoSchedule"}]},
        "status": {"capacity": room, "allocatable": room},
    }
