"""python -m turbo_dev: the embedded cluster, the images, the demo."""

from __future__ import annotations

import argparse
import sys

from . import announce, images, model, release
from .binaries import GoMissingError
from .cluster import Cluster, NotRootError, names
from .progress import say
from .sandbox import SandboxError
from .shell import CommandError


def main(arguments: list[str]) -> int:
    """Run one command; the exit status is 0 when it did what it says."""
    options = _parser().parse_args(arguments)
    try:
        return int(options.run(options) or 0)
    except KeyboardInterrupt:
        say("\nStopped. The same command goes on from here.")
        return 130
    except (CommandError, GoMissingError, NotRootError, SandboxError, TimeoutError) as error:
        say("\n".join(["", str(error), *getattr(error, "__notes__", ())]))
        return 1


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="turbo_dev", description=__doc__)
    commands = parser.add_subparsers(required=True)

    for name, run, what in (
        ("demo", _demo, "cluster, images, chart, example, two answers"),
        ("demo-down", _demo_down, "remove all that the demo made"),
        ("announce", _announce, "say what the demo will do; runs on a bare Python"),
    ):
        command = commands.add_parser(name, help=what)
        command.add_argument("--context", help="use the cluster of this kubeconfig context instead")
        command.add_argument("--registry", help="where that cluster finds the images: host[:port]/path")
        command.set_defaults(run=run)

    up = commands.add_parser("up", help="bring the embedded cluster up; prints its kubeconfig")
    up.add_argument("--name", default="demo")
    up.set_defaults(run=_up)

    down = commands.add_parser("down", help="remove the embedded cluster")
    down.add_argument("--name", default="demo")
    down.set_defaults(run=_down)

    status = commands.add_parser("status", help="say which embedded clusters there are")
    status.set_defaults(run=_status)

    small = commands.add_parser("model", help="download the small model, and print its file")
    small.set_defaults(run=_model)

    build = commands.add_parser("images", help="build the images")
    build.add_argument("--registry", help="host[:port]/path to push them to")
    build.set_defaults(run=_images)
    return parser


def _model(_: argparse.Namespace) -> None:
    print(model.ensure())


def _demo(options: argparse.Namespace) -> int:
    # Imported here: all else runs on a bare Python, and this wants the OpenAI client.
    from . import demo

    return demo.run(demo.Place(options.context, options.registry))


def _demo_down(options: argparse.Namespace) -> int:
    from . import demo

    return demo.down(demo.Place(options.context, options.registry))


def _announce(options: argparse.Namespace) -> None:
    if options.context:
        announce.theirs(options.context, options.registry)
    else:
        announce.embedded()


def _up(options: argparse.Namespace) -> None:
    print(Cluster(options.name).up().kubeconfig)


def _down(options: argparse.Namespace) -> None:
    if not Cluster(options.name).down():
        say(f"No embedded cluster `{options.name}` is up: nothing to do.")


def _status(_: argparse.Namespace) -> None:
    for name in names():
        cluster = Cluster(name)
        print(f"{name}: {'up' if cluster.healthy() else 'broken'}, {cluster.directory}")


def _images(options: argparse.Namespace) -> None:
    built = images.build()
    for image in built:
        print(image.name)
    if options.registry:
        images.publish(built, options.registry)
        print(f"\nInstall them with\n\n{release.command(built, options.registry)}")
    else:
        print(
            "\nThey are on this machine alone. Push them to a registry that your cluster pulls from with"
            "\n\nmake images REGISTRY=registry.example.com/turbo"
        )


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
