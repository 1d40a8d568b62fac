"""A camera process that hangs in the kernel, so that SIGKILL does not end it: the daemon goes on without it."""

from __future__ import annotations

import asyncio
import time
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any

import pytest

from edge.client import CameraClient
from edge.mqtt.settings import MqttSettings
from tests.rigs.daemon import ROOT, Daemon
from tests.rigs.freezable_disk import FreezableDisk, freezable_disk, hanging
from tests.rigs.mosquitto import Mosquitto
from tests.rigs.viewer import TIMEOUT_S, Viewer

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator
    from pathlib import Path

    from edge.client import RemoteCamera

RIG = ROOT / "tests" / "rigs" / "recording_camera"
SMALL = {"hd": {"width": 320, "height": 240}, "sd": {"width": 160, "height": 120}}
ANSWER_S = 5.0
"""Within this, the daemon answers whatever its camera does. Without a hanging camera it takes milliseconds."""


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[FreezableDisk]:
    with freezable_disk(tmp_path) as made:
        yield made


@asynccontextmanager
async def watched_daemon(directory: Path, disk: FreezableDisk) -> AsyncIterator[tuple[Daemon, RemoteCamera, Viewer]]:
    broker = Mosquitto(directory)
    broker.start()
    mqtt = broker.settings(tls=False)
    environment = {"PYTHONPATH": f"{RIG}:{ROOT}", "EDGE_RIG_RECORDING": str(disk.path / "recording")}
    camera = {"source": "synthetic", "stall_s": 1, "open_timeout_s": 10, **SMALL}
    daemon = Daemon(directory, mqtt, environment=environment, camera=camera)
    try:
        await asyncio.to_thread(daemon.start)
        async with CameraClient.connect(MqttSettings(**mqtt), "bff-1") as client:
            theirs = client.camera("cam-1")
            await theirs.online()
            viewer = Viewer()
            await viewer.watch(theirs)
            await viewer.wait_for_pictures()
            yield daemon, theirs, viewer
            await viewer.close()
    finally:
        disk.thaw()
        await asyncio.to_thread(daemon.end)
        broker.stop()


async def status(daemon: Daemon) -> dict[str, Any]:
    begun_s = time.monotonic()
    now = await asyncio.to_thread(daemon.status)
    assert now is not None
    assert time.monotonic() - begun_s < ANSWER_S
    camera: dict[str, Any] = now["camera"]
    return camera


async def until_stuck(daemon: Daemon) -> None:
    async with asyncio.timeout(TIMEOUT_S):
        while "cannot be killed" not in ((await status(daemon))["error"] or ""):
            await asyncio.sleep(0.1)


@pytest.mark.slow
async def test_viewers_are_told_and_new_processes_are_tried_at_growing_intervals(
    tmp_path: Path, disk: FreezableDisk
) -> None:
    async with watched_daemon(tmp_path, disk) as (daemon, camera, viewer):
        (stuck,) = daemon.children()
        disk.freeze()
        await viewer.until(lambda: [notice.state for notice in viewer.notices] == ["stalled"])
        await until_stuck(daemon)
        assert hanging(stuck), "it is the kernel that holds it"
        stuck_s = time.monotonic()
        # The next process hangs as soon as it opens the camera, and waits longer for its successor.
        await asyncio.to_thread(daemon.wait, lambda: len(daemon.children()) == 2, 20)
        assert time.monotonic() - stuck_s > 2.5
        assert (await status(daemon))["restarts"] == 1
        assert len(await camera.sessions()) == 1
        disk.thaw()
        await asyncio.to_thread(daemon.wait, lambda: stuck not in daemon.children(), 20)
        pictures = len(viewer.widths)
        await viewer.until(lambda: len(viewer.widths) > pictures + 5)
        assert viewer.notices[-1].state == "live"
        assert viewer.pc.connectionState == "connected"
        assert (await status(daemon))["error"] is None


@pytest.mark.slow
async def test_stop_and_sigterm_keep_their_deadlines(tmp_path: Path, disk: FreezableDisk) -> None:
    async with watched_daemon(tmp_path, disk) as (daemon, camera, _):
        (stuck,) = daemon.children()
        disk.freeze()
        begun_s = time.monotonic()
        await camera.stop("maintenance")
        assert time.monotonic() - begun_s < 2 * ANSWER_S
        await until_stuck(daemon)
        assert hanging(stuck)
        await status(daemon)
        await camera.start()
        assert await asyncio.to_thread(daemon.stop) == 0  # fails after ten seconds
        assert hanging(stuck)


@pytest.mark.slow
async def test_sigterm_while_the_camera_hangs_but_is_not_yet_killed_keeps_its_deadline(
    tmp_path: Path, disk: FreezableDisk
) -> None:
    async with watched_daemon(tmp_path, disk) as (daemon, _, __):
        (stuck,) = daemon.children()
        disk.freeze()
        await asyncio.to_thread(daemon.wait, lambda: hanging(stuck))
        assert await asyncio.to_thread(daemon.stop) == 0
        assert hanging(stuck)
