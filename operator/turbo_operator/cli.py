"""The operator's commands: `turbo plan` without a cluster, `turbo operator` inside one.

`turbo plan` imports neither kopf nor a Kubernetes client, so that it starts at once and runs anywhere.
"""

from __future__ import annotations

import argparse
import os
import sys

FEASIBLE, BAD_INPUT, INFEASIBLE = 0, 1, 2


def plan(argv: list[str]) -> int:
    """`turbo plan -f FILE`: what the operator would choose. 0 feasible, 2 infeasible, 1 bad input."""
    parser = argparse.ArgumentParser(
        prog="turbo plan",
        description="Print the plan for a TurboDeployment, without a cluster.",
        epilog="Exit status: 0 every plan is feasible, 2 one is not, 1 the input is wrong.",
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
    parser.add_argument("-o", "--output", choices=("table", "json", "yaml"), default="table")
    # argparse ends with 2 on a wrong flag; here 2 says that a plan is infeasible
    try:
        options = parser.parse_args(argv)
    except SystemExit as ended:
        return BAD_INPUT if ended.code else 0

    from turbo_operator import offline

    try:
        answers = offline.answers(options.file, options.catalogue, options.model)
    except offline.BadInputError as error:
        print(f"turbo plan: {error}", file=sys.stderr)
        return BAD_INPUT
    offline.show(answers, options.output)
    return FEASIBLE if all(answer.plan.choice for answer in answers) else INFEASIBLE


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
