"""What must not happen again, over restarts: rows in a small database."""

from __future__ import annotations

from typing import TYPE_CHECKING

from edge.core.once import Row
from edge.host.rows import Rows

if TYPE_CHECKING:
    import sqlite3
    from collections.abc import Callable, Iterable
    from pathlib import Path


class Ledger(Rows[Row]):
    """Rows by (kind, sender, id), each until a moment of the wall clock.

    The disk is made to sync only every few hundred changes, which spares an SD card: a daemon that dies loses what it
    took in its last milliseconds; a power cut, what the kernel had not written out, half a minute at most.
    """

    _TABLE = """CREATE TABLE IF NOT EXISTS once (
      kind TEXT, sender TEXT, id TEXT, until_s REAL, client TEXT, reply BLOB, PRIMARY KEY (kind, sender, id)
    ) WITHOUT ROWID"""
    _ALL = "SELECT kind, sender, id, until_s, client, reply FROM once ORDER BY until_s"
    _PUT = "INSERT OR REPLACE INTO once VALUES (?, ?, ?, ?, ?, ?)"
    _DROP = "DELETE FROM once WHERE kind = ? AND sender = ? AND id = ?"
    _KEY = 3
    _SYNCHRONOUS = "NORMAL"

    def __init__(self, path: Path, wall_s: Callable[[], float]) -> None:
        super().__init__(path)
        self._wall_s = wall_s

    def open(self) -> list[Row]:
        """Everything that still counts. Call once, before `run`."""
        return [Row(*columns) for columns in self._read()]

    def put(self, row: Row) -> None:
        """Write a row down soon, in place of one with the same key."""
        self._change(row.key, row)

    def drop(self, key: tuple[str, str, str]) -> None:
        """Forget a row soon."""
        self._change(key, None)

    def _tidy(self, database: sqlite3.Connection) -> Iterable[tuple[str, ...]]:
        past = "DELETE FROM once WHERE until_s <= ? RETURNING kind, sender, id"
        return database.execute(past, (self._wall_s(),)).fetchall()

    def _matters(self, key: tuple[str, ...], row: Row | None) -> bool:
        return super()._matters(key, row) and (row is None or row.until_s > self._wall_s())
