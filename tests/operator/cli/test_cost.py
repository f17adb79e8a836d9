"""`turbo cost`: what pods hold by the prices of TurboAccelerators, whose sums are those prices."""

from __future__ import annotations

import csv
import io
import json
from dataclasses import replace
from decimal import Decimal
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console

from turbo_operator.api import (
    LABEL_ACCELERATOR,
    LABEL_ACCELERATOR_COUNT,
    LABEL_CAPACITY_TYPE,
    LABEL_DEPLOYMENT,
    LABEL_PLAN_HASH,
    CapacityType,
)
from turbo_operator.cli import commands
from turbo_operator.cli.cost import AMOUNTS, Cost, as_documents, costs_by, grouping, table
from turbo_operator.cli.manifests import BadInputError
from turbo_operator.snapshot import Accelerator

PRICES = {CapacityType.ON_DEMAND: Decimal("4.00"), CapacityType.SPOT: Decimal("1.50")}
H100 = Accelerator("h100", "nvidia.com/gpu", Decimal(1), 80 << 30, prices=PRICES, count_per_node=8)
NODES = replace(H100, name="node", price_per_node=True)
FREE = replace(H100, name="unpriced", prices={})
ROWS = {row.name: row for row in (H100, NODES, FREE)}


def td(name: str = "chat", namespace: str = "team", status: Any = None, **more: Any) -> dict[str, Any]:
    spec = {"model": {"uri": "hf://a/b"}, **more}
    return {"metadata": {"namespace": namespace, "name": name}, "spec": spec, "status": status or {}}


def pod(
    name: str = "chat",
    namespace: str = "team",
    accelerator: str = "h100",
    count: int = 1,
    kind: str = "OnDemand",
    state: str = "ready",
    job: str = "",
) -> dict[str, Any]:
    """`state` is ready, starting, waiting (for a node) or ended."""
    labels = {
        LABEL_DEPLOYMENT: name,
        LABEL_ACCELERATOR: accelerator,
        LABEL_ACCELERATOR_COUNT: str(count),
        LABEL_CAPACITY_TYPE: kind,
        LABEL_PLAN_HASH: "v1",
    }
    owners = [{"kind": "Job", "name": job, "controller": True}] if job else []
    phase = {"ready": "Running", "starting": "Running", "waiting": "Pending", "ended": "Succeeded"}[state]
    ready = [{"type": "Ready", "status": "True"}] if state == "ready" else []
    running = [{"state": {"running": {"startedAt": "2026-12-01T00:00:00Z"}}}]
    return {
        "metadata": {
            "name": f"{name}-pod",
            "namespace": namespace,
            "labels": labels,
            "ownerReferences": owners,
            "creationTimestamp": "2026-12-01T00:00:00Z",
        },
        "spec": {} if state == "waiting" else {"nodeName": "n"},
        "status": {"phase": phase, "conditions": ready, "containerStatuses": running},
    }


def cost(pods: list[dict[str, Any]], status: Any = None) -> Cost:
    return costs_by(grouping("namespace"), [td(status=status)], pods, ROWS)["team"]


def test_pods_that_answer_are_used_those_that_start_idle_and_trainings_apart() -> None:
    train = pod(job="chat-train-1", state="starting")
    found = cost([pod(count=2), pod(kind="Spot"), pod(state="starting"), pod(state="waiting"), train])
    assert found == Cost(1, 5, Decimal(0), Decimal("9.50"), Decimal("4.00"), Decimal("4.00"), Decimal(0))
    assert cost([pod(state="ended"), pod(state="waiting")]) == Cost(1)


def test_the_rest_of_a_node_that_is_bought_whole_is_idle() -> None:
    found = cost([pod(accelerator="node", count=2)])
    assert (found.used, found.idle) == (Decimal(8), Decimal(24))


def test_what_has_no_price_is_a_dash_in_each_sum_that_it_is_part_of() -> None:
    groups = costs_by(
        grouping("namespace"),
        [td(), td("other", "b")],
        [pod(accelerator="unpriced"), pod("other", "b")],
        ROWS,
    )
    assert (groups["team"].used, groups["b"].used) == (None, Decimal(4))
    console = Console(width=200, highlight=False)
    with console.capture() as captured:
        console.print(table("namespace", groups))
    lines = [line.split() for line in captured.get().splitlines() if line.strip(" ─")]
    assert lines[1] == ["b", "1", "1", "0.00", "4.00", "0.00", "0.00", "0.00"]
    assert lines[-1] == ["together", "2", "2", "0.00", "-", "-", "0.00", "0.00"]


def test_planned_and_saved_are_those_of_the_status() -> None:
    status = {
        "desiredReplicas": 2,
        "plan": {"predicted": {"costPerHour": "8.00"}},
        "saving": {"accelerators": 1, "perHour": "3.25"},
    }
    assert (cost([], status).planned, cost([], status).saved) == (Decimal("8.00"), Decimal("3.25"))
    assert cost([], {**status, "desiredReplicas": 0}).planned == 0
    recommended = {"reference": {"name": "vllm"}, "saving": {"accelerators": 1, "perHour": "3.25"}}
    assert cost([], recommended).saved == 0, "it may be, and is not yet"
    assert cost([], {"plan": "unreadable"}).planned is None


def test_groups_are_namespaces_models_or_labels_of_pods_before_the_objects_own() -> None:
    labeled = td(podTemplate={"metadata": {"labels": {"team": "a"}}})
    labeled["metadata"]["labels"] = {"team": "b", "floor": "3"}
    assert grouping("model")(labeled) == "hf://a/b"
    assert grouping("label=team")(labeled) == "a"
    assert grouping("label=floor")(labeled) == "3"
    assert grouping("label=none")(labeled) == "-"
    for wrong in ("team", "label=", "label"):
        with pytest.raises(BadInputError, match="write namespace, model, or label=KEY"):
            grouping(wrong)


_PODS = st.lists(
    st.builds(
        pod,
        name=st.sampled_from(["chat", "code"]),
        namespace=st.sampled_from(["team", "b"]),
        count=st.integers(1, 8),
        kind=st.sampled_from(["OnDemand", "Spot"]),
        state=st.sampled_from(["ready", "starting", "waiting", "ended"]),
        job=st.sampled_from(["", "chat-train-2"]),
    ),
    max_size=12,
)


@given(_PODS, st.sampled_from(["namespace", "model", "label=team"]))
def test_the_sums_are_the_prices_of_what_pods_hold_however_they_are_grouped(
    pods: list[dict[str, Any]], by: str
) -> None:
    deployments = [td(name, place) for name in ("chat", "code") for place in ("team", "b")]
    groups = costs_by(grouping(by), deployments, pods, ROWS)
    together = sum(groups.values(), Cost())
    held = [each for each in pods if each["status"]["phase"] == "Running"]
    labels = [each["metadata"]["labels"] for each in held]
    paid = sum(
        PRICES[CapacityType(each[LABEL_CAPACITY_TYPE])] * int(each[LABEL_ACCELERATOR_COUNT])
        for each in labels
    )
    assert None not in (together.used, together.idle, together.training)
    assert (together.used or 0) + (together.idle or 0) + (together.training or 0) == paid
    assert together.accelerators == sum(int(each[LABEL_ACCELERATOR_COUNT]) for each in labels)
    assert together.deployments == 4


def test_plain_data_has_dollars_with_their_unit_and_null_for_what_is_not_known() -> None:
    rows = as_documents("team", {"a": Cost(1, 2, Decimal(8), Decimal("7.5"), None)})
    assert rows == [
        {
            "team": "a",
            "deployments": 1,
            "accelerators": 2,
            "plannedPerHour": "8.00",
            "usedPerHour": "7.50",
            "idlePerHour": None,
            "trainingPerHour": "0.00",
            "savedPerHour": "0.00",
        }
    ]
    assert len(AMOUNTS) == 5


def test_the_command_says_what_is_wrong(capsys: pytest.CaptureFixture[str]) -> None:
    assert commands.cost(["--by", "floor"]) == 1
    assert capsys.readouterr().err == (
        "turbo cost: --by floor: write namespace, model, or label=KEY, like label=team.\n"
    )
    assert commands.cost(["-A", "-n", "team"]) == 1
    assert "not allowed with" in capsys.readouterr().err


def test_csv_and_json_have_the_same(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    async def read(*_: object) -> Any:
        return "team", [td()], [pod(count=2)], ROWS

    monkeypatch.setattr("turbo_operator.cli.cost._read", read)
    assert commands.cost(["-o", "csv"]) == 0
    (row,) = csv.DictReader(io.StringIO(capsys.readouterr().out))
    assert commands.cost(["-o", "json"]) == 0
    (document,) = json.loads(capsys.readouterr().out)
    assert row == {name: str(value) for name, value in document.items()}
    assert row["usedPerHour"] == "8.00"
