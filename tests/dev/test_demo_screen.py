"""What the demo says: what it will change before its first step, and at its end what runs and why."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path
from typing import Any, ClassVar

import pytest

from turbo_dev import announce, binaries, buildah, images, packages, screen
from turbo_dev.cluster import NotRootError
from turbo_dev.paths import REPOSITORY
from turbo_dev.scaling import Outcome
from turbo_dev.talk import Answer, Pair, Question

TABLE = "NAME      READY   REPLICAS\nsmollm2   True    1"
PLAN = {
    "accelerator": "cpu",
    "acceleratorsPerReplica": 2,
    "replicas": 1,
    "engine": "Turbo",
    "method": "Suffix",
    "maxDraftTokens": 8,
    "reason": "LowestCost",
    "message": "1 replica on 2 x cpu is the cheapest plan.",
    "predicted": {"costPerHour": "0.08"},
    "rejected": [
        {
            "accelerator": "l4",
            "tensor": 1,
            "method": "Suffix",
            "reason": "InsufficientCapacity",
            "message": "No node has l4.",
        }
    ],
}
MENDED = Pair(
    Question("greedy, much of it is in the question", "Mend this.", {"temperature": 0}),
    on=Answer("This is mended.", tokens=10, seconds=1.0, acceptance_length=2.5),
    off=Answer("This is mended.", tokens=10, seconds=2.0, acceptance_length=None),
)
PACKED = Pair(
    Question("sampled with seed 7, free text", "Write a list.", {"temperature": 0.5, "seed": 7}),
    on=Answer("A tent.", tokens=3, seconds=0.5, acceptance_length=None),
    off=Answer("A boat.", tokens=3, seconds=0.5, acceptance_length=None),
)


class Recorded:
    """A cluster as it once answered."""

    kubeconfig = Path("/demo/kubeconfig")
    objects: ClassVar[dict[str, Any]] = {
        "td": {"status": {"plan": PLAN}},
        "turboaccelerator": {
            "spec": {"pricing": {"perAcceleratorHour": {"onDemand": "0.04"}, "source": "a guess"}}
        },
    }

    def kubectl(self, *arguments: str) -> str:
        assert arguments[:2] == ("get", "td")
        return f"{TABLE}\n"

    def get(self, kind: str, name: str) -> Any:
        return self.objects[kind]


CLUSTER: Any = Recorded()


def flat(text: str) -> str:
    """Without the breaks that the width of the screen makes."""
    return " ".join(text.split())


def test_the_screen_shows_object_plan_and_reason_what_was_rejected_and_whose_price_it_is() -> None:
    shown = screen.answers(CLUSTER, [MENDED])
    assert TABLE in shown
    for part in (
        "1 x 2 cpu, engine Turbo, drafts Suffix up to 8 tokens",
        "LowestCost: 1 replica on 2 x cpu is the cheapest plan.",
        "not l4 x 1, Suffix: InsufficientCapacity: No node has l4.",
        "0.08 $/h: 0.04 $/h for one cpu is a price set by you (a guess)",
    ):
        assert part in flat(shown)


def test_each_answer_is_shown_with_its_gain_and_one_that_differs_with_both_texts() -> None:
    shown = flat(screen.answers(CLUSTER, [MENDED, PACKED]))
    same, other = shown.split("== sampled with seed 7, free text ")
    assert "== greedy, much of it is in the question =" in same
    assert "> Mend this. This is mended. with speculation 1.00 s, without 2.00 s: the same bytes," in same
    assert "2.00 times as fast; acceptance length 2.50 (10 tokens, 100 ms each)" in same
    assert "> Write a list. A tent. --- without speculation: A boat. with speculation" in other
    assert "THE BYTES DIFFER" in other
    assert "THE BYTES DIFFER" not in same
    assert screen.all_equal([MENDED])
    assert not screen.all_equal([MENDED, PACKED])


def test_the_way_of_the_replicas_is_shown_and_every_request_that_failed() -> None:
    good = screen.scaled(Outcome(replicas=[1, 2, 1], answered=90, failed=0, error=""))
    assert "replicas 1 -> 2 -> 1; 90 requests answered, 0 failed" in good
    bad = screen.scaled(Outcome(replicas=[1, 2], answered=9, failed=1, error="connection reset"))
    assert "the last that failed: connection reset" in bad


@pytest.mark.parametrize(
    ("url", "talk"), [("http://10.0.0.9:80/v1", "curl -s http://10.0.0.9:80/v1/chat"), (None, "port-forward")]
)
def test_three_commands_go_on_from_there(monkeypatch: pytest.MonkeyPatch, url: str | None, talk: str) -> None:
    monkeypatch.setattr(binaries, "ensure", lambda names: {name: Path("/bin") / name for name in names})
    shown = screen.next_steps(CLUSTER, url, "make demo-down")
    setting, describe, ask, down = shown.splitlines()[-4:]
    assert setting.startswith("export KUBECONFIG=/demo/kubeconfig PATH=/bin:")
    assert describe == "  1. kubectl describe td smollm2"
    assert talk in ask
    assert down == "  3. make demo-down"


CHANGES = (packages.Change("runc", "1.1", None), packages.Change("libc6", "2.37", "2.36"))


@pytest.fixture
def bare_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    """One that has nothing of what the demo needs; apt would install one package and upgrade another."""
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    monkeypatch.setattr(packages, "missing", lambda programs: list(programs.values()))
    monkeypatch.setattr(packages, "plan", lambda names: packages.Plan(tuple(names), CHANGES))
    monkeypatch.setattr(binaries, "missing", lambda names: list(names))


def test_every_change_to_the_machine_is_said_before_the_first_step(
    bare_machine: None, capsys: pytest.CaptureFixture[str]
) -> None:
    announce.embedded()
    lines = capsys.readouterr().err.splitlines()
    said = flat("\n".join(lines))
    assert "     runc 1.1" in lines
    assert "     libc6 2.36 -> 2.37" in lines
    for name in (*binaries.CONTROL_PLANE, *binaries.NODE, *binaries.HELM_CLIENT):
        assert name in said
    for image in images.of_this_checkout():
        assert image.name in said
    for change in ("(about 25 GB)", "(6 GB)", "(turboN, 10.231.N.0/30)", "10.232.N.0/24 and 10.233.N.0/24"):
        assert change in said
    assert "`make demo-down` removes cluster, link, routes and cgroup; packages and the cache stay." in said


def test_the_changes_are_said_before_anything_is_set_up() -> None:
    dry = subprocess.run(
        ["make", "--dry-run", "--always-make", "demo"],
        cwd=REPOSITORY, capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert "turbo_dev announce" in dry.stdout.splitlines()[0]


def test_where_all_is_there_no_change_is_announced(
    bare_machine: None, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for module in (packages, binaries):
        monkeypatch.setattr(module, "missing", lambda _: [])
    monkeypatch.setattr(buildah, "images", lambda: [image.full_name for image in images.of_this_checkout()])
    announce.embedded()
    said = capsys.readouterr().err
    assert "installs no Debian package" in said
    assert "builds" not in said


def test_who_is_not_root_is_told_of_the_other_way(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    with pytest.raises(NotRootError, match="make demo CONTEXT=name"):
        announce.embedded()


def test_of_a_users_cluster_all_that_is_put_there_is_said(capsys: pytest.CaptureFixture[str]) -> None:
    announce.theirs("mine", "registry.example/turbo")
    said = flat(capsys.readouterr().err)
    for part in ("context `mine`", "turbo-system", "claim of 1 GiB", "Job", "TurboDeployment"):
        assert part in said
    assert "images come from registry.example/turbo" in said
    assert "`make demo-down CONTEXT=mine` removes all of it." in said
