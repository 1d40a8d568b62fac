"""A small database of events that the broker has not acknowledged. It survives restarts."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

from edge.host.rows import Rows

if TYPE_CHECKING:
    from pathlib import Path

    from edge.host.damaged_files import DamagedFiles

_DROP_EVERY_S = 1.0


class EventStore(Rows[tuple[str, bytes]]):
    """The payloads of events by their ids, in the order of `put`.

    `put` syncs, so that an event survives a power cut. To spare the SD card, `drop` is written once a second while
    other events wait: a daemon that crashes in that time sends some events again.
    """

    _TABLE = """CREATE TABLE IF NOT EXISTS events (
      number INTEGER PRIMARY KEY, id TEXT NOT NULL UNIQUE, payload BLOB NOT NULL
    ) STRICT"""
    _ALL = "SELECT id, payload FROM events ORDER BY number"
    _PUT = "INSERT OR IGNORE INTO events (id, payload) VALUES (?, ?)"
    _DROP = "DELETE FROM events WHERE id = ?"
    _KEY = 1
    _TYPES = (str, bytes)
    _SYNCHRONOUS = "FULL"

    def __init__(self, path: Path, damaged: DamagedFiles | None = None) -> None:
        super().__init__(path, damaged)
        self._ids: set[str] = set()
        self._timer: asyncio.TimerHandle | None = None

    def open(self) -> list[tuple[str, bytes]]:
        """Read all events, oldest first. Call once, before `run`."""
        found = [(event_id, payload) for event_id, payload in self._read()]
        self._ids.update(event_id for event_id, _ in found)
        return found

    def put(self, event_id: str, payload: bytes) -> None:
        """Append an event."""
        self._ids.add(event_id)
        self._change((event_id,), (event_id, payload))

    def drop(self, event_id: str) -> None:
        """Remove an event, within a second."""
        self._ids.discard(event_id)
        self._changes[event_id,] = None
        loop = asyncio.get_running_loop()
        if not self._ids:
            self._changed.set()
        elif self._timer is None or self._timer.when() <= loop.time():
            self._timer = loop.call_later(_DROP_EVERY_S, self._changed.set)
