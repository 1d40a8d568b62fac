"""The real daemon with damaged state files: it starts, answers, and keeps writing."""

from __future__ import annotations

import json
import random
import shutil
import sqlite3
import time
from contextlib import closing
from datetime import UTC, datetime
from typing import TYPE_CHECKING

import pytest

from edge.contract.messages import Event
from edge.core.once import Row
from edge.host.event_store import EventStore
from edge.host.ledger import Ledger
from tests.rigs.daemon import Daemon, free_port
from tests.rigs.damage import KINDS, damage_database, damage_json
from tests.rigs.state_files import FILES
from tests.service.test_camera_missing import readyz
from tests.service.test_damaged_files import REPLY
from tests.service.test_previous_release import set_controls

if TYPE_CHECKING:
    from pathlib import Path


def write_all(state: Path) -> None:
    """Write every state file, with the same content each time."""
    for name, fields in FILES.items():
        (state / name).write_text(json.dumps(fields))
    events, ledger = EventStore(state / "events.sqlite"), Ledger(state / "once.sqlite", time.time)
    events.open()
    ledger.open()
    for number in range(30):
        event = Event(id=f"e-{number}", type="session.opened", at=datetime(2026, 1, 1, tzinfo=UTC), session="s-1")
        events.put(event.id, event.model_dump_json().encode())
        ledger.put(Row("command", "token:anna", f"c-{number}", 4e9, "bff-1", REPLY))
    events._close(events._take())
    ledger._close(ledger._take())


def event_types(path: Path) -> list[str]:
    with closing(sqlite3.connect(path)) as database:
        return [json.loads(payload)["type"] for (payload,) in database.execute("SELECT payload FROM events")]


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(8))
def test_daemon_starts_with_random_damage_in_every_file_answers_and_writes_them_again(
    seed: int, tmp_path: Path
) -> None:
    chance = random.Random(seed)
    state = tmp_path / "state"
    state.mkdir()
    write_all(state)
    for path in sorted(state.iterdir()):
        damage = damage_json if path.suffix == ".json" else damage_database
        path.write_bytes(damage(path.read_bytes(), chance.choice(KINDS), chance))
    mqtt = {"host": "127.0.0.1", "port": free_port(), "tls": False, "shadow": "own"}
    daemon = Daemon(tmp_path, mqtt)
    try:
        daemon.start()
        daemon.wait(lambda: readyz(daemon)[0] == 200)
        status = daemon.status()
        assert status is not None
        assert status["counters"]["state_files_damaged"] > 0
        assert status["stream"]["wanted"] == "stopped"
        assert daemon.post("/api/v1/stream/stop")["stream"]["wanted"] == "stopped"
        assert daemon.post("/api/v1/stream/start")["stream"]["wanted"] == "running"
        set_controls(daemon, {"flip_vertical": True})
        assert daemon.post("/api/v1/stream/stop")["stream"]["wanted"] == "stopped"
        assert daemon.stop() == 0
    finally:
        daemon.end()
    assert json.loads((state / "run.json").read_text()) == {"end": "clean"}
    assert json.loads((state / "controls.json").read_text())["flip_vertical"] is True
    for name in ("wish.json", "wish.copy.json"):
        stored = json.loads((state / name).read_text())
        assert (stored["running"], stored["reason"]) == (False, "local page")
    assert {"daemon.started", "stream.stopped"} <= set(event_types(state / "events.sqlite"))
    with closing(sqlite3.connect(state / "once.sqlite")) as database:
        assert database.execute("PRAGMA integrity_check").fetchall() == [("ok",)]


@pytest.mark.slow
def test_daemon_starts_with_every_file_damaged_answers_and_keeps_writing(tmp_path: Path) -> None:
    state = tmp_path / "state"
    daemon = Daemon(tmp_path, {"host": "127.0.0.1", "port": free_port(), "tls": False})
    try:
        daemon.start()
        daemon.post("/api/v1/stream/start")
        assert daemon.stop() == 0
        events = (state / "events.sqlite").read_bytes()
        (state / "events.sqlite").write_bytes(events[:4096] + bytes(512) + events[4096 + 512 :])
        (state / "once.sqlite").write_bytes(b"x" * 5000)
        (state / "tuning.json").write_bytes(b"[" * 100_000)
        (state / "controls.json").write_text('{"zoom": 7, "gain": "much"}')
        (state / "run.json").unlink()
        (state / "run.json").mkdir()
        (state / "wish.json").write_text('{"running": "no", "reason": 5}')
        daemon.start()
        daemon.wait_for_status(lambda status: status["counters"]["state_files_damaged"] == 6)
        assert daemon.post("/api/v1/stream/stop")["stream"]["wanted"] == "stopped"
        # The copy is written after the answer.
        daemon.wait(lambda: (state / "wish.copy.json").read_text() == (state / "wish.json").read_text())
        shutil.rmtree(state)
        assert daemon.post("/api/v1/stream/start")["stream"]["wanted"] == "running"
        assert daemon.post("/api/v1/stream/stop")["stream"]["wanted"] == "stopped"
        assert daemon.stop() == 0
        daemon.start()
        daemon.wait_for_status(lambda status: status["stream"]["wanted"] == "stopped")
        status = daemon.status()
        assert status is not None
        assert status["counters"]["state_files_damaged"] == 0
        modes = {path.name: path.stat().st_mode & 0o777 for path in (state, *state.iterdir())}
        assert modes.pop("state") == 0o700
        assert set(modes.values()) == {0o600}
        assert {"once.sqlite", "events.sqlite", "run.json", "wish.json"} <= modes.keys()
    finally:
        daemon.end()
