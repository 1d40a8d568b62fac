"""The daemon's memory."""

from __future__ import annotations

import asyncio
from contextlib import asynccontextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from edge.client import CameraClient, Signer
from edge.mqtt.settings import MqttSettings
from tests.rigs.certificates import Authority
from tests.rigs.daemon import Daemon, required_auth
from tests.rigs.mosquitto import Mosquitto
from tests.rigs.viewer import Viewer

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator

    from edge.client import RemoteCamera

IDLE_MB = 90
VIEWERS = 5
FIVE_VIEWERS_MB = 180
"""The daemon and its camera process together, with the default 720p."""


@pytest.fixture
def broker(tmp_path: Path) -> Iterator[Mosquitto]:
    broker = Mosquitto(tmp_path)
    broker.start()
    yield broker
    broker.stop()


@pytest.fixture
def daemon(tmp_path: Path, broker: Mosquitto) -> Iterator[Daemon]:
    daemon = Daemon(tmp_path, broker.settings(tls=False))
    daemon.start()
    yield daemon
    daemon.end()


def pid_of(daemon: Daemon) -> int:
    assert daemon.process is not None
    return daemon.process.pid


def rss_mb(pid: int) -> float:
    return int(Path(f"/proc/{pid}/status").read_text().partition("VmRSS:")[2].split()[0]) / 1024


async def test_the_daemon_is_small_and_needs_no_ffmpeg_to_send(broker: Mosquitto, daemon: Daemon) -> None:
    assert rss_mb(pid_of(daemon)) <= IDLE_MB
    async with CameraClient.connect(MqttSettings(**broker.settings(tls=False)), "bff-1") as client:
        viewer = Viewer()
        try:
            await viewer.watch(client.camera("cam-1"))
            await viewer.wait_for_pictures()
        finally:
            await viewer.close()
    assert "libavcodec" not in Path(f"/proc/{pid_of(daemon)}/maps").read_text()


@pytest.mark.slow
async def test_the_daemon_and_the_camera_process_are_small_with_five_viewers(tmp_path: Path) -> None:
    async with secured(tmp_path) as (daemon, camera, signer):
        viewers: list[Viewer] = []
        try:
            for number in range(VIEWERS):
                viewers.append(Viewer())
                await viewers[-1].watch(camera, token=signer.sign("cam-1", f"viewer-{number}", ["view"]))
                await viewers[-1].wait_for_pictures()
            # Buffers grow in the first seconds.
            await asyncio.sleep(3)
            await asyncio.to_thread(daemon.wait_for_status, lambda status: status["viewers"]["connected"] == VIEWERS)
            used_mb = {"daemon": rss_mb(pid_of(daemon)), "camera": rss_mb(daemon.children()[0])}
            assert sum(used_mb.values()) <= FIVE_VIEWERS_MB, used_mb
        finally:
            for viewer in viewers:
                await viewer.close()


@asynccontextmanager
async def secured(directory: Path) -> AsyncIterator[tuple[Daemon, RemoteCamera, Signer]]:
    """A daemon with TLS, tokens and the default pictures, as `./dev bench first-frame` measures it."""
    authority, signer = Authority(directory), Signer.generate()
    broker = Mosquitto(directory, authority=authority)

    def identity(name: str) -> dict[str, Any]:
        certificate, key = authority.issue(name)
        files = {"ca_file": str(authority.ca_file), "cert_file": str(certificate), "key_file": str(key)}
        return broker.settings(**files)

    daemon = Daemon(
        directory,
        identity("cam-1"),
        auth=required_auth(signer, directory),
        ice={"allow_loopback": True},
        sessions={"max_viewers": 10},
        camera={"idle_stop_s": 1},
    )
    broker.start()
    try:
        await asyncio.to_thread(daemon.start)
        async with CameraClient.connect(MqttSettings(**identity("bff-1")), "bff-1") as client:
            yield daemon, client.camera("cam-1"), signer
    finally:
        await asyncio.to_thread(daemon.end)
        broker.stop()
