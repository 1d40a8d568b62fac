"""Files that are replaced as a whole: a power cut leaves the old content or the new one."""

from __future__ import annotations

import contextlib
import os
import stat
import threading
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pathlib import Path


class AtomicFile:
    """One file that only its owner can read. All calls block, one after the other. They raise OSError."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._temporary = path.with_name(f"{path.name}.new")
        self._lock = threading.Lock()

    def obstacles(self) -> list[Path]:
        """What is in the place of the file or of its temporary file and is no regular file, such as a directory."""
        return [path for path in (self._path, self._temporary) if _is_obstacle(path)]

    def replace(self, content: bytes) -> None:
        """Replace the content. It is on the disk when this returns."""
        with self._lock:
            self._write(content).replace(self._path)
            _sync(self._path.parent)
        with contextlib.suppress(OSError):  # not readable for every user, and only necessary for a new directory
            _sync(self._path.parent.parent)

    def try_room(self, size_bytes: int) -> None:
        """Check that so much could be written, without a change."""
        with self._lock:
            self._write(bytes(size_bytes)).unlink()

    def _write(self, content: bytes) -> Path:
        """The synced temporary file beside the path."""
        temporary = self._temporary
        temporary.unlink(missing_ok=True)
        try:
            with os.fdopen(os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as file:
                file.write(content)
                file.flush()
                os.fsync(file.fileno())
        except OSError:
            temporary.unlink(missing_ok=True)  # on a full disk, it would take the last room
            raise
        return temporary


def _is_obstacle(path: Path) -> bool:
    try:
        return not stat.S_ISREG(path.lstat().st_mode)
    except FileNotFoundError:
        return False


def _sync(directory: Path) -> None:
    descriptor = os.open(directory, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
