"""A small database of requests that must not be executed twice. It survives restarts."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from edge.core.once import Row
from edge.host.rows import Rows

if TYPE_CHECKING:
    import sqlite3
    from collections.abc import Callable, Iterable
    from pathlib import Path

    from edge.host.damaged_files import DamagedFiles

_LATEST_S = 1e11
"""The year 5138: no clock is set so. A later time is damage, and its row would stay for ever."""


class Ledger(Rows[Row]):
    """Rows by (kind, sender, id), each with the time of the wall clock at which it expires.

    To spare the SD card, the disk is synced only every few hundred changes. A crash of the daemon loses the last
    milliseconds; a power cut loses what the kernel had not written, at most half a minute.

    Expired rows are deleted when others are written, not at the start: the clock may be ahead then. Where tokens are
    required, rows are written only while the clock is known to be set, because no command is accepted before.
    """

    _TABLE = """CREATE TABLE IF NOT EXISTS once (
      kind TEXT NOT NULL, sender TEXT NOT NULL, id TEXT NOT NULL, until_s REAL NOT NULL, client TEXT NOT NULL,
      reply BLOB, PRIMARY KEY (kind, sender, id)
    ) STRICT, WITHOUT ROWID"""
    _ALL = "SELECT kind, sender, id, until_s, client, reply FROM once ORDER BY until_s"
    _PUT = "INSERT OR REPLACE INTO once VALUES (?, ?, ?, ?, ?, ?)"
    _DROP = "DELETE FROM once WHERE kind = ? AND sender = ? AND id = ?"
    _KEY = 3
    _TYPES = (str, str, str, float, str, bytes | None)
    _SYNCHRONOUS = "NORMAL"

    def __init__(self, path: Path, wall_s: Callable[[], float], damaged: DamagedFiles | None = None) -> None:
        super().__init__(path, damaged)
        self._wall_s = wall_s

    def open(self) -> list[Row]:
        """Read all rows, also expired ones. Call once, before `run`."""
        return [Row(*columns) for columns in self._read()]

    def put(self, row: Row) -> None:
        """Write a row soon. It replaces one with the same key."""
        self._change(row.key, row)

    def drop(self, key: tuple[str, str, str]) -> None:
        """Remove a row soon."""
        self._change(key, None)

    def _fits(self, row: tuple[Any, ...]) -> bool:
        return super()._fits(row) and row[3] < _LATEST_S

    def _delete_expired(self, database: sqlite3.Connection) -> Iterable[tuple[str, ...]]:
        expired = "DELETE FROM once WHERE until_s <= ? RETURNING kind, sender, id"
        return database.execute(expired, (self._wall_s(),)).fetchall()

    def _is_needed(self, key: tuple[str, ...], row: Row | None) -> bool:
        return super()._is_needed(key, row) and (row is None or row.until_s > self._wall_s())
