"""The operator's commands: `turbo plan` and `turbo explain` for a person, `turbo operator` inside a cluster.

Modules are imported where a command or a flag first needs them, so that `turbo plan` starts at once and
runs where there is no cluster.
"""

from __future__ import annotations

import argparse
import json
import logging
import os
import sys
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from turbo_operator.cli.inputs import PlanQueries
    from turbo_operator.cli.plan_query import Answer

FEASIBLE, BAD_INPUT, INFEASIBLE = 0, 1, 2
_STATUS = (
    "Exit status: 0 every plan is feasible, 2 one is not, 1 the input is wrong; what --what-if gives counts "
    "only where it is no valid input."
)


def plan(argv: list[str]) -> int:
    """`turbo plan -f FILE`: what the operator would choose. 0 feasible, 2 infeasible, 1 bad input."""
    parser = argparse.ArgumentParser(
        prog="turbo plan",
        description="Print the plan for a TurboDeployment, without a cluster or against one.",
        epilog=_STATUS,
    )
    parser.add_argument(
        "-f",
        "--file",
        required=True,
        metavar="FILE",
        help="YAML with a TurboDeployment, and any TurboAccelerators that go with it; - reads standard input",
    )
    parser.add_argument(
        "--catalogue",
        metavar="FILE",
        help="YAML with TurboAccelerators, over the shipped ones (kubectl get turboaccelerators -o yaml)",
    )
    parser.add_argument(
        "--model",
        metavar="MODEL",
        help="the model's shape: a folder with config.json, a config.json, the output of turbo inspect, or "
        "the hub id of a shipped shape (default: the shipped shape of spec.model.uri)",
    )
    supply = parser.add_mutually_exclusive_group()
    supply.add_argument(
        "--nodes",
        metavar="FILE",
        help="YAML with Nodes, and any Pods and ResourceQuotas, that plans must fit on (kubectl get "
        "nodes,pods,resourcequotas -A -o yaml); default: nothing is held against a plan",
    )
    supply.add_argument(
        "--context",
        metavar="CONTEXT",
        help="the cluster of this kubeconfig context: its TurboAccelerators, nodes, pods and quotas",
    )
    _add_output(parser)

    def answer(options: argparse.Namespace) -> int:
        from turbo_operator.cli import inputs

        given = inputs.given(options.file, options.catalogue, options.nodes, options.model)
        if options.context is not None:
            return _answer(parser, inputs.against_cluster(given, options.context), options)
        return _answer(parser, inputs.from_files(given, options.nodes), options)

    return _run(parser, argv, answer)


def explain(argv: list[str]) -> int:
    """`turbo explain NAME`: the same for a live object. 0 feasible, 2 infeasible, 1 bad input."""
    parser = argparse.ArgumentParser(
        prog="turbo explain",
        description="Print the plan of a TurboDeployment of a cluster, as its operator makes it, and the "
        "one that serves where that is another.",
        epilog=_STATUS,
    )
    parser.add_argument("name", metavar="NAME", help="the TurboDeployment")
    parser.add_argument("-n", "--namespace", metavar="NAMESPACE", help="default: the context's own")
    parser.add_argument("--context", metavar="CONTEXT", help="of the kubeconfig; default: its current one")
    _add_output(parser)

    def answer(options: argparse.Namespace) -> int:
        from turbo_operator.cli import inputs

        return _answer(parser, inputs.of_object(options.name, options.namespace, options.context), options)

    return _run(parser, argv, answer)


def operator(argv: list[str]) -> int:
    """`turbo operator`: run until told to stop. All settings are TURBO_ variables of the environment."""
    parser = argparse.ArgumentParser(
        prog="turbo operator",
        description="Run the Kubernetes operator. Its settings are TURBO_ variables of the environment.",
    )
    parser.parse_args(argv)

    from turbo_operator.settings import BadSettingError, read

    try:
        settings = read(os.environ)
    except BadSettingError as error:
        print(f"turbo operator: {error}", file=sys.stderr)
        return BAD_INPUT

    from turbo_operator.controller import handlers

    return handlers.run(settings)


def _add_output(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("-o", "--output", choices=("table", "json", "yaml"), default="table")
    parser.add_argument(
        "--plot", metavar="FILE", help="write cost against latency of every candidate (.png, .svg, .pdf)"
    )
    parser.add_argument(
        "--what-if",
        action="append",
        default=[],
        metavar="KEY=VALUE",
        help="also the plan with this changed, like speculation=off or "
        "accelerators=h100,l40s; may be repeated; an empty VALUE leaves the field out",
    )


def _run(
    parser: argparse.ArgumentParser, argv: list[str], command: Callable[[argparse.Namespace], int]
) -> int:
    # argparse ends with 2 on a wrong flag; here 2 says that a plan is infeasible
    try:
        options = parser.parse_args(argv)
    except SystemExit as ended:
        return BAD_INPUT if ended.code else 0

    from turbo_operator.cli.errors import BadInputError

    try:
        return command(options)
    except BadInputError as error:
        print(f"{parser.prog}: {error}", file=sys.stderr)
        return BAD_INPUT


def _answer(parser: argparse.ArgumentParser, queries: PlanQueries, options: argparse.Namespace) -> int:
    from turbo_operator.cli.plan_query import ask

    answers = []
    for question in queries.questions:
        with queries.keeping_problems():
            answers.append(ask(question, options.what_if))
    for note in queries.notes:
        print(f"{parser.prog}: {note}", file=sys.stderr)
    if answers:
        _show(answers, options.output, options.plot)
    for problem in queries.problems:
        print(f"{parser.prog}: {problem}", file=sys.stderr)
    if queries.problems:
        return BAD_INPUT
    return FEASIBLE if all(answer.plan.choice for answer in answers) else INFEASIBLE


def _show(answers: Sequence[Answer], output: str, plot: str | None) -> None:
    """Print the answers. Raises BadInputError where the plot cannot be written."""
    if plot is not None:  # first: its failure should not stand below an answer
        # It warns at length that it has no home to keep fonts in, and does well without.
        logging.getLogger("matplotlib").setLevel(logging.ERROR)
        from turbo_operator.cli.plot import draw

        draw([(answer, answer.question.candidates()) for answer in answers], plot)
    if output == "table":
        from turbo_operator.cli import table

        for number, answer in enumerate(answers):
            if number:
                print()
            table.show(answer)
        return

    from turbo_operator.cli.document import as_document

    documents = [as_document(answer) for answer in answers]
    if output == "json":
        print(json.dumps(documents, indent=2))
    else:
        import yaml

        print(yaml.safe_dump(documents, sort_keys=False), end="")
