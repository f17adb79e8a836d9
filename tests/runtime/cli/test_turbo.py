"""The console command: what it lists, what it runs, and what it says when it cannot."""

from __future__ import annotations

import os
import subprocess
import sys
from importlib.metadata import EntryPoint
from pathlib import Path
from typing import IO

import pytest

import turbo_cli

RUNTIME = Path(turbo_cli.__file__).parent


def ran(argv: list[str]) -> int:
    print("ran", argv)
    return 5


def without_package(argv: list[str]) -> int:
    raise ModuleNotFoundError("No module named 'torch'", name="torch.nn")


def interrupted(argv: list[str]) -> int:
    raise KeyboardInterrupt


def failing(argv: list[str]) -> int:
    raise OSError(28, "No space left on device")  # of something that is not standard output


def broken(argv: list[str]) -> int:
    raise ModuleNotFoundError("No module named 'turbo_runtime.gone'", name="turbo_runtime.gone")


@pytest.fixture(autouse=True)
def commands(monkeypatch: pytest.MonkeyPatch) -> None:
    """Entry points as an installation has them, but for what they load."""
    monkeypatch.setitem(sys.modules, "turbo_runtime.commands_of_this_test", sys.modules[__name__])
    entries = [
        EntryPoint(name, f"turbo_runtime.commands_of_this_test:{function}", turbo_cli.GROUP)
        for name, function in (
            ("serve", "ran"),
            ("inspect", "without_package"),
            ("plan", "broken"),
            ("wait", "interrupted"),
            ("write", "failing"),
        )
    ]
    monkeypatch.setattr(turbo_cli, "entry_points", lambda group: entries if group == turbo_cli.GROUP else [])


@pytest.mark.parametrize("argv", [[], ["--help"], ["-h"], ["help"]])
def test_alone_or_asked_for_help_it_lists_the_commands(
    argv: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert turbo_cli.main(argv) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines[2:5]] == ["inspect", "plan", "serve"]
    assert all(len(line.split()) > 3 for line in lines[2:5])


def test_a_command_gets_its_arguments_and_gives_its_status(capsys: pytest.CaptureFixture[str]) -> None:
    assert turbo_cli.main(["serve", "model", "--port=1"]) == 5
    assert capsys.readouterr().out == "ran ['model', '--port=1']\n"


def test_an_unknown_command_is_answered_with_the_nearest_one(capsys: pytest.CaptureFixture[str]) -> None:
    assert turbo_cli.main(["srve"]) == 1  # 2 would say that a plan is infeasible, where it is `plna`
    assert capsys.readouterr().err == "turbo: there is no command 'srve'; did you mean `turbo serve`?\n"
    assert turbo_cli.main(["xyzzy"]) == 1
    assert "--help" in capsys.readouterr().err


def test_a_command_without_its_packages_says_which_extra_brings_them(
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert turbo_cli.main(["inspect", "m"]) == 1
    assert "'torch'" in (said := capsys.readouterr().err)
    assert "uv tool install '.[operator,runtime]'" in said


def test_a_module_of_our_own_that_is_missing_is_a_bug_and_raises() -> None:
    with pytest.raises(ModuleNotFoundError, match="gone"):
        turbo_cli.main(["plan"])


def test_ctrl_c_ends_any_command_with_130_and_no_words(capsys: pytest.CaptureFixture[str]) -> None:
    assert turbo_cli.main(["wait"]) == 130
    assert capsys.readouterr() == ("", "")


def test_an_error_that_is_not_of_standard_output_is_a_bug_and_raises() -> None:
    with pytest.raises(OSError, match="No space"):
        turbo_cli.main(["write"])


SAYS = """
import sys, turbo_cli
from importlib.metadata import EntryPoint
turbo_cli.entry_points = lambda group: [EntryPoint("say", "__main__:say", group)]
def say(argv):
    print("x" * int(argv[0]))
    return 2
sys.exit(turbo_cli.main(sys.argv[1:]))
"""


def said_to(output: int | IO[bytes], *arguments: str) -> tuple[int, str]:
    """The exit status and what stands on standard error."""
    done = subprocess.run(
        [sys.executable, "-c", SAYS, *arguments],
        cwd=RUNTIME,
        env={key: value for key, value in os.environ.items() if key != "PYTHONUNBUFFERED"},
        stdout=output,
        stderr=subprocess.PIPE,
        text=True,
        check=False,
    )
    return done.returncode, done.stderr


@pytest.mark.parametrize("arguments", [("say", "1"), ("say", "1000000"), ("--help",), ("--version",)])
def test_output_that_cannot_be_written_is_one_sentence(arguments: tuple[str, ...]) -> None:
    with Path("/dev/full").open("wb") as full:
        status, said = said_to(full, *arguments)
    assert (status, said) == (1, "turbo: standard output cannot be written: No space left on device.\n")


@pytest.mark.parametrize(
    ("arguments", "status"), [(("say", "1"), 2), (("say", "1000000"), 141), (("--help",), 0)]
)
def test_a_reader_who_has_read_enough_is_no_error(arguments: tuple[str, ...], status: int) -> None:
    reader, writer = os.pipe()
    os.close(reader)
    try:
        assert said_to(writer, *arguments) == (status, "")
    finally:
        os.close(writer)


def test_version_is_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    assert turbo_cli.main(["--version"]) == 0
    assert capsys.readouterr().out.startswith("turbo ")


def test_the_dispatcher_loads_no_package_of_either_extra() -> None:
    code = "import sys, turbo_cli; turbo_cli.main(['--help']); print(sorted(sys.modules))"
    loaded = subprocess.run(
        [sys.executable, "-c", code], cwd=RUNTIME, capture_output=True, text=True, check=True
    ).stdout
    for package in ("torch", "kopf", "fastapi", "kubernetes", "turbo_runtime'", "turbo_operator'"):
        assert package not in loaded
