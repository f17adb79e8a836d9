"""The console command: what it lists, what it runs, and what it says when it cannot."""

from __future__ import annotations

import subprocess
import sys
from importlib.metadata import EntryPoint
from pathlib import Path

import pytest

import turbo_cli

RUNTIME = Path(turbo_cli.__file__).parent


def ran(argv: list[str]) -> int:
    print("ran", argv)
    return 5


def without_package(argv: list[str]) -> int:
    raise ModuleNotFoundError("No module named 'torch'", name="torch.nn")


def broken(argv: list[str]) -> int:
    raise ModuleNotFoundError("No module named 'turbo_runtime.gone'", name="turbo_runtime.gone")


@pytest.fixture(autouse=True)
def commands(monkeypatch: pytest.MonkeyPatch) -> None:
    """Entry points as an installation has them, but for what they load."""
    monkeypatch.setitem(sys.modules, "turbo_runtime.commands_of_this_test", sys.modules[__name__])
    entries = [
        EntryPoint(name, f"turbo_runtime.commands_of_this_test:{function}", turbo_cli.GROUP)
        for name, function in (("serve", "ran"), ("inspect", "without_package"), ("plan", "broken"))
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
    assert turbo_cli.main(["srve"]) == 2
    assert capsys.readouterr().err == "turbo: there is no command 'srve'; did you mean `turbo serve`?\n"
    assert turbo_cli.main(["xyzzy"]) == 2
    assert "--help" in capsys.readouterr().err


def test_a_command_without_its_packages_says_which_extra_brings_them(
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert turbo_cli.main(["inspect", "m"]) == 1
    assert "'torch'" in (said := capsys.readouterr().err)
    assert "pip install 'turbo-operator[runtime]'" in said


def test_a_module_of_our_own_that_is_missing_is_a_bug_and_raises() -> None:
    with pytest.raises(ModuleNotFoundError, match="gone"):
        turbo_cli.main(["plan"])


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
