"""Moves damaged state files out of the way, so that the daemon starts without them and a person can look at them."""

from __future__ import annotations

import contextlib
import logging
import shutil
import threading
from datetime import UTC, datetime
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pathlib import Path

log = logging.getLogger(__name__)

_KEPT = 3
"""Damaged copies of one file. Older ones are deleted."""
_KEPT_BYTES = 64 * 1024 * 1024
"""A larger file is deleted: it would fill the card."""
_STAMP = "%Y%m%dT%H%M%S.%fZ"
_BESIDE = ("-wal", "-shm", "-journal", "")
"""What SQLite keeps beside a database, and the file itself."""


class DamagedFiles:
    """Any thread. `count`: files that were set aside since the daemon started."""

    def __init__(self) -> None:
        self.count = 0
        self._lock = threading.Lock()

    def set_aside(self, path: Path, why: object) -> None:
        """Rename a file to `NAME.damaged-DATE`, with what SQLite keeps beside it.

        Raises: OSError: the disk cannot be written; the file is still there.
        """
        with self._lock:
            kept = path.with_name(f"{path.name}.damaged-{datetime.now(UTC).strftime(_STAMP)}")
            reason = " ".join(str(why).split())  # SQLite's have several lines
            for suffix in _BESIDE:
                _move(path.with_name(path.name + suffix), kept.with_name(kept.name + suffix))
            self.count += 1
            log.warning("state file damaged, set aside file=%s as=%s error=%s", path, kept.name, reason)
            _remove_old(path)


def _move(path: Path, target: Path) -> None:
    if path.is_file() and path.stat().st_size > _KEPT_BYTES:
        path.unlink()
    elif path.exists() or path.is_symlink():
        path.rename(target)


def _remove_old(path: Path) -> None:
    """Keep the last ones, by the date in their names."""
    prefix = f"{path.name}.damaged-"
    with contextlib.suppress(OSError):  # they only take room
        copies = [copy for copy in path.parent.iterdir() if copy.name.startswith(prefix)]
        dates = sorted({_date(copy, prefix) for copy in copies})
        for copy in copies:
            if _date(copy, prefix) in dates[:-_KEPT]:
                _remove(copy)


def _date(copy: Path, prefix: str) -> str:
    return copy.name.removeprefix(prefix).partition("-")[0]


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink()
