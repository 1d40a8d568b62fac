"""A full disk: what a stop of the stream, the privacy of a place, then is worth."""

from __future__ import annotations

import json
import signal
import subprocess
import urllib.error
from typing import TYPE_CHECKING, Any

import pytest

from edge.core.once import Row
from edge.host.damaged_files import DamagedFiles
from edge.host.ledger import Ledger
from edge.host.state_file import StateFile
from tests.rigs.daemon import Daemon, free_port
from tests.rigs.full_disk import fill, small_disk

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

STOPPED = {"running": False, "reason": "night", "bitrates": {}}


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    with small_disk(tmp_path) as path:
        yield path


async def test_reserve_makes_room_for_a_write_on_a_full_disk(disk: Path) -> None:
    store = StateFile(disk / "wish.json", reserve=True)
    assert store.read() is None
    fill(disk)
    assert store.full()
    for number in range(3):  # what a write leaves becomes the reserve of the next one
        assert await store.write({**STOPPED, "reason": f"night {number}"})
    assert store.read() == {**STOPPED, "reason": "night 2"}


async def test_write_on_a_full_disk_without_reserve_fails_and_keeps_the_old_state(disk: Path) -> None:
    store = StateFile(disk / "wish.json")
    assert await store.write({"running": True})
    fill(disk)
    assert not await store.write(STOPPED)
    assert store.read() == {"running": True}
    (disk / "filler").unlink()
    assert not store.full()
    assert await store.write(STOPPED)


def test_damaged_files_that_a_read_only_disk_keeps_are_not_counted_as_set_aside(
    disk: Path, caplog: pytest.LogCaptureFixture
) -> None:
    for name in ("once.sqlite", "wish.json"):
        (disk / name).write_bytes(b"x" * 5000)
    subprocess.run(["mount", "-o", "remount,ro", disk], check=True)
    damaged = DamagedFiles()
    ledger = Ledger(disk / "once.sqlite", lambda: 0, damaged)
    assert ledger.open() == []
    for _ in range(3):
        ledger.put(Row("command", "token:anna", "c-1", 100.0, "bff-1", None))
        assert not ledger._write(ledger._take())
    assert StateFile(disk / "wish.json", damaged=damaged).read() is None
    assert damaged.count == caplog.text.count("damaged, set aside") == 0
    assert caplog.text.count("kept in memory only") == 1
    assert "Read-only file system" in caplog.text


@pytest.fixture
def daemon(disk: Path, tmp_path: Path) -> Iterator[Daemon]:
    """Not started yet. Its state is on the small disk, and it has no broker."""
    mqtt = {"host": "127.0.0.1", "port": free_port(), "tls": False}
    made = Daemon(tmp_path, mqtt, state={"dir": str(disk / "state")})
    yield made
    made.end()


def refused(daemon: Daemon, path: str) -> tuple[int, dict[str, Any]]:
    with pytest.raises(urllib.error.HTTPError) as caught:
        daemon.post(path)
    with caught.value as answer:
        return answer.code, json.load(answer)["error"]


def kill(daemon: Daemon) -> None:
    assert daemon.process is not None
    daemon.process.send_signal(signal.SIGKILL)
    daemon.process.wait()


@pytest.mark.slow
def test_stop_on_a_full_disk_survives_a_restart_or_is_reported_as_not_kept(disk: Path, daemon: Daemon) -> None:
    state = disk / "state"
    daemon.start()
    fill(disk)
    assert daemon.post("/api/v1/stream/stop")["stream"]["wanted"] == "stopped"
    kill(daemon)
    daemon.start()
    daemon.wait_for_status(lambda status: status["stream"]["wanted"] == "stopped")
    # Nothing is known any more, and there is no reserve.
    kill(daemon)
    for path in state.glob("wish*"):
        path.unlink()
    fill(disk)
    daemon.start()
    daemon.wait_for_status(lambda status: "the disk is full" in (status["stream"]["reason"] or ""))
    code, error = refused(daemon, "/api/v1/stream/start")
    assert (code, error["code"]) == (507, "not_kept")
    assert "the stream is running" in error["message"]
    assert refused(daemon, "/api/v1/stream/stop")[1]["code"] == "not_kept"
    daemon.wait_for_status(lambda status: status["stream"]["wanted"] == "stopped")
    (disk / "filler").unlink()
    assert daemon.post("/api/v1/stream/start")["stream"]["wanted"] == "running"
    assert daemon.post("/api/v1/stream/stop")["stream"]["wanted"] == "stopped"
    kill(daemon)
    daemon.start()
    daemon.wait_for_status(lambda status: status["stream"]["wanted"] == "stopped")


@pytest.mark.slow
def test_stop_on_a_disk_that_is_full_before_the_start_survives_a_power_cut(disk: Path, daemon: Daemon) -> None:
    state = disk / "state"
    daemon.start()
    assert daemon.stop() == 0
    assert json.loads((state / "run.json").read_text()) == {"end": "clean"}
    for path in state.glob("wish*"):
        path.unlink()
    fill(disk)
    daemon.start()
    daemon.wait_for_status(lambda status: status["stream"]["wanted"] == "running")
    fill(disk)
    assert refused(daemon, "/api/v1/stream/stop")[1]["code"] == "not_kept"
    kill(daemon)
    daemon.start()
    daemon.wait_for_status(lambda status: status["stream"]["wanted"] == "stopped")


@pytest.mark.slow
def test_damaged_state_on_a_full_disk_keeps_the_stream_stopped_over_restarts(disk: Path, daemon: Daemon) -> None:
    state = disk / "state"
    daemon.start()
    daemon.post("/api/v1/stream/stop")
    daemon.wait((state / "wish.copy.json").exists)
    assert daemon.stop() == 0
    for name in ("wish.json", "wish.copy.json"):
        (state / name).write_bytes(bytes(60))
    fill(disk)
    for _ in range(2):
        daemon.start()
        daemon.wait_for_status(lambda status: status["stream"]["wanted"] == "stopped")
        kill(daemon)
    (disk / "filler").unlink()
    daemon.start()
    daemon.wait_for_status(lambda status: status["stream"]["wanted"] == "stopped")
