"""What follows a demo that was stopped or has failed: how the next run goes on, and what it is told."""

from __future__ import annotations

from typing import Any, NoReturn

import pytest

from turbo_dev import __main__ as command
from turbo_dev import binaries, demo, images
from turbo_dev.release import undoing
from turbo_dev.shell import CommandError


def history(*statuses: str) -> list[dict[str, Any]]:
    """As `helm history` lists a release, the oldest revision first."""
    return [{"revision": number, "status": status} for number, status in enumerate(statuses, 1)]


@pytest.mark.parametrize(
    ("statuses", "words"),
    [
        (("pending-install",), "uninstall turbo --wait"),
        (("failed", "pending-upgrade"), "uninstall turbo --wait"),
        (("deployed", "pending-upgrade"), "rollback turbo 1"),
        (("superseded", "deployed", "failed", "pending-upgrade"), "rollback turbo 2"),
        (("superseded", "failed", "pending-upgrade"), "rollback turbo 1"),
        (("deployed", "pending-upgrade", "pending-rollback"), "rollback turbo 1"),
        (("superseded", "uninstalling"), "uninstall turbo --wait"),
        (("superseded", "deployed"), ""),
        (("deployed", "failed"), ""),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, tuple) else None,
)
def test_a_revision_that_is_half_done_is_undone_and_no_other(statuses: tuple[str, ...], words: str) -> None:
    assert " ".join(undoing(history(*statuses))) == words


def fail(*_: object) -> NoReturn:
    raise CommandError("it failed")


def said(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    assert command.main(["demo", *arguments]) == 1
    return capsys.readouterr().err.strip()


def test_what_failed_before_anything_was_made_is_all_that_is_said(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(binaries, "ensure", lambda names: dict.fromkeys(names))
    monkeypatch.setattr(demo, "from_context", fail)
    assert said(capsys, "--context=nope") == "it failed"


def test_who_goes_on_or_back_stays_on_the_cluster_that_was_named(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(binaries, "ensure", lambda names: dict.fromkeys(names))
    monkeypatch.setattr(demo, "from_context", lambda *_: None)
    monkeypatch.setattr(demo.release, "list_foreign_values", lambda _: [])
    monkeypatch.setattr(images, "of_this_checkout", fail)
    there, hint = said(capsys, "--context=mine", "--registry=r.example/turbo").splitlines()
    assert there == "it failed"
    assert "`make demo CONTEXT=mine REGISTRY=r.example/turbo` goes on from here" in hint
    assert "`make demo-down CONTEXT=mine` removes it" in hint


def test_on_the_embedded_cluster_the_commands_name_none(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(demo, "_embedded", fail)
    hint = "What was made is still there: `make demo` goes on from here, `make demo-down` removes it."
    assert said(capsys) == f"it failed\n{hint}"


def test_images_that_stay_on_this_machine_come_with_the_command_that_pushes_them(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    made = images.of_this_checkout()
    monkeypatch.setattr(images, "build", lambda: made)
    assert command.main(["images"]) == 0
    shown = capsys.readouterr().out.splitlines()
    assert shown[:4] == [image.name for image in made]
    assert shown[-1] == "make images REGISTRY=registry.example.com/turbo"
