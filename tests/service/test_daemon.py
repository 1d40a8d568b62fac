"""The daemon as a process: with and without its broker, and its ends."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from edge.client import CameraClient
from edge.errors import ConfigInvalid
from edge.mqtt.broker import Message
from edge.mqtt.factory import make_broker
from edge.mqtt.settings import MqttSettings
from tests.rigs.certificates import Authority
from tests.rigs.daemon import ROOT, Daemon
from tests.rigs.mosquitto import Mosquitto

if TYPE_CHECKING:
    from collections.abc import Iterator

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


async def test_what_was_sent_while_it_was_away_takes_effect_as_soon_as_it_is_back(
    broker: Mosquitto, daemon: Daemon
) -> None:
    broker.start()
    mqtt = MqttSettings(**broker.settings(tls=False))
    async with CameraClient.connect(mqtt, "bff-1", timeout_s=30) as client:
        camera = client.camera("cam-1")
        await asyncio.to_thread(daemon.start)
        await until_online_is(camera, True)
        await asyncio.to_thread(daemon.stop)
        await until_online_is(camera, False)
        asked = asyncio.create_task(camera.stop("night"))
        await asyncio.sleep(0.2)
        await asyncio.to_thread(daemon.start)
        stream = (await asked).stream
        assert stream is not None
        assert stream.reason == "night"


async def test_by_awss_client_it_answers_commands_and_says_goodbye(tmp_path: Path) -> None:
    authority = Authority(tmp_path)
    broker = Mosquitto(tmp_path, authority=authority)
    broker.start()

    def mqtt(name: str, **more: Any) -> dict[str, Any]:
        cert_file, key_file = map(str, authority.issue(name))
        return broker.settings(ca_file=str(authority.ca_file), cert_file=cert_file, key_file=key_file, **more)

    daemon = Daemon(tmp_path, mqtt("cam-1", client="aws"))
    try:
        await asyncio.to_thread(daemon.start)
        async with CameraClient.connect(MqttSettings(**mqtt("watcher")), "watcher") as client:
            camera = client.camera("cam-1")
            await until_online_is(camera, True)
            await camera.stop("night")
            assert await asyncio.to_thread(daemon.stop) == 0
            await until_online_is(camera, False)
            # Its own last word, and not the will.
            assert camera.last_status is not None
            assert camera.last_status.stream is not None
    finally:
        daemon.end()
        broker.stop()


def test_only_the_client_that_is_wanted_is_loaded_and_a_missing_one_told(monkeypatch: pytest.MonkeyPatch) -> None:
    code = "import sys, edge.daemon; sys.exit(any(name in sys.modules for name in ('paho', 'awscrt')))"
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=False).returncode == 0
    for name in ("awscrt", "edge.mqtt.aws_broker"):
        monkeypatch.setitem(sys.modules, name, None)
    mqtt = MqttSettings(host="x.amazonaws.com", cert_file=Path("cert"), key_file=Path("key"))
    with pytest.raises(ConfigInvalid, match=r"^mqtt.client: awsiotsdk is not installed"):
        make_broker(mqtt, "cam-1", (), Message("s", b""))


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
            if told[0].type == "daemon.started":  # else it came before anybody listened
                told = [told[1], await anext(events)]
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
