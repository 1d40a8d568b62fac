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
from edge.camera.lifecycle import Remedy
from edge.camera.port import CameraState
from edge.camera.process import CameraProcess
from edge.camera.settings import CameraSettings
from edge.contract.messages import SessionInfo
from edge.contract.topics import Topics
from edge.core.access_unit import AccessUnit, Quality
from edge.errors import CameraUnavailable
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
        "sessions": SimpleNamespace(count=1, limit=5, listing=lambda: [ANNA]),
        "wish": SimpleNamespace(running=True, reason=None),
    }
    settings: Any = SimpleNamespace(device=SimpleNamespace(id="cam-1"))
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
    assert telemetry.counters == {
        "commands": 7,
        "camera_units_dropped": 0,
        "messages_dropped_coming": 0,
        "events_unwritten": 2,
    }
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


class Troubled:
    """A camera as a report sees it, which fails and recovers at a test's word."""

    def __init__(self, told: Report, clock: Clock, monkeypatch: pytest.MonkeyPatch) -> None:
        self.events: list[str] = []
        self._camera = CameraProcess(CameraSettings(source="synthetic"), lambda _: None, lambda: None)
        self._told, self._clock = told, clock
        monkeypatch.setattr(told, "_camera", self._camera)
        monkeypatch.setattr(told, "_notice", lambda kind, _, __: self.events.append(kind.removeprefix("camera.")))

    def news(self) -> list[str]:
        """Events since the last call."""
        news, self.events = self.events, []
        return news

    def fails(self, why: str = "no camera found", remedy: Remedy = Remedy.REOPEN) -> None:
        self._camera.state, self._camera.error = CameraState.FAILED, CameraUnavailable(why)
        self._told.camera_changed()
        self._camera._life.remedy = remedy
        self._camera.reopens += remedy is Remedy.REOPEN
        self._camera.restarts += remedy is Remedy.RESTART
        self._told.camera_changed()

    def runs(self, for_s: float) -> None:
        self._camera.state, self._camera.error = CameraState.RUNNING, None
        self._told.camera_changed()
        self._clock.now_s += for_s
        self._told.unit(AccessUnit(b"", 0, keyframe=False))


@pytest.fixture
def troubled(told: Report, clock: Clock, monkeypatch: pytest.MonkeyPatch) -> Troubled:
    return Troubled(told, clock, monkeypatch)


def test_a_camera_that_fails_for_a_day_makes_few_events(troubled: Troubled) -> None:
    for _ in range(24 * 60 * 60 // 15):
        for remedy in (Remedy.REOPEN, Remedy.REOPEN, Remedy.RESTART):
            troubled.fails(remedy=remedy)
    news = troubled.news()
    assert news[:4] == ["lost", "recovering", "recovering", "recovering"]
    assert news.count("lost") == 1
    assert len(news) == 1 + 14 + 13
    troubled.runs(for_s=60)
    assert troubled.news() == ["back"]
    troubled.fails()
    assert troubled.news() == ["lost", "recovering"]


def test_another_fault_of_a_camera_is_told_and_not_every_one(troubled: Troubled) -> None:
    troubled.fails("it is in use by rpicam-vid (1)")
    troubled.fails("no camera found")
    assert troubled.news() == ["lost", "recovering", "lost", "recovering"]
    for number in range(1000):
        troubled.fails(f"it is in use by rpicam-vid ({number})")
    assert troubled.news().count("lost") == 6


def test_a_camera_that_stops_soon_each_time_it_is_back_makes_few_events(troubled: Troubled) -> None:
    for _ in range(1000):
        troubled.fails("the camera delivered no picture for 2 s")
        troubled.runs(for_s=3)
    news = troubled.news()
    assert news[:5] == ["lost", "recovering", "back", "lost", "recovering"]
    assert (news.count("lost"), news.count("back"), news.count("recovering")) == (2, 1, 10)
    troubled.fails("the camera delivered no picture for 2 s")
    troubled.runs(for_s=10)
    assert troubled.news() == ["back"]
    troubled.runs(for_s=10)
    assert troubled.news() == []
