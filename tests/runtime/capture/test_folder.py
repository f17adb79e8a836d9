"""The folder keeps its bounds, forgets whom it is told to forget, and leaves what is not its own alone."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from turbo_runtime.capture import segment_store
from turbo_runtime.capture.segment_store import create_segment, delete_tenant, expire, line, read, segments
from turbo_runtime.cli.capture import capture

DAY = 86_400.0
NOW = 1_790_000_000.0


def filled(where: Path, began: float, tenants: str) -> Path:
    with create_segment(where, began) as file:
        for number, tenant in enumerate(tenants):
            file.write(line({"at": began + number, "tenant": tenant, "text": f"{tenant} asks\u2028{number}"}))
    return Path(file.name)


def test_segments_come_oldest_first_and_other_files_are_no_segments(tmp_path: Path) -> None:
    late, early = filled(tmp_path, NOW, "a"), filled(tmp_path, NOW - DAY, "a")
    (tmp_path / "notes.jsonl").write_text("{}\n")
    assert [each.path for each in segments(tmp_path)] == [early, late]


def test_two_servers_that_begin_in_the_same_millisecond_have_files_of_their_own(tmp_path: Path) -> None:
    with create_segment(tmp_path, NOW) as one, create_segment(tmp_path, NOW) as other:
        assert one.name != other.name


def test_what_is_too_old_goes_then_the_oldest_until_the_rest_fits(tmp_path: Path) -> None:
    days = [filled(tmp_path, NOW - age * DAY, "abc") for age in (9, 5, 2, 1)]
    size = days[0].stat().st_size
    left = expire(tmp_path, NOW, max_bytes=2 * size, max_age_seconds=7 * DAY)
    assert [day.exists() for day in days] == [False, False, True, True]
    assert left == 2 * size
    assert expire(tmp_path, NOW, max_bytes=0, max_age_seconds=7 * DAY) == 0


def test_a_tenants_prompts_are_deleted_and_the_others_stay(tmp_path: Path) -> None:
    first, second = filled(tmp_path, NOW - 50, "abab"), filled(tmp_path, NOW - 40, "aa")
    assert delete_tenant(tmp_path, "a", NOW) == (4, 0)
    assert [row["tenant"] for row in read(first)] == ["b", "b"]
    assert not second.exists()
    assert segment_store.deletions(tmp_path) == {"a": NOW}


def test_a_segment_that_is_written_is_left_to_its_writer(tmp_path: Path) -> None:
    with create_segment(tmp_path, NOW) as file:
        file.write(line({"at": NOW, "tenant": "a", "text": "x"}))
        file.flush()
        assert delete_tenant(tmp_path, "a", NOW + 1) == (0, 1)
        assert len(list(read(Path(file.name)))) == 1


def test_a_line_that_a_kill_has_cut_short_is_left_out(tmp_path: Path) -> None:
    path = filled(tmp_path, NOW, "ab")
    with path.open("a") as file:
        file.write('{"at": 3, "ten')
    assert [row["tenant"] for row in read(path)] == ["a", "b"]


def test_show_tells_how_many_of_whom(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    filled(tmp_path, NOW, "abaa")
    assert capture(["show", str(tmp_path)]) == 0
    told = capsys.readouterr().out
    assert told.startswith("4 prompts, 0.0 MiB in 1 segments\nfrom 2026-09-21T")
    assert told.splitlines()[2].split() == ["3", "a"]


def test_delete_tells_how_many_are_gone(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    filled(tmp_path, NOW, "abaa")
    assert capture(["delete", str(tmp_path), "--tenant", "a"]) == 0
    assert capsys.readouterr().out.startswith("3 prompts are deleted;")


def test_delete_tells_what_servers_take_out_and_that_a_name_is_unknown(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    filled(tmp_path, NOW - 50, "ab")
    with create_segment(tmp_path, NOW) as file:
        file.write(line({"at": NOW, "tenant": "a", "text": "x"}))
        file.flush()
        assert capture(["delete", str(tmp_path), "--tenant", "a"]) == 0
        assert capsys.readouterr().out.startswith("1 prompts are deleted; servers that run take 1 more out")
        assert capture(["delete", str(tmp_path), "--tenant", "carol"]) == 0
        assert capsys.readouterr().out.startswith("no prompt of carol is kept here;")


@pytest.mark.parametrize("verb", ["show", "delete"])
def test_a_folder_of_something_else_is_refused_and_left_alone(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], verb: str
) -> None:
    (tmp_path / "config.json").write_text("{}")
    (tmp_path / "lost+found").mkdir()
    given = [str(tmp_path), *(["--tenant", "a"] if verb == "delete" else [])]
    assert capture([verb, *given]) == 1
    assert "holds other files; name the one of --capture-config" in capsys.readouterr().err
    assert {file.name for file in tmp_path.iterdir()} == {"config.json", "lost+found"}
    (tmp_path / "config.json").unlink()
    assert capture([verb, *given]) == 0  # an empty volume


def test_a_folder_that_is_none_is_told(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert capture(["show", str(tmp_path / "none")]) == 1
    assert capsys.readouterr().err.startswith(f"turbo capture: {tmp_path / 'none'} is no folder;")


def test_a_list_of_the_deleted_that_is_none_is_told(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    filled(tmp_path, NOW, "a")
    (tmp_path / "deleted.json").write_text(json.dumps(["?"]))
    assert capture(["delete", str(tmp_path), "--tenant", "a"]) == 1
    assert "does not say whose prompts were deleted when; remove it" in capsys.readouterr().err


def test_what_a_broken_off_rewriting_has_left_goes_with_time(tmp_path: Path) -> None:
    path = filled(tmp_path, NOW, "a")
    scratch = path.with_name(f".{path.name}.new")
    scratch.write_text("prompts")
    expire(tmp_path, scratch.stat().st_mtime + 60, 1 << 30, 1e12)
    assert scratch.exists()
    expire(tmp_path, scratch.stat().st_mtime + 3600, 1 << 30, 1e12)
    assert not scratch.exists()
    assert path.exists()


def test_nobody_else_may_read_what_is_kept(tmp_path: Path) -> None:
    path = filled(tmp_path / "kept", NOW, "ab")
    assert path.stat().st_mode & 0o007 == 0
    assert delete_tenant(path.parent, "a", NOW + 9) == (1, 0)  # its segment is written anew
    assert path.stat().st_mode & 0o007 == 0
    assert path.parent.stat().st_mode & 0o007 == 0


def test_what_was_asked_after_a_deletion_stays(tmp_path: Path) -> None:
    filled(tmp_path, NOW, "aaaa")
    assert delete_tenant(tmp_path, "a", NOW + 1) == (2, 0)  # asked at NOW and a second later
