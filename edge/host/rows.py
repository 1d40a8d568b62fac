"""Rows in a small database that survive a restart, written in a thread."""

from __future__ import annotations

import asyncio
import logging
import sqlite3
import threading
from typing import TYPE_CHECKING, Any, ClassVar, Generic, TypeVar

from edge.core.backoff import Backoff

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping
    from pathlib import Path

log = logging.getLogger(__name__)

_Row = TypeVar("_Row", bound=tuple[Any, ...])
_Key = tuple[str, ...]
_AGAIN_S = 1.0
_AGAIN_CAP_S = 30.0


class Rows(Generic[_Row]):
    """Rows by a key, which is their first columns; both are parameters of the SQL that a subclass says.

    A change is on its way to the disk at once, in a thread, and nobody waits for it. SQLite's write-ahead log makes a
    change whole or not at all, whenever the daemon dies; what a power cut may take is said by `_SYNCHRONOUS`.

    A disk that cannot be read or written is told in the log and tried again, ever more rarely; what waits for it is
    bounded by what its owner wants kept. `unwritten` counts the rows that it did not take when they came, each once,
    whether it took them later or never.
    """

    _TABLE: ClassVar[str]
    _ALL: ClassVar[str]
    _PUT: ClassVar[str]
    _DROP: ClassVar[str]
    _KEY: ClassVar[int]
    _SYNCHRONOUS: ClassVar[str]

    def __init__(self, path: Path) -> None:
        self.unwritten = 0
        self._path = path
        self._changes: dict[_Key, _Row | None] = {}
        self._late: set[_Key] = set()
        self._there: set[_Key] = set()  # on the disk, of what its owner knows of
        self._changed = asyncio.Event()
        self._database: sqlite3.Connection | None = None
        self._one_at_a_time = threading.Lock()  # a cancelled write goes on in its thread
        self._told = False

    async def run(self, ready: asyncio.Event) -> None:
        """Write until cancelled; then what is left."""
        ready.set()
        backoff = Backoff(_AGAIN_S, _AGAIN_CAP_S)
        try:
            while True:
                await self._changed.wait()
                self._changed.clear()
                changes = self._take()
                try:
                    written = await asyncio.to_thread(self._write, changes)
                except asyncio.CancelledError:
                    # It may not have begun; written twice is as well as once.
                    self._changes = {**changes, **self._changes}
                    raise
                if written:
                    backoff.reset()
                    continue
                changes = {**changes, **self._changes}
                self._changes = {key: row for key, row in changes.items() if self._matters(key, row)}
                await asyncio.sleep(backoff.next_s(1.0))
                self._changed.set()
        finally:
            await asyncio.to_thread(self._close, self._take())

    def _read(self) -> list[tuple[Any, ...]]:
        """All rows. Call once, before `run`."""
        try:
            rows = self._open()
        except (OSError, sqlite3.Error) as exc:
            self._tell(exc)
            return []
        self._there.update(row[: self._KEY] for row in rows)
        return rows

    def _change(self, key: _Key, row: _Row | None) -> None:
        """Put a row, in place of one with the same key; None: drop it."""
        self._changes[key] = row
        self._changed.set()

    def _tidy(self, database: sqlite3.Connection) -> Iterable[_Key]:  # noqa: ARG002  a subclass's
        """What is dropped before each write, and before all is read."""
        return ()

    def _matters(self, key: _Key, row: _Row | None) -> bool:
        """Whether a change that could not be written has to be, still."""
        return row is not None or key in self._there

    def _take(self) -> dict[_Key, _Row | None]:
        changes, self._changes = self._changes, {}
        return changes

    def _open(self) -> list[tuple[Any, ...]]:
        try:
            return self._connect()
        except sqlite3.OperationalError:  # of the disk: what is there may be well
            raise
        except sqlite3.DatabaseError as exc:
            log.warning("%s cannot be read (%s): it counts as empty", self._path, exc)
            for suffix in ("", "-wal", "-shm"):
                self._path.with_name(self._path.name + suffix).unlink(missing_ok=True)
            return self._connect()

    def _connect(self) -> list[tuple[Any, ...]]:
        database = sqlite3.connect(self._path, check_same_thread=False)
        try:
            database.execute("PRAGMA journal_mode = WAL")
            database.execute(f"PRAGMA synchronous = {self._SYNCHRONOUS}")
            with database:
                database.execute(self._TABLE)
                self._tidy(database)
            rows = database.execute(self._ALL).fetchall()
        except sqlite3.Error:
            database.close()
            raise
        self._database = database
        return rows

    def _write(self, changes: Mapping[_Key, _Row | None]) -> bool:
        with self._one_at_a_time:
            try:
                if self._database is None:
                    self._open()
                self._execute(changes)
            except (OSError, sqlite3.Error) as exc:
                self._tell(exc)
                if not isinstance(exc, sqlite3.OperationalError):
                    self._disconnect()  # what is damaged is begun anew
                self.unwritten += sum(row is not None and key not in self._late for key, row in changes.items())
                self._late = set(changes)
                return False
            self._told = False
            self._late = set()
            return True

    def _execute(self, changes: Mapping[_Key, _Row | None]) -> None:
        assert self._database is not None
        with self._database as database:
            gone = set(self._tidy(database))
            for key, row in changes.items():
                if row is None:
                    database.execute(self._DROP, key)
                else:
                    database.execute(self._PUT, row)
        self._there -= gone | changes.keys()
        self._there.update(key for key, row in changes.items() if row is not None)

    def _close(self, changes: Mapping[_Key, _Row | None]) -> None:
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
