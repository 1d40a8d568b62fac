"""Databases that are damaged at random places: each is read as far as it can be, and written again."""

from __future__ import annotations

import asyncio
import json
import random
import sqlite3
from collections import Counter
from contextlib import closing
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any

import pytest

from edge.contract.messages import Command
from edge.core.once import Row
from edge.errors import Rejected
from edge.host import damaged_files
from edge.host.damaged_files import DamagedFiles
from edge.host.event_store import EventStore
from edge.host.ledger import Ledger
from edge.signalling import events as signalling_events
from edge.signalling.once import Once
from tests.rigs.damage import BYTE_KINDS, KINDS, damage_database
from tests.rigs.obstacles import OBSTACLES
from tests.service.fakes import FakeBroker, FakeEventStore, FakeLedger

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from pathlib import Path

    from edge.host.rows import Rows

PLACES = pytest.mark.parametrize("places", [50, pytest.param(1000, marks=pytest.mark.slow)])
REPLY = json.dumps({"v": 1, "id": "c", "type": "stream.status", "ok": True, "body": {"reason": "x" * 1000}}).encode()
NEW = Row("command", "token:bert", "new", 100.0, "bff-1", None)


class Events:
    """The store of events, as `Ledger` is one of rows."""

    def __init__(self, path: Path, damaged: DamagedFiles) -> None:
        self.store = EventStore(path, damaged)

    def open(self) -> list[Any]:
        return self.store.open()

    def put(self, row: Row) -> None:
        self.store.put(row.id, REPLY)


def restarted(made: Ledger | Events, *rows: Row) -> list[Any]:
    """What a daemon finds that starts, writes these rows and ends. All of it in this thread, for speed."""
    store: Rows[Any] = made.store if isinstance(made, Events) else made
    found = made.open()
    for row in rows:
        made.put(row)
    store._close(store._take())
    return found


def use(found: list[Any]) -> None:
    """Give the rows to the part of the daemon that uses them."""
    used, events = FakeLedger(), FakeEventStore()
    for row in found:
        if isinstance(row, Row):
            used.put(row)
        else:
            events.put(*row)
    Once(used)
    signalling_events.Events(FakeBroker(), "events", events, Counter(), 100)


def ledger(path: Path, damaged: DamagedFiles) -> Ledger:
    return Ledger(path, lambda: 0, damaged)


@PLACES
@pytest.mark.parametrize("make", [ledger, Events])
@pytest.mark.parametrize("crashed", [False, True], ids=["closed", "crashed"])
def test_database_damaged_anywhere_is_opened_and_written(
    make: Callable[[Path, DamagedFiles], Ledger | Events],
    crashed: bool,
    places: int,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(EventStore, "_SYNCHRONOUS", "OFF")  # a thousand syncs take long
    chance = random.Random(places)
    whole, path = tmp_path / "whole.sqlite", tmp_path / "state" / "damaged.sqlite"
    rows = [Row("command", "token:anna", f"c-{number}", 100.0 + number, "bff-1", REPLY) for number in range(30)]
    first = make(whole, DamagedFiles())
    restarted(first, *rows)
    suffixes = [""]
    kinds: Sequence[str] = KINDS
    if crashed:  # the last changes are in the write-ahead log
        first = make(whole, DamagedFiles())
        first.open()
        first.put(rows[0]._replace(id="late"))
        store: Rows[Any] = first.store if isinstance(first, Events) else first
        store._write(store._take())
        suffixes, kinds = ["", "-wal", "-shm"], BYTE_KINDS
    contents = {suffix: whole.with_name(whole.name + suffix).read_bytes() for suffix in suffixes}
    if crashed:
        store._close({})

    path.parent.mkdir()
    damaged = DamagedFiles()
    noticed = set()
    for number in range(places * len(suffixes)):
        count = damaged.count
        for left in path.parent.iterdir():
            left.unlink()
        kind, suffix = kinds[number % len(kinds)], suffixes[number % len(suffixes)]
        for each, content in contents.items():
            written = damage_database(content, kind, chance) if each == suffix else content
            path.with_name(path.name + each).write_bytes(written)
        found = restarted(make(path, damaged), NEW)
        assert len(found) <= len(rows) + 1, number
        use(found)
        if damaged.count > count:
            noticed.add(kind)
        assert any("new" in row for row in restarted(make(path, damaged))), number
    # SQLite does not check every byte, and a value of the right type is checked by the part that uses it.
    assert noticed
    assert noticed >= {"wrong type", "huge"}.intersection(kinds)


@pytest.mark.parametrize(
    "content",
    [b"", b"no database at all" * 1000, b"SQLite format 3\0" + bytes(100)],
    ids=["empty", "text", "zeroed header"],
)
def test_file_that_is_no_database_is_replaced(content: bytes, tmp_path: Path) -> None:
    path = tmp_path / "once.sqlite"
    path.write_bytes(content)
    assert restarted(ledger(path, DamagedFiles()), NEW) == []
    assert restarted(ledger(path, DamagedFiles())) == [NEW]


@pytest.mark.parametrize(
    "schema",
    [
        "CREATE TABLE other (a)",
        "CREATE TABLE once (a, b)",
        "CREATE VIEW once AS SELECT 1 AS kind",
        "CREATE TABLE once (kind, sender, id, until_s, client, reply, more NOT NULL)",
    ],
)
def test_database_with_another_schema_is_replaced_or_completed(schema: str, tmp_path: Path) -> None:
    path = tmp_path / "once.sqlite"
    with closing(sqlite3.connect(path)) as database:
        database.execute(schema)
    assert restarted(ledger(path, DamagedFiles()), NEW) == []
    assert restarted(ledger(path, DamagedFiles())) == [NEW]


@pytest.mark.parametrize("suffix", ["", "-wal", "-shm", "-journal"])
@pytest.mark.parametrize("make", [make for name, make in OBSTACLES.items() if name != "link"])
def test_anything_else_in_place_of_a_database_is_set_aside(
    suffix: str, make: Callable[[Path], None], tmp_path: Path
) -> None:
    path = tmp_path / "once.sqlite"
    make(path.with_name(path.name + suffix))
    damaged = DamagedFiles()
    assert restarted(ledger(path, damaged), NEW) == []
    assert restarted(ledger(path, damaged)) == [NEW]
    assert damaged.count == 1


@pytest.mark.parametrize("make", [ledger, Events])
def test_version_byte_that_makes_a_database_read_only_counts_as_damage(
    make: Callable[[Path, DamagedFiles], Ledger | Events], tmp_path: Path
) -> None:
    path = tmp_path / "state.sqlite"
    restarted(make(path, DamagedFiles()), NEW)
    content = bytearray(path.read_bytes())
    content[18] = 9
    path.write_bytes(content)
    assert restarted(make(path, DamagedFiles()), NEW) == []
    assert len(restarted(make(path, DamagedFiles()))) == 1


UNFIT = {
    "surrogate": NEW._replace(id="\ud800"),
    "long": NEW._replace(id="x" * 2_000_000),
    "object": NEW._replace(id=object()),  # type: ignore[arg-type]
}


@pytest.mark.parametrize("unfit", UNFIT.values(), ids=UNFIT)
@pytest.mark.parametrize("make", [ledger, Events])
async def test_row_that_sqlite_cannot_take_is_dropped_and_is_no_damage(
    make: Callable[[Path, DamagedFiles], Ledger | Events], unfit: Row, tmp_path: Path
) -> None:
    path, damaged = tmp_path / "state.sqlite", DamagedFiles()
    made = make(path, damaged)
    store: Rows[Any] = made.store if isinstance(made, Events) else made
    made.open()
    task = asyncio.create_task(store.run(asyncio.Event()))
    made.put(unfit)
    made.put(NEW)
    async with asyncio.timeout(5):
        while len(restarted(make(path, damaged))) != 1:
            await asyncio.sleep(0.01)
    store._change((unfit.id,) if isinstance(made, Events) else unfit.key, None)
    task.cancel()
    await asyncio.wait({task})
    assert (store.unwritten, damaged.count) == (1, 0)
    assert len(restarted(make(path, damaged))) == 1


def test_the_last_damaged_copies_are_kept_and_large_ones_are_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(damaged_files, "_KEPT_BYTES", 100)
    path = tmp_path / "once.sqlite"
    damaged = DamagedFiles()
    for number in range(5):
        path.write_bytes(b"%d" % number)
        path.with_name("once.sqlite-wal").mkdir()
        damaged.set_aside(path, "a test")
    path.write_bytes(bytes(101))
    damaged.set_aside(path, "a test")
    copies = sorted(tmp_path.iterdir())
    assert [copy.read_bytes() for copy in copies if copy.is_file()] == [b"2", b"3", b"4"]
    assert len(copies) == 6
    assert damaged.count == caplog.text.count("state file damaged, set aside") == 6


@pytest.mark.parametrize("payload", [b"", b"{}", REPLY[:-9], b"\xff" * 99, b"[" * 100_000])
async def test_stored_event_that_is_damaged_is_not_published(payload: bytes, tmp_path: Path) -> None:
    path = tmp_path / "events.sqlite"
    first = EventStore(path)
    first.open()
    first.put("e-1", payload)
    first._close(first._take())
    store, broker = EventStore(path), FakeBroker()
    broker.connected = True
    events = signalling_events.Events(broker, "events", store, Counter(), 100)
    task = asyncio.create_task(events.run(asyncio.Event()))
    events.publish_event("daemon.started", None, {})
    async with asyncio.timeout(5):
        while not broker.published:
            await asyncio.sleep(0.01)
    task.cancel()
    await asyncio.wait({task})
    store._close(store._take())
    assert [json.loads(message.payload)["type"] for message in broker.published] == ["daemon.started"]
    assert restarted(Events(path, DamagedFiles())) == []


def test_stored_reply_that_is_damaged_is_not_sent() -> None:
    kept = FakeLedger()
    now = datetime.now(UTC)
    command = Command(v=1, id="c", type="stream.stop", expires_at=now + timedelta(minutes=1))
    for reply in (REPLY, REPLY[:-9], b"[" * 100_000):
        kept.put(Row("command", "client:a", "c", now.timestamp() + 60, "a", reply))
        accepted = Once(kept).seen("client:a", command, "a", now.timestamp())
        assert accepted is not None
        if reply == REPLY:
            assert asyncio.run(accepted.reply()) == reply
        else:
            with pytest.raises(Rejected, match="took effect before"):
                asyncio.run(accepted.reply())
