"""docs/plans.md: what was worked out by hand is what `turbo plan` says."""

from __future__ import annotations

import json
import re
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest

from turbo_operator.cli import commands

DOCUMENT = Path(__file__).parent.parent.parent / "docs" / "plans.md"
ROWS = re.findall(
    r"^## (\d+\. .*?)\n.*?^```yaml\n(.*?)^```\n.*?^Expected: (.*?)\.$", DOCUMENT.read_text(), re.M | re.S
)
# [REASON: ] ACCELERATOR[ (CAPACITY TYPE)][, tensor N], N replica[s], N $/h[, N $/1M][, within a tenth]
# [; without speculation AS ABOVE]
WITHOUT = "; without speculation "
CANDIDATE = re.compile(
    r"(?:(?P<reason>\w+): )?(?P<accelerator>[a-z0-9-]+)(?: \((?P<kind>\w+)\))?(?:, tensor (?P<tensor>\d+))?, "
    r"(?P<replicas>\d+) replicas?, (?P<cost>[\d.]+) \$/h(?:, (?P<million>[\d.]+) \$/1M)?"
    r"(?P<tenth>, within a tenth)?"
)


def asked(shown: str, folder: Path, capsys: pytest.CaptureFixture[str]) -> dict[str, Any]:
    """The answer of `turbo plan` to what a row shows; its nodes and quotas are what plans must fit on."""
    documents = shown.split("---\n")
    ours = [each for each in documents if "serving.turbo.dev/" in each]
    theirs = [each for each in documents if each not in ours]
    file, nodes = folder / "td.yaml", folder / "nodes.yaml"
    file.write_text("---\n".join(ours))
    nodes.write_text("---\n".join(theirs))
    held = ["--nodes", str(nodes)] if theirs else []
    status = commands.plan(["-f", str(file), *held, "-o", "json"])
    (answer,) = json.loads(capsys.readouterr().out)
    assert status == (0 if answer["feasible"] else 2)
    found: dict[str, Any] = answer
    return found


def test_there_are_at_least_twenty() -> None:
    assert len(ROWS) >= 20
    assert DOCUMENT.read_text().count("\nExpected: ") == len(ROWS)


@pytest.mark.parametrize(("shown", "expected"), [row[1:] for row in ROWS], ids=[row[0] for row in ROWS])
def test_the_plan_worked_out_by_hand_is_the_planners(
    shown: str, expected: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    answer = asked(shown, tmp_path, capsys)
    expected, _, without = expected.partition(WITHOUT)
    candidate = CANDIDATE.fullmatch(expected)
    if candidate is None:
        assert (answer["choice"], answer["reason"]) == (None, expected)
        return
    if candidate["reason"]:
        assert (answer["choice"], answer["reason"]) == (None, candidate["reason"])
        it = answer["rejected"][0]
        replicas = it["replicas"]
    else:
        assert answer["choice"] is not None, answer["message"]
        it, replicas = answer["choice"], answer["replicas"]
    agrees(it, replicas, candidate)
    if without:
        plain, expected_plain = answer["withoutSpeculation"], CANDIDATE.fullmatch(without)
        assert expected_plain is not None
        assert plain["choice"]["method"] == "Off"
        agrees(plain["choice"], plain["replicas"], expected_plain)


def agrees(it: dict[str, Any], replicas: int, candidate: re.Match[str]) -> None:
    """Check a row of the answer against what was worked out."""
    assert it["accelerator"] == candidate["accelerator"]
    assert it["tensor"] == int(candidate["tensor"] or 1)
    assert it["capacityType"] == (candidate["kind"] or "OnDemand")
    slack = 0.1 if candidate["tenth"] else 0.0
    assert replicas == pytest.approx(int(candidate["replicas"]), rel=slack)
    cost = float(Decimal(it["costPerHour"]))
    assert cost == pytest.approx(float(candidate["cost"]), rel=slack + 1e-4)
    if candidate["million"]:
        assert float(it["costPerMillionTokens"]) == pytest.approx(float(candidate["million"]), rel=1e-4)
