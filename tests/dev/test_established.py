"""What a test waits for before it writes objects of a kind."""

from __future__ import annotations

from typing import Any

import pytest

from turbo_dev.access import established

SERVED = {"type": "Established", "status": "True"}
NAMED = {"type": "NamesAccepted", "status": "True"}


@pytest.mark.parametrize(
    ("status", "served"),
    [
        ({}, False),
        # as a generated file that is applied may have it
        ({"status": {"acceptedNames": {"kind": ""}, "conditions": None}}, False),
        ({"status": {"conditions": []}}, False),
        ({"status": {"conditions": [NAMED]}}, False),
        ({"status": {"conditions": [NAMED, {**SERVED, "status": "False"}]}}, False),
        ({"status": {"conditions": [NAMED, SERVED]}}, True),
    ],
)
def test_a_definition_is_established_once_its_status_says_so(status: dict[str, Any], served: bool) -> None:
    assert established({"metadata": {"name": "pools.example.org"}, **status}) is served
