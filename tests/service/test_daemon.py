"""The daemon as a process: with and without a broker, and how it exits."""

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
from edge.contract.messages import Status
from edge.errors import ConfigInvalid
from edge.host.atomic_file import AtomicFile
from edge.mqtt.broker import Message
from edge.mqtt.factory import make_broker
from edge.mqtt.settings import MqttSettings
from tests.rigs.certificates import Authority
from tests.rigs.daemon import ROOT, Daemon
from tests.rigs.mosquitto import Mosquitto

if TYPE_CHECKING:
    from collections.abc import Iterator

    from edge.client import RemoteCamera


@pytest.fixture
def broker(tmp_path: Path) -> Iterator[Mosquitto]:
    broker = Mosquitto(tmp_path)
    yield broker
    broker.stop()


@pytest.fixture
def daemon(tmp_path: Path, broker: Mosquitto) -> Iterator[Daemon]:
    daemon = Daemon(tmp_path, broker.settings(tls=False, reconnect_cap_s=1))
    yield daemon
    daemon.end()


def test_daemon_runs_without_a_broker_and_connects_later(broker: Mosquitto, daemon: Daemon) -> None:
    daemon.start()
    daemon.wait_for_status(lambda s: "refused" in (s["broker"]["error"] or ""))
    assert daemon.post("/api/v1/stream/stop")["stream"]["wanted"] == "stopped"
    assert daemon.post("/api/v1/stream/start")["stream"]["wanted"] == "running"
    broker.start()
    daemon.wait_for_status(lambda s: s["broker"]["connected"], 15)


async def online(camera: RemoteCamera) -> bool | None:
    return camera.last_status.online if camera.last_status else None


async def wait_for_online(camera: RemoteCamera, expected: bool) -> None:
    async with asyncio.timeout(15):
        while await online(camera) is not expected:
            await asyncio.sleep(0.02)


@pytest.mark.slow
async def test_command_sent_while_the_daemon_is_offline_takes_effect_after_its_start(
    broker: Mosquitto, daemon: Daemon
) -> None:
    broker.start()
    mqtt = MqttSettings(**broker.settings(tls=False))
    async with CameraClient.connect(mqtt, "bff-1", timeout_s=30) as client:
        camera = client.camera("cam-1")
        await asyncio.to_thread(daemon.start)
        await wait_for_online(camera, True)
        await asyncio.to_thread(daemon.stop)
        await wait_for_online(camera, False)
        stopping = asyncio.create_task(camera.stop("night"))
        await asyncio.sleep(0.2)
        await asyncio.to_thread(daemon.start)
        stream = (await stopping).stream
        assert stream is not None
        assert stream.reason == "night"


@pytest.mark.slow
async def test_daemon_with_awss_client_answers_commands_and_publishes_its_last_status(tmp_path: Path) -> None:
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
            await wait_for_online(camera, True)
            await camera.stop("night")
            assert await asyncio.to_thread(daemon.stop) == 0
            await wait_for_online(camera, False)
            # The daemon's own last status, not the will.
            assert isinstance(camera.last_status, Status)
    finally:
        daemon.end()
        broker.stop()


def test_only_the_configured_client_is_loaded_and_a_missing_one_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    code = "import sys, edge.daemon; sys.exit(any(name in sys.modules for name in ('paho', 'awscrt')))"
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=False).returncode == 0
    for name in ("awscrt", "edge.mqtt.aws_broker"):
        monkeypatch.setitem(sys.modules, name, None)
    mqtt = MqttSettings(host="x.amazonaws.com", cert_file=Path("cert"), key_file=Path("key"))
    with pytest.raises(ConfigInvalid, match=r"^mqtt.client: awsiotsdk is not installed"):
        make_broker(mqtt, "cam-1", (), Message("s", b""), atomic_file=AtomicFile)


def test_missing_jwks_file_exits_with_78(tmp_path: Path, broker: Mosquitto) -> None:
    auth = {"mode": "required", "jwks_file": str(tmp_path / "none.json")}
    daemon = Daemon(tmp_path, broker.settings(tls=False), auth=auth)
    command = [sys.executable, "-m", "edge", "run", "--config", str(daemon.config)]
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False, timeout=30)
    assert (result.returncode, "auth.jwks_file: " in result.stderr) == (78, True)
    assert "Traceback" not in result.stderr


@pytest.mark.slow
async def test_stop_and_start_are_published_as_events(broker: Mosquitto, daemon: Daemon) -> None:
    broker.start()
    await asyncio.to_thread(daemon.start)
    async with CameraClient.connect(MqttSettings(**broker.settings(tls=False)), "watcher") as client:
        camera = client.camera("cam-1")
        await camera.online()
        events = camera.events()
        await camera.stop("night")
        await camera.start("day")
        async with asyncio.timeout(10):
            received = [await anext(events) for _ in range(2)]
            if received[0].type == "daemon.started":  # otherwise, it was published before the client subscribed
                received = [received[1], await anext(events)]
    assert [(event.type, event.body) for event in received] == [
        ("stream.stopped", {"reason": "night"}),
        ("stream.started", {"reason": "day"}),
    ]


def test_signals_for_a_reload_are_ignored_and_sigint_ends_the_daemon_and_its_camera_process(daemon: Daemon) -> None:
    daemon.start()
    (camera,) = daemon.children()
    assert daemon.process is not None
    for number in (signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2):
        for pid in (camera, daemon.process.pid):
            os.kill(pid, number)
    assert daemon.status() is not None
    assert daemon.children() == [camera]
    daemon.process.send_signal(signal.SIGINT)
    assert daemon.process.wait(10) == 0
    with pytest.raises(ProcessLookupError):
        os.kill(camera, 0)


def test_invalid_settings_exit_with_78(tmp_path: Path) -> None:
    (tmp_path / "bad.toml").write_text("[device]\n")
    command = [sys.executable, "-m", "edge", "run", "--config", str(tmp_path / "bad.toml")]
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False, timeout=30)
    assert result.returncode == 78
    assert "device.id" in result.stderr
    assert "mqtt" in result.stderr
    assert "Traceback" not in result.stderr


def test_state_directory_that_cannot_be_created_exits_with_78(tmp_path: Path, broker: Mosquitto) -> None:
    (tmp_path / "file").write_text("")
    daemon = Daemon(tmp_path, broker.settings(tls=False), state={"dir": str(tmp_path / "file" / "state")})
    command = [sys.executable, "-m", "edge", "run", "--config", str(daemon.config)]
    ended = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False, timeout=30)
    assert ended.returncode == 78
    assert "state.dir" in ended.stderr
    assert "Traceback" not in ended.stderr


def test_daemon_runs_on_a_read_only_card(tmp_path: Path, broker: Mosquitto) -> None:
    card = tmp_path / "card"
    (card / "state").mkdir(parents=True)
    subprocess.run(["mount", "--bind", card, card], check=True)
    try:
        subprocess.run(["mount", "-o", "remount,bind,ro", card], check=True)
        daemon = Daemon(tmp_path, broker.settings(tls=False), state={"dir": str(card / "state")})
        daemon.start()
        try:
            daemon.wait_for_status(lambda status: status["camera"]["source"] == "synthetic")
            assert "state file not written" in daemon.log()
        finally:
            assert daemon.stop() == 0
    finally:
        subprocess.run(["umount", card], check=True)


def test_daemon_with_a_damaged_certificate_runs_and_names_the_file(tmp_path: Path, broker: Mosquitto) -> None:
    certificate = tmp_path / "device.pem"
    certificate.write_text("damaged")
    mqtt = {**broker.settings(tls=True), "cert_file": str(certificate), "key_file": str(certificate)}
    daemon = Daemon(tmp_path, mqtt)
    daemon.start()
    try:
        daemon.wait_for_status(lambda status: "device.pem" in (status["broker"]["error"] or ""))
        assert f"warning: mqtt.cert_file: {certificate}: not a certificate in PEM" in daemon.log()
    finally:
        assert daemon.stop() == 0
