"""The operator's wish, running or stopped: it survives a restart and a reboot."""

from __future__ import annotations

import asyncio
import json
import logging
import os
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pathlib import Path

log = logging.getLogger(__name__)


class StreamWish:
    """`running` until somebody stopped the stream, kept in one small file that is replaced as a whole."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self.running = True
        self.reason: str | None = None
        try:
            kept = json.loads(path.read_text())
            if not isinstance(kept["reason"], str | None):
                raise TypeError("reason is no text")
            self.running, self.reason = bool(kept["running"]), kept["reason"]
        except FileNotFoundError:
            pass
        except (OSError, ValueError, KeyError, TypeError) as exc:
            log.warning("%s cannot be read (%s): the stream counts as wanted", path, exc)

    def change(self, *, running: bool, reason: str | None) -> bool:
        """Change it, for now; whether it is another one than before."""
        changed = running != self.running
        self.running, self.reason = running, reason
        return changed

    async def keep(self) -> None:
        """Write it down.

        A disk that takes nothing is told in the log and no more: the wish holds until the next restart all the same.
        """
        text = json.dumps({"running": self.running, "reason": self.reason})
        try:
            # In a thread: an SD card may take seconds for a sync, and pictures are on their way meanwhile.
            await asyncio.to_thread(self._write, text)
        except OSError as exc:
            log.error("%s cannot be written (%s): the wish will not survive a restart", self._path, exc.strerror)  # noqa: TRY400

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
