"""The status and telemetry: what they contain, when they are published, and when they expire."""

from __future__ import annotations

import asyncio
import json
from collections import Counter
from datetime import UTC, datetime, timedelta
from types import SimpleNamespace
from typing import TYPE_CHECKING

import pytest

from edge.contract.codes import Code
from edge.contract.messages import CameraStatus, Offline, SessionInfo, Status, read_status
from edge.contract.topics import Topics
from edge.errors import CameraUnavailable, Rejected
from edge.host.clock import SystemClock
from edge.host.vitals import MachineVitals
from edge.signalling import outbox as outbox_module
from edge.signalling.outbox import Outbox
from edge.signalling.status import STATUS_VALID_S, StatusReport
from edge.signalling.telemetry import TelemetryBeat
from tests.rigs.statuses import make_status
from tests.service.commands.rig import running
from tests.service.fakes import FakeBroker

if TYPE_CHECKING:
    from pathlib import Path

    from edge.contract.messages import Telemetry

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


class Camera:
    hd_frames = 0

    def status(self) -> CameraStatus:
        return CameraStatus(state="running", source="synthetic")


class Viewers:
    count, limit = 1, 5

    def listing(self) -> list[SessionInfo]:
        return [ANNA]


class Stream:
    running = True
    reason: str | None = None


class Device:
    """A report and what it reads."""

    def __init__(self, directory: Path) -> None:
        self.now_s = 100.0
        self.directory = directory
        self.trust_clock = False
        self.broker = FakeBroker()
        self.camera = Camera()
        vitals = MachineVitals(directory)
        self.report = StatusReport(
            "cam-1",
            "0.1.0",
            broker=self.broker,
            camera=self.camera,
            stream=Stream(),
            viewers=Viewers(),
            sender_fault=None,
            vitals=lambda: vitals.read(None),
            counts=lambda: {"commands": 7},
            clock_known=lambda: self.clock().known(),
            now_s=lambda: self.now_s,
        )

    def clock(self) -> SystemClock:
        """The clock of a machine that neither NTP nor a clock chip has set."""
        return SystemClock(
            trusted=self.trust_clock, root=self.directory, error_us=lambda: 16_000_000, timedated=lambda: False
        )


@pytest.fixture
def device(tmp_path: Path) -> Device:
    return Device(tmp_path)


def test_the_frame_rate_is_that_since_the_last_telemetry(device: Device) -> None:
    for fps, seconds in ((25, 60), (0, 60), (30, 10)):
        device.camera.hd_frames += fps * seconds
        device.now_s += seconds
        assert device.report.telemetry().fps == fps
    assert device.report.telemetry().uptime_s == 130


def test_telemetry_has_the_figures_of_each_session_and_no_viewer(device: Device) -> None:
    telemetry = device.report.telemetry()
    (session,) = telemetry.sessions
    assert (session.session, session.quality, session.path) == ("s-1", "sd", "host/srflx")
    assert (session.bitrate_bps, session.loss, session.state) == (512_000, 0.01, "live")
    assert "anna" not in telemetry.model_dump_json()
    assert telemetry.counters == {"commands": 7}
    assert telemetry.vitals.load_1min is not None


async def test_telemetry_starts_at_a_random_moment_and_is_lost_without_a_link(
    device: Device, monkeypatch: pytest.MonkeyPatch
) -> None:
    broker, counters = device.broker, Counter[str]()
    outbox = Outbox(broker, TOPICS, device.report.status, counters)
    waits: list[float] = []
    turn = asyncio.Semaphore(0)

    async def wait(seconds: float) -> None:
        waits.append(seconds)
        await turn.acquire()

    monkeypatch.setattr("edge.signalling.telemetry.asyncio", SimpleNamespace(sleep=wait))
    monkeypatch.setattr("random.random", lambda: 0.25)
    async with running(outbox.run), running(TelemetryBeat(outbox, TOPICS, device.report.telemetry, 60).run):
        broker.connected = False
        turn.release()
        async with asyncio.timeout(5):
            while len(waits) < 2:
                await asyncio.sleep(0.001)
        assert waits == [15, 60]
        assert counters["messages_dropped_offline"] == 1
        broker.connected = True
        turn.release()
        sent = await broker.sent(lambda message: message.topic == TOPICS.telemetry and not message.retain)
        assert sent["viewers"] == 1
        assert json.dumps(sent).count("cam-1") == 1


async def test_telemetry_that_cannot_be_composed_is_left_out(
    device: Device, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    calls = 0

    def compose() -> Telemetry:
        nonlocal calls
        calls += 1
        if calls == 1:
            raise ZeroDivisionError
        return device.report.telemetry()

    monkeypatch.setattr("random.random", lambda: 0.0)
    outbox = Outbox(device.broker, TOPICS, device.report.status, Counter())
    async with running(outbox.run), running(TelemetryBeat(outbox, TOPICS, compose, 0.05).run):
        await device.broker.sent(lambda message: message.topic == TOPICS.telemetry and not message.retain)
    assert caplog.text.count("telemetry left out because of a bug") == 1


def test_a_status_expires_only_if_the_device_knows_the_time(device: Device) -> None:
    assert device.report.status().valid_until is None
    device.trust_clock = True
    status = device.report.status()
    assert status.valid_until == status.at + timedelta(seconds=STATUS_VALID_S)
    assert not status.expired(status.at + timedelta(seconds=STATUS_VALID_S - 1))
    assert status.expired(status.at + timedelta(seconds=STATUS_VALID_S))


async def test_an_unchanged_status_is_published_again_long_before_it_expires(
    device: Device, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert max(outbox_module._STATUS_REFRESH_S) * 3 <= STATUS_VALID_S
    monkeypatch.setattr(outbox_module, "_STATUS_REFRESH_S", (0.01, 0.02))
    monkeypatch.setattr(outbox_module, "_STATUS_INTERVAL_S", 0.0)
    device.trust_clock = True
    async with running(Outbox(device.broker, TOPICS, device.report.status, Counter()).run):
        sent = [await device.broker.sent(lambda message: message.retain) for _ in range(3)]
    limits = [datetime.fromisoformat(status["valid_until"]) for status in sent]
    assert limits == sorted(set(limits))
    # The last status says offline, which stays true.
    last = json.loads(device.broker.published[-1].payload)
    assert (last["online"], last["valid_until"]) == (False, None)


async def test_a_status_gets_its_expiry_soon_after_the_clock_is_set(
    device: Device, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(outbox_module, "_CLOCK_CHECK_S", 0.02)
    monkeypatch.setattr(outbox_module, "_STATUS_INTERVAL_S", 0.0)
    outbox = Outbox(device.broker, TOPICS, device.report.status, Counter())
    async with running(outbox.run):
        outbox.status_changed()
        assert (await device.broker.sent(lambda message: message.retain))["valid_until"] is None
        await asyncio.sleep(0.1)
        assert not device.broker.published, "the same status is not published again and again"
        device.trust_clock = True
        async with asyncio.timeout(5):
            assert (await device.broker.sent(lambda message: message.retain))["valid_until"]


def test_a_refused_command_is_not_a_failure_of_the_device(device: Device) -> None:
    device.report.failed(CameraUnavailable("no camera found"))
    device.report.refused("camera.set", Rejected(Code.BAD_MESSAGE, "gain: 1 to 16"))
    status = device.report.status()
    assert status.last_error is not None
    assert (status.last_error.code, status.last_error.message) == (Code.CAMERA_UNAVAILABLE, "no camera found")
    assert status.last_refusal is not None
    assert (status.last_refusal.code, status.last_refusal.type) == (Code.BAD_MESSAGE, "camera.set")
    assert "gain" not in status.model_dump_json(), "every subscriber reads the status"


def test_the_type_of_a_refused_command_is_one_of_the_contract_or_null(device: Device) -> None:
    for kind, shown in (("session.dance", None), ("", None), ("publish.start", "publish.start")):
        device.report.refused(kind, Rejected(Code.BAD_MESSAGE, "type: not a command of this contract"))
        refusal = device.report.status().last_refusal
        assert refusal is not None
        assert refusal.type == shown


@pytest.mark.parametrize(
    ("error", "own"),
    [
        (Rejected(Code.BAD_MESSAGE, "settings: colour: unknown key"), False),
        (Rejected(Code.TOO_LARGE, "shadow: 9000 bytes"), False),
        (Rejected(Code.INTERNAL, "settings: cannot be written to disk"), True),
        (CameraUnavailable("settings: no picture within 60 s"), True),
    ],
)
def test_settings_fail_by_their_own_fault_or_by_the_devices(device: Device, error: Rejected, own: bool) -> None:
    device.report.settings_refused(error)
    status = device.report.status()
    shown = status.last_error if own else status.last_refusal
    assert shown is not None
    assert (shown.code, shown.message) == (error.code, error.message)
    assert (status.last_refusal is None) == own


def test_the_line_for_systemd(device: Device) -> None:
    assert device.report.line() == "streaming enabled, camera running, 1 viewers, broker connected"
    device.broker.connected, device.broker.error = False, "refused"
    assert device.report.line().endswith("no broker (refused)")


def test_a_status_and_a_last_will_are_told_apart() -> None:
    offline = make_status(online=False)
    assert read_status(offline.model_dump_json().encode()) == offline
    will = Offline(device="cam-1", at=datetime.now(UTC), version="0.1.0")
    assert read_status(will.model_dump_json().encode()) == will


def test_the_last_will_is_the_same_on_the_wire_as_before_it_was_a_message_of_its_own() -> None:
    will = Offline(device="cam-1", at=datetime(2026, 11, 21, 12, tzinfo=UTC), version="0.1.0")
    assert will.model_dump_json() == (
        '{"v":1,"device":"cam-1","online":false,"at":"2026-11-21T12:00:00Z","version":"0.1.0","started_at":null,'
        '"stream":null,"camera":null,"viewers":null,"broker":null,"last_error":null,"vitals":null,"counters":{}}'
    )


def test_a_status_without_the_newer_fields_is_read() -> None:
    fields = json.loads(make_status().model_dump_json(exclude={"valid_until", "last_refusal"}))
    status = read_status(json.dumps(fields).encode())
    assert isinstance(status, Status)
    assert (status.valid_until, status.last_refusal) == (None, None)
