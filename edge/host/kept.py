"""A small file that survives a restart and a power cut."""

from __future__ import annotations

import asyncio
import json
import logging
import os
from typing import TYPE_CHECKING, Any

from edge.contract.codes import Code
from edge.errors import Rejected

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from edge.errors import EdgeError

log = logging.getLogger(__name__)


class KeptFile:
    """One JSON object, replaced as a whole. What fails is in the log; a write that does, `failed` hears of, too."""

    def __init__(self, path: Path, failed: Callable[[EdgeError], None] = lambda _: None) -> None:
        self._path = path
        self._failed = failed

    def read(self) -> dict[str, Any] | None:
        """None: there is nothing yet, or nothing readable."""
        try:
            fields = json.loads(self._path.read_text())
        except FileNotFoundError:
            return None
        except (OSError, ValueError, RecursionError) as exc:
            log.warning("%s cannot be read (%s): it counts as empty", self._path, exc)
            return None
        return fields if isinstance(fields, dict) else None

    async def write(self, fields: dict[str, Any]) -> bool:
        """Whether it is on disk. In a thread: an SD card may take seconds for a sync, and pictures are on their way."""
        try:
            await asyncio.to_thread(self._write, json.dumps(fields))
        except OSError as exc:
            said = f"{self._path} cannot be written ({exc.strerror}): it will not survive a restart"
            log.error(said)  # noqa: TRY400
            self._failed(Rejected(Code.INTERNAL, said))
            return False
        return True

    def _write(self, text: str) -> None:
        fresh = self._path.with_suffix(".new")
        with fresh.open("w") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        fresh.replace(self._path)
        directory = os.open(self._path.parent, os.O_RDONLY)
        try:
            os.fsync(directory)
        finally:
            os.close(directory)
