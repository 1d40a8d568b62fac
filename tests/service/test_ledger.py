"""Rows on a real disk: restarts, kills and damaged files."""

from __future__ import annotations

import asyncio
import sqlite3
import subprocess
import sys
from contextlib import asynccontextmanager, closing
from typing import TYPE_CHECKING

from edge.core.once import Row
from edge.host import rows
from edge.host.damaged_files import DamagedFiles
from edge.host.ledger import Ledger
from tests.rigs.daemon import ROOT

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

    import pytest


def row(number: int, until_s: float = 100, reply: bytes | None = b"ok") -> Row:
    return Row("command", "token:anna", f"c-{number}", until_s, "bff-1", reply)


@asynccontextmanager
async def running(ledger: Ledger) -> AsyncIterator[None]:
    ready = asyncio.Event()
    task = asyncio.create_task(ledger.run(ready))
    await ready.wait()
    try:
        yield
    finally:
        task.cancel()
        await asyncio.wait({task})


async def kept(path: Path) -> list[Row]:
    """The rows that a daemon finds that starts."""
    ledger = Ledger(path, lambda: 0)
    rows = ledger.open()
    async with running(ledger):
        return rows


async def test_rows_survive_a_restart_and_expire_at_the_next_write(tmp_path: Path) -> None:
    path = tmp_path / "once.sqlite"
    ledger = Ledger(path, lambda: 0)
    assert ledger.open() == []
    async with running(ledger):
        for number in range(4):
            ledger.put(row(number, until_s=100 + number, reply=None))
        ledger.put(row(1, until_s=101))
        ledger.drop(row(2).key)
    assert await kept(path) == [row(0, 100, None), row(1, 101), row(3, 103, None)]
    later = Ledger(path, lambda: 101)
    assert len(later.open()) == 3, "the clock may be ahead"
    async with running(later):
        later.put(row(4, 104))
    assert await kept(path) == [row(3, 103, None), row(4, 104)]


async def test_expired_rows_are_deleted(tmp_path: Path) -> None:
    now_s = 0.0
    ledger = Ledger(tmp_path / "once.sqlite", lambda: now_s)
    ledger.open()
    async with running(ledger):
        for number in range(200):
            now_s = float(number)
            ledger.put(row(number, until_s=now_s + 10))
            await asyncio.sleep(0.001)
    with closing(sqlite3.connect(tmp_path / "once.sqlite")) as database:
        (count,) = database.execute("SELECT count(*) FROM once").fetchone()
    assert count <= 11


async def test_a_killed_process_loses_nothing_that_was_written(tmp_path: Path) -> None:
    code = """
import asyncio, os, pathlib, signal, sys
from edge.core.once import Row
from edge.host.ledger import Ledger
async def main():
    ledger = Ledger(pathlib.Path(sys.argv[1]), lambda: 0)
    ledger.open()
    task = asyncio.create_task(ledger.run(asyncio.Event()))
    for number in range(50):
        ledger.put(Row("command", "a", str(number), 100.0, "bff-1", None))
        await asyncio.sleep(0.002)
    await asyncio.sleep(0.2)
    os.kill(os.getpid(), signal.SIGKILL)
asyncio.run(main())
"""
    path = tmp_path / "once.sqlite"
    await asyncio.to_thread(subprocess.run, [sys.executable, "-c", code, str(path)], cwd=ROOT, check=False, timeout=30)
    assert len(await kept(path)) == 50


async def test_a_damaged_file_counts_as_empty(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = tmp_path / "once.sqlite"
    path.write_bytes(b"no database at all" * 1000)
    ledger = Ledger(path, lambda: 0)
    assert ledger.open() == []
    assert "damaged, set aside" in caplog.text
    async with running(ledger):
        ledger.put(row(1))
    assert await kept(path) == [row(1)]


async def test_a_missing_disk_is_logged_once(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / "nowhere").touch()
    ledger = Ledger(tmp_path / "nowhere" / "once.sqlite", lambda: 0)
    assert ledger.open() == []
    async with running(ledger):
        for number in range(3):
            ledger.put(row(number))
            await asyncio.sleep(0.01)
    assert caplog.text.count("kept in memory only") == 1


async def test_expired_changes_do_not_wait_for_the_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rows, "_RETRY_CAP_S", 0.01)
    now_s = 0.0
    ledger = Ledger(tmp_path / "once.sqlite", lambda: now_s)
    ledger.open()
    async with running(ledger):
        ledger.put(row(0, until_s=15))
        async with asyncio.timeout(10):
            while row(0).key not in ledger._stored:
                await asyncio.sleep(0.01)
            assert ledger._database is not None
            ledger._database.execute("PRAGMA query_only = ON")
            for number in range(1, 200):
                now_s = number / 10
                ledger.put(row(number, until_s=now_s + 1))
            while len(ledger._changes) != 10:
                await asyncio.sleep(0.01)
            ledger._database.execute("PRAGMA query_only = OFF")
            while ledger._stored.keys() != {row(number).key for number in range(190, 200)}:
                await asyncio.sleep(0.01)
    assert [found.id for found in await kept(tmp_path / "once.sqlite")] == [f"c-{n}" for n in range(190, 200)]


PREVIOUS_TABLE = """CREATE TABLE once (
  kind TEXT, sender TEXT, id TEXT, until_s REAL, client TEXT, reply BLOB, PRIMARY KEY (kind, sender, id)
) WITHOUT ROWID"""


async def test_damaged_rows_are_set_aside_and_the_others_kept(tmp_path: Path) -> None:
    """In a table of the previous release, which takes values of any type."""
    path = tmp_path / "once.sqlite"
    with closing(sqlite3.connect(path)) as database, database:
        database.execute(PREVIOUS_TABLE)
        for number, until in enumerate(("soon", None, 100.0, 1e300)):
            database.execute("INSERT INTO once VALUES ('command', 'a', ?, ?, 'bff-1', NULL)", (str(number), until))
        database.execute("INSERT INTO once VALUES ('command', x'00', '4', 100.0, 'bff-1', NULL)")
    damaged = DamagedFiles()
    ledger = Ledger(path, lambda: 0, damaged)
    assert [row.id for row in ledger.open()] == ["2"]
    async with running(ledger):
        pass
    assert damaged.count == 1
    assert [row.id for row in await kept(path)] == ["2"]
    assert len(list(tmp_path.glob("once.sqlite.damaged-*"))) == 1


async def test_table_of_the_previous_release_is_used_as_it_is(tmp_path: Path) -> None:
    path = tmp_path / "once.sqlite"
    with closing(sqlite3.connect(path)) as database, database:
        database.execute(PREVIOUS_TABLE)
        database.execute("INSERT INTO once VALUES ('command', 'a', '1', 100.0, 'bff-1', NULL)")
    ledger = Ledger(path, lambda: 0)
    assert [row.id for row in ledger.open()] == ["1"]
    async with running(ledger):
        ledger.put(row(2))
    assert {row.id for row in await kept(path)} == {"1", "c-2"}
    assert list(tmp_path.glob("*damaged*")) == []
