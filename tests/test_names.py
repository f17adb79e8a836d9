"""Names that left the product's API, flags and metrics stay away, so that one thing has one name."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator, Mapping
from enum import StrEnum
from pathlib import Path
from typing import Any

from turbo_operator import api
from turbo_operator.api import crd
from turbo_runtime.server import metrics

ROOT = Path(__file__).parent.parent
FIELDS = {
    "answerTokens",
    "answering",
    "artefact",
    "began",
    "belowSince",
    "captured",
    "configMapRef",
    "deployment",
    "detail",
    "enabled",
    "ended",
    "exhausted",
    "gain",
    "gainBelow",
    "gains",
    "left",
    "memoryGiB",
    "minGain",
    "passedOver",
    "perNode",
    "policy",
    "pvc",
    "runningSince",
    "servedName",
    "spent",
    "started",
    "summary",
    "template",
    "turnedDown",
    "work",
}
REASONS = {
    "BudgetLimit",
    "CrashLoop",
    "Dearer",
    "DraftsOff",
    "HoldingNoMetrics",
    "ImagePull",
    "InForce",
    "InUse",
    "MinimumReplicas",
    "NeedsChange",
    "NoCapacity",
    "NoGain",
    "NoProfile",
    "OutOfMemory",
    "OverBudget",
    "Refused",
    "RefusedByEngine",
    "TrainingDisabled",
    "Trying",
    "WrongTarget",
}
METRICS = re.compile(
    r"turbo:(plain_)?answering|_by_draft|turbo:own_|chosen_drafts|_problem|deployment_gain|desired_replica$"
)
FLAGS = re.compile(
    r"--(catalogue|no-gain|max-running|max-step-tokens|served-name|max-waiting|max-waiting-tokens|drafts|capture|api-keys"
    r"|request-seconds|drain-seconds|endpoint-seconds|audit-share|judges|held-out|law)(?![-\w])"
)

CLASSES = (
    "Asked Begin Beside Bid BlockLedger BrokenLedger EngineLink Evidence "
    "Exhausted Feed Follower Gain Gains Gone Held InUse Judgement Laws Ledger Lessons "
    "LeftoverError Live Made MayPassError MeasuredGain Observed Offer PagedModel PagedStep Paid Pair "
    "Part Places Remembered RowProduct Said Served StepPlan Stock StrangerError Takeover Told "
    "Trained Trial TurnedDown UnfitModelError Want Weighed Weighing "
)
FUNCTIONS = (
    "as_row bounded_float bounded_int catalogue check_arithmetic choose fold futile gain_of "
    "gains heard heads_pay judge keep_candidates least_survival look outbid rows_hold "
    "shown_gain survival turned_down weigh "
)
MODULES = (
    "abilities answer arrivals ask beside calibrating choose deal demands "
    "facts figures gain gains heard held instants judge kept leaving "
    "feed ledger looping observed observing online ownership paid planned planning "
    "question remembered said served signals told watching weigh whole words "
    "work "
)


def fields(schema: Mapping[str, Any]) -> Iterator[str]:
    """The names of all fields below a schema."""
    for name, value in (schema.get("properties") or {}).items():
        yield name
        yield from fields(value)
    for below in ("items", "additionalProperties"):
        if isinstance(schema.get(below), dict):
            yield from fields(schema[below])


def test_no_field_of_the_api_has_an_old_name() -> None:
    for definition in crd.definitions():
        (version,) = definition["spec"]["versions"]
        assert FIELDS.isdisjoint(fields(version["schema"]["openAPIV3Schema"]))


def test_no_reason_has_an_old_name() -> None:
    enums = [value for value in vars(api).values() if isinstance(value, type) and issubclass(value, StrEnum)]
    assert len(enums) > 5
    assert REASONS.isdisjoint(str(member) for enum in enums for member in enum)


def test_no_class_function_or_module_has_an_old_name() -> None:
    sources = [path for folder in ("operator", "runtime") for path in (ROOT / folder).rglob("*.py")]
    nodes = [node for path in sources for node in ast.walk(ast.parse(path.read_text()))]
    classes = {node.name.lstrip("_") for node in nodes if isinstance(node, ast.ClassDef)}
    functions = {node.name for node in nodes if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef))}
    assert len(classes) > 100
    assert classes.isdisjoint(CLASSES.split())
    assert functions.isdisjoint(FUNCTIONS.split())
    assert {path.stem for path in sources}.isdisjoint(MODULES.split())


def test_no_metric_has_an_old_name() -> None:
    names = [metric.name for metric in metrics.METRICS]
    assert len(names) > 20
    assert [name for name in names if METRICS.search(name)] == []


def test_no_flag_in_code_or_documents_has_an_old_name() -> None:
    paths = [ROOT / "README.md", *(ROOT / "docs").rglob("*.md"), *(ROOT / "charts").rglob("*.*")]
    paths += [path for folder in ("operator", "runtime", "dev") for path in (ROOT / folder).rglob("*.py")]
    old = {str(path.relative_to(ROOT)): FLAGS.findall(path.read_text()) for path in paths if path.is_file()}
    assert {path: flags for path, flags in old.items() if flags} == {}
