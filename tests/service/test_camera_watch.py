"""The camera's part of the status, and the events that a failing camera causes."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING

import pytest

from edge.camera.lifecycle import Remedy
from edge.camera.port import CameraState
from edge.camera.process import CameraProcess
from edge.camera.settings import CameraSettings
from edge.camera.watch import CameraWatch
from edge.core.access_unit import AccessUnit, Quality
from edge.core.health import Health
from edge.errors import CameraUnavailable

if TYPE_CHECKING:
    from edge.errors import EdgeError


class WatchedCamera:
    """A camera that fails and recovers as a test says, and its watch."""

    def __init__(self) -> None:
        self.now_s = 100.0
        self.camera = CameraProcess(CameraSettings(source="synthetic"), lambda _: None, lambda: None)
        self.health = Health(30)
        self.counters: Counter[str] = Counter()
        self.errors: list[EdgeError] = []
        self._events: list[str] = []
        self.watch = CameraWatch(
            self.camera,
            self.health,
            self.counters,
            publish_event=lambda kind, _, __: self._events.append(kind.removeprefix("camera.")),
            failed=self.errors.append,
            now_s=lambda: self.now_s,
        )

    def events(self) -> list[str]:
        """Events since the last call."""
        events, self._events = self._events, []
        return events

    def fail(self, why: str = "no camera found", remedy: Remedy = Remedy.REOPEN) -> None:
        self.camera.state, self.camera.error = CameraState.FAILED, CameraUnavailable(why)
        self.watch.changed()
        self.camera._life.remedy = remedy
        self.camera.reopens += remedy is Remedy.REOPEN
        self.camera.restarts += remedy is Remedy.RESTART
        self.watch.changed()

    def run(self, for_s: float) -> None:
        self.camera.state, self.camera.error = CameraState.RUNNING, None
        self.watch.changed()
        self.now_s += for_s
        self.watch.unit(AccessUnit(b"", 0, keyframe=False))

    def fault(self) -> str | None:
        return self.health.fault(self.now_s, sessions_on_time=True, commands_on_time=True, counters={})


@pytest.fixture
def watched() -> WatchedCamera:
    return WatchedCamera()


def test_a_camera_that_fails_for_a_day_causes_few_events(watched: WatchedCamera) -> None:
    for _ in range(24 * 60 * 60 // 15):
        for remedy in (Remedy.REOPEN, Remedy.REOPEN, Remedy.RESTART):
            watched.fail(remedy=remedy)
    events = watched.events()
    assert events[:4] == ["lost", "recovering", "recovering", "recovering"]
    assert events.count("lost") == 1
    assert len(events) == 1 + 14 + 13
    watched.run(for_s=60)
    assert watched.events() == ["back"]
    watched.fail()
    assert watched.events() == ["lost", "recovering"]


def test_a_different_fault_causes_an_event_but_not_every_one(watched: WatchedCamera) -> None:
    watched.fail("it is in use by rpicam-vid (1)")
    watched.fail("no camera found")
    assert watched.events() == ["lost", "recovering", "lost", "recovering"]
    for number in range(1000):
        watched.fail(f"it is in use by rpicam-vid ({number})")
    assert watched.events().count("lost") == 6


def test_a_camera_that_stops_soon_after_each_recovery_causes_few_events(watched: WatchedCamera) -> None:
    for _ in range(1000):
        watched.fail("the camera delivered no picture for 2 s")
        watched.run(for_s=3)
    events = watched.events()
    assert events[:5] == ["lost", "recovering", "back", "lost", "recovering"]
    assert (events.count("lost"), events.count("back"), events.count("recovering")) == (2, 1, 10)
    watched.fail("the camera delivered no picture for 2 s")
    watched.run(for_s=10)
    assert watched.events() == ["back"]
    watched.run(for_s=10)
    assert watched.events() == []


def test_a_failure_is_recorded_once_and_shown_in_the_status(watched: WatchedCamera) -> None:
    watched.fail("no camera found")
    watched.watch.changed()
    assert [error.message for error in watched.errors] == ["no camera found"]
    status = watched.watch.status()
    assert (status.state, status.error, status.code) == ("failed", "no camera found", "camera_unavailable")
    assert (status.recovery.reopens, status.recovery.last, status.recovery.at is not None) == (1, "reopen", True)


def test_frames_are_counted_and_the_health_verdict_gets_every_delivery(watched: WatchedCamera) -> None:
    watched.run(for_s=29)
    for quality in Quality:
        watched.watch.unit(AccessUnit(b"", 0, keyframe=False, quality=quality))
    assert (watched.counters["access_units"], watched.watch.hd_frames) == (3, 2)
    watched.now_s += 30
    assert watched.fault() is None
    watched.now_s += 1
    assert watched.fault()
    watched.fail()
    assert watched.fault() is None


def test_an_idle_camera_that_a_probe_finds_again_is_back_and_its_next_loss_is_published(watched: WatchedCamera) -> None:
    for _ in range(2):
        watched.camera.error = CameraUnavailable("no camera found")
        watched.watch.changed()
        assert watched.events() == ["lost"]
        watched.camera.error = None
        watched.watch.changed()
        assert watched.events() == ["back"]
