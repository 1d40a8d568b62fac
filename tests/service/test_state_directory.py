"""Who can read the state directory and its files."""

from __future__ import annotations

import errno
import os
import re
import stat
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from edge import daemon
from edge.host import state_directory

if TYPE_CHECKING:
    from collections.abc import Iterator


@pytest.fixture(autouse=True)
def open_umask() -> Iterator[None]:
    before = os.umask(0o022)
    yield
    os.umask(before)


def mode(path: Path) -> int:
    return stat.S_IMODE(path.lstat().st_mode)


def test_directory_and_files_made_from_now_on_are_for_their_user_alone(tmp_path: Path) -> None:
    directory = tmp_path / "lib" / "state"
    assert state_directory.make(directory) is None
    (directory / "file").touch()
    assert (mode(directory), mode(directory / "file")) == (0o700, 0o600)


def test_what_was_left_open_is_closed_and_links_are_not_followed(tmp_path: Path) -> None:
    directory, outside = tmp_path / "state", tmp_path / "outside"
    directory.mkdir(mode=0o755)
    outside.touch(mode=0o644)
    ours = [directory / name for name in ("wish.json", "events.sqlite-wal", "once.sqlite.damaged-20261129")]
    for path in ours:
        path.touch(mode=0o644)
    (directory / "run.json").symlink_to(outside)
    assert state_directory.make(directory) is None
    assert [mode(path) for path in (directory, *ours, outside)] == [0o700, 0o600, 0o600, 0o600, 0o644]


def test_what_is_not_the_daemons_stays_open(tmp_path: Path) -> None:
    """The settings may name a directory that others use, too, such as a home directory."""
    directory = tmp_path / "home"
    directory.mkdir(mode=0o755)
    for name in ("notes", "wish.json"):
        (directory / name).touch(mode=0o644)
    assert state_directory.make(directory) is None
    assert [mode(path) for path in (directory, directory / "notes", directory / "wish.json")] == [0o755, 0o644, 0o600]


def test_a_file_that_cannot_be_closed_leaves_no_other_open(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    files = [tmp_path / name for name in ("run.json", "wish.json", "once.sqlite")]
    for path in files:
        path.touch(mode=0o644)
    immutable = next(path for path in tmp_path.iterdir() if path in files)
    chmod = type(tmp_path).chmod

    def refused(path: Path, mode: int) -> None:
        if path == immutable:
            raise PermissionError(errno.EPERM, "Operation not permitted")
        chmod(path, mode)

    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(type(tmp_path), "chmod", refused)
        assert state_directory.make(tmp_path) is None
    assert {path: mode(path) for path in files} == {path: 0o644 if path == immutable else 0o600 for path in files}
    assert caplog.text.count("state open to other users") == 1


def test_every_file_of_the_daemon_is_known() -> None:
    named = re.findall(r'_state_dir / "(.+?)"', Path(daemon.__file__).read_text())
    assert sorted(named) == sorted(state_directory.NAMES)


def test_directory_that_everybody_shares_stays_open(tmp_path: Path) -> None:
    tmp_path.chmod(0o1777)
    (tmp_path / "file").touch(mode=0o644)
    assert state_directory.make(tmp_path) is None
    assert (mode(tmp_path), mode(tmp_path / "file")) == (0o1777, 0o644)
