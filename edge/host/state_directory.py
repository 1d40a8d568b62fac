"""Makes the state directory for its user alone, and checks that it can be made and written."""

from __future__ import annotations

import errno
import logging
import os
import stat
import tempfile
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pathlib import Path

log = logging.getLogger(__name__)

NAMES = ("run.json", "tuning.json", "controls.json", "wish.json", "wish.copy.json", "events.sqlite", "once.sqlite")
"""The daemon's files; names that begin so are those of temporary files, reserves and damaged copies."""

# A full or failing disk is not a fault of the settings: the daemon streams without writing.
_DISK_FAULTS = (errno.ENOSPC, errno.EDQUOT, errno.EIO)


def write_fault(directory: Path) -> str | None:
    """Why the settings cannot name this directory. None: it can be made and written, or its disk fails.

    Blocking. Leaves nothing on the disk.
    """
    if directory.is_symlink() and not directory.exists():
        return f"{directory}: a link to a directory that does not exist"
    try:
        nearest = next(path for path in (directory, *directory.absolute().parents) if path.exists())
        with tempfile.TemporaryDirectory(dir=nearest, prefix=".edge-check-"):
            return None
    except OSError as exc:
        return _fault(directory, exc)


def make(directory: Path) -> str | None:
    """Make the directory, and close it and its files to other users. Returns as `write_fault`.

    A directory that holds anything else stays as it is, for example a home directory. A failing disk is logged. Sets
    the umask of the process: SQLite does not let us choose the mode of its files.
    """
    os.umask(0o077)
    try:
        directory.mkdir(parents=True, exist_ok=True)
    except OSError as exc:
        if (fault := _fault(directory, exc)) is not None:
            return fault
        log.error("state directory not made directory=%s error=%s", directory, exc.strerror)
    else:
        _close_to_others(directory)
    return None


def _close_to_others(directory: Path) -> None:
    """An earlier release, or a copy of a backup, may have left it open. What is not ours stays as it is."""
    try:
        if directory.stat().st_mode & stat.S_ISVTX:
            return  # a directory that everybody shares, such as /tmp
        entries = list(directory.iterdir())
    except OSError as exc:
        log.warning("state directory not checked directory=%s error=%s", directory, exc)
        return
    ours = [path for path in entries if path.name.startswith(NAMES)]
    if len(ours) == len(entries):
        ours.append(directory)
    for path in ours:
        try:
            mode = path.lstat().st_mode
            if mode & 0o077 and (path == directory or stat.S_ISREG(mode)):
                path.chmod(stat.S_IMODE(mode) & 0o700)
        except OSError as exc:
            log.warning("state open to other users path=%s error=%s", path, exc)


def _fault(directory: Path, error: OSError) -> str | None:
    # Inside the service, a directory that the unit does not open to it is read-only, too.
    disk_fails = error.errno in _DISK_FAULTS or (error.errno == errno.EROFS and directory.is_dir())
    return None if disk_fails else f"{directory}: cannot be made or written: {error.strerror}"
