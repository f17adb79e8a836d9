"""Files that `turbo plan` is given in tests."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import yaml

EXAMPLES = Path(__file__).parents[2] / "examples"
MODEL = "HuggingFaceTB/SmolLM2-135M-Instruct"


def written(folder: Path, *documents: dict[str, Any]) -> str:
    """A file of these objects."""
    path = folder / "td.yaml"
    path.write_text(yaml.safe_dump_all(documents))
    return str(path)


def deployment(**spec: Any) -> dict[str, Any]:
    """A TurboDeployment of the small model."""
    return {
        "apiVersion": "serving.turbo.dev/v1alpha1",
        "kind": "TurboDeployment",
        "metadata": {"name": "chat"},
        "spec": {"model": {"uri": f"hf://{MODEL}"}, **spec},
    }


def accelerator(name: str, price: str) -> dict[str, Any]:
    """A TurboAccelerator of 24 GiB at a price."""
    return {
        "apiVersion": "serving.turbo.dev/v1alpha1",
        "kind": "TurboAccelerator",
        "metadata": {"name": name, "resourceVersion": "7"},
        "spec": {
            "resourceName": "nvidia.com/gpu",
            "memory": "24Gi",
            "pricing": {"perAcceleratorHour": {"onDemand": price}},
        },
    }


def answer(capsys: pytest.CaptureFixture[str]) -> Any:
    """The first answer that was printed as JSON."""
    return json.loads(capsys.readouterr().out)[0]


def node(name: str, gpus: int | str, **spec: Any) -> dict[str, Any]:
    """A ready node."""
    room = {"nvidia.com/gpu": str(gpus), "cpu": "64", "memory": "512Gi"}
    return {
        "apiVersion": "v1",
        "kind": "Node",
        "metadata": {"name": name, "labels": {}},
        "spec": spec,
        "status": {"allocatable": room, "conditions": [{"type": "Ready", "status": "True"}]},
    }


def pod(name: str, on: str, gpus: int | str) -> dict[str, Any]:
    """A pod that runs on a node."""
    resources = {"requests": {"nvidia.com/gpu": str(gpus)}, "limits": {"nvidia.com/gpu": str(gpus)}}
    return {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": name, "namespace": "other"},
        "spec": {"nodeName": on, "containers": [{"name": "main", "resources": resources}]},
        "status": {"phase": "Running"},
    }


def nodes_file(folder: Path, *items: dict[str, Any]) -> str:
    """What kubectl get -o yaml prints of these."""
    path = folder / "nodes.yaml"
    path.write_text(yaml.safe_dump({"apiVersion": "v1", "kind": "List", "items": list(items)}))
    return str(path)
