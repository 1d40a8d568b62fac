"""The whole daemon with the real picamera2: when the camera fails, viewers stay connected and are notified."""

from __future__ import annotations

import asyncio
import os
import signal
from contextlib import asynccontextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import av
import pytest
from av.video.codeccontext import VideoCodecContext

from edge.client import CameraClient
from edge.mqtt.settings import MqttSettings
from tests.rigs.daemon import Daemon
from tests.rigs.mosquitto import Mosquitto
from tests.rigs.viewer import TIMEOUT_S, Viewer

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from edge.client import RemoteCamera
    from tests.picamera2.conftest import Faults

SMALL = {"hd": {"width": 640, "height": 360}, "sd": {"width": 320, "height": 240}}


@asynccontextmanager
async def daemon_and_client(directory: Path, **camera: Any) -> AsyncIterator[tuple[Daemon, RemoteCamera]]:
    broker = Mosquitto(directory)
    mqtt = broker.settings(tls=False)
    daemon = Daemon(directory, mqtt, camera={"source": "picamera2", "stall_s": 1.0, **SMALL, **camera})
    broker.start()
    try:
        await asyncio.to_thread(daemon.start)
        async with CameraClient.connect(MqttSettings(**mqtt), "bff-1") as client:
            theirs = client.camera("cam-1")
            await theirs.online()
            yield daemon, theirs
    finally:
        await asyncio.to_thread(daemon.end)
        broker.stop()


async def inject(faults: Faults, daemon: Daemon, fault: str) -> None:
    """Inject a fault into the running camera, and end it after the daemon has tried a remedy."""
    if fault == "killed":
        os.kill(daemon.children()[0], signal.SIGKILL)
        return
    if fault == "frozen":
        os.kill(daemon.children()[0], signal.SIGSTOP)
        return
    faults.begin(*fault.split("+"))
    if fault != "stalled":
        await asyncio.to_thread(
            daemon.wait_for_status,
            lambda s: s["camera"]["recovery"]["reopens"] + s["camera"]["recovery"]["restarts"] > 0,
            TIMEOUT_S,
        )
        faults.end()


@pytest.mark.parametrize(
    "fault",
    ["stalled", "stalled+hang", "stalled+absent", "stalled+busy", "stalled+memory", "encoder", "killed", "frozen"],
)
async def test_viewers_stay_connected_and_are_notified(tmp_path: Path, faults: Faults, fault: str) -> None:
    async with daemon_and_client(tmp_path) as (daemon, camera):
        events = camera.events()
        viewers = [Viewer(), Viewer()]
        for viewer, quality in zip(viewers, ("hd", "sd"), strict=True):
            await viewer.watch(camera, quality)
            await viewer.wait_for_pictures()
        await inject(faults, daemon, fault)
        for viewer, width in zip(viewers, (640, 320), strict=True):
            await viewer.wait_for_stall_notices()
            await viewer.wait_for_pictures(10)
            assert viewer.pc.connectionState == "connected"
            assert viewer.widths[-1] == width
        notice = viewers[0].notices[0]
        assert notice.code == "camera_stalled"
        assert notice.message
        assert len(await camera.sessions()) == 2
        status = await camera.status()
        tried = status.camera.recovery
        assert tried.reopens + tried.restarts > 0
        assert (tried.last, bool(tried.why), tried.at is not None) == (tried.last, True, True)
        metrics = await asyncio.to_thread(daemon.metrics)
        assert f'edge_camera_recoveries_total{{tried="reopen"}} {float(tried.reopens)}' in metrics
        assert f'edge_camera_recoveries_total{{tried="restart"}} {float(tried.restarts)}' in metrics
        kinds: list[str] = []
        async with asyncio.timeout(TIMEOUT_S):
            while "camera.back" not in kinds:
                kinds.append((await anext(events)).type)
        assert kinds.index("camera.lost") < kinds.index("camera.recovering") < kinds.index("camera.back")
        for viewer in viewers:
            await viewer.close()


async def test_a_viewer_changes_quality_on_its_connection(tmp_path: Path) -> None:
    async with daemon_and_client(tmp_path) as (_, camera):
        viewer = Viewer()
        await viewer.watch(camera)
        await viewer.wait_for_pictures()
        for quality, width in (("sd", 320), ("hd", 640), ("sd", 320)):
            await camera.quality(viewer.session, quality)  # type: ignore[arg-type]
            await viewer.wait_for_width(width)
            assert (await camera.sessions())[0].quality == quality
        await viewer.wait_for_pictures()
        # Each change is one cut, without a picture of the other quality in between.
        runs = [width for at, width in enumerate(viewer.widths) if at == 0 or viewer.widths[at - 1] != width]
        assert runs == [640, 320, 640, 320]
        assert viewer.pc.connectionState == "connected"
        await viewer.close()


async def test_snapshot_and_controls_with_and_without_viewers(tmp_path: Path) -> None:
    async with daemon_and_client(tmp_path) as (daemon, camera):
        closed = await camera.snapshot(320)
        assert closed[:2] == b"\xff\xd8"
        await asyncio.to_thread(daemon.wait_for_status, lambda s: s["camera"]["state"] == "closed")
        assert (await camera.set_controls({"fps": 15}))["fps"] == 15
        viewer = Viewer()
        await viewer.watch(camera)
        await viewer.wait_for_pictures()
        decoder = VideoCodecContext.create("mjpeg", "r")
        (picture,) = decoder.decode(av.Packet(await camera.snapshot())) + decoder.decode(None)
        assert (picture.width, picture.height) == (640, 360)
        await viewer.wait_for_pictures()
        await viewer.close()
        daemon.stop()
        daemon.start()
        await camera.online()
        status = await camera.status()
        assert status.camera.controls == {"fps": 15}


@pytest.mark.slow
@pytest.mark.timeout(500)
async def test_two_hundred_starts_and_stops_and_two_hundred_joins_leave_nothing(tmp_path: Path) -> None:
    async with daemon_and_client(tmp_path, idle_stop_s=0) as (daemon, camera):
        assert daemon.process is not None

        async def join() -> None:
            viewer = Viewer()
            await viewer.watch(camera)
            await viewer.wait_for_pictures(1)
            await camera.close(viewer.session)
            await viewer.close()
            await asyncio.to_thread(daemon.wait_for_status, lambda s: s["camera"]["state"] == "closed")

        def used() -> list[tuple[int, int, int]]:
            return [use(pid) for pid in (daemon.process.pid, *daemon.children())]  # type: ignore[union-attr]

        for _ in range(20):
            await join()
        before = used()
        for _ in range(180):
            await join()
        after = used()
        assert (await camera.status()).camera.restarts == 0
    for (rss_then, fds_then, threads_then), (rss, fds, threads) in zip(before, after, strict=True):
        assert fds <= fds_then + 3, (before, after)
        assert threads <= threads_then + 2, (before, after)
        assert rss - rss_then < 12_000, (before, after)


def use(pid: int) -> tuple[int, int, int]:
    """Resident memory in kB, descriptors and threads of a process."""
    status = dict(line.split(":", 1) for line in Path(f"/proc/{pid}/status").read_text().splitlines())
    return int(status["VmRSS"].split()[0]), sum(1 for _ in Path(f"/proc/{pid}/fd").iterdir()), int(status["Threads"])
