"""`turbo plan` as a tool of its own, without torch, as the README installs it."""

from __future__ import annotations

import os
import re
import subprocess
from pathlib import Path

import pytest

from turbo_dev.paths import REPOSITORY

README = (REPOSITORY / "README.md").read_text()


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The home of somebody who has typed the README's command. Offline, from the cache of `make setup`."""
    command = next(re.finditer(r"^uv (tool install .*)$", README, re.MULTILINE)).group(1)
    home = tmp_path_factory.mktemp("home")
    uv = max((REPOSITORY / ".build").glob("uv-*/bin/uv"))
    env = {**os.environ, "UV_TOOL_DIR": str(home / "tools"), "UV_TOOL_BIN_DIR": str(home / "bin")}
    # uv lets no two builds of one checkout meet, and must not take a wheel that an earlier run has left.
    offline = f"{uv} {command} --offline --quiet --reinstall-package turbo-operator"
    subprocess.run(offline, shell=True, cwd=REPOSITORY, env=env, check=True)
    return home


def run(home: Path, *words: str) -> str:
    env = {"HOME": str(home), "PATH": f"{home / 'bin'}:/usr/bin:/bin", "COLUMNS": "120"}
    return subprocess.run(words, cwd=REPOSITORY, env=env, capture_output=True, text=True, check=True).stdout


def test_the_readmes_plan_is_made_by_the_tool(home: Path) -> None:
    command = next(re.finditer(r"^(turbo plan .*)$", README, re.MULTILINE)).group(1)
    assert "Feasible" in run(home, *command.split())


def test_the_tool_has_no_torch(home: Path) -> None:
    installed = {path.name for path in home.glob("tools/*/lib/python*/site-packages/*")}
    assert "pydantic" in installed
    assert not installed & {"torch", "transformers"}


def test_the_engines_commands_say_what_is_missing(home: Path) -> None:
    with pytest.raises(subprocess.CalledProcessError) as error:
        run(home, "turbo", "serve", "somewhere")
    assert "uv tool install '.[operator,runtime]'" in error.value.stderr
    assert "Traceback" not in error.value.stderr
