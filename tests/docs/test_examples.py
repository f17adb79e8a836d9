"""Shipped examples: what of them cannot run says what is missing, and what the reader does about it."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pytest
import yaml

from turbo_dev.paths import REPOSITORY
from turbo_dev.plan_files import MODEL
from turbo_operator import api, planner
from turbo_operator.catalog import catalog, shapes
from turbo_operator.controller.snapshot_builder import GROUPS_MISSING
from turbo_operator.plan import EvaluatedCandidate
from turbo_operator.snapshot import Accelerator, Snapshot

EXAMPLES = sorted((REPOSITORY / "examples").glob("*.yaml"))
ACTION = re.compile(r"(: |, and |, or |; )(write|name|install|leave|apply) [^.]")


def rows(text: str) -> Iterator[EvaluatedCandidate]:
    """The rows that are not supported: as it is, with each engine, with all accelerators, without groups."""
    documents = [item for item in yaml.safe_load_all(text) if item["apiVersion"].startswith(api.GROUP)]
    own = [Accelerator.of(api.parse_accelerator(it)) for it in documents if it["kind"] == "TurboAccelerator"]
    accelerators = {**catalog(), **{row.name: row for row in own}}
    for document in (item for item in documents if item["kind"] == "TurboDeployment"):
        for spec in variants(document["spec"]):
            td = api.parse({**document, "spec": spec})
            shape = shapes.shipped(td.spec.model.uri.removeprefix("hf://")) or shapes.shipped(MODEL)
            assert shape is not None
            inputs = planner.build_inputs(td, shape, Snapshot(accelerators))
            for lack in (None, GROUPS_MISSING):
                plan = planner.plan(replace(inputs, group_lack=lack), 0.0)
                yield from (row for row in plan.rejected if row.reason == api.PlanReason.NOT_YET_SUPPORTED)


def variants(spec: dict[str, Any]) -> Iterator[dict[str, Any]]:
    everywhere = {name: value for name, value in spec.items() if name != "accelerators"}
    for each in (spec, everywhere):
        yield each
        yield {**each, "engine": {"type": "Turbo"}}
        if "capture" not in each and not each["model"]["uri"].endswith(".gguf"):
            yield {**each, "engine": {"type": "VLLM"}}


@pytest.mark.parametrize("example", EXAMPLES, ids=lambda path: path.stem)
def test_what_is_not_supported_says_what_to_write_or_install(example: Any) -> None:
    assert [row.detail for row in rows(example.read_text()) if not ACTION.search(row.detail)] == []


def test_the_examples_have_rows_that_are_not_supported() -> None:
    details = [row.detail for example in EXAMPLES for row in rows(example.read_text())]
    assert any("LeaderWorkerSet" in detail for detail in details)
    assert len(set(details)) > 5
