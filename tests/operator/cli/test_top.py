"""`turbo top` shows what statuses say, and sums what is known."""

from __future__ import annotations

import json
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console

from turbo_operator.cli import commands
from turbo_operator.cli.top import HEADINGS, Usage, as_documents, by_cost, table, total, usage_of

STATUS = {
    "readyReplicas": 2,
    "desiredReplicas": 3,
    "plan": {"engine": "Turbo", "accelerator": "h100", "method": "Heads"},
    "servingPlan": {"engine": "Turbo", "accelerator": "l4", "method": "Suffix"},
    "observed": {
        "tokensPerSecond": "1300",
        "speedup": "2.4",
        "acceptanceLength": "3.1",
        "costPerHour": "1.60",
        "costPerMillionTokens": "0.34",
    },
    "conditions": [
        {
            "type": "Ready",
            "status": "False",
            "reason": "Scaling",
            "message": "2 of 3 replicas are ready.",
            "lastTransitionTime": "2026-12-01T00:00:00Z",
        },
        {
            "type": "TargetsMet",
            "status": "True",
            "reason": "Met",
            "message": "Requests of the last ten minutes kept spec.targets.",
            "lastTransitionTime": "2026-12-01T00:00:00Z",
        },
    ],
}


def body(name: str, status: dict[str, Any] | None) -> dict[str, Any]:
    return {"metadata": {"namespace": "team", "name": name}, **({"status": status} if status else {})}


def lines(rows: list[Usage]) -> list[list[str]]:
    """The words of each line, without rules."""
    console = Console(width=200, record=True, file=None, quiet=False, highlight=False)
    with console.capture() as captured:
        console.print(table(rows))
    return [line.split() for line in captured.get().splitlines() if line.strip(" ─")]


def test_a_row_shows_what_serves_and_the_figures_of_the_status() -> None:
    heading, row = lines([usage_of(body("chat", STATUS))])
    assert heading == list(HEADINGS)
    figures = ["1300", "2.4", "3.1", "1.60", "0.34"]
    assert row == ["team", "chat", "2/3", "Turbo", "l4", "Suffix", *figures, "Met", "Scaling"]


def test_an_object_that_nobody_has_looked_at_yet_has_dashes_and_no_figure_of_zero() -> None:
    _, row = lines([usage_of(body("new", None))])
    assert row == ["team", "new", "0/-", *["-"] * 8]


def test_several_are_summed_and_what_is_not_known_is_left_out() -> None:
    rows = [usage_of(body(name, status)) for name, status in (("a", STATUS), ("b", None), ("c", STATUS))]
    assert lines(rows)[1] == ["together", "4", "2600", "3.20"]


def test_the_most_expensive_come_first_and_those_without_a_price_last() -> None:
    dear = {"observed": {"costPerHour": "31.20"}}
    rows = [usage_of(body(name, status)) for name, status in (("a", None), ("b", STATUS), ("c", dear))]
    assert [row.name for row in by_cost(rows)] == ["c", "b", "a"]


def test_a_status_that_cannot_be_read_is_a_row_of_dashes() -> None:
    _, row = lines([usage_of(body("odd", {"readyReplicas": "many"}))])
    assert row == ["team", "odd", "0/-", *["-"] * 8]


@given(st.lists(st.none() | st.decimals(0, 10**6, places=2)))
def test_the_sum_is_exact(amounts: list[Decimal | None]) -> None:
    known = [amount for amount in amounts if amount is not None]
    found = total(None if amount is None else str(amount) for amount in amounts)
    assert (found is None) == (not known)
    assert Decimal(found or 0) == sum(known, Decimal(0))


def test_data_has_the_names_of_the_api() -> None:
    (document,) = as_documents([usage_of(body("chat", STATUS))])
    assert document["costPerHour"] == "1.60"
    assert document["message"] == "2 of 3 replicas are ready."
    assert json.loads(json.dumps(document)) == document


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--interval", "-1"], "--interval takes seconds from 0 to 3600."),
        (["--interval", "soon"], "invalid float value"),
        (["-n", "team", "-A"], "not allowed with argument"),
        (["chat"], "unrecognized arguments: chat"),
    ],
)
def test_wrong_arguments_are_named(words: list[str], said: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert commands.top(words) == 1
    assert said in capsys.readouterr().err


def test_without_a_cluster_it_ends_with_a_sentence(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("KUBECONFIG", str(tmp_path / "none"))
    monkeypatch.delenv("KUBERNETES_SERVICE_HOST", raising=False)
    assert commands.top([]) == 1
    said = capsys.readouterr().err
    assert said.startswith("turbo top: there is no kubeconfig at ")
    assert said.count("\n") == 1
