"""What the daemon says of itself: telemetry, and who does not stand in it."""

from __future__ import annotations

import asyncio
import json
from collections import Counter
from datetime import UTC, datetime
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import pytest

from edge import report
from edge.camera.process import CameraProcess
from edge.camera.settings import CameraSettings
from edge.contract.messages import SessionInfo
from edge.contract.topics import Topics
from edge.core.access_unit import AccessUnit, Quality
from edge.host.vitals import MachineVitals
from edge.report import Report
from edge.signalling.outbox import Outbox
from edge.signalling.telemetry import TelemetryBeat
from tests.service.fakes import FakeBroker
from tests.service.test_commands import running

if TYPE_CHECKING:
    from pathlib import Path

TOPICS = Topics("cam-1")
ANNA = SessionInfo(
    session="s-1",
    viewer="anna",
    state="live",
    quality="sd",
    path="host/srflx",
    bitrate_bps=512_000,
    loss=0.01,
    since=datetime.now(UTC),
)


class Clock:
    def __init__(self) -> None:
        self.now_s = 100.0

    def monotonic(self) -> float:
        return self.now_s


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    made = Clock()
    monkeypatch.setattr(report, "time", made)
    return made


@pytest.fixture
def told(tmp_path: Path, clock: Clock) -> Report:
    parts: dict[str, Any] = {
        "broker": FakeBroker(),
        "camera": CameraProcess(CameraSettings(source="synthetic"), lambda _: None, lambda: None),
        "commands": None,
        "event_store": SimpleNamespace(unwritten=2),
        "peers": SimpleNamespace(stock_because=None),
        "sessions": SimpleNamespace(count=1, listing=lambda: [ANNA]),
        "wish": SimpleNamespace(running=True, reason=None),
    }
    settings: Any = SimpleNamespace(device=SimpleNamespace(id="cam-1"), sessions=SimpleNamespace(max_viewers=5))
    return Report(
        settings,
        counters=Counter(commands=7),
        notice=lambda *_: None,
        vitals=MachineVitals(tmp_path),
        **parts,
    )


def test_the_pictures_of_hd_are_counted_from_one_telemetry_to_the_next(told: Report, clock: Clock) -> None:
    for rates in ((25, 60), (0, 60), (30, 10)):
        fps, seconds = rates
        for quality in Quality:
            for _ in range(fps * seconds):
                told.unit(AccessUnit(b"", 0, keyframe=False, quality=quality))
        clock.now_s += seconds
        assert told.telemetry().fps == fps
    assert told.telemetry().uptime_s == 130


def test_telemetry_has_the_figures_of_each_session_and_not_who_watches(told: Report) -> None:
    telemetry = told.telemetry()
    (session,) = telemetry.sessions
    assert (session.session, session.quality, session.path) == ("s-1", "sd", "host/srflx")
    assert (session.bitrate_bps, session.loss, session.state) == (512_000, 0.01, "live")
    assert "anna" not in telemetry.model_dump_json()
    assert telemetry.counters == {"commands": 7, "camera_units_dropped": 0, "events_unwritten": 2}
    assert telemetry.vitals.load_1min is not None


async def test_telemetry_begins_at_a_moment_of_the_devices_own_and_is_lost_where_there_is_no_link(
    told: Report, monkeypatch: pytest.MonkeyPatch
) -> None:
    broker, counters = FakeBroker(), Counter[str]()
    outbox = Outbox(broker, TOPICS, told.status, counters)
    waits: list[float] = []
    turn = asyncio.Semaphore(0)

    async def wait(seconds: float) -> None:
        waits.append(seconds)
        await turn.acquire()

    monkeypatch.setattr("edge.signalling.telemetry.asyncio", SimpleNamespace(sleep=wait))
    monkeypatch.setattr("random.random", lambda: 0.25)
    async with running(outbox.run), running(TelemetryBeat(outbox, TOPICS, told.telemetry, 60).run):
        broker.connected = False
        turn.release()
        async with asyncio.timeout(5):
            while len(waits) < 2:
                await asyncio.sleep(0.001)
        assert waits == [15, 60]
        assert counters["messages_dropped_offline"] == 1
        broker.connected = True
        turn.release()
        said = await broker.sent(lambda message: message.topic == TOPICS.telemetry and not message.retain)
        assert said["viewers"] == 1
        assert json.dumps(said).count("cam-1") == 1
