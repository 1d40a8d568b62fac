"""A small JSON file that survives a restart and a power cut."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import json
import logging
import os
from itertools import chain
from typing import TYPE_CHECKING, Any

from edge.contract.codes import Code
from edge.errors import Rejected
from edge.files import read_file
from edge.host.atomic_file import AtomicFile
from edge.host.damaged_files import DamagedFiles

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from edge.errors import EdgeError

log = logging.getLogger(__name__)


# The file is too large, or a directory, a pipe, a device, a socket or a link to itself. Other errors are the disk's.
_NO_STATE_FILE = (errno.EFBIG, errno.EISDIR, errno.EINVAL, errno.ENXIO, errno.ENODEV, errno.ELOOP)

_LEVELS = 32
"""More nested lists and objects are damage: code that handles nested values recursively would fail."""

_FULL = (errno.ENOSPC, errno.EDQUOT)
_ROOM_BYTES = 4096
_RESERVE_BYTES = (64 * 1024, 16 * 1024, 8 * 1024)
"""As much as there is room for. More than a state takes: meanwhile the databases may take some of it."""


class StateFile:
    """One JSON object; a write replaces the file as a whole. Errors are logged.

    `damaged`: sets a damaged file aside, and anything else that is in the place of a file. `on_failure`: receives the
    error of a failed write. `reserve`: keep some room on the disk in a second file, which is given up for a write that
    finds the disk full.

    `lost`: there was a file, and its content is not known.
    """

    def __init__(
        self,
        path: Path,
        on_failure: Callable[[EdgeError], None] = lambda _: None,
        damaged: DamagedFiles | None = None,
        *,
        reserve: bool = False,
    ) -> None:
        self._path = path
        self._file = AtomicFile(path)
        self._on_failure = on_failure
        self._damaged = damaged or DamagedFiles()
        self._reserve = path.with_name(f"{path.name}.reserve") if reserve else None
        self._reserving: asyncio.Future[None] | None = None
        self.lost = False

    def read(self) -> dict[str, Any] | None:
        """Return None if the file is missing or unreadable. A damaged one is set aside. Blocking."""
        self._keep_reserve()
        try:
            fields = json.loads(read_file(self._path), parse_constant=_refuse)
            json.dumps(fields, ensure_ascii=False, allow_nan=False).encode()
        except FileNotFoundError:
            # It was set aside, and nothing was written since then: an earlier start was cut off, or had a full disk.
            self.lost = any(self._path.parent.glob(f"{self._path.name}.damaged-*"))
            return None
        except (OSError, ValueError, RecursionError) as exc:
            if isinstance(exc, OSError) and exc.errno not in _NO_STATE_FILE:
                log.warning("state file unreadable, treated as empty file=%s error=%s", self._path, exc)
                self.lost = True
            else:
                self.set_aside(exc)
            return None
        if not isinstance(fields, dict):
            self.set_aside("not a JSON object")
            return None
        if _too_deep(fields):
            self.set_aside(f"nested more than {_LEVELS} levels deep")
            return None
        return fields

    def set_aside(self, why: object) -> None:
        """Move the file out of the way: its content is not what was written."""
        self.lost = True
        self._set_aside(self._path, why)

    def full(self) -> bool:
        """Whether the disk is too full for a write. Blocking."""
        try:
            self._clear(self._file)
            self._file.try_room(_ROOM_BYTES)
        except OSError as exc:
            return exc.errno in _FULL
        return False

    async def write(self, fields: dict[str, Any]) -> bool:
        """Return whether the object is on disk. Runs in a thread: an SD card may take seconds for a sync.

        The reserve is made afterwards, in the background. One write at a time.
        """
        if self._reserving is not None:
            # It takes the room that this write may need, and holds it for this write.
            await asyncio.wait({self._reserving})
        try:
            await asyncio.to_thread(self._replace, json.dumps(fields).encode())
        except OSError as exc:
            log.error("state file not written file=%s error=%s", self._path, exc.strerror)
            message = f"{self._path} cannot be written ({exc.strerror}); the change is lost at the next restart"
            self._on_failure(Rejected(Code.INTERNAL, message))
            return False
        if self._reserve is not None:
            self._reserving = asyncio.get_running_loop().run_in_executor(None, self._keep_reserve)
        return True

    async def remove(self) -> None:
        """Remove the file, which needs no room on the disk."""
        try:
            await asyncio.to_thread(self._path.unlink, missing_ok=True)
        except OSError as exc:
            log.error("state file not removed file=%s error=%s", self._path, exc.strerror)

    def _replace(self, content: bytes) -> None:
        self._path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        self._clear(self._file)
        try:
            self._file.replace(content)
        except OSError as exc:
            if self._reserve is None or exc.errno not in _FULL or not self._reserve.is_file():
                raise
            self._reserve.unlink()
            self._file.replace(content)
            log.warning("disk full, the reserve was used file=%s", self._path)

    def _keep_reserve(self) -> None:
        if self._reserve is None:
            return
        reserve = AtomicFile(self._reserve)
        for size_bytes in _RESERVE_BYTES:
            with contextlib.suppress(OSError):  # a full or failing disk; the write that needs it reports it
                self._clear(reserve)
                if not self._reserve.exists() or self._reserve.stat().st_size < size_bytes:
                    # A file system could store zeros without using room.
                    reserve.replace(os.urandom(size_bytes))
                return

    def _clear(self, file: AtomicFile) -> None:
        """Set aside what is no file in the places that a write uses. A rename does not replace a directory."""
        for path in file.obstacles():
            self._set_aside(path, "not a regular file")

    def _set_aside(self, path: Path, why: object) -> None:
        try:
            self._damaged.set_aside(path, why)
        except OSError as exc:
            log.warning("state file not set aside file=%s error=%s", path, exc)


def _too_deep(fields: dict[str, Any]) -> bool:
    level: list[Any] = [fields]
    for _ in range(_LEVELS):
        inside = chain.from_iterable(each.values() if isinstance(each, dict) else each for each in level)
        level = [value for value in inside if isinstance(value, dict | list)]
    return bool(level)


def _refuse(constant: str) -> float:
    raise ValueError(f"{constant} is no JSON number")
