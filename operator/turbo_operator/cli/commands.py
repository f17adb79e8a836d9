"""The operator's commands: `turbo plan`, `explain`, `top`, `events` and `approve` for a person, and
`turbo operator` in a cluster.

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
    from turbo_operator.cli.plan_query import Answer

FEASIBLE, BAD_INPUT, INFEASIBLE = 0, 1, 2
_STATUS = (
    "Exit status: 0 every plan is feasible, 2 one is not, 1 the input is wrong; what --what-if gives counts "
    "only where it is no valid input."
)


def plan(argv: list[str]) -> int:
    """`turbo plan -f FILE`: what the operator would choose. 0 feasible, 2 infeasible, 1 bad input."""
    text = "Print the plan for a TurboDeployment, without a cluster or against one."
    parser = argparse.ArgumentParser(prog="turbo plan", description=text, epilog=_STATUS)
    text = (
        "YAML with a TurboDeployment, and any TurboAccelerators that go with it; - reads standard input; may "
        "be repeated"
    )
    parser.add_argument("-f", "--file", action="append", required=True, metavar="FILE", help=text)
    text = "YAML with TurboAccelerators, over the shipped ones (kubectl get turboaccelerators -o yaml)"
    parser.add_argument("--catalog", metavar="FILE", help=text)
    text = (
        "the model's shape: a folder with config.json, a config.json, the output of turbo inspect, or "
        "the hub id of a shipped shape (default: the shipped shape of spec.model.uri)"
    )
    parser.add_argument("--model", metavar="MODEL", help=text)
    supply = parser.add_mutually_exclusive_group()
    text = (
        "YAML with Nodes, and any Pods and ResourceQuotas, that plans must fit on (kubectl get "
        "nodes,pods,resourcequotas -A -o yaml); default: the plan is not limited"
    )
    supply.add_argument("--nodes", metavar="FILE", help=text)
    text = "the cluster of this kubeconfig context: its TurboAccelerators, nodes, pods and quotas"
    supply.add_argument("--context", metavar="CONTEXT", help=text)

    text = (
        "plan as if every accelerator had this pricing.billingUnit: Node pays for whole nodes (default: what "
        "each TurboAccelerator says, of the shipped ones Accelerator)"
    )
    parser.add_argument("--billing-unit", choices=("Accelerator", "Node"), help=text)

    return _answer(parser, argv)


def explain(argv: list[str]) -> int:
    """`turbo explain NAME`: the same for a live object. 0 feasible, 2 infeasible, 1 bad input."""
    text = (
        "Print the plan of a TurboDeployment of a cluster, as its operator makes it, and the one that serves "
        "where that is another."
    )
    parser = argparse.ArgumentParser(prog="turbo explain", description=text, epilog=_STATUS)
    _add_deployment(parser)

    return _answer(parser, argv)


def top(argv: list[str]) -> int:
    """`turbo top`: what TurboDeployments do and cost now. 0, or 1 for bad input."""
    parser = argparse.ArgumentParser(
        prog="turbo top",
        description="Show what TurboDeployments do and cost now; on a terminal until Ctrl-C.",
        epilog="Figures are those of their statuses, in steps of ten per cent; a dash is unknown.",
    )
    _add_place(parser)
    text = "seconds between two looks on a terminal; 0 prints once (default: %(default)s)"
    parser.add_argument("--interval", type=float, default=2.0, metavar="SECONDS", help=text)
    parser.add_argument("-o", "--output", choices=("table", "json"), default="table")

    def run(options: argparse.Namespace) -> None:
        from turbo_operator.cli.manifests import BadInputError
        from turbo_operator.cli.top import show

        if not 0 <= options.interval <= 3600:
            raise BadInputError("--interval takes seconds from 0 to 3600.")
        show(
            options.context,
            options.namespace,
            everywhere=options.all_namespaces,
            output=options.output,
            every=options.interval,
        )

    return _run(parser, argv, run)


def cost(argv: list[str]) -> int:
    """`turbo cost`: what TurboDeployments hold and pay for now. 0, or 1 for bad input."""
    parser = argparse.ArgumentParser(
        prog="turbo cost",
        description="Show what TurboDeployments cost now, in US dollars per hour by the prices of the "
        "TurboAccelerators.",
        epilog="used + idle + training is what the accelerators cost that pods hold; a dash is unknown.",
    )
    _add_place(parser)
    text = "namespace, model, or label=KEY, a label of podTemplate or of the object (default: %(default)s)"
    parser.add_argument("--by", default="namespace", metavar="WHAT", help=text)
    parser.add_argument("-o", "--output", choices=("table", "csv", "json"), default="table")

    def run(options: argparse.Namespace) -> None:
        from turbo_operator.cli.cost import show

        show(
            options.context,
            options.namespace,
            everywhere=options.all_namespaces,
            by=options.by,
            output=options.output,
        )

    return _run(parser, argv, run)


def events(argv: list[str]) -> int:
    """`turbo events NAME`: what happened to a TurboDeployment and its pods. 0, or 1 for bad input."""
    parser = argparse.ArgumentParser(
        prog="turbo events",
        description="Print the Events of a TurboDeployment and of all that was made for it, the latest last.",
        epilog="Clusters keep Events for an hour, unless they were set up otherwise.",
    )
    _add_deployment(parser)
    parser.add_argument("-o", "--output", choices=("table", "json"), default="table")

    def run(options: argparse.Namespace) -> None:
        from turbo_operator.cli.events import show

        show(options.context, options.namespace, options.name, options.output)

    return _run(parser, argv, run)


def approve(argv: list[str]) -> int:
    """`turbo approve NAME`: let the plan take effect that waits for it. 0, or 1 for bad input."""
    parser = argparse.ArgumentParser(
        prog="turbo approve",
        description="Approve the plan of a TurboDeployment with planPolicy.apply: Manual that waits for it.",
        epilog="It writes the annotation serving.turbo.dev/approved-plan, with your own rights.",
    )
    _add_deployment(parser)
    parser.add_argument("--plan", metavar="HASH", help="approve this plan only; default: whichever waits")

    def run(options: argparse.Namespace) -> None:
        from turbo_operator.cli.approve import approve as write

        write(options.context, options.namespace, options.name, options.plan)

    return _run(parser, argv, run)


def _add_place(parser: argparse.ArgumentParser) -> None:
    """Add the arguments that say of which namespaces."""
    where = parser.add_mutually_exclusive_group()
    where.add_argument("-n", "--namespace", metavar="NAMESPACE", help="default: the context's own")
    where.add_argument("-A", "--all-namespaces", action="store_true", help="of the whole cluster")
    parser.add_argument("--context", metavar="CONTEXT", help="of the kubeconfig; default: its current one")


def _add_deployment(parser: argparse.ArgumentParser) -> None:
    """Add the arguments that name a TurboDeployment of a cluster."""
    parser.add_argument("name", metavar="NAME", help="the TurboDeployment")
    parser.add_argument("-n", "--namespace", metavar="NAMESPACE", help="default: the context's own")
    parser.add_argument("--context", metavar="CONTEXT", help="of the kubeconfig; default: its current one")


def _run(
    parser: argparse.ArgumentParser, argv: Sequence[str], run: Callable[[argparse.Namespace], None]
) -> int:
    """Run a command that has no plan to be infeasible: 0, or 1 for bad input."""
    try:
        options = parser.parse_args(argv)
    except SystemExit as ended:  # with 2 on a wrong flag, which other commands have another use for
        return BAD_INPUT if ended.code else 0

    from turbo_operator.cli.manifests import BadInputError

    try:
        run(options)
    except BadInputError as error:
        print(f"{parser.prog}: {error}", file=sys.stderr)
        return BAD_INPUT
    return 0


def operator(argv: list[str]) -> int:
    """`turbo operator`: run until told to stop. All settings are TURBO_ variables of the environment."""
    text = "Run the Kubernetes operator. Its settings are TURBO_ variables of the environment."
    argparse.ArgumentParser(prog="turbo operator", description=text).parse_args(argv)

    from turbo_operator.settings import BadSettingError, read

    try:
        settings = read(os.environ)
    except BadSettingError as error:
        print(f"turbo operator: {error}", file=sys.stderr)
        return BAD_INPUT

    from turbo_operator.controller import handlers

    return handlers.run(settings)


def activator(argv: list[str]) -> int:
    """`turbo activator`: pass requests on to the router beside it until told to stop."""
    parser = argparse.ArgumentParser(
        prog="turbo activator",
        description="Pass requests on to a router, and hold them while no replica can take them.",
    )
    for flag, kind, default, text in (
        ("--router-url", str, "http://127.0.0.1:8001", "the router"),
        ("--port", int, 8000, "for clients"),
        ("--admin-port", int, 29001, "for probes, metrics and the operator"),
        ("--hold-timeout", float, 600.0, "seconds for which a request is held"),
        ("--max-held-requests", int, 256, "requests that are held at the same time"),
        ("--max-bytes", int, 256 << 20, "bodies of all requests that are under way, in bytes"),
        ("--max-body-bytes", int, 4 << 20, "body of one request, in bytes"),
        ("--leave-seconds", float, 10.0, "time to take requests after a signal to end"),
        ("--drain-timeout", float, 120.0, "seconds after that in which answers may end"),
    ):
        parser.add_argument(flag, type=kind, default=default, help=f"{text} (default: %(default)s)")
    flags = parser.parse_args(argv)

    import asyncio

    from turbo_operator.activator.main import serve
    from turbo_operator.activator.proxy import ProxyConfig

    config = ProxyConfig(
        router_url=flags.router_url,
        hold_seconds=flags.hold_timeout,
        max_held_requests=flags.max_held_requests,
        max_bytes=flags.max_bytes,
        max_body_bytes=flags.max_body_bytes,
    )
    times = flags.leave_seconds, flags.drain_timeout
    try:
        return asyncio.run(serve(config, flags.port, flags.admin_port, *times))
    except OSError as error:
        print(f"turbo activator: cannot listen: {error.strerror or error}.", file=sys.stderr)
        return 1


def _answer(parser: argparse.ArgumentParser, argv: list[str]) -> int:
    """Parse the command line of `turbo plan` or `turbo explain`, and answer it; returns the exit status."""
    parser.add_argument("-o", "--output", choices=("table", "json", "yaml"), default="table")
    text = "write cost against latency of every candidate (.png, .svg, .pdf)"
    parser.add_argument("--plot", metavar="FILE", help=text)
    text = (
        "also the plan with this changed, like speculation=off or accelerators=h100,l40s; may be repeated; "
        "an empty VALUE leaves the field out"
    )
    parser.add_argument("--what-if", action="append", default=[], metavar="KEY=VALUE", help=text)
    # argparse ends with 2 on a wrong flag; here 2 says that a plan is infeasible
    try:
        options = parser.parse_args(argv)
    except SystemExit as ended:
        return BAD_INPUT if ended.code else 0

    from turbo_operator.cli import inputs
    from turbo_operator.cli.manifests import BadInputError
    from turbo_operator.cli.plan_query import ask

    def report(problem: object) -> None:
        print(f"{parser.prog}: {problem}", file=sys.stderr)

    try:
        queries = inputs.read(options)
        answers = [ask(question, options.what_if) for question in queries.questions]
        for note in queries.notes:
            report(note)
        if answers:
            _show(answers, options.output, options.plot)
    except BadInputError as error:
        report(error)
        return BAD_INPUT
    problems = [*queries.problems, *(problem for answer in answers for problem in answer.problems)]
    for problem in dict.fromkeys(map(str, problems)):  # of a change that is none, once for all answers
        report(problem)
    if problems:
        return BAD_INPUT
    return FEASIBLE if all(answer.plan.choice for answer in answers) else INFEASIBLE


def _show(answers: Sequence[Answer], output: str, plot: str | None) -> None:
    """Print the answers. Raises BadInputError where the plot cannot be written."""
    if plot is not None:  # first: its failure should not stand below an answer
        # It warns at length that it has no home to keep fonts in, and does well without.
        logging.getLogger("matplotlib").setLevel(logging.ERROR)
        from turbo_operator.cli.plot import draw

        draw([(answer, answer.question.candidates()) for answer in answers], plot)
        print(f"turbo: wrote {plot}", file=sys.stderr)
    from turbo_operator.cli.output import as_document, show, show_together

    if output == "table":
        for number, answer in enumerate(answers):
            if number:
                print()
            show(answer)
        show_together(answers)
        return
    documents = [as_document(answer) for answer in answers]
    if output == "json":
        print(json.dumps(documents, indent=2))
    else:
        import yaml

        print(yaml.safe_dump(documents, sort_keys=False), end="")
