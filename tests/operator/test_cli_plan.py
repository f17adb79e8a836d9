"""`turbo plan`: the exit status says what happened, the sentence says where; no cluster client is loaded."""

from __future__ import annotations

import io
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from turbo_dev.plan_files import EXAMPLES, MODEL, accelerator, answer, deployment, node, nodes_file, written
from turbo_operator.cli import commands
from turbo_operator.planner.explanation.messages import time


def test_a_feasible_plan_ends_with_0(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert commands.plan(["-f", written(tmp_path, deployment()), "-o", "json"]) == 0
    found = answer(capsys)
    assert (found["feasible"], found["choice"]["accelerator"], found["choice"]["costPerHour"]) == (
        True,
        "l4",
        "0.8048",
    )
    assert {row["reason"] for row in found["rejected"]} == {"HigherCost", "PriceUnknown"}


def test_an_infeasible_plan_ends_with_2(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert (
        commands.plan(["-f", written(tmp_path, deployment(cost={"maxPerHour": "0.10"})), "-o", "json"]) == 2
    )
    found = answer(capsys)
    assert (found["choice"], found["reason"]) == (None, "BudgetExceeded")


def test_a_plan_without_candidates_has_no_empty_table(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model = {"uri": f"hf://{MODEL}", "maxModelLen": 1_000_000}
    assert commands.plan(["-f", written(tmp_path, deployment(model=model))]) == 2
    shown = capsys.readouterr().out
    assert shown.splitlines()[0] == f"chat: hf://{MODEL}"
    assert "TTFT" not in shown


def test_what_comes_nearest_is_told_once(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for changes in (
        {"cost": {"maxPerHour": "0.10"}},
        {"accelerators": {"allowed": ["h1000"]}},
    ):
        assert commands.plan(["-f", written(tmp_path, deployment(**changes)), "-o", "json"]) == 2
        nearest = answer(capsys)["nearest"]["message"]
        assert commands.plan(["-f", written(tmp_path, deployment(**changes))]) == 2
        assert capsys.readouterr().out.count(nearest) == 1


def test_standard_input_is_read_for_one_file_alone(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(yaml.safe_dump(deployment()).encode())))
    assert commands.plan(["-f", "-", "--nodes", "-"]) == 1
    assert "standard input can be read once" in capsys.readouterr().err
    assert commands.plan(["-f", "-"]) == 0


def test_the_example_of_the_readme_is_planned(capsys: pytest.CaptureFixture[str]) -> None:
    assert commands.plan(["-f", str(EXAMPLES / "smollm2.yaml"), "--model", MODEL]) == 0
    shown = capsys.readouterr().out
    assert "cpu" in shown
    assert "set in examples/smollm2.yaml" in shown


def test_the_catalog_file_overlays_the_shipped_one(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    listed = {
        "apiVersion": "v1",
        "kind": "List",
        "items": [accelerator("l4", "9.00"), accelerator("mine", "0.30")],
    }
    overlay = tmp_path / "catalog.yaml"
    overlay.write_text(yaml.safe_dump(listed))
    assert (
        commands.plan(["-f", written(tmp_path, deployment()), "--catalog", str(overlay), "-o", "yaml"]) == 0
    )
    (found,) = yaml.safe_load(capsys.readouterr().out)
    assert found["choice"]["accelerator"] == "mine"


def test_an_accelerator_of_a_file_keeps_what_it_leaves_out_of_the_shipped_one(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """As `kubectl apply` over the object that the operator has applied."""
    contract = accelerator("l4", "0.50")
    contract["spec"] = {"pricing": {"perAcceleratorHour": {"onDemand": "0.50"}, "source": None}}
    file = written(tmp_path, contract, deployment(accelerators={"allowed": ["l4"]}))
    assert commands.plan(["-f", file, "-o", "json"]) == 0
    choice = answer(capsys)["choice"]
    assert (choice["costPerHour"], choice["priceSource"]) == ("0.50", None)
    assert choice["timePerOutputTokenSeconds"] > 0

    assert commands.plan(["-f", str(EXAMPLES / "smollm2.yaml"), "--model", MODEL, "-o", "json"]) == 0
    choice = answer(capsys)["choice"]
    assert choice["costPerHour"] == "0.04"
    assert min(choice["timeToFirstTokenSeconds"], choice["timePerOutputTokenSeconds"]) > 0


def test_an_accelerator_over_a_shipped_one_is_still_read_by_the_rules(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    wrong, nameless = accelerator("l4", "0.50"), accelerator("l4", "0.50")
    wrong["spec"] = {"memory": "0Gi"}
    assert commands.plan(["-f", written(tmp_path, wrong, deployment())]) == 1
    assert "spec.memory: write memory with its unit" in capsys.readouterr().err
    del nameless["metadata"]
    assert commands.plan(["-f", written(tmp_path, nameless, deployment())]) == 1
    assert "(TurboAccelerator): metadata.name: is required." in capsys.readouterr().err


def test_the_model_may_be_a_folder_or_what_inspect_printed(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = {
        "architectures": ["LlamaForCausalLM"],
        "num_hidden_layers": 2,
        "hidden_size": 64,
        "intermediate_size": 128,
        "num_attention_heads": 4,
        "vocab_size": 1000,
        "max_position_embeddings": 512,
    }
    (tmp_path / "config.json").write_text(json.dumps(config))
    file = written(tmp_path, deployment(model={"uri": "pvc://claim/model"}))
    assert commands.plan(["-f", file, "--model", str(tmp_path), "-o", "json"]) == 0
    assert answer(capsys)["choice"]["maxModelLen"] == 512


def test_replicas_that_nobody_reads_are_said(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    planned = deployment(replicas=0, workload={"requestsPerSecond": "1"})
    assert commands.plan(["-f", (file := written(tmp_path, planned))]) == 0
    assert capsys.readouterr().err == (
        f"turbo plan: {file}, document 1: spec.replicas is read under scaling.mode External alone, "
        "and this is Planned.\n"
    )
    assert commands.plan(["-f", written(tmp_path, deployment(replicas=0))]) == 0
    assert capsys.readouterr().err == ""


def test_an_accelerator_that_does_not_exist_is_told_in_the_file_and_in_a_change(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A class may be made later, so it is a plan's matter and no bad input."""
    missing = "There is no TurboAccelerator h999: create it"
    assert commands.plan(["-f", written(tmp_path, deployment(accelerators={"allowed": ["h999"]}))]) == 2
    assert missing in capsys.readouterr().out
    assert commands.plan(["-f", written(tmp_path, deployment(accelerators={"allowed": ["l4", "h999"]}))]) == 0
    assert missing in capsys.readouterr().out
    changes = ["--what-if", "accelerators=h999", "--what-if", "accelerators=l4,h999"]
    assert commands.plan(["-f", written(tmp_path, deployment()), *changes]) == 0
    shown = capsys.readouterr().out
    assert f"accelerators=h999: {missing}" in shown
    assert "accelerators=l4,h999: there is no TurboAccelerator h999." in shown
    assert commands.plan(["-f", written(tmp_path, deployment()), *changes, "-o", "json"]) == 0
    told = {row["change"]: (row["feasible"], row["notes"]) for row in answer(capsys)["whatIf"]}
    assert told == {
        "accelerators=h999": (False, []),  # its detail says it
        "accelerators=l4,h999": (True, ["there is no TurboAccelerator h999."]),
    }
    nothing_will_do = ["--what-if", "accelerators=l4,h999", "--what-if", "maxPerHour=0.01"]
    small = deployment(cost={"maxPerHour": "0.01"})
    assert commands.plan(["-f", written(tmp_path, small), *nothing_will_do]) == 2
    assert "accelerators=l4,h999: there is no TurboAccelerator h999." in capsys.readouterr().out


def test_rows_beside_a_number_of_replicas_are_told_for_as_many(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Without a load there is nothing that another number would follow from."""
    assert commands.plan(["-f", written(tmp_path, deployment(replicas=3)), "-o", "json"]) == 0
    found = answer(capsys)
    assert found["replicas"] == 3
    assert {row["replicas"] for row in found["rejected"]} == {3}
    costs = [float(row["costPerHour"]) for row in found["rejected"] if row["reason"] == "HigherCost"]
    assert min(costs) > float(found["choice"]["costPerHour"])


def test_no_replicas_are_said_and_nothing_is_ringed(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    plot = tmp_path / "plan.svg"
    assert commands.plan(["-f", written(tmp_path, deployment(replicas=0)), "--plot", str(plot)]) == 0
    assert "spec.replicas is 0, so nothing runs" in capsys.readouterr().out
    assert "ringed" not in plot.read_text()


def test_the_nearest_candidate_has_one_row(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    cheap = deployment(accelerators={"allowed": ["l4"]}, cost={"maxPerHour": "0.70"})
    assert commands.plan(["-f", written(tmp_path, cheap)]) == 2
    rows = [line for line in capsys.readouterr().out.splitlines() if line.rstrip().endswith("BudgetExceeded")]
    assert [line.split()[0] for line in rows] == ["~"]


@pytest.mark.parametrize(
    ("spec", "change", "said"),
    [
        (
            {"workload": {"requestsPerSecond": "1"}},
            "replicas=2",
            "spec.replicas is read under scaling.mode",
        ),
        ({}, "minReplicas=2", "spec.scaling.minReplicas is read under scaling.mode Planned or Metrics"),
    ],
)
def test_a_change_that_nobody_reads_is_said(
    spec: dict[str, Any], change: str, said: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert commands.plan(["-f", written(tmp_path, deployment(**spec)), "--what-if", change]) == 0
    assert f"{change}: {said}" in capsys.readouterr().out


def test_what_a_change_would_cost_stands_beside_the_plan(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = written(tmp_path, accelerator("dear", "5.00"), accelerator("cheap", "0.30"), deployment())
    asked = ["--what-if", "accelerators=dear", "--what-if", "replicas=2", "--what-if", "maxPerHour=0.10"]
    assert commands.plan(["-f", file, *asked, "-o", "json"]) == 0
    found = answer(capsys)
    assert found["choice"]["accelerator"] == "cheap"
    told = {row["change"]: (row["feasible"], row["differencePerHour"]) for row in found["whatIf"]}
    assert told == {
        "accelerators=dear": (True, "+4.70"),
        "replicas=2": (True, "+0.30"),
        "maxPerHour=0.10": (False, None),
    }
    assert commands.plan(["-f", file, *asked]) == 0
    shown = capsys.readouterr().out
    assert "+4.70" in shown
    assert "maxPerHour=0.10: No plan is feasible." in shown


def test_what_is_not_read_is_said_and_where_it_belongs(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    quota = {"apiVersion": "v1", "kind": "ResourceQuota", "metadata": {"name": "gpus"}}
    file = written(tmp_path, deployment(), quota, {"kind": "ConfigMap"}, node("a", 1))
    assert commands.plan(["-f", file]) == 0
    assert capsys.readouterr().err.splitlines() == [
        f"turbo plan: {file}, document 3: ConfigMap is not read.",
        f"turbo plan: {file}, document 4: Node is not read here; give it with --nodes.",
        f"turbo plan: {file}, document 2: ResourceQuota is not read here; give it with --nodes.",
    ]


def test_nodes_beside_the_deployment_are_read_with_the_same_file_as_nodes(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    contract = accelerator("l4", "0.50")
    contract["spec"] = {"nodeSelector": {"nvidia.com/gpu.product": None, "pool": "a"}}
    file = written(
        tmp_path,
        contract,
        deployment(accelerators={"allowed": ["l4"]}),
        {**node("a", 1), "metadata": {"name": "a", "labels": {"pool": "a"}}},
    )
    assert commands.plan(["-f", file, "--nodes", file, "-o", "json"]) == 0
    said = capsys.readouterr()
    assert (json.loads(said.out)[0]["choice"]["costPerHour"], said.err) == ("0.8048", "")


@pytest.mark.parametrize("file", ["x.jpg", "x.eps", "x", "x.svgz"])
def test_a_plot_has_one_of_three_formats(
    file: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert commands.plan(["-f", written(tmp_path, deployment()), "--plot", str(tmp_path / file)]) == 1
    assert "end the name in .png, .svg or .pdf." in capsys.readouterr().err


def test_a_plot_needs_no_home(tmp_path: Path) -> None:
    plot = tmp_path / "x.svg"
    done = subprocess.run(
        [sys.executable, "-m", "turbo_cli", "plan", "-f", written(tmp_path, deployment()), "--plot", plot],
        env={"HOME": "/dev/null", "PATH": os.environ["PATH"]},
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode, done.stderr) == (0, f"turbo: wrote {plot}\n")
    assert plot.stat().st_size > 0


def test_nothing_is_loaded_that_no_flag_asks_for(tmp_path: Path) -> None:
    file = written(tmp_path, deployment())
    code = (
        "import sys; from turbo_operator.cli.commands import plan; status = plan(sys.argv[1:]);"
        "heavy = {'kopf', 'kubernetes', 'aiohttp', 'scipy', 'torch', 'transformers', 'matplotlib'};"
        "heavy &= set(sys.modules);"
        "sys.exit(f'loaded: {heavy}' if heavy else status)"
    )
    path = [entry for entry in sys.path if entry.endswith(("/operator", "/runtime"))]
    nodes = nodes_file(tmp_path, node("a", 8))
    done = subprocess.run(
        [sys.executable, "-c", code, "-f", file, "--nodes", nodes, "--what-if", "speculation=off"],
        env={"PYTHONPATH": ":".join(path)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.stderr == ""
    assert done.returncode in (0, 2)


@pytest.mark.parametrize("output", ["table", "json"])
def test_a_reader_who_has_read_enough_is_no_error(tmp_path: Path, output: str) -> None:
    reader, writer = os.pipe()
    os.close(reader)
    done = subprocess.run(
        [sys.executable, "-m", "turbo_cli", "plan", "-f", written(tmp_path, deployment()), "-o", output],
        stdout=writer,
        stderr=subprocess.PIPE,
        text=True,
        check=False,
    )
    os.close(writer)
    assert (done.returncode in (0, 141), done.stderr) == (True, "")


def test_the_operator_says_which_setting_is_wrong(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.delenv("TURBO_TEST_FULL", raising=False)
    monkeypatch.setenv("TURBO_RUNTIME_IMAGE", "x")
    monkeypatch.setenv("TURBO_TYPO", "1")
    assert commands.operator([]) == 1
    assert "TURBO_TYPO" in capsys.readouterr().err


def test_a_row_out_of_reach_shows_the_times_that_its_sentence_names(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Found by a reader: the table spoke of the planned load and the sentence of one request alone."""
    targets = {"timePerOutputToken": {"max": "1ms"}}
    assert commands.plan(["-f", written(tmp_path, deployment(targets=targets)), "-o", "json"]) == 2
    rows = [row for row in answer(capsys)["rejected"] if "even with nothing else to do" in row["message"]]
    assert rows
    for row in rows:
        named = row["message"].split("(")[1].split(" of ")[0]
        assert named == time(row["timePerOutputTokenSeconds"])


@pytest.mark.parametrize(("unit", "cost"), [("Accelerator", "6.88"), ("Node", "55.04")])
def test_the_billing_unit_of_all_accelerators_can_be_asked_for(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], unit: str, cost: str
) -> None:
    file = written(tmp_path, deployment(accelerators={"allowed": ["h100"]}))
    assert commands.plan(["-f", file, "-o", "json", "--billing-unit", unit]) == 0
    assert answer(capsys)["choice"]["costPerHour"] == cost
