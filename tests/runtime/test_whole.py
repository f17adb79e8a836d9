"""A file that is written whole can be read by those who could read it before, or whom the umask lets."""

from __future__ import annotations

import os
import stat
from pathlib import Path

import pytest

from turbo_runtime import files

PRIVATE = 0o600  # as temporary files of libraries are


def closed(scratch: Path) -> None:
    scratch.write_bytes(b"x")
    scratch.chmod(PRIVATE)


def test_whoever_writes_it_a_new_file_is_as_open_as_any_of_this_process(tmp_path: Path) -> None:
    files.write_whole_by(tmp_path / "weights", closed)
    usual = tmp_path / "usual"
    usual.touch()
    assert (tmp_path / "weights").stat().st_mode == usual.stat().st_mode
    umask = os.umask(0)
    os.umask(umask)
    assert stat.S_IMODE(usual.stat().st_mode) == 0o666 & ~umask


@pytest.mark.skipif(os.geteuid() != 0, reason="only root gives files away")
def test_a_file_stays_its_owner_s(tmp_path: Path) -> None:
    file = tmp_path / "segment"
    file.touch()
    os.chown(file, 65532, 65532)
    files.write_whole(file, "less")
    assert (file.stat().st_uid, file.stat().st_gid) == (65532, 65532)


def test_a_private_file_stays_private(tmp_path: Path) -> None:
    file = tmp_path / "segment"
    file.touch(mode=0o640)
    files.write_whole(file, "less")
    assert stat.S_IMODE(file.stat().st_mode) == 0o640 & ~files._UMASK
