"""Where answers go: standard output as a table, JSON or YAML, and a file for the plot."""

from __future__ import annotations

import json
import logging
from collections.abc import Sequence

import yaml

from turbo_operator.cli.document import as_document
from turbo_operator.cli.plan_query import Answer, candidates


def show(answers: Sequence[Answer], output: str, plot: str | None) -> None:
    """Show the answers; BadInputError where the plot cannot be made."""
    if plot is not None:  # first: its refusal should not stand below an answer
        # It says at length that it has no home to keep fonts in, and does well without.
        logging.getLogger("matplotlib").setLevel(logging.ERROR)
        from turbo_operator.cli.plot import draw

        draw([(answer, candidates(answer.question)) for answer in answers], plot)
    if output == "json":
        print(json.dumps([as_document(answer) for answer in answers], indent=2))
    elif output == "yaml":
        print(yaml.safe_dump([as_document(answer) for answer in answers], sort_keys=False), end="")
    else:
        from turbo_operator.cli import table

        for number, answer in enumerate(answers):
            if number:
                print()
            table.show(answer)
