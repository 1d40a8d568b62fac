"""Faults of a real camera library: each is reported with its cause, and the camera recovers by itself."""

from __future__ import annotations

import asyncio
import os
import signal
import time
from typing import TYPE_CHECKING

import pytest

from edge.camera.lifecycle import Remedy
from edge.camera.port import CameraState
from edge.contract.codes import Code
from edge.core.access_unit import Quality
from edge.errors import CameraUnavailable
from tests.rigs.camera import running

if TYPE_CHECKING:
    from tests.picamera2.conftest import Faults
    from tests.rigs.camera import Daemon

STALL_S = 1.0


async def watched(daemon: Daemon) -> None:
    await process_up(daemon)
    daemon.camera.want(wanted=True)
    await daemon.camera.opened()
    await daemon.more_units(5)


async def process_up(daemon: Daemon) -> None:
    """So that the deadline for opening the camera does not include the imports of a busy machine."""
    await daemon.until(lambda: daemon.camera.source is not None)


async def until_sd_failed(daemon: Daemon, times: int) -> None:
    await daemon.until(lambda: len(daemon.sd_failures) == times)


async def test_auto_uses_the_camera_that_it_finds(monkeypatch: pytest.MonkeyPatch) -> None:
    async with running(source="auto") as daemon:
        await watched(daemon)
        assert daemon.camera.source == "picamera2"
        assert daemon.camera.opening is not None
        assert daemon.camera.opening.format.encoder == "libx264"
    monkeypatch.setenv("LIBCAMERA_PIPELINES_MATCH_LIST", "simple")
    async with running(source="auto") as daemon:
        await watched(daemon)
        assert daemon.camera.source == "synthetic"


async def test_a_stall_is_over_within_a_second_of_being_noticed(faults: Faults) -> None:
    async with running(source="picamera2", stall_s=STALL_S) as daemon:
        await watched(daemon)
        camera = daemon.camera
        camera.encode_sd(on=True)
        await daemon.until(lambda: any(unit.quality is Quality.SD for unit in daemon.units))
        pid, last_s, count = camera.pid, time.monotonic(), len(daemon.units)
        faults.begin("stalled")
        await daemon.until(lambda: camera.error is not None)
        assert camera.error is not None
        assert camera.error.code is Code.CAMERA_STALLED
        await daemon.until(lambda: camera.state is CameraState.RUNNING)
        await daemon.more_units(1)
        assert time.monotonic() - last_s < STALL_S + 1 + 1  # the last on a busy machine
        assert (camera.reopens, camera.restarts, camera.pid) == (1, 0, pid)
        assert camera.recovery == (Remedy.REOPEN, "the camera delivered no picture for 1 s", 1)
        # SD is encoded again without another request.
        await daemon.until(lambda: any(unit.quality is Quality.SD for unit in daemon.units[count + 20 :]))


async def test_a_camera_that_hangs_while_it_closes_loses_its_process(faults: Faults) -> None:
    async with running(source="picamera2", stall_s=STALL_S) as daemon:
        await watched(daemon)
        camera, pid = daemon.camera, daemon.camera.pid
        faults.begin("stalled", "hang")
        await daemon.until(lambda: camera.restarts == 1)
        faults.end()
        await daemon.until(lambda: camera.state is CameraState.RUNNING)
        await daemon.more_units()
        assert camera.pid != pid
        assert camera.recovery[0] is Remedy.RESTART


async def test_a_camera_that_stays_stalled_gets_fresh_processes_and_comes_back(faults: Faults) -> None:
    async with running(source="picamera2", stall_s=STALL_S, open_timeout_s=1.5) as daemon:
        await watched(daemon)
        faults.begin("stall")
        await daemon.until(lambda: daemon.camera.restarts >= 1)
        assert daemon.camera.reopens >= 2
        faults.end()
        await daemon.until(lambda: daemon.camera.state is CameraState.RUNNING)
        await daemon.more_units()


@pytest.mark.parametrize(
    ("fault", "cause"),
    [
        ("absent", "no camera found: look at its cable"),
        ("busy", "the camera is in use by"),
        ("memory", "out of memory for the camera's buffers"),
        ("stall", "the camera (gave no picture|did not open) within"),
        ("encoder", "encoder broke"),
    ],
)
async def test_a_fault_at_opening_is_reported_and_the_camera_opens_when_it_is_over(
    faults: Faults, fault: str, cause: str
) -> None:
    async with running(source="picamera2", open_timeout_s=3) as daemon:
        await process_up(daemon)
        faults.begin(fault)
        daemon.camera.want(wanted=True)
        with pytest.raises(CameraUnavailable, match=cause):
            await daemon.camera.opened()
        await daemon.until(lambda: daemon.camera.state is CameraState.FAILED)
        faults.end()
        await daemon.until(lambda: daemon.camera.state is CameraState.RUNNING)
        await daemon.more_units()
        assert daemon.camera.error is None


async def test_a_camera_that_is_missing_at_the_start_is_reported_and_found_once_it_is_connected(faults: Faults) -> None:
    faults.begin("absent")
    async with running(source="picamera2") as daemon:
        camera = daemon.camera
        await daemon.until(lambda: camera.state is CameraState.FAILED)
        assert camera.error is not None
        assert camera.error.message == "The camera is not connected"
        assert camera.error.detail == "no camera found: look at its cable (camera 0 does not exist, found: none)"
        camera.want(wanted=True)
        with pytest.raises(CameraUnavailable) as raised:
            await camera.opened()
        assert raised.value.message == "The camera is not connected"
        camera.want(wanted=False)
        faults.end()
        await daemon.until(lambda: camera.state is CameraState.CLOSED)
        assert camera.error is None
        assert (camera.opening, camera.restarts, daemon.units) == (None, 0, [])
        await watched(daemon)


@pytest.mark.parametrize("fault", ["absent", "busy", "memory", "encoder"])
async def test_a_running_camera_recovers_when_a_fault_is_over(faults: Faults, fault: str) -> None:
    async with running(source="picamera2", stall_s=STALL_S, open_timeout_s=3) as daemon:
        await watched(daemon)
        camera = daemon.camera
        faults.begin(fault)
        if fault != "encoder":
            faults.begin("stalled")
        await daemon.until(lambda: camera.state is CameraState.FAILED and camera.reopens > 0)
        faults.end()
        await daemon.until(lambda: camera.state is CameraState.RUNNING)
        await daemon.more_units()


async def test_a_process_killed_by_the_kernel_is_replaced() -> None:
    async with running(source="picamera2") as daemon:
        await watched(daemon)
        assert daemon.camera.pid is not None
        os.kill(daemon.camera.pid, signal.SIGKILL)
        await daemon.until(lambda: daemon.camera.restarts == 1 and daemon.camera.state is CameraState.RUNNING)
        await daemon.more_units()


@pytest.mark.parametrize(
    ("hd", "cause"),
    [
        ({"width": 1440, "height": 1080}, "does not offer 1440x1080.*; it has 1920x1080 at up to 30 fps"),
        ({"width": 1600, "height": 1200}, "does not offer 1600x1200; it has 1920x1080 at up to 30 fps"),
        ({"width": 1280, "height": 720, "fps": 60}, "does not offer 1280x720 at 60 fps; it has"),
    ],
)
async def test_an_unsupported_mode_is_rejected_with_the_supported_modes(hd: dict[str, int], cause: str) -> None:
    async with running(source="picamera2", hd=hd) as daemon:
        await process_up(daemon)
        daemon.camera.want(wanted=True)
        with pytest.raises(CameraUnavailable, match=cause):
            await daemon.camera.opened()


async def test_controls_survive_a_restart_of_the_camera() -> None:
    async with running(source="picamera2") as daemon:
        await watched(daemon)
        camera = daemon.camera
        assert (await camera.set_controls({"fps": 10}))["fps"] == 10
        assert camera.pid is not None
        os.kill(camera.pid, signal.SIGKILL)
        await daemon.until(lambda: camera.restarts == 1 and camera.state is CameraState.RUNNING)
        count = len(daemon.units)
        await daemon.more_units(10)
        stamps = [unit.captured_ns for unit in daemon.units[count + 1 : count + 10]]
        assert (stamps[-1] - stamps[0]) / 8e9 == pytest.approx(0.1, rel=0.3)
        assert await asyncio.wait_for(camera.snapshot(160, 80), 5)


async def test_each_failure_of_sd_is_reported_and_hd_goes_on(faults: Faults) -> None:
    async with running(source="picamera2") as daemon:
        await watched(daemon)
        for times in (1, 2):
            faults.begin("sd")
            daemon.camera.encode_sd(on=True)
            await until_sd_failed(daemon, times)
            assert "encoder broke" in daemon.sd_failures[-1]
            assert daemon.camera.sd_error == daemon.sd_failures[-1]
            await daemon.more_units(10)
        faults.end()
        daemon.camera.encode_sd(on=True)
        await daemon.until(lambda: any(unit.quality is Quality.SD for unit in daemon.units))
        assert daemon.camera.sd_error is None
        assert (daemon.camera.reopens, daemon.camera.restarts) == (0, 0)


async def test_a_rejected_flip_is_a_short_break(faults: Faults) -> None:
    async with running(source="picamera2") as daemon:
        await watched(daemon)
        daemon.camera.encode_sd(on=True)
        await daemon.until(lambda: any(unit.quality is Quality.SD for unit in daemon.units))
        faults.begin("unflipped")
        with pytest.raises(CameraUnavailable, match="cannot be flipped"):
            await daemon.camera.set_controls({"flip_vertical": True})
        await daemon.more_units(10)
        assert daemon.camera.values == {}
        daemon.units.clear()
        await daemon.until(lambda: any(unit.quality is Quality.SD for unit in daemon.units))
        assert daemon.sd_failures == []
        assert (daemon.camera.reopens, daemon.camera.restarts) == (0, 0)
    # A flip that was saved for another camera does not prevent this one from opening.
    async with running(source="picamera2", values={"flip_vertical": True, "fps": 20}) as daemon:
        await watched(daemon)
        assert daemon.camera.opening is not None
        assert daemon.camera.opening.values == {"fps": 20}
