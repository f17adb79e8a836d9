"""`turbo plan`: the planner on files instead of a cluster, and its answers as a table, JSON or YAML."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from turbo_operator import api, scaler
from turbo_operator.catalog import UnknownShapeError, catalogue, shapes
from turbo_operator.planned import Plan
from turbo_operator.planner import OFF, money
from turbo_operator.planner import plan as plan_of
from turbo_operator.planner.explain import gib
from turbo_runtime.contract import ModelShape

CONFIG = "config.json"


class BadInputError(Exception):
    """What was given cannot be planned with; the message is a sentence that names the file and the field."""


@dataclass(frozen=True, slots=True)
class Answer:
    """One TurboDeployment and its plan."""

    name: str
    model: str
    plan: Plan

    def as_document(self) -> dict[str, Any]:
        """Plain data with camelCase names; bytes are whole numbers, money is a string."""
        choice = self.plan.choice
        chosen = choice and {
            "accelerator": choice.accelerator.name,
            "tensor": choice.tensor,
            "acceleratorsPerReplica": choice.accelerators_per_replica,
            "method": choice.method,
            "maxDraftTokens": choice.max_draft_tokens,
            "dtype": choice.dtype,
            "maxModelLen": choice.max_model_len,
            "memoryBytes": choice.memory_bytes,
            "kvCacheBytes": choice.kv_cache_bytes,
            "hostMemoryBytes": choice.host_memory_bytes,
            "costPerHour": None
            if choice.predicted.cost_per_hour is None
            else money(choice.predicted.cost_per_hour),
            "priceSource": choice.accelerator.price_source,
        }
        rejected = [
            {
                "accelerator": row.accelerator,
                "tensor": row.tensor,
                "method": row.method,
                "reason": str(row.reason),
                "detail": row.detail,
            }
            for row in self.plan.rejected
        ]
        return {
            "name": self.name,
            "model": self.model,
            "feasible": choice is not None,
            "replicas": self.plan.replicas,
            "reason": str(self.plan.reason),
            "detail": self.plan.detail,
            "choice": chosen,
            "rejected": rejected,
        }


def answers(file: str, catalogue_file: str | None, model: str | None) -> list[Answer]:
    """The plan of each TurboDeployment in `file`; BadInputError names what is wrong with what was given."""
    deployments: list[api.TurboDeployment] = []
    overlay: list[api.TurboAccelerator] = []
    for source in filter(None, (catalogue_file, file)):
        for place, document in _documents(source):
            kind = document.get("kind")
            try:
                if kind == api.TURBOACCELERATOR:
                    overlay.append(api.parse_accelerator(_as_written(document)))
                elif kind == api.TURBODEPLOYMENT and source == file:
                    deployments.append(api.parse(_as_written(document)))
            except api.InvalidObject as error:
                raise BadInputError(f"{place} ({kind}): {error}.") from error
    if not deployments:
        raise BadInputError(f"{file}: there is no object of kind {api.TURBODEPLOYMENT} in it.")
    accelerators = catalogue(overlay)
    found = []
    for td in deployments:
        scale = scaler.scale(td.spec)
        made = plan_of(td.spec, _shape(td, model), accelerators, scale.replicas)
        found.append(Answer(td.metadata.name, model or td.spec.model.uri, made))
    return found


def _documents(source: str) -> Iterator[tuple[str, dict[str, Any]]]:
    """The objects of a YAML file, those of a List one by one, each with its place for an error's sentence."""
    name = "standard input" if source == "-" else source
    try:
        text = sys.stdin.read() if source == "-" else Path(source).read_text(encoding="utf-8")
        parsed = list(yaml.safe_load_all(text))
    except OSError as error:
        raise BadInputError(f"{name}: {error.strerror}.") from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise BadInputError(f"{name} is no YAML: {' '.join(str(error).split())}.") from error
    for index, document in enumerate(parsed, start=1):
        if document is None:
            continue
        if not isinstance(document, dict):
            raise BadInputError(
                f"{name}, document {index}: expected an object, got {type(document).__name__}."
            )
        items = document.get("items")
        if not isinstance(items, list) or not str(document.get("kind")).endswith("List"):
            yield f"{name}, document {index}", document
            continue
        for number, item in enumerate(items, start=1):
            place = f"{name}, document {index}, item {number}"
            if not isinstance(item, dict):
                raise BadInputError(f"{place}: expected an object, got {type(item).__name__}.")
            yield place, item


def _as_written(document: dict[str, Any]) -> dict[str, Any]:
    """The object without its status, which is the cluster's to say."""
    return {key: value for key, value in document.items() if key != "status"}


def _shape(td: api.TurboDeployment, model: str | None) -> ModelShape:
    if model is None:
        shape = shapes.shipped(td.spec.model.hub_id) if td.spec.model.on_hub else None
        if shape is None:
            raise BadInputError(
                f"spec.model.uri: the shape of {td.spec.model.uri} is not known without a cluster: give "
                "--model with its config.json or with what `turbo inspect MODEL` prints."
            )
        return shape
    path = Path(model)
    path = path / CONFIG if path.is_dir() else path
    if not path.exists():
        shape = shapes.shipped(model)
        if shape is None:
            raise BadInputError(f"--model {model}: there is no such file, and no shipped shape of that name.")
        return shape
    try:
        return shapes.from_document(path.read_text(encoding="utf-8"), str(path))
    except UnknownShapeError as error:
        raise BadInputError(f"--model: {error}") from error
    except UnicodeDecodeError as error:
        raise BadInputError(
            f"--model: {path} is no text; what `turbo inspect {path}` prints says the shape of weights."
        ) from error
    except OSError as error:
        raise BadInputError(f"--model {path}: {error.strerror}.") from error


def show(found: list[Answer], output: str) -> None:
    """Print the answers: a list in JSON or YAML, or a table each."""
    if output == "json":
        print(json.dumps([answer.as_document() for answer in found], indent=2))
    elif output == "yaml":
        print(yaml.safe_dump([answer.as_document() for answer in found], sort_keys=False), end="")
    else:
        for answer in found:
            _show_table(answer)


def _show_table(answer: Answer) -> None:
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    plan = answer.plan
    table = Table(title=Text(f"{answer.name}: {answer.model}"), title_justify="left")
    for heading in ("", "accelerator", "speculation", "memory", "$/h", "reason"):
        table.add_column(heading, no_wrap=True)
    if plan.choice:
        choice = plan.choice
        cost = "unknown" if choice.predicted.cost_per_hour is None else money(choice.predicted.cost_per_hour)
        drafts = OFF if choice.method == OFF else f"{choice.method}:{choice.max_draft_tokens}"
        room = f"{gib(choice.memory_bytes)} of {gib(choice.accelerator.memory_bytes)}"
        table.add_row("*", choice.accelerator.name, drafts, room, cost, str(plan.reason), style="bold")
    for row in plan.rejected:
        name = row.accelerator if row.tensor == 1 else f"{row.accelerator} x{row.tensor}"
        table.add_row("", name, row.method, "", "", str(row.reason))
    # Tables are read by people and by `less`: a narrow terminal folds sentences, never rows.
    console = Console(soft_wrap=True)
    console.print(table)
    console.print(Text(plan.detail))
    for row in plan.rejected:
        console.print(Text(f"  {row.accelerator}, {row.method}: {row.reason}. {row.detail}"))
