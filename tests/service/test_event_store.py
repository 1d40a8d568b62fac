"""Events on a real disk: restarts, kills, damaged files and failing disks."""

from __future__ import annotations

import asyncio
import shutil
import sqlite3
import subprocess
import sys
from contextlib import asynccontextmanager, closing
from typing import TYPE_CHECKING

import pytest

from edge.core.backoff import Backoff
from edge.host import event_store, rows
from edge.host.damaged_files import DamagedFiles
from edge.host.event_store import EventStore
from tests.rigs.daemon import ROOT

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Mapping
    from pathlib import Path


@asynccontextmanager
async def opened(path: Path, *expected: str, damaged: DamagedFiles | None = None) -> AsyncIterator[EventStore]:
    """A running store that has found these events. At the end it has written everything."""
    store = EventStore(path, damaged)
    assert store.open() == [row(name) for name in expected]
    task = asyncio.create_task(store.run(asyncio.Event()))
    await asyncio.sleep(0)
    try:
        yield store
    finally:
        task.cancel()
        await asyncio.wait({task})


def row(name: str) -> tuple[str, bytes]:
    return name, f"event {name}".encode()


def put(store: EventStore, *names: str) -> None:
    for name in names:
        store.put(*row(name))


def on_disk(path: Path) -> list[str]:
    database = sqlite3.connect(path)
    found = [name for (name,) in database.execute("SELECT id FROM events ORDER BY number")]
    database.close()
    return found


def refuse(store: EventStore, on: bool) -> None:
    """Make every write fail."""
    assert store._database is not None
    store._database.execute(f"PRAGMA query_only = {on}")


async def until(true: Callable[[], bool]) -> None:
    async with asyncio.timeout(10):
        while not true():
            await asyncio.sleep(0.005)


@pytest.fixture
def soon(monkeypatch: pytest.MonkeyPatch) -> None:
    """Retry now."""
    monkeypatch.setattr(rows, "_RETRY_CAP_S", 0.02)
    monkeypatch.setattr(event_store, "_DROP_EVERY_S", 0.01)


async def test_events_survive_a_restart_in_order(tmp_path: Path) -> None:
    path = tmp_path / "events.sqlite"
    async with opened(path) as store:
        put(store, *"zcab")
        store.drop("c")
    async with opened(path, *"zab") as store:
        store.drop("z")
        put(store, "0")
    async with opened(path, *"ab0"):
        pass


async def test_a_killed_process_loses_nothing_that_was_written(tmp_path: Path) -> None:
    code = """
import asyncio, os, pathlib, signal, sys
from edge.host.damaged_files import DamagedFiles
from edge.host.event_store import EventStore
async def main():
    store = EventStore(pathlib.Path(sys.argv[1]))
    store.open()
    task = asyncio.create_task(store.run(asyncio.Event()))
    for number in range(50):
        store.put(str(number), f"event {number}".encode())
        await asyncio.sleep(0.002)
    await asyncio.sleep(0.5)
    os.kill(os.getpid(), signal.SIGKILL)
asyncio.run(main())
"""
    path = tmp_path / "events.sqlite"
    await asyncio.to_thread(subprocess.run, [sys.executable, "-c", code, str(path)], cwd=ROOT, check=False, timeout=30)
    async with opened(path, *map(str, range(50))):
        pass


async def test_a_thousand_sent_events_cause_few_writes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(event_store, "_DROP_EVERY_S", 0.01)
    path = tmp_path / "events.sqlite"
    names = [str(number) for number in range(1000)]
    async with opened(path) as store:
        put(store, *names)
    writes: list[int] = []
    write = EventStore._write

    def counting(store: EventStore, changes: Mapping[tuple[str, ...], tuple[str, bytes] | None]) -> bool:
        writes.append(len(changes))
        return write(store, changes)

    monkeypatch.setattr(EventStore, "_write", counting)
    async with opened(path, *names) as store:
        for name in names[:500]:
            store.drop(name)
        async with asyncio.timeout(10):
            while not writes:
                await asyncio.sleep(0.01)
        for name in names[500:750]:
            store.drop(name)
    # The second one repeats the first, if the store was closed before that one returned.
    assert (len(writes), writes[0]) == (2, 500)
    async with opened(path, *names[750:]):
        pass


async def test_a_damaged_file_counts_as_empty(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = tmp_path / "events.sqlite"
    path.write_bytes(b"no database at all" * 1000)
    async with opened(path) as store:
        put(store, "a")
    assert "damaged, set aside" in caplog.text
    async with opened(path, "a"):
        pass


async def test_a_missing_disk_is_logged_once_and_counted(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / "nowhere").touch()
    async with opened(tmp_path / "nowhere" / "events.sqlite") as store:
        put(store, *"abc")
        store.drop("a")
    assert store.unwritten == 2
    assert caplog.text.count("kept in memory only") == 1


@pytest.mark.usefixtures("soon")
async def test_a_full_disk_is_logged_once_and_gets_everything_later(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / "events.sqlite"
    async with opened(path) as store:
        assert store._database is not None
        (pages,) = store._database.execute("PRAGMA page_count").fetchone()
        store._database.execute(f"PRAGMA max_page_count = {pages}")
        for name in "abc":
            store.put(name, b"x" * 100_000)
            await until(lambda name=name: store.unwritten == "abc".index(name) + 1)  # type: ignore[misc]
        assert caplog.text.count("database or disk is full") == 1
        store._database.execute("PRAGMA max_page_count = 1000")
        await until(lambda: on_disk(path) == [*"abc"])
        put(store, "d")
        await until(lambda: on_disk(path) == [*"abcd"])
    assert store.unwritten == 3


@pytest.mark.usefixtures("soon")
async def test_an_event_sent_during_a_disk_failure_is_not_sent_again(tmp_path: Path) -> None:
    path = tmp_path / "events.sqlite"
    async with opened(path) as store:
        put(store, *"abc")
        await until(lambda: on_disk(path) == [*"abc"])
        refuse(store, True)
        store.drop("a")
        store.drop("c")
        put(store, "d")
        await until(lambda: store.unwritten == 1)
        refuse(store, False)
        await until(lambda: on_disk(path) == [*"bd"])
    assert store.unwritten == 1


@pytest.mark.usefixtures("soon")
async def test_only_needed_changes_wait_for_the_disk(tmp_path: Path) -> None:
    path = tmp_path / "events.sqlite"
    async with opened(path) as store:
        put(store, "there")
        await until(lambda: on_disk(path) == ["there"])
        refuse(store, True)
        store.drop("there")
        for number in range(1000):
            put(store, str(number))
            if number >= 3:
                store.drop(str(number - 3))
            await asyncio.sleep(0)
        await until(lambda: [key for (key,) in store._changes] == ["there", "997", "998", "999"])
        refuse(store, False)
        await until(lambda: on_disk(path) == ["997", "998", "999"])


@pytest.mark.usefixtures("soon")
async def test_a_disk_that_appears_later_gets_waiting_changes(tmp_path: Path) -> None:
    path = tmp_path / "later" / "events.sqlite"
    path.parent.touch()
    async with opened(path) as store:
        put(store, "a")
        await until(lambda: store.unwritten == 1)
        path.parent.unlink()
        await until(path.exists)
        await until(lambda: not store._failure_logged)
        assert on_disk(path) == ["a"]


async def test_a_failing_disk_is_retried_with_growing_waits(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    waits: list[float] = []

    class Noted(Backoff):
        def next_s(self, draw: float) -> float:
            waits.append(Backoff.next_s(self, draw))
            return 0 if len(waits) < 7 else 60

    monkeypatch.setattr(rows, "Backoff", Noted)
    (tmp_path / "nowhere").touch()
    async with opened(tmp_path / "nowhere" / "events.sqlite") as store:
        put(store, "a")
        await until(lambda: len(waits) == 7)
    assert waits == [1, 2, 4, 8, 16, 30, 30]


async def test_a_disk_failure_at_the_start_deletes_nothing(tmp_path: Path) -> None:
    path = tmp_path / "card" / "events.sqlite"
    async with opened(path) as store:
        put(store, "a")
    away = path.parent.rename(tmp_path / "away")
    path.parent.touch()
    async with opened(path) as store:
        put(store, "b")
    assert store.unwritten == 1
    path.parent.unlink()
    away.rename(path.parent)
    async with opened(path, "a"):
        pass


async def test_a_file_in_use_by_somebody_else_is_not_set_aside(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    connect = sqlite3.connect
    monkeypatch.setattr(sqlite3, "connect", lambda path, **more: connect(path, timeout=0.01, **more))
    path = tmp_path / "events.sqlite"
    async with opened(path) as store:
        put(store, "a")
    with closing(connect(path)) as other:
        other.execute("BEGIN IMMEDIATE")
        async with opened(path, "a") as store:
            put(store, "b")
        assert store.unwritten == 1
        other.rollback()
    async with opened(path, "a"):
        pass
    assert list(tmp_path.glob("*damaged*")) == []


@pytest.mark.usefixtures("soon")
async def test_a_removed_directory_is_made_again(tmp_path: Path) -> None:
    path = tmp_path / "state" / "events.sqlite"
    async with opened(path) as store:
        put(store, "a")
        await until(lambda: path.exists() and on_disk(path) == ["a"])
        shutil.rmtree(path.parent)
        put(store, "b")
        await until(lambda: path.exists() and not store._changes)
    async with opened(path, *"ab"):
        pass
    assert path.parent.stat().st_mode & 0o777 == 0o700


@pytest.mark.usefixtures("soon")
async def test_damage_while_the_file_is_in_use_costs_nothing(tmp_path: Path) -> None:
    path = tmp_path / "events.sqlite"
    damaged = DamagedFiles()
    async with opened(path, damaged=damaged) as store:
        put(store, "a")
        await until(lambda: store._stored.keys() == {("a",)})
        assert store._database is not None
        store._database.execute("DROP TABLE events")
        put(store, "b")
        await until(lambda: store._stored.keys() == {("a",), ("b",)})
        store.drop("a")
        put(store, "c")
    assert (damaged.count, store.unwritten) == (1, 0)
    async with opened(path, *"bc"):
        pass
