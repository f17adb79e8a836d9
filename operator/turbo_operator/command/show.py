"""Where answers go: standard output as a table, JSON or YAML."""

from __future__ import annotations

import json
from collections.abc import Sequence

import yaml

from turbo_operator.command.document import as_document
from turbo_operator.command.question import Answer


def show(answers: Sequence[Answer], output: str) -> bool:
    """Show the answers; whether each has a feasible plan."""
    if output == "json":
        print(json.dumps([as_document(answer) for answer in answers], indent=2))
    elif output == "yaml":
        print(yaml.safe_dump([as_document(answer) for answer in answers], sort_keys=False), end="")
    else:
        from turbo_operator.command import table

        for answer in answers:
            table.show(answer)
    return all(answer.plan.choice is not None for answer in answers)
