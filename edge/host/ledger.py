"""What must not happen again, over restarts: rows in a small database."""

from __future__ import annotations

import asyncio
import logging
import sqlite3
import threading
from typing import TYPE_CHECKING

from edge.core.once import Row

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

log = logging.getLogger(__name__)

_TABLE = """CREATE TABLE IF NOT EXISTS once (
  kind TEXT, sender TEXT, id TEXT, until_s REAL, client TEXT, reply BLOB, PRIMARY KEY (kind, sender, id)
) WITHOUT ROWID"""
_FORGET = "DELETE FROM once WHERE until_s <= ?"


class Ledger:
    """Rows by (kind, sender, id), each until a moment of the wall clock.

    A change is on its way to the disk at once, in a thread, and nobody waits for it. The disk is made to sync only
    every few hundred changes (SQLite's write-ahead log, synchronous NORMAL), which spares an SD card: a daemon that
    dies loses what it took in its last milliseconds; a power cut, what the kernel had not written out, half a minute
    at most. Neither damages the rest. What cannot be read or written is told in the log, and no more.
    """

    def __init__(self, path: Path, wall_s: Callable[[], float]) -> None:
        self._path = path
        self._wall_s = wall_s
        self._changes: dict[tuple[str, str, str], Row | None] = {}
        self._changed = asyncio.Event()
        self._database: sqlite3.Connection | None = None
        self._one_at_a_time = threading.Lock()  # a cancelled write goes on in its thread
        self._told = False

    def open(self) -> list[Row]:
        """Everything that still counts. Call once, before `run`."""
        try:
            try:
                return self._open()
            except sqlite3.DatabaseError as exc:
                if self._database is not None:
                    self._database.close()
                log.warning("%s cannot be read (%s): it counts as empty", self._path, exc)
                for suffix in ("", "-wal", "-shm"):
                    self._path.with_name(self._path.name + suffix).unlink(missing_ok=True)
                return self._open()
        except (OSError, sqlite3.Error) as exc:
            self._database = None
            self._tell(exc)
            return []

    def put(self, row: Row) -> None:
        """Write a row down soon, in place of one with the same key."""
        self._change(row.key, row)

    def drop(self, key: tuple[str, str, str]) -> None:
        """Forget a row soon."""
        self._change(key, None)

    async def run(self, ready: asyncio.Event) -> None:
        """Write until cancelled; then what is left."""
        ready.set()
        try:
            while True:
                await self._changed.wait()
                self._changed.clear()
                changes = self._take()
                try:
                    await asyncio.to_thread(self._write, changes)
                except asyncio.CancelledError:
                    # It may not have begun; written twice is as well as once.
                    self._changes = {**changes, **self._changes}
                    raise
        finally:
            await asyncio.to_thread(self._close, self._take())

    def _change(self, key: tuple[str, str, str], row: Row | None) -> None:
        self._changes[key] = row
        self._changed.set()

    def _take(self) -> dict[tuple[str, str, str], Row | None]:
        changes, self._changes = self._changes, {}
        return changes

    def _open(self) -> list[Row]:
        database = self._database = sqlite3.connect(self._path, check_same_thread=False)
        database.execute("PRAGMA journal_mode = WAL")
        database.execute("PRAGMA synchronous = NORMAL")
        with database:
            database.execute(_TABLE)
            database.execute(_FORGET, (self._wall_s(),))
        rows = database.execute("SELECT kind, sender, id, until_s, client, reply FROM once ORDER BY until_s")
        return [Row(*row) for row in rows]

    def _write(self, changes: dict[tuple[str, str, str], Row | None]) -> None:
        with self._one_at_a_time:
            if self._database is None or not changes:
                return
            try:
                with self._database as database:
                    database.execute(_FORGET, (self._wall_s(),))
                    for key, row in changes.items():
                        if row is None:
                            database.execute("DELETE FROM once WHERE kind = ? AND sender = ? AND id = ?", key)
                        else:
                            database.execute("INSERT OR REPLACE INTO once VALUES (?, ?, ?, ?, ?, ?)", row)
            except sqlite3.Error as exc:
                self._tell(exc)
            else:
                self._told = False

    def _close(self, changes: dict[tuple[str, str, str], Row | None]) -> None:
        self._write(changes)
        with self._one_at_a_time:
            if self._database is not None:
                self._database.close()
                self._database = None

    def _tell(self, exc: Exception) -> None:
        if not self._told:
            log.error("%s cannot be written (%s): it will not survive a restart", self._path, exc)
        self._told = True
