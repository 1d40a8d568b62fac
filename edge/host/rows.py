"""A small database of rows, written in a thread."""

from __future__ import annotations

import asyncio
import errno
import logging
import sqlite3
import threading
from contextlib import closing
from typing import TYPE_CHECKING, Any, ClassVar, Generic, TypeVar, cast

from edge.core.backoff import Backoff
from edge.host.damaged_files import DamagedFiles

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping
    from pathlib import Path

log = logging.getLogger(__name__)

_Row = TypeVar("_Row", bound=tuple[Any, ...])
_Key = tuple[str, ...]
_RETRY_S = 1.0
_RETRY_CAP_S = 30.0
_VALUE_LIMIT_BYTES = 1024 * 1024
_LAST_VERSION = 2
"""Of SQLite's file format: the write-ahead log."""
# The disk is full, read-only or failing, or somebody else uses the file, which may be intact.
_NOT_DAMAGED = {
    sqlite3.SQLITE_FULL,
    sqlite3.SQLITE_IOERR,
    sqlite3.SQLITE_READONLY,
    sqlite3.SQLITE_CANTOPEN,
    sqlite3.SQLITE_PERM,
    sqlite3.SQLITE_BUSY,
    sqlite3.SQLITE_LOCKED,
    sqlite3.SQLITE_PROTOCOL,
}
# SQLite's message quotes a damaged schema, which may not be UTF-8.
_FAILURES = (sqlite3.Error, UnicodeError)


class Rows(Generic[_Row]):
    """Rows by a key, which is their first columns. A subclass defines the SQL; row and key are its parameters.

    A change is written at once in a thread, and nobody waits for it. SQLite's write-ahead log keeps a change as a whole
    or not at all if the daemon crashes; `_SYNCHRONOUS` decides what a power cut may lose.

    A disk that cannot be read or written is logged and retried with a growing wait. Until then changes stay in memory,
    unless `_is_needed` drops them. `unwritten` counts the rows whose first write failed, each once.

    A row that SQLite cannot take is dropped, and counted as `unwritten`.

    Any other failure means that the file is damaged, or no database of ours: it is set aside (`damaged`) and a new one
    is started with the rows that are known. A file that was removed is made again in the same way.
    """

    _TABLE: ClassVar[str]
    _ALL: ClassVar[str]
    _PUT: ClassVar[str]
    _DROP: ClassVar[str]
    _KEY: ClassVar[int]
    _TYPES: ClassVar[tuple[Any, ...]]
    _SYNCHRONOUS: ClassVar[str]

    def __init__(self, path: Path, damaged: DamagedFiles | None = None) -> None:
        self.unwritten = 0
        self._path = path
        self._damaged = damaged or DamagedFiles()
        self._changes: dict[_Key, _Row | None] = {}
        self._late: set[_Key] = set()
        self._stored: dict[_Key, _Row] = {}
        self._rewrite = False
        """Whether the rows of `_stored` are missing in a new file."""
        self._changed = asyncio.Event()
        self._database: sqlite3.Connection | None = None
        self._file: tuple[int, int] | None = None
        self._lock = threading.Lock()  # a cancelled write continues in its thread
        self._failure_logged = False

    async def run(self, ready: asyncio.Event) -> None:
        """Write changes until cancelled, and then the rest."""
        ready.set()
        backoff = Backoff(_RETRY_S, _RETRY_CAP_S)
        try:
            while True:
                await self._changed.wait()
                self._changed.clear()
                changes = self._take()
                try:
                    written = await asyncio.to_thread(self._write, changes)
                except asyncio.CancelledError:
                    # The write may not have started; a second write does no harm.
                    self._changes = {**changes, **self._changes}
                    raise
                if written:
                    backoff.reset()
                    continue
                changes = {**changes, **self._changes}
                self._changes = {key: row for key, row in changes.items() if self._is_needed(key, row)}
                await asyncio.sleep(backoff.next_s(1.0))
                self._changed.set()
        finally:
            await asyncio.to_thread(self._close, self._take())

    def _read(self) -> list[tuple[Any, ...]]:
        """Read all rows. Call once, before `run`."""
        try:
            rows = self._open()
        except (OSError, *_FAILURES) as exc:
            self._log_failure(exc)
            return []
        self._stored.update({row[: self._KEY]: row for row in cast("list[_Row]", rows)})
        return rows

    def _change(self, key: _Key, row: _Row | None) -> None:
        """Write a row in place of one with the same key. None: remove that one."""
        self._changes[key] = row
        self._changed.set()

    def _delete_expired(self, database: sqlite3.Connection) -> Iterable[_Key]:  # noqa: ARG002  for subclasses
        """Delete expired rows; called before each write of changes. Returns their keys."""
        return ()

    def _fits(self, row: tuple[Any, ...]) -> bool:
        """Whether a row of the file has the values of a `_Row`."""
        return all(map(isinstance, row, self._TYPES))

    def _is_needed(self, key: _Key, row: _Row | None) -> bool:
        """Whether a change that could not be written must be kept for a retry."""
        return row is not None or key in self._stored

    def _take(self) -> dict[_Key, _Row | None]:
        changes, self._changes = self._changes, {}
        return changes

    def _open(self) -> list[tuple[Any, ...]]:
        """Open the database and read its rows.

        Raises: OSError, sqlite3.Error: the disk cannot be read or written.
        """
        self._path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        try:
            rows = self._connect()
        except _FAILURES as exc:
            if not _is_damage(exc):
                raise
            self._set_aside(exc)
            return self._connect()
        fitting = [row for row in rows if self._fits(row)]
        if len(fitting) < len(rows):
            self._set_aside(f"{len(rows) - len(fitting)} of {len(rows)} rows have values that are not valid")
            self._connect()
            self._execute({row[: self._KEY]: row for row in cast("list[_Row]", fitting)}, expire=False)
        return fitting

    def _connect(self) -> list[tuple[Any, ...]]:
        _check_files(self._path)
        database = sqlite3.connect(self._path, check_same_thread=False)
        try:
            # A damaged length must not take the memory.
            database.setlimit(sqlite3.SQLITE_LIMIT_LENGTH, _VALUE_LIMIT_BYTES)
            database.execute("PRAGMA journal_mode = WAL")
            database.execute(f"PRAGMA synchronous = {self._SYNCHRONOUS}")
            # quick_check does not find an index that differs from its table: such a row could never be deleted.
            (verdict,) = database.execute("PRAGMA integrity_check(1)").fetchone()
            if verdict != "ok":
                raise sqlite3.DatabaseError(verdict)
            with database:
                database.execute(self._TABLE)
            rows = database.execute(self._ALL).fetchall()
            self._file = self._identity()
        except (OSError, *_FAILURES):
            database.close()
            raise
        self._database = database
        return rows

    def _identity(self) -> tuple[int, int] | None:
        try:
            found = self._path.stat()
        except OSError as exc:
            if exc.errno in (errno.ENOENT, errno.ELOOP):
                return None
            raise
        return found.st_dev, found.st_ino

    def _write(self, changes: Mapping[_Key, _Row | None]) -> bool:
        with self._lock:
            try:
                self._store(changes)
            except (OSError, *_FAILURES) as exc:
                self._log_failure(exc)
                self.unwritten += sum(row is not None and key not in self._late for key, row in changes.items())
                self._late = set(changes)
                return False
            self._failure_logged = False
            self._late = set()
            return True

    def _store(self, changes: Mapping[_Key, _Row | None]) -> None:
        if self._database is not None and self._identity() != self._file:
            log.warning("state file removed or replaced while in use, opened again file=%s", self._path)
            self._disconnect()
            self._rewrite = True
        if self._database is None:
            self._open()
        try:
            self._execute(changes)
        except _FAILURES as exc:
            if not _is_damage(exc):
                raise
            if unfit := self._unfit(changes):
                self.unwritten += sum(changes[key] is not None and key not in self._late for key in unfit)
                # Not the row: it is what somebody sent.
                log.error("rows not stored, SQLite cannot take their values file=%s count=%d", self._path, len(unfit))
                self._store({key: row for key, row in changes.items() if key not in unfit})
                return
            self._set_aside(exc)
            self._open()
            self._execute(changes)

    def _unfit(self, changes: Mapping[_Key, _Row | None]) -> set[_Key]:
        """The changes that an intact database refuses, too, for example because of text that is not UTF-8."""
        unfit = set()
        with closing(sqlite3.connect(":memory:")) as database:
            database.setlimit(sqlite3.SQLITE_LIMIT_LENGTH, _VALUE_LIMIT_BYTES)
            database.execute(self._TABLE)
            for key, row in changes.items():
                try:
                    database.execute(*((self._DROP, key) if row is None else (self._PUT, row)))
                except _FAILURES:
                    unfit.add(key)
        return unfit

    def _set_aside(self, why: object) -> None:
        self._disconnect()
        self._rewrite = True
        self._damaged.set_aside(self._path, why)

    def _execute(self, changes: Mapping[_Key, _Row | None], *, expire: bool = True) -> None:
        assert self._database is not None
        if self._rewrite:
            changes = {**self._stored, **changes}
        with self._database as database:
            expired = set(self._delete_expired(database)) if expire else set()
            for key, row in changes.items():
                if row is None:
                    database.execute(self._DROP, key)
                else:
                    database.execute(self._PUT, row)
        self._rewrite = False
        for key in expired | changes.keys():
            self._stored.pop(key, None)
        self._stored.update({key: row for key, row in changes.items() if row is not None})

    def _close(self, changes: Mapping[_Key, _Row | None]) -> None:
        if changes:
            self._write(changes)
        with self._lock:
            self._disconnect()

    def _disconnect(self) -> None:
        if self._database is not None:
            self._database.close()
            self._database = None

    def _log_failure(self, exc: Exception) -> None:
        if not self._failure_logged:
            log.error("state file not usable, kept in memory only file=%s error=%s", self._path, exc)
        self._failure_logged = True


def _check_files(path: Path) -> None:
    """Find what SQLite reports as a failure of the disk. Raises: DatabaseError: damage. OSError."""
    for suffix in ("", "-wal", "-shm", "-journal"):
        each = path.with_name(path.name + suffix)
        if (each.exists() or each.is_symlink()) and not each.is_file():
            raise sqlite3.DatabaseError(f"{each.name} is not a regular file")
    if path.exists():
        with path.open("rb") as file:
            versions = file.read(20)[18:]
        if any(version > _LAST_VERSION for version in versions):
            raise sqlite3.DatabaseError("the header has an unknown version, for which SQLite opens a file as read-only")


def _code(exc: Exception) -> int | None:
    """SQLite's primary result code. None: the error is Python's own, for example text that is not UTF-8."""
    code: int | None = getattr(exc, "sqlite_errorcode", None)
    return None if code is None else code & 0xFF


def _is_damage(exc: Exception) -> bool:
    return _code(exc) not in _NOT_DAMAGED
