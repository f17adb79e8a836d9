"""What the status of a TurboDeployment can never say at once. Pure: bodies in, sentences out.

It knows the API alone, so it judges every operator's status, whatever the operator was about to do.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from decimal import Decimal
from typing import Any

Body = Mapping[str, Any]

_COUNT = re.compile(r"(\d+) of (\d+) replicas (?:answer|serve)")
_COST = re.compile(r"costs (\d+(?:\.\d+)?) \$/h, and spec\.cost\.maxPerHour is (\d+(?:\.\d+)?)")
_ABSENT: Body = {"status": "Absent", "reason": "", "message": "", "lastTransitionTime": ""}
_ROLLED_BACK = ("Ready", "Reconciling", "Stalled")


def contradictions(body: Body) -> list[str]:
    """What of the status of a TurboDeployment cannot hold together; nothing where there is no status."""
    status = body.get("status") or {}
    if not status.get("conditions"):
        return []
    conditions = {each["type"]: each for each in status["conditions"]}
    checks = (
        _shape(body, status),
        _verdicts(status, conditions),
        _counts(status, conditions),
        _in_force(status, conditions),
        _suspension(body, status, conditions),
        _rollback(status, conditions),
        _plans(status, conditions),
        _budget(body, status, conditions),
    )
    return [sentence for check in checks for sentence in check]


def impossible_changes(before: Body, after: Body) -> list[str]:
    """What cannot have become of one status of an object in the next one."""
    old, new = before.get("status") or {}, after.get("status") or {}
    sentences = []
    if new.get("observedGeneration", 0) < old.get("observedGeneration", 0):
        sentences.append(
            f"observedGeneration fell from {old['observedGeneration']} to {new.get('observedGeneration', 0)}."
        )
    past = {each["type"]: each for each in old.get("conditions", ())}
    for condition in new.get("conditions", ()):
        last = past.get(condition["type"])
        if last is None:
            continue
        flipped = last["status"] != condition["status"]
        earlier, later = last["lastTransitionTime"], condition["lastTransitionTime"]
        if not flipped and earlier != later:
            sentences.append(
                f"{condition['type']} stayed {last['status']}, and its lastTransitionTime moved from "
                f"{earlier} to {later}."
            )
        if later < earlier:
            sentences.append(
                f"lastTransitionTime of {condition['type']} went back from {earlier} to {later}."
            )
    return sentences


def _is(conditions: Mapping[str, Body], kind: str, status: str, reason: str | None = None) -> bool:
    condition = conditions.get(kind, _ABSENT)
    return condition["status"] == status and reason in (None, condition["reason"])


def _number(status: Body, field: str) -> int:
    return int(status.get(field) or 0)


def _shape(body: Body, status: Body) -> Iterator[str]:
    """Each condition once, with a reason and a sentence, of a generation that there is."""
    generation, observed = body["metadata"].get("generation", 0), status.get("observedGeneration", 0)
    if observed > generation:
        yield f"observedGeneration is {observed}, and the generation {generation}."
    kinds = [each["type"] for each in status["conditions"]]
    for kind in sorted({kind for kind in kinds if kinds.count(kind) > 1}):
        yield f"The condition {kind} is there {kinds.count(kind)} times."
    for condition in status["conditions"]:
        kind = condition["type"]
        if condition.get("observedGeneration", 0) > observed:
            yield (
                f"{kind} speaks of generation {condition['observedGeneration']}, "
                f"and the status of {observed}."
            )
        if not condition["reason"]:
            yield f"{kind} has no reason."
        if not condition["message"].strip() or condition["message"].rstrip()[-1] not in ".!?":
            yield f"The message of {kind} is no sentence: '{condition['message']}'."
    for kind in ("Ready", "Reconciling", "Stalled"):
        if kind not in kinds:
            yield f"There is no condition {kind}."


def _verdicts(status: Body, conditions: Mapping[str, Body]) -> Iterator[str]:
    """Conditions against each other."""
    none_wanted = _number(status, "desiredReplicas") == 0
    if _is(conditions, "Ready", "True") and _is(conditions, "Available", "False") and not none_wanted:
        yield "Ready is True, and Available is False."
    if _is(conditions, "Stalled", "True") and _is(conditions, "Reconciling", "True"):
        yield "Stalled and Reconciling are both True."
    if _is(conditions, "Ready", "True"):
        if _is(conditions, "Stalled", "True"):
            yield f"Ready is True, and Stalled is True for {conditions['Stalled']['reason']}."
        for kind in ("ModelInspected", "PlanFeasible"):
            condition = conditions.get(kind, _ABSENT)
            partial = condition["reason"] == "InsufficientCapacity"  # as many as fit run
            if condition["status"] in ("False", "Unknown") and not partial:
                yield f"Ready is True, and {kind} is {condition['status']} for {condition['reason']}."
    for reason in ("Serving", "ScaledToZero"):
        if conditions.get("Ready", _ABSENT)["reason"] == reason and not _is(conditions, "Ready", "True"):
            yield f"Ready is {conditions['Ready']['status']} for {reason}."
    waits = _is(conditions, "Reconciling", "True") or _is(conditions, "Stalled", "True")
    rests = _is(conditions, "Ready", "False", "Suspended")
    if _is(conditions, "Ready", "False") and not waits and not rests:
        yield "Ready is False, and neither Reconciling nor Stalled says what it waits for."
    reason = conditions.get("Reconciling", _ABSENT)["reason"]
    rests = _is(conditions, "Reconciling", "False") and reason not in ("UpToDate", "Suspended")
    if rests and not _is(conditions, "Stalled", "True"):
        yield f"Reconciling is False for {reason}, and Stalled is not True."
    if _is(conditions, "Reconciling", "False", "UpToDate"):
        for kind, bad in (("Ready", "False"), ("Stalled", "True"), ("PlanFeasible", "False")):
            if _is(conditions, kind, bad):
                yield f"Reconciling is False for UpToDate, and {kind} is {bad}."


def _counts(status: Body, conditions: Mapping[str, Body]) -> Iterator[str]:
    """Conditions and their messages against the numbers of replicas."""
    replicas, ready = _number(status, "replicas"), _number(status, "readyReplicas")
    wanted = _number(status, "desiredReplicas")
    if ready > replicas:
        yield f"readyReplicas is {ready}, and replicas {replicas}."
    if _is(conditions, "Ready", "False", "InvalidSpec"):
        return  # the other conditions are those of the last spec that could be read
    if _is(conditions, "Available", "True") and wanted > 0 and ready == 0:
        yield f"Available is True, and of {wanted} replicas that are wanted none is ready."
    enough = ready >= wanted > 0
    if (
        _is(conditions, "Available", "False")
        and enough
        and not _is(conditions, "Available", "False", "Suspended")
    ):
        reason = conditions["Available"]["reason"]
        yield f"Available is False for {reason}, and {ready} of {wanted} are ready."
    if _is(conditions, "Available", "False", "NoPlan") and ready:
        yield f"Available is False for NoPlan, and {ready} replicas are ready."
    if _is(conditions, "Ready", "True", "Serving") and ready == 0:
        yield "Ready is True for Serving, and no replica is ready."
    if _is(conditions, "Ready", "True", "ScaledToZero") and wanted:
        yield f"Ready is True for ScaledToZero, and {wanted} replicas are wanted."
    for kind in ("Available", "Ready"):
        told = _COUNT.search(conditions.get(kind, _ABSENT)["message"])
        if told is None:
            continue
        number, total = int(told[1]), int(told[2])
        # Ready may count the pods of the plan alone, Available counts all.
        agrees = number == min(ready, total) if kind == "Available" else number <= ready
        if not agrees or total != wanted:
            yield f"{kind} says '{told[0]}', and readyReplicas is {ready}, desiredReplicas {wanted}."


def _in_force(status: Body, conditions: Mapping[str, Body]) -> Iterator[str]:
    """Where the spec is in force, all is there that it wants, and nothing more."""
    if not _is(conditions, "Reconciling", "False", "UpToDate"):
        return
    replicas, ready = _number(status, "replicas"), _number(status, "readyReplicas")
    wanted = _number(status, "desiredReplicas")
    canary = 1 if status.get("canary") else 0  # its pod is there in addition, or in the place of another
    if not wanted <= replicas <= wanted + canary or not wanted - canary <= ready:
        yield (
            f"Reconciling is False for UpToDate, and replicas is {replicas}, readyReplicas {ready}, "
            f"desiredReplicas {wanted}."
        )
    rollout = status.get("rollout")
    if rollout and wanted > 0:  # with no replica nothing takes over
        yield f"Reconciling is False for UpToDate, and the rollout to {rollout.get('planHash')} is not over."


def _suspension(body: Body, status: Body, conditions: Mapping[str, Body]) -> Iterator[str]:
    """All conditions agree on whether it is suspended, and with the spec that they speak of."""
    is_told = {kind for kind in ("Ready", "Available") if _is(conditions, kind, "False", "Suspended")}
    if len(is_told) == 1 and _is(conditions, "Available", "False", "Suspended"):
        if conditions.get("Ready", _ABSENT)["reason"] not in ("ApplyRejected", "InvalidSpec"):
            yield f"Available is False for Suspended, and Ready is False for {conditions['Ready']['reason']}."
    elif len(is_told) == 1 and "Available" in conditions:
        yield f"Ready is False for Suspended, and Available {conditions.get('Available', _ABSENT)['reason']}."
    if status.get("observedGeneration") != body["metadata"].get("generation"):
        return  # the status speaks of another spec
    if is_told and not body["spec"].get("suspend"):
        yield f"{' and '.join(sorted(is_told))} say Suspended, and spec.suspend is not true."
    if body["spec"].get("suspend") and _is(conditions, "Ready", "True"):
        yield "spec.suspend is true, and Ready is True."


def _rollback(status: Body, conditions: Mapping[str, Body]) -> Iterator[str]:
    """A rollback is told by all conditions that it concerns, and by status.rollout."""
    told = [kind for kind in _ROLLED_BACK if conditions.get(kind, _ABSENT)["reason"] == "RolledBack"]
    if not told:
        return
    rollout = status.get("rollout") or {}
    if rollout.get("reason") != "RolledBack":
        yield f"{' and '.join(told)} say RolledBack, and status.rollout does not."
    for kind, wanted in (("Ready", "False"), ("Reconciling", "False"), ("Stalled", "True")):
        if not _is(conditions, kind, wanted, "RolledBack"):
            condition = conditions.get(kind, _ABSENT)
            yield (
                f"{' and '.join(told)} say RolledBack, and {kind} is {condition['status']} "
                f"for {condition['reason']}."
            )


def _plans(status: Body, conditions: Mapping[str, Body]) -> Iterator[str]:
    """The plan of the spec, the one that serves and the rollout between them."""
    plan, serving, rollout = (status.get(name) or {} for name in ("plan", "servingPlan", "rollout"))
    recommended = status.get("pendingPlan") or {} if status.get("reference") else {}
    if _is(conditions, "PlanFeasible", "True") and not (plan.get("hash") or recommended.get("hash")):
        yield "PlanFeasible is True, and status.plan has no hash."
    hashes = plan.get("hash"), serving.get("hash")
    if not rollout:
        is_wanted = _number(status, "desiredReplicas") > 0 and _is(conditions, "PlanFeasible", "True")
        if is_wanted and all(hashes) and hashes[0] != hashes[1]:
            yield f"The plan is {hashes[0]}, {hashes[1]} serves, and there is no status.rollout."
        return
    if rollout.get("planHash") == serving.get("hash"):
        yield f"status.rollout is to {rollout['planHash']}, and that is what serves."
    if serving.get("hash") and _is(conditions, "Ready", "True", "Serving"):
        yield f"Ready is True for Serving, and the rollout to {rollout.get('planHash')} is not over."
    if plan.get("hash") and rollout.get("planHash") != plan["hash"]:
        yield f"status.rollout is to {rollout.get('planHash')}, and status.plan is {plan['hash']}."
    if rollout.get("reason") == "RolledBack" and not serving.get("hash"):
        yield "status.rollout says RolledBack, and there is no servingPlan to go back to."


def _budget(body: Body, status: Body, conditions: Mapping[str, Body]) -> Iterator[str]:
    """WithinBudget against its own figures and the spec that it speaks of."""
    condition = conditions.get("WithinBudget", _ABSENT)
    told = _COST.search(condition["message"])
    if told is not None:
        cost, most = Decimal(told[1]), Decimal(told[2])
        if cost != most and (cost < most) != (condition["status"] == "True"):  # both are rounded
            yield f"WithinBudget is {condition['status']}, and says '{told[0]}'."
    if status.get("observedGeneration") != body["metadata"].get("generation"):
        return
    has_budget = (body["spec"].get("cost") or {}).get("maxPerHour") is not None
    has_budget = has_budget or "TurboBudget" in condition["message"]  # of the namespace
    invalid = _is(conditions, "Ready", "False", "InvalidSpec")
    if condition["status"] != "Absent" and not invalid and (condition["reason"] == "NoBudget") == has_budget:
        written = "there is one" if has_budget else "there is none"
        yield f"WithinBudget says {condition['reason']}, and of budgets {written}."


def check_writes(writes: Sequence[Body]) -> list[str]:
    """Contradictions of all status writes in audit events, oldest first, with the time and the object.

    Whether a write took place whose client was killed is not in the log: it is compared with none after it.
    """
    own = [event for event in writes if _is_status(event)]
    unanswered = [event for event in own if not _is_done(event) and not _is_refused(event)]
    last: dict[str, tuple[Body, Body]] = {}
    sentences = []
    for event in sorted(filter(_is_done, own), key=_revision):
        body = event["responseObject"]
        uid, found = body["metadata"]["uid"], contradictions(body)
        if uid in last and not any(_is_between(each, last[uid][0], event) for each in unanswered):
            found += impossible_changes(last[uid][1], body)
        last[uid] = event, body
        place = f"{body['metadata']['namespace']}/{body['metadata']['name']}"
        sentences += [f"{event['stageTimestamp']} {place}: {sentence}" for sentence in found]
    return sentences


def _is_status(event: Body) -> bool:
    target = event.get("objectRef") or {}
    return (target.get("resource"), target.get("subresource")) == ("turbodeployments", "status")


def _is_done(event: Body) -> bool:
    return event["responseStatus"]["code"] < 300 and "metadata" in (event.get("responseObject") or {})


def _is_refused(event: Body) -> bool:
    return 400 <= int(event["responseStatus"]["code"]) < 499  # 499 is a client's that went away


def _is_between(unanswered: Body, before: Body, after: Body) -> bool:
    """Whether a write of unknown outcome to the same object may have come between two."""
    one, other = unanswered["objectRef"], after["objectRef"]
    is_same = [one.get(field) for field in ("namespace", "name")] == [
        other.get(field) for field in ("namespace", "name")
    ]
    return (
        is_same
        and before["stageTimestamp"] <= unanswered["stageTimestamp"]
        and unanswered.get("requestReceivedTimestamp", "") <= after["stageTimestamp"]
    )


def _revision(event: Body) -> int:
    return int(((event.get("responseObject") or {}).get("metadata") or {}).get("resourceVersion") or 0)
