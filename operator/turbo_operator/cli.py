"""The operator's commands: `turbo plan` for a person, `turbo operator` inside a cluster.

Modules are imported where a command or a flag first needs them, so that `turbo plan` starts at once and
runs where there is no cluster.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Callable

FEASIBLE, BAD_INPUT, INFEASIBLE = 0, 1, 2
_STATUS = "Exit status: 0 every plan is feasible, 2 one is not, 1 the input is wrong."


def plan(argv: list[str]) -> int:
    """`turbo plan -f FILE`: what the operator would choose. 0 feasible, 2 infeasible, 1 bad input."""
    parser = argparse.ArgumentParser(
        prog="turbo plan",
        description="Print the plan for a TurboDeployment, without a cluster.",
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
    _add_output(parser)

    def answers(options: argparse.Namespace) -> int:
        from turbo_operator.command import offline
        from turbo_operator.command.show import show

        asked = offline.Inputs(options.file, options.catalogue, options.model)
        return _status(show(offline.answers(asked, options.what_if), options.output))

    return _run(parser, argv, answers)


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

    from turbo_operator import handlers

    return handlers.run(settings)


def _add_output(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("-o", "--output", choices=("table", "json", "yaml"), default="table")
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

    from turbo_operator.command.errors import BadInputError

    try:
        return command(options)
    except BadInputError as error:
        print(f"{parser.prog}: {error}", file=sys.stderr)
        return BAD_INPUT


def _status(all_feasible: bool) -> int:
    return FEASIBLE if all_feasible else INFEASIBLE
