"""File descriptors: strangers that hold connections open, and a daemon that has no descriptor left."""

from __future__ import annotations

import asyncio
import resource
import socket
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from edge.client import CameraClient
from edge.errors import EdgeError
from edge.host import descriptors
from edge.mqtt.settings import MqttSettings
from tests.rigs.daemon import Daemon
from tests.rigs.mosquitto import Mosquitto

if TYPE_CHECKING:
    from collections.abc import Iterator

OFFER = (Path(__file__).parents[1] / "offers" / "chrome.sdp").read_text()


@pytest.fixture
def broker(tmp_path: Path) -> Iterator[Mosquitto]:
    broker = Mosquitto(tmp_path)
    broker.start()
    yield broker
    broker.stop()


@pytest.fixture
def daemon(tmp_path: Path, broker: Mosquitto) -> Iterator[Daemon]:
    """A daemon that starts with the usual soft limit."""
    daemon = Daemon(tmp_path, broker.settings(tls=False, reconnect_cap_s=1))
    limits = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (1024, limits[1]))
    try:
        daemon.start()
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, limits)
    yield daemon
    daemon.end()


def pid_of(daemon: Daemon) -> int:
    assert daemon.process is not None
    return daemon.process.pid


def descriptors_of(daemon: Daemon) -> set[int]:
    return {int(file.name) for file in Path(f"/proc/{pid_of(daemon)}/fd").iterdir()}


@pytest.mark.slow
async def test_a_thousand_idle_connections_cost_neither_the_daemon_nor_its_commands(
    broker: Mosquitto, daemon: Daemon
) -> None:
    soft, hard = resource.prlimit(pid_of(daemon), resource.RLIMIT_NOFILE)
    assert soft == hard
    loop = asyncio.get_running_loop()
    before = len(descriptors_of(daemon))
    async with CameraClient.connect(MqttSettings(**broker.settings(tls=False)), "bff-1") as client:
        camera = client.camera("cam-1")
        with ExitStack() as idle:
            for _ in range(1010):
                stranger = idle.enter_context(socket.socket())
                stranger.setblocking(False)
                await loop.sock_connect(stranger, ("127.0.0.1", daemon.api_port))
                await asyncio.sleep(0.002)  # the kernel lets a client above the backlog try again after a second
            assert (await camera.status()).online
            await asyncio.to_thread(daemon.wait, lambda: len(descriptors_of(daemon)) <= before + 40)
            assert daemon.log().count("connections to the local page refused") == 1
            assert daemon.log().count("connections to the local page closed") <= 1
        await asyncio.to_thread(daemon.wait, lambda: daemon.status() is not None)


async def test_a_daemon_without_a_free_descriptor_answers_and_recovers(broker: Mosquitto, daemon: Daemon) -> None:
    limits = resource.prlimit(pid_of(daemon), resource.RLIMIT_NOFILE)
    async with CameraClient.connect(MqttSettings(**broker.settings(tls=False)), "bff-1") as client:
        camera = client.camera("cam-1")
        await camera.online()
        # The lowest number that is free is above the limit, so that nothing can be opened.
        free = min(set(range(1024)) - descriptors_of(daemon))
        resource.prlimit(pid_of(daemon), resource.RLIMIT_NOFILE, (free, limits[1]))
        with socket.create_connection(("127.0.0.1", daemon.api_port), timeout=0.2) as local:
            async with asyncio.timeout(10):
                while (await camera.status()).vitals.load_1min is not None:
                    await asyncio.sleep(0.1)
            await camera.snapshot()
            with pytest.raises(EdgeError, match="Too many open files"):
                await camera.offer(OFFER)
            with suppress(EdgeError):  # it takes effect, but cannot be written to the disk
                await camera.stop("night")
            with pytest.raises(TimeoutError):
                local.recv(1)
        resource.prlimit(pid_of(daemon), resource.RLIMIT_NOFILE, limits)
        await asyncio.to_thread(daemon.wait_for_status, lambda status: status["stream"]["wanted"] == "stopped")
        await camera.start()
        await camera.offer(OFFER)
        async with asyncio.timeout(5):
            while (status := await camera.status()).vitals.load_1min is None:
                await asyncio.sleep(0.1)
    assert not [name for name in status.counters if name.endswith("_bugs")]
    assert daemon.log().count("out of system resource") == 1


def test_a_hard_limit_above_the_kernels_is_kept(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def refuse(*_: object) -> None:
        raise ValueError("not allowed to raise maximum limit")

    monkeypatch.setattr(resource, "setrlimit", refuse)
    descriptors.raise_limit()
    assert "limit of file descriptors not raised" in caplog.text
