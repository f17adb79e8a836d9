"""`turbo events` shows what happened to one TurboDeployment and to what was made for it, and nothing else."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console

from turbo_operator.cli import commands
from turbo_operator.cli.events import Event, age, as_documents, event_of, of_deployment, table

NOW = 1_764_745_200.0  # 2025-12-03T07:00:00Z


def event(kind: str, name: str, last_seen: str | None = "2025-12-03T06:00:00Z") -> Event:
    return Event(last_seen, "Normal", "Created", kind, name, 1, "It was made.")


def names_of(events: list[Event]) -> list[str]:
    return [each.name for each in events]


def test_pods_and_jobs_of_it_are_there_though_they_are_gone_and_those_of_others_are_not() -> None:
    events = [
        event("TurboDeployment", "chat"),
        event("Pod", "chat-v1234567-abc"),
        event("Job", "chat-inspect-1"),
        event("Pod", "chat-eu-v1234567-abc"),
        event("TurboDeployment", "chat-eu"),
        event("Pod", "chatter-1"),
    ]
    assert names_of(of_deployment(events, "chat", ["chat", "chat-eu"])) == [
        "chat",
        "chat-v1234567-abc",
        "chat-inspect-1",
    ]
    assert names_of(of_deployment(events, "chat-eu", ["chat", "chat-eu"])) == [
        "chat-eu-v1234567-abc",
        "chat-eu",
    ]


@given(st.lists(st.sampled_from(["a", "a-b", "a-b-c", "b", "ab"]), unique=True), st.data())
def test_every_object_belongs_to_one_deployment_at_most(names: list[str], data: st.DataObject) -> None:
    kind = data.draw(st.sampled_from(["Pod", "TurboDeployment"]))
    own = data.draw(st.sampled_from(["a", "a-b", "a-b-c", "a-b-c-1", "b-1", "ab-1", "c"]))
    owners = [name for name in names if of_deployment([event(kind, own)], name, names)]
    assert len(owners) <= 1
    if kind == "Pod" and any(own == name or own.startswith(f"{name}-") for name in names):
        assert owners == [max((n for n in names if own == n or own.startswith(f"{n}-")), key=len)]


def test_the_latest_is_the_last_and_one_without_a_time_the_first() -> None:
    times = ["2025-12-03T06:59:00Z", "2025-12-03T05:00:00.123456Z", None, "2025-12-03T08:00:00+02:00"]
    events = of_deployment([event("Pod", f"chat-{n}", t) for n, t in enumerate(times)], "chat", ["chat"])
    assert names_of(events) == ["chat-2", "chat-1", "chat-3", "chat-0"]


MODERN = {
    "metadata": {"creationTimestamp": "2025-12-03T05:00:00Z"},
    "eventTime": "2025-12-03T05:00:00.000000Z",
    "series": {"count": 7, "lastObservedTime": "2025-12-03T06:30:00.000000Z"},
    "type": "Warning",
    "reason": "BackOff",
    "regarding": {"kind": "Pod", "name": "chat-1"},
    "note": "Back-off\n pulling  image",
}
OLD = {
    "metadata": {"creationTimestamp": "2025-12-03T05:00:00Z"},
    "eventTime": None,
    "deprecatedLastTimestamp": "2025-12-03T06:00:00Z",
    "deprecatedCount": 3,
    "type": "Normal",
    "reason": "Pulled",
    "regarding": {"kind": "Pod", "name": "chat-1"},
    "note": "There.",
}


@pytest.mark.parametrize(
    ("body", "seen", "count", "message"),
    [
        (MODERN, "2025-12-03T06:30:00.000000Z", 7, "Back-off pulling image"),
        (OLD, "2025-12-03T06:00:00Z", 3, "There."),
        ({"metadata": {}}, None, 1, ""),
    ],
)
def test_events_of_either_api_group_are_read(
    body: dict[str, Any], seen: str | None, count: int, message: str
) -> None:
    found = event_of(body)
    assert (found.last_seen, found.count, found.message) == (seen, count, message)


@pytest.mark.parametrize(
    ("moment", "shown"),
    [
        ("2025-12-03T07:00:05Z", "0s"),  # clocks differ
        ("2025-12-03T06:58:01Z", "119s"),
        ("2025-12-03T06:48:00Z", "12m"),
        ("2025-12-03T03:59:00Z", "3h"),
        ("2025-12-01T06:00:00Z", "2d"),
        (None, "-"),
    ],
)
def test_an_age_has_one_unit(moment: str | None, shown: str) -> None:
    assert age(moment, NOW) == shown


def test_a_line_has_how_often_it_happened_to_what_and_why_and_what_users_wrote_is_no_markup() -> None:
    shown = event_of({**MODERN, "note": "image [red]x[/red] is not there"})
    console = Console(width=200, highlight=False)
    with console.capture() as captured:
        console.print(table([shown], NOW))
    heading, *_, line = captured.get().rstrip().splitlines()
    assert heading.split() == ["last", "seen", "type", "reason", "object", "message"]
    words = ["30m", "(x7)", "Warning", "BackOff", "pod/chat-1"]
    assert line.split() == [*words, "image", "[red]x[/red]", "is", "not", "there"]
    assert as_documents([shown])[0]["lastSeen"] == "2025-12-03T06:30:00.000000Z"


@pytest.mark.parametrize("argv", [[], ["chat", "-o", "yaml"], ["chat", "more"]])
def test_a_wrong_flag_is_bad_input(argv: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert commands.events(argv) == 1
    assert "usage: turbo events" in capsys.readouterr().err


def test_without_a_cluster_one_sentence_says_so(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("KUBECONFIG", "/nowhere/kubeconfig")
    assert commands.events(["chat"]) == 1
    said = capsys.readouterr().err
    assert said.startswith("turbo events: ")
    assert said.count("\n") == 1
