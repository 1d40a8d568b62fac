"""Events on a real disk, over restarts, kills, spoilt files, and disks that take nothing."""

from __future__ import annotations

import asyncio
import sqlite3
import subprocess
import sys
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

import pytest

from edge.core.backoff import Backoff
from edge.host import event_store, rows
from edge.host.event_store import EventStore
from tests.rigs.daemon import ROOT

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Mapping
    from pathlib import Path


@asynccontextmanager
async def opened(path: Path, *expected: str) -> AsyncIterator[EventStore]:
    """One that finds these, and that has written all when it is left."""
    store = EventStore(path)
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
    """The disk takes nothing."""
    assert store._database is not None
    store._database.execute(f"PRAGMA query_only = {on}")


async def until(true: Callable[[], bool]) -> None:
    async with asyncio.timeout(10):
        while not true():
            await asyncio.sleep(0.005)


@pytest.fixture
def soon(monkeypatch: pytest.MonkeyPatch) -> None:
    """It is tried again."""
    monkeypatch.setattr(rows, "_AGAIN_CAP_S", 0.02)
    monkeypatch.setattr(event_store, "_GATHER_S", 0.01)


async def test_they_survive_a_restart_in_their_order(tmp_path: Path) -> None:
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


async def test_a_thousand_are_sent_with_few_writes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(event_store, "_GATHER_S", 0.01)
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
    assert writes == [500, 250]
    async with opened(path, *names[750:]):
        pass


async def test_a_spoilt_file_counts_as_empty(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = tmp_path / "events.sqlite"
    path.write_bytes(b"no database at all" * 1000)
    async with opened(path) as store:
        put(store, "a")
    assert "counts as empty" in caplog.text
    async with opened(path, "a"):
        pass


async def test_without_a_disk_it_says_so_once_and_counts(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    async with opened(tmp_path / "nowhere" / "events.sqlite") as store:
        put(store, *"abc")
        store.drop("a")
    assert store.unwritten == 2
    assert caplog.text.count("will not survive a restart") == 1


@pytest.mark.usefixtures("soon")
async def test_a_full_disk_is_told_once_and_counted_and_takes_all_when_it_has_room(
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
async def test_what_was_sent_while_the_disk_took_nothing_does_not_come_again(tmp_path: Path) -> None:
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
async def test_what_waits_for_the_disk_is_no_more_than_what_is_to_be_kept(tmp_path: Path) -> None:
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
async def test_a_disk_that_comes_later_takes_what_waits(tmp_path: Path) -> None:
    path = tmp_path / "later" / "events.sqlite"
    async with opened(path) as store:
        put(store, "a")
        await until(lambda: store.unwritten == 1)
        path.parent.mkdir()
        await until(path.exists)
        await until(lambda: not store._told)
        assert on_disk(path) == ["a"]


async def test_a_disk_that_takes_nothing_is_tried_ever_more_rarely(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    waits: list[float] = []

    class Noted(Backoff):
        def next_s(self, draw: float) -> float:
            waits.append(Backoff.next_s(self, draw))
            return 0 if len(waits) < 7 else 60

    monkeypatch.setattr(rows, "Backoff", Noted)
    async with opened(tmp_path / "nowhere" / "events.sqlite") as store:
        put(store, "a")
        await until(lambda: len(waits) == 7)
    assert waits == [1, 2, 4, 8, 16, 30, 30]


async def test_a_disk_that_fails_at_the_start_takes_nothing_from_what_is_on_it(tmp_path: Path) -> None:
    path = tmp_path / "events.sqlite"
    async with opened(path) as store:
        put(store, "a")
    in_the_way = path.with_name(path.name + "-wal")
    in_the_way.mkdir()
    async with opened(path) as store:
        put(store, "b")
    assert store.unwritten == 1
    in_the_way.rmdir()
    async with opened(path, "a"):
        pass
