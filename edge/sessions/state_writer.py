"""Writes a small state in the background, so that a slow disk does not hold up a command."""

from __future__ import annotations

import asyncio
import logging
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

log = logging.getLogger(__name__)

_TIMEOUT_S = 5.0


class StateWriter:
    """Writes the latest state. Event loop only.

    `write`: writes fields; returns whether they are on disk. `state`: returns the fields to write.
    """

    def __init__(
        self, write: Callable[[dict[str, Any]], Awaitable[bool]], name: str, state: Callable[[], dict[str, Any]]
    ) -> None:
        self._write_fields = write
        self._name = name
        self._state = state
        self._writing: asyncio.Task[bool] | None = None
        self._changed = False

    async def save(self) -> bool:
        """Write the present state to disk. Returns whether it is there; False after `_TIMEOUT_S` on a slow disk.

        Callers share one writer, which writes the latest state: none queues behind another's write.
        """
        done, _ = await asyncio.wait({self.begin()}, timeout=_TIMEOUT_S)
        if not done:
            log.warning("state not on disk yet state=%s after_s=%.0f", self._name, _TIMEOUT_S)
            return False
        return all(task.result() for task in done)

    def begin(self) -> asyncio.Task[bool]:
        """Begin to write the present state to disk."""
        self._changed = True
        if self._writing is None or self._writing.done():
            self._writing = asyncio.create_task(self._write(), name=f"write-{self._name}")
        return self._writing

    async def _write(self) -> bool:
        written = False
        while self._changed:
            self._changed = False
            written = await self._write_fields(self._state())
        return written
