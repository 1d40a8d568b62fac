"""Rows in a small database that survive a restart, written in a thread."""

from __future__ import annotations

import asyncio
import logging
import sqlite3
import threading
from typing import TYPE_CHECKING, Any, ClassVar, Generic, TypeVar

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

log = logging.getLogger(__name__)

_Row = TypeVar("_Row", bound=tuple[Any, ...])


class Rows(Generic[_Row]):
    """Rows by a key; the columns of both are parameters of the SQL that a subclass says.

    A change is on its way to the disk at once, in a thread, and nobody waits for it. SQLite's write-ahead log makes a
    change whole or not at all, whenever the daemon dies; what a power cut may take is said by `_SYNCHRONOUS`. A disk
    that cannot be read or written is told in the log, rows that were not written are counted, and no more.
    """

    _TABLE: ClassVar[str]
    _ALL: ClassVar[str]
    _PUT: ClassVar[str]
    _DROP: ClassVar[str]
    _SYNCHRONOUS: ClassVar[str]

    def __init__(self, path: Path) -> None:
        self.unwritten = 0
        self._path = path
        self._changes: dict[tuple[str, ...], _Row | None] = {}
        self._changed = asyncio.Event()
        self._database: sqlite3.Connection | None = None
        self._one_at_a_time = threading.Lock()  # a cancelled write goes on in its thread
        self._told = False

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

    def _read(self) -> list[tuple[Any, ...]]:
        """All rows. Call once, before `run`."""
        try:
            try:
                return self._connect()
            except sqlite3.OperationalError:  # of the disk: what is there may be well
                raise
            except sqlite3.DatabaseError as exc:
                self._disconnect()
                log.warning("%s cannot be read (%s): it counts as empty", self._path, exc)
                for suffix in ("", "-wal", "-shm"):
                    self._path.with_name(self._path.name + suffix).unlink(missing_ok=True)
                return self._connect()
        except (OSError, sqlite3.Error) as exc:
            self._disconnect()
            self._tell(exc)
            return []

    def _change(self, key: tuple[str, ...], row: _Row | None) -> None:
        """Put a row, in place of one with the same key; None: drop it."""
        self._changes[key] = row
        self._changed.set()

    def _tidy(self, database: sqlite3.Connection) -> None:
        """What is done before each write, and before all is read."""

    def _take(self) -> dict[tuple[str, ...], _Row | None]:
        changes, self._changes = self._changes, {}
        return changes

    def _connect(self) -> list[tuple[Any, ...]]:
        database = self._database = sqlite3.connect(self._path, check_same_thread=False)
        database.execute("PRAGMA journal_mode = WAL")
        database.execute(f"PRAGMA synchronous = {self._SYNCHRONOUS}")
        with database:
            database.execute(self._TABLE)
            self._tidy(database)
        return database.execute(self._ALL).fetchall()

    def _write(self, changes: Mapping[tuple[str, ...], _Row | None]) -> None:
        with self._one_at_a_time:
            if self._database is not None:
                try:
                    with self._database as database:
                        self._tidy(database)
                        for key, row in changes.items():
                            if row is None:
                                database.execute(self._DROP, key)
                            else:
                                database.execute(self._PUT, row)
                except sqlite3.Error as exc:
                    self._tell(exc)
                else:
                    self._told = False
                    return
            self.unwritten += sum(row is not None for row in changes.values())

    def _close(self, changes: Mapping[tuple[str, ...], _Row | None]) -> None:
        if changes:
            self._write(changes)
        with self._one_at_a_time:
            self._disconnect()

    def _disconnect(self) -> None:
        if self._database is not None:
            self._database.close()
            self._database = None

    def _tell(self, exc: Exception) -> None:
        if not self._told:
            log.error("%s cannot be written (%s): it will not survive a restart", self._path, exc)
        self._told = True
