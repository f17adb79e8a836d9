"""Why the replicas of an offering do not fit in the cluster, and what would help. Pure."""

from __future__ import annotations

from turbo_operator.api import Provisioning
from turbo_operator.planner.evaluation import PlanEvaluation
from turbo_operator.planner.explanation.messages import count, join, paid_as
from turbo_operator.planner.offering import Offering
from turbo_operator.planner.performance import memory
from turbo_operator.snapshot import Supply

Shortage = tuple[str, list[str]]  # what there is, as the end of a sentence, and what would make it more


def describe_shortage(evaluation: PlanEvaluation, index: int, offering: Offering) -> str:
    """Name what is needed and what there is, with what to do."""
    requirements, replicas = evaluation.requirements, int(evaluation.verdict.replicas[index])
    needs, room = f"{count(replicas, 'replica')} of {offering.hardware}", evaluation.availability.room[index]
    if evaluation.availability.within_total[index] < replicas:
        accelerators = count(replicas * offering.per_replica, "accelerator")
        return (
            f"{needs} {'takes' if replicas == 1 else 'take'} {accelerators}, and spec.accelerators.maxTotal "
            f"is {requirements.accelerators.max_total}: raise it, or lower what is asked."
        )
    always = ["ask for fewer replicas"] if replicas > 1 else []
    always += ["allow another accelerator"] if requirements.accelerators.allowed else []
    what, remedies = _shortage(evaluation, offering, int(room), always)
    remedy = f": {join(remedies, 'or')}" if remedies else ""
    return f"{needs} {'is' if replicas == 1 else 'are'} needed, and {what}{remedy}."


def _shortage(evaluation: PlanEvaluation, offering: Offering, room: int, always: list[str]) -> Shortage:
    accelerator, name = offering.accelerator, offering.accelerator.name
    supply = (evaluation.requirements.inputs.supply or {}).get(name, Supply())
    holds = f"enough for {count(room, 'such replica')}"
    if supply.quota is not None and supply.quota // offering.per_replica <= room:
        remedies = ["raise the ResourceQuota", *always]
        return f"the namespace's quota leaves {supply.quota} {name}, {holds}", remedies
    if accelerator.provisioning == Provisioning.FIXED:
        find = _on_nodes if supply.nodes else _without_nodes
        what, remedies = find(evaluation, offering, supply, room)
        grow = f"write provisioning: Elastic on TurboAccelerator {name} where nodes can be added"
        return what, [*remedies, *always, grow]
    if supply.unavailable_until is not None and room < (accelerator.max_count or room + 1):
        waited = f"a pod waited for one more {name} longer than spec.accelerators.pendingTimeout"
        return f"the cluster has {holds}: {waited}; it is tried again later", []
    bound = f"TurboAccelerator {name} may grow to spec.maxCount of {accelerator.max_count}"
    return f"{bound}, {holds}", ["raise it", *always]


def _without_nodes(evaluation: PlanEvaluation, offering: Offering, supply: Supply, _: int) -> Shortage:
    """Tell nodes that take no pods from labels that no node has."""
    owner = f"TurboAccelerator {offering.accelerator.name}"
    if supply.closed:
        return _closed(supply), ["make them ready", f"write their taints in spec.tolerations of {owner}"]
    own = evaluation.requirements.inputs.spec.pod_template.spec.node_selector or {}
    labels = [f"{key}={value}" for key, value in {**offering.accelerator.node_selector, **own}.items()]
    if not labels:
        return "the cluster has no node", []
    field = "spec.podTemplate.spec.nodeSelector" if own else f"spec.nodeSelector of {owner}"
    return f"no node has the labels {join(labels)}", ["label its nodes", f"correct {field}"]


def _on_nodes(evaluation: PlanEvaluation, offering: Offering, supply: Supply, room: int) -> Shortage:
    """Tell accelerators that pods hold from nodes that have none, or too little beside them."""
    accelerator, requirements, remedies = offering.accelerator, evaluation.requirements, list[str]()
    nodes = [node for node in supply.nodes if offering.capacity_type in node.capacity_types]
    free, there = (sum(getattr(node, field) for node in nodes) for field in ("free", "allocatable"))
    what, on = f"{accelerator.name}{paid_as(offering.capacity_type)}", count(len(nodes), "node")
    rest = f"the cluster has no free {what}"
    if free:
        rest = f"the cluster has {free} of {there} {what} free on {on}, enough for "
        rest += count(room, "such replica")
    elif there:
        rest = f"none of {there} {what} on {on} is free"
    elif nodes:
        rest = f"no node with its labels offers enough {accelerator.resource_name} for one {what}"
        remedies += [] if memory.on_cpu(accelerator) else ["check the device plugin"]
    draft_bytes = int(evaluation.memory_use.host[offering.place])
    host = requirements.host(accelerator, offering.tensor * offering.data, draft_bytes)
    # Without cores and memory in the count more replicas would fit.
    if free and host is not None and room < (offering.room(supply, requirements.now) or 0):
        rest += f", each with {host.millicores / 1000:g} cores and {memory.gib(host.memory_bytes)} of memory"
        rest += " beside"
    if others := {node.name for node in supply.nodes} - {node.name for node in nodes}:
        rest += (
            f", and {count(len(others), 'node')} of another capacity type (by its labels: name yours in "
            f"spec.capacityTypes of TurboAccelerator {accelerator.name})"
        )
    return f"{rest}, and {_closed(supply)}" if supply.closed else rest, remedies


def _closed(supply: Supply) -> str:
    verb = "takes" if supply.closed == 1 else "take"
    return f"{count(supply.closed, 'node')} with its labels {verb} no pods (not ready, cordoned or tainted)"
