"""The daemon as a process: with and without its broker, and its ends."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
from typing import TYPE_CHECKING

import pytest

from edge.client import CameraClient
from edge.signalling.settings import MqttSettings
from tests.rigs.daemon import ROOT, Daemon
from tests.rigs.mosquitto import Mosquitto

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from edge.client import Camera


@pytest.fixture
def broker(tmp_path: Path) -> Iterator[Mosquitto]:
    made = Mosquitto(tmp_path)
    yield made
    made.stop()


@pytest.fixture
def daemon(tmp_path: Path, broker: Mosquitto) -> Iterator[Daemon]:
    made = Daemon(tmp_path, broker.settings(tls=False, reconnect_cap_s=1))
    yield made
    made.end()


def test_without_a_broker_it_runs_and_says_so_and_connects_when_one_comes(broker: Mosquitto, daemon: Daemon) -> None:
    daemon.start()
    daemon.wait_for_status(lambda s: "refused" in (s["broker"]["error"] or ""))
    assert daemon.post("/api/v1/stream/stop")["stream"]["wanted"] == "stopped"
    assert daemon.post("/api/v1/stream/start")["stream"]["wanted"] == "running"
    broker.start()
    daemon.wait_for_status(lambda s: s["broker"]["connected"], 15)


async def online(camera: Camera) -> bool | None:
    return camera.last_status.online if camera.last_status else None


async def until_online_is(camera: Camera, wanted: bool) -> None:
    async with asyncio.timeout(15):
        while await online(camera) is not wanted:
            await asyncio.sleep(0.02)


async def test_the_retained_status_tells_every_kind_of_end(broker: Mosquitto, daemon: Daemon) -> None:
    broker.start()
    await asyncio.to_thread(daemon.start)
    mqtt = MqttSettings(**broker.settings(tls=False))
    async with CameraClient.connect(mqtt, "watcher") as client:
        camera = client.camera("cam-1")
        await until_online_is(camera, True)
        assert await asyncio.to_thread(daemon.stop) == 0
        await until_online_is(camera, False)
        await asyncio.to_thread(daemon.start)
        await until_online_is(camera, True)
        assert daemon.process is not None
        daemon.process.send_signal(signal.SIGKILL)
        await asyncio.to_thread(daemon.process.wait, 10)
        await until_online_is(camera, False)


def test_without_the_backends_keys_it_does_not_start(tmp_path: Path, broker: Mosquitto) -> None:
    auth = {"mode": "required", "jwks_file": str(tmp_path / "none.json")}
    daemon = Daemon(tmp_path, broker.settings(tls=False), auth=auth)
    command = [sys.executable, "-m", "edge", "run", "--config", str(daemon.config)]
    ended = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False, timeout=30)
    assert (ended.returncode, "auth.jwks_file: " in ended.stderr) == (78, True)
    assert "Traceback" not in ended.stderr


async def test_what_happens_is_told_as_events(broker: Mosquitto, daemon: Daemon) -> None:
    broker.start()
    await asyncio.to_thread(daemon.start)
    async with CameraClient.connect(MqttSettings(**broker.settings(tls=False)), "watcher") as client:
        camera = client.camera("cam-1")
        await camera.online()
        events = camera.events()
        await camera.stop("night")
        await camera.start("day")
        async with asyncio.timeout(10):
            told = [await anext(events) for _ in range(2)]
    assert [(event.type, event.body) for event in told] == [
        ("stream.stopped", {"reason": "night"}),
        ("stream.started", {"reason": "day"}),
    ]


def test_interrupted_it_ends_at_once_and_leaves_no_camera_process(daemon: Daemon) -> None:
    daemon.start()
    (camera,) = daemon.children()
    assert daemon.process is not None
    daemon.process.send_signal(signal.SIGINT)
    assert daemon.process.wait(10) == 0
    with pytest.raises(ProcessLookupError):
        os.kill(camera, 0)


def test_faulty_settings_end_it_with_78(tmp_path: Path) -> None:
    (tmp_path / "bad.toml").write_text("[device]\n")
    command = [sys.executable, "-m", "edge", "run", "--config", str(tmp_path / "bad.toml")]
    ended = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False, timeout=30)
    assert ended.returncode == 78
    assert "device.id" in ended.stderr
    assert "mqtt" in ended.stderr
    assert "Traceback" not in ended.stderr


def test_a_state_directory_that_cannot_be_made_is_told(tmp_path: Path, broker: Mosquitto) -> None:
    (tmp_path / "file").write_text("")
    daemon = Daemon(tmp_path, broker.settings(tls=False), state={"dir": str(tmp_path / "file" / "state")})
    command = [sys.executable, "-m", "edge", "run", "--config", str(daemon.config)]
    ended = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False, timeout=30)
    assert ended.returncode == 78
    assert "state.dir" in ended.stderr
    assert "Traceback" not in ended.stderr
