"""What apt would do is said before it is done, and what is there keeps its version."""

from __future__ import annotations

from pathlib import Path

import pytest

from turbo_dev import packages
from turbo_dev.shell import CommandError

# An apt-get that knows one new package, whose installed sibling it upgrades unless it is told the version.
APT = """#!/bin/sh
echo "$@" >> "$(dirname "$0")/asked"
for word in "$@"; do
    case "$word" in
        sibling=1.0) pinned=1 ;;
        unknown) test -e "$(dirname "$0")/updated" || exit 100 ;;
        update) touch "$(dirname "$0")/updated" ;;
    esac
done
echo "Inst wanted (2.0 Debian:12/stable [amd64])"
test -n "$pinned" || echo "Inst sibling [1.0] (1.1 Debian:12/stable [amd64])"
"""


@pytest.fixture
def apt(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    program = tmp_path / "apt-get"
    program.write_text(APT)
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    return tmp_path


def test_nothing_missing_is_nothing_to_do(apt: Path) -> None:
    assert packages.plan([]) == packages.Plan((), ())
    assert not (apt / "asked").exists()


def test_an_installed_sibling_keeps_its_version(apt: Path) -> None:
    plan = packages.plan(["wanted"])
    assert plan.wanted == ("wanted", "sibling=1.0")
    assert [str(change) for change in plan.changes] == ["wanted 2.0"]


def test_lists_are_updated_where_apt_does_not_know_the_package(apt: Path) -> None:
    plan = packages.plan(["unknown"])
    assert (apt / "updated").exists()
    assert plan.changes[0].name == "wanted"


def test_a_program_that_is_there_needs_no_package() -> None:
    assert packages.missing({"sh": "dash", "no-such-program": "its-package"}) == ["its-package"]


def test_a_failing_apt_is_an_error_with_its_words(apt: Path) -> None:
    (apt / "apt-get").write_text("#!/bin/sh\necho 'E: broken' >&2\nexit 100\n")
    with pytest.raises(CommandError, match="E: broken"):
        packages.plan(["wanted"])
