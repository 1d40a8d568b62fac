"""Events that the broker does not have yet, over restarts: rows in a small database."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

from edge.host.rows import Rows

if TYPE_CHECKING:
    from pathlib import Path

_GATHER_S = 1.0


class EventStore(Rows[tuple[str, bytes]]):
    """Payloads by the event's id, in the order in which they were put.

    Each is made to reach the disk at once: it outlives a power cut, too. That they were sent is written down by the
    second while there are more, which spares an SD card: a daemon that dies then sends some again.
    """

    _TABLE = "CREATE TABLE IF NOT EXISTS events (number INTEGER PRIMARY KEY, id TEXT UNIQUE, payload BLOB)"
    _ALL = "SELECT id, payload FROM events ORDER BY number"
    _PUT = "INSERT OR IGNORE INTO events (id, payload) VALUES (?, ?)"
    _DROP = "DELETE FROM events WHERE id = ?"
    _KEY = 1
    _SYNCHRONOUS = "FULL"

    def __init__(self, path: Path) -> None:
        super().__init__(path)
        self._ids: set[str] = set()
        self._gathered: asyncio.TimerHandle | None = None

    def open(self) -> list[tuple[str, bytes]]:
        """All of them, the oldest first. Call once, before `run`."""
        found = [(event_id, payload) for event_id, payload in self._read()]
        self._ids.update(event_id for event_id, _ in found)
        return found

    def put(self, event_id: str, payload: bytes) -> None:
        """Write one down behind the others."""
        self._ids.add(event_id)
        self._change((event_id,), (event_id, payload))

    def drop(self, event_id: str) -> None:
        """Forget one soon."""
        self._ids.discard(event_id)
        self._changes[event_id,] = None
        loop = asyncio.get_running_loop()
        if not self._ids:
            self._changed.set()
        elif self._gathered is None or self._gathered.when() <= loop.time():
            self._gathered = loop.call_later(_GATHER_S, self._changed.set)
