"""The log of a camera that fails again and again stays short."""

from __future__ import annotations

from typing import TYPE_CHECKING

from edge.camera.failure_log import FailureLog
from edge.errors import CameraUnavailable

if TYPE_CHECKING:
    import pytest

STALLED = CameraUnavailable("the camera delivered no picture for 2 s")
MISSING = CameraUnavailable("The camera is not connected", detail="no camera found")


def test_a_day_of_failures_is_a_few_lines(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO")
    failures = FailureLog()
    for now_s in range(0, 24 * 3600, 10):
        for error in (STALLED, MISSING, None):
            failures.changed(error, float(now_s))
    assert len(caplog.messages) < 130
    assert caplog.messages[:3] == [
        "camera failed error='the camera delivered no picture for 2 s' count=1",
        "camera failed error='no camera found' count=1",
        "camera available again previous_error='no camera found'",
    ]
    assert caplog.messages[-2] == "camera failed error='no camera found' count=360"


def test_failure_after_quiet_hours_is_logged_again(caplog: pytest.LogCaptureFixture) -> None:
    failures = FailureLog()
    for now_s in (0.0, 1.0, 2.0, 3600.0):
        failures.changed(STALLED, now_s)
    assert [line.rpartition(" ")[2] for line in caplog.messages] == ["count=1", "count=3"]
