"""`turbo plan` of several files, models and changes: each is answered."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import yaml

from turbo_dev.plan_files import accelerator, deployment, node, nodes_file
from turbo_operator.cli import commands


def named(name: str, **spec: Any) -> dict[str, Any]:
    return {**deployment(**spec), "metadata": {"name": name}}


def files(folder: Path, *contents: list[dict[str, Any]]) -> list[str]:
    """Arguments that name a file of each of these lists of objects."""
    arguments = []
    for number, documents in enumerate(contents):
        path = folder / f"{number}.yaml"
        path.write_text(yaml.safe_dump_all(documents))
        arguments += ["-f", str(path)]
    return arguments


def test_every_file_is_read_as_kubectl_does(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Found in a trial: the first was left out without a word."""
    mine = accelerator("mine", "0.30")
    given = files(tmp_path, [named("one")], [named("two"), {"kind": "ConfigMap"}], [mine])
    assert commands.plan([*given, "-o", "json"]) == 0
    shown = capsys.readouterr()
    plans = json.loads(shown.out)
    assert [(plan["name"], plan["choice"]["accelerator"]) for plan in plans] == [
        ("one", "mine"),
        ("two", "mine"),
    ]
    assert shown.err == f"turbo plan: {tmp_path}/1.yaml, document 2: ConfigMap is not read.\n"
    assert commands.plan(files(tmp_path, [named("one")], [named("one")])) == 1
    assert (
        f"there is a TurboDeployment one in {tmp_path}/0.yaml, document 1 already" in capsys.readouterr().err
    )
    assert commands.plan(files(tmp_path, [mine], [])) == 1
    assert f"{tmp_path}/0.yaml, {tmp_path}/1.yaml: there is no object of kind" in capsys.readouterr().err
    assert commands.plan(["-f", "-", "-f", "-"]) == 1
    assert "standard input can be read once" in capsys.readouterr().err


def test_several_models_are_told_to_be_planned_apart_and_what_they_cost_together(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Found in a trial: both were Feasible on the only card."""
    mine = accelerator("mine", "0.30")
    spec = {"accelerators": {"allowed": ["mine"]}}
    given = files(tmp_path, [mine, named("one", **spec), named("two", **spec)])
    apart = "Each is planned by itself, as if the others did not run"
    assert commands.plan(given) == 0
    assert capsys.readouterr().out.endswith(f"\n{apart}. Together they cost 0.60 $/h.\n")
    assert commands.plan([*given, "--nodes", nodes_file(tmp_path, node("a", 1))]) == 0
    assert f"\n{apart}, so there may not be room for all. Together" in capsys.readouterr().out
    dear = {**spec, "cost": {"maxPerHour": "0.10"}}
    assert commands.plan(files(tmp_path, [mine, named("one", **spec), named("two", **dear)])) == 2
    assert "Together those with a plan and a price cost 0.30 $/h." in capsys.readouterr().out
    assert commands.plan(files(tmp_path, [mine, named("one", **spec)])) == 0
    assert apart not in capsys.readouterr().out


def test_a_change_that_is_none_keeps_no_other_from_its_answer(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    changes = ["--what-if", "replicas=2", "--what-if", "speed=3", "--what-if", "maxTotal=0"]
    given = files(tmp_path, [named("one"), named("two")])
    assert commands.plan([*given, *changes, "-o", "json"]) == 1
    shown = capsys.readouterr()
    answered = [[change["change"] for change in plan["whatIf"]] for plan in json.loads(shown.out)]
    assert answered == [["replicas=2"], ["replicas=2"]]
    first, second = shown.err.splitlines()
    assert first.startswith("turbo plan: --what-if speed=3: there is no key 'speed'")
    assert second.startswith("turbo plan: --what-if maxTotal=0: spec.accelerators.maxTotal: ")
