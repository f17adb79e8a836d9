"""The kind TurboAccelerator: what one accelerator of a class is, holds and costs."""

from __future__ import annotations

from collections.abc import Mapping
from decimal import Decimal
from typing import Annotated, Literal

from pydantic import Field

from turbo_operator.api.condition import StatusRecord
from turbo_operator.api.constants import API_VERSION, TURBOACCELERATOR, Provisioning
from turbo_operator.api.template import Labels, Toleration
from turbo_operator.api.validation import Amount, LabelValue, Memory, Metadata, Quantity, Record, Rule, Text

_RESOURCE = r"([a-z0-9]([-a-z0-9.]*[a-z0-9])?/)?[A-Za-z0-9]([-A-Za-z0-9_.]*[A-Za-z0-9])?"
_Price = Annotated[
    Decimal, Amount('write dollars per accelerator and hour as a string, like "0.80"', positive=False)
]
_Rate = Annotated[Decimal, Amount('write a number above 0 as a string, like "3350"')]


class PerAcceleratorHour(Record):
    """Prices of one accelerator for one hour; one left out is unknown, never zero."""

    on_demand: _Price | None = None
    """On demand."""
    spot: _Price | None = None
    """Spot or preemptible: your own value, none is shipped."""
    reserved: _Price | None = None
    """Reserved or committed: your own value, none is shipped."""


class Pricing(Record):
    """What one accelerator costs, and who says so."""

    per_accelerator_hour: PerAcceleratorHour
    """Prices of one accelerator for one hour."""
    billing_unit: Literal["Accelerator", "Node"] = "Accelerator"
    """Node where nodes are bought whole: a plan then pays for all accelerators of every node it needs."""
    currency: Literal["USD"] = "USD"
    """US dollars."""
    source: Annotated[str, Text(253)] | None = None
    """Where the price comes from; shown beside it."""
    as_of: Annotated[str, Text(10, r"\d{4}-\d{2}-\d{2}", "write a day, like 2026-01-19")] | None = None
    """The day it was right."""


class TeraFlops(Record):
    """Dense floating-point (or integer) operations per second by type, in units of 10^12."""

    bf16: _Rate
    """bfloat16 and float16."""
    fp8: _Rate | None = None
    """8-bit floating point, where there is hardware for it."""
    int8: _Rate | None = None
    """8-bit integers, where there is hardware for it."""
    fp4: _Rate | None = None
    """4-bit floating point, where there is hardware for it."""


_Share = Annotated[Decimal, Amount('write a share of the peak above 0 as a string, like "0.85"')]
_Seconds = Annotated[Decimal, Amount('write seconds above 0 as a string, like "0.00007"')]


class Efficiency(Record):
    """What was measured on this accelerator, in place of the planner's general coefficients."""

    bandwidth: _Share | None = None
    """Share of the memory bandwidth that dense weights and KV cache reach."""
    expert_bandwidth: _Share | None = None
    """The same for routed experts."""
    flops: _Share | None = None
    """Share of the peak operations that dense layers reach."""
    expert_flops: _Share | None = None
    """The same for routed experts."""
    layer_seconds: _Seconds | None = None
    """Fixed time of one layer of one step."""


class CapacityNodes(Record):
    """Nodes of one capacity type."""

    node_selector: Annotated[Mapping[str, LabelValue], Field(max_length=8)]
    """Labels that they have, all of them; nodes that do not are of another capacity type."""

    rules = (
        Rule(
            "self.nodeSelector.size() > 0",
            "name a label that these nodes have and no others, or leave this capacity type out",
            "nodeSelector",
        ),
    )


class CapacityTypes(Record):
    """How nodes of each capacity type are recognized; one left out, by the labels of Karpenter, EKS, GKE and
    AKS."""

    on_demand: CapacityNodes | None = None
    """Nodes on demand. Default: those that are neither spot nor reserved."""
    spot: CapacityNodes | None = None
    """Spot or preemptible nodes."""
    reserved: CapacityNodes | None = None
    """Reserved or committed nodes."""


class TurboAcceleratorSpec(Record):
    """One class of accelerator."""

    resource_name: Annotated[
        str, Text(253, _RESOURCE, "write a resource that nodes have, like nvidia.com/gpu or cpu")
    ]
    """The resource of nodes that pods request, such as nvidia.com/gpu or cpu."""
    quantity: Quantity = "1"
    """How much of the resource makes one accelerator: of resource cpu, that many cores."""
    node_selector: Labels | None = None
    """Labels of the nodes that have it."""
    tolerations: Annotated[tuple[Toleration, ...], Field(max_length=16)] | None = None
    """Taints of the nodes that have it."""
    capacity_types: CapacityTypes | None = None
    """How nodes of each capacity type are told. Default: by the labels of Karpenter, EKS, GKE and AKS."""
    memory: Memory
    """Memory of one accelerator, like 80Gi."""
    memory_bandwidth_gbps: Annotated[_Rate | None, Field(alias="memoryBandwidthGBps")] = None
    """Memory bandwidth of one accelerator in 10^9 bytes per second; left out, no speed can be planned."""
    tflops: TeraFlops | None = None
    """Operations per second of one accelerator; left out, no speed can be planned."""
    count_per_node: Annotated[int, Field(strict=True, ge=1, le=1024)] | None = None
    """Accelerators of one node. Default: one."""
    interconnect_gbps: Annotated[_Rate | None, Field(alias="interconnectGBps")] = None
    """Bandwidth between accelerators of a node, one way and per accelerator, in 10^9 bytes per second."""
    network_gbps: Annotated[_Rate | None, Field(alias="networkGBps")] = None
    """Bandwidth between nodes, one way and per accelerator, in 10^9 bytes per second."""
    provisioning: Provisioning = Provisioning.FIXED
    """Fixed: plans stay within what nodes have. Elastic: nodes are added while pods wait, up to maxCount."""
    max_count: Annotated[int, Field(strict=True, ge=0, le=100_000)] | None = None
    """Elastic: accelerators that all nodes together may come to. Default: no bound."""
    efficiency: Efficiency | None = None
    """What was measured on this accelerator, in place of the planner's general coefficients."""
    pricing: Pricing | None = None
    """What one accelerator costs; left out is unknown, never zero."""

    rules = (
        Rule(
            "!has(self.maxCount) || self.provisioning == 'Elastic'",
            "leave maxCount out, or write provisioning: Elastic: Fixed has what nodes have",
            "maxCount",
        ),
    )


class TurboAcceleratorStatus(StatusRecord):
    """What the cluster has of it; written by the operator."""

    nodes: Annotated[int, Field(ge=0)] = 0
    """Nodes that have it."""
    allocatable: Annotated[int, Field(ge=0)] = 0
    """Accelerators of those nodes."""
    available: Annotated[int, Field(ge=0)] = 0
    """Accelerators that no pod holds."""


class TurboAccelerator(Record):
    """A class of accelerators that the planner may choose from: what one is, holds and costs."""

    api_version: Literal["serving.turbo.dev/v1alpha1"] = API_VERSION
    kind: Literal["TurboAccelerator"] = TURBOACCELERATOR
    metadata: Metadata
    spec: TurboAcceleratorSpec
    """What it is."""
    status: TurboAcceleratorStatus = Field(default_factory=TurboAcceleratorStatus)
    """What the cluster has of it; written by the operator."""
