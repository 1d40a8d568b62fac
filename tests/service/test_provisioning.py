"""The first start of a device with a claim, as a process on a real broker."""

from __future__ import annotations

import asyncio
import signal
import socket
import stat
import subprocess
import sys
import urllib.request
from typing import TYPE_CHECKING, Any

import pytest
from cryptography.hazmat.primitives import serialization

from edge.client import CameraClient
from edge.mqtt.provisioning import CREATE
from edge.mqtt.settings import MqttSettings
from tests.rigs.aws_provisioning import REGISTER, TEMPLATE, AwsProvisioning, claim_broker, rejected
from tests.rigs.certificates import Authority
from tests.rigs.daemon import ROOT, Daemon
from tests.rigs.tcp_proxy import TcpProxy

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from tests.rigs.mosquitto import Mosquitto


@pytest.fixture
def authority(tmp_path: Path) -> Authority:
    return Authority(tmp_path)


@pytest.fixture
def broker(tmp_path: Path, authority: Authority) -> Iterator[Mosquitto]:
    made = claim_broker(tmp_path, authority)
    yield made
    made.stop()


def first_start(tmp_path: Path, broker: Mosquitto, authority: Authority, **environment: str) -> Daemon:
    cert_file, key_file = map(str, authority.issue("claim"))
    own = tmp_path / "state" / "own"
    mqtt = broker.settings(
        ca_file=str(authority.ca_file),
        cert_file=str(own / "device.pem"),
        key_file=str(own / "device.key"),
        reconnect_cap_s=0.5,
        claim={"template": TEMPLATE, "cert_file": cert_file, "key_file": key_file},
    )
    return Daemon(tmp_path, mqtt, environment=environment, log={"level": "debug"})


async def kill(daemon: Daemon) -> None:
    assert daemon.process is not None
    daemon.process.send_signal(signal.SIGKILL)
    await asyncio.to_thread(daemon.process.wait, 10)


async def answers(broker: Mosquitto, authority: Authority) -> None:
    """Request the status as a backend."""
    cert_file, key_file = authority.issue("bff-1")
    mqtt = MqttSettings(**broker.settings(ca_file=authority.ca_file, cert_file=cert_file, key_file=key_file))
    async with CameraClient.connect(mqtt, "bff-1") as client:
        assert (await client.camera("cam-1").status()).device == "cam-1"


async def says(daemon: Daemon, *words: str) -> dict[str, Any] | None:
    """Wait for a status with these words about the broker."""

    def holds(status: dict[str, Any]) -> bool:
        return all(word in str(status["broker"]) for word in words)

    await asyncio.to_thread(daemon.wait_for_status, holds, 20)
    return daemon.status()


@pytest.mark.parametrize("client", ["aws", pytest.param("paho", marks=pytest.mark.slow)])
async def test_the_device_runs_without_a_broker_and_obtains_its_certificate_later(
    tmp_path: Path, broker: Mosquitto, authority: Authority, client: str
) -> None:
    notifications: list[bytes] = []
    broker.start()
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as listener:
        listener.bind(str(tmp_path / "notify"))
        listener.setblocking(False)
        asyncio.get_running_loop().add_reader(listener, lambda: notifications.append(listener.recv(4096)))
        supervised = {"NOTIFY_SOCKET": str(tmp_path / "notify"), "WATCHDOG_USEC": "3000000"}
        own = tmp_path / "state" / "own"
        async with AwsProvisioning(broker, authority) as service, TcpProxy(broker.port) as way:
            way.refusing = True
            daemon = first_start(
                tmp_path, broker, authority, EDGE__MQTT__CLIENT=client, EDGE__MQTT__PORT=str(way.port), **supervised
            )
            try:
                await asyncio.to_thread(daemon.start)
                await says(daemon, "the device has no certificate yet; connecting with the claim certificate failed: ")
                with urllib.request.urlopen(f"http://127.0.0.1:{daemon.api_port}/", timeout=5) as page:
                    assert page.status == 200
                await asyncio.to_thread(daemon.wait, lambda: notifications.count(b"WATCHDOG=1") > 1)
                assert notifications[0] == b"READY=1"
                assert [path.name for path in own.iterdir()] == ["device.key"]
                way.refusing = False
                await says(daemon, "'connected': True")
                await answers(broker, authority)
                assert await asyncio.to_thread(daemon.stop) == 0
            finally:
                await asyncio.to_thread(daemon.end)
                asyncio.get_running_loop().remove_reader(listener)
        assert [message.topic for message in service.received] == [CREATE, REGISTER]
    modes = [stat.S_IMODE(path.stat().st_mode) for path in (own, own / "device.key", own / "device.pem")]
    assert modes == [0o700, 0o600, 0o600]


@pytest.mark.slow
@pytest.mark.parametrize("client", ["aws", pytest.param("paho", marks=pytest.mark.slow)])
async def test_a_start_continues_after_an_interruption_at_any_step(
    tmp_path: Path, broker: Mosquitto, authority: Authority, client: str
) -> None:
    daemon = first_start(tmp_path, broker, authority, EDGE__MQTT__CLIENT=client)
    own = tmp_path / "state" / "own"
    said = []
    try:
        # Without a service: the key is made.
        await asyncio.to_thread(daemon.start)
        said.append(await says(daemon, "connection refused"))
        await kill(daemon)
        key = (own / "device.key").read_bytes()
        await asyncio.to_thread(broker.start)
        async with AwsProvisioning(broker, authority) as service:
            # The certificate was requested.
            service.overrides = {CREATE: lambda _: None}
            await asyncio.to_thread(daemon.start)
            await asyncio.to_thread(daemon.wait, lambda: len(service.requests(CREATE)) == 1)
            await kill(daemon)
            # The registration was requested. A power cut may leave half a file.
            service.overrides = {REGISTER: lambda _: None}
            (own / "device.pem.new").write_text("-----BEGIN")
            await asyncio.to_thread(daemon.start)
            await asyncio.to_thread(daemon.wait, lambda: len(service.requests(REGISTER)) == 1)
            await kill(daemon)
            # The request was refused.
            service.overrides = {REGISTER: lambda _: rejected(400, "AccessDenied", "no such device")}
            await asyncio.to_thread(daemon.start)
            said.append(await says(daemon, "400 AccessDenied: no such device"))
            await kill(daemon)
            assert not (own / "device.pem").exists()
            # The request is accepted; the next start uses the files.
            service.overrides = {}
            for _ in range(2):
                await asyncio.to_thread(daemon.start)
                said.append(await says(daemon, "'connected': True"))
                await kill(daemon)
            assert [message.topic for message in service.received] == [CREATE, *[CREATE, REGISTER] * 3]
            assert len(set(service.keys())) == 1
    finally:
        await asyncio.to_thread(daemon.end)
    assert (own / "device.key").read_bytes() == key
    assert service.things == {"cam-1": serialization.load_pem_private_key(key, None).public_key()}
    output = daemon.log() + str(said)
    assert "DEBUG" in output
    assert not [token for token in service.tokens if token in output]
    sent = b"".join(message.payload for message in service.received) + output.encode()
    assert not [line for line in key.splitlines()[1:-1] if line in sent]


def test_a_certificate_directory_that_others_can_read_exits_with_78(
    tmp_path: Path, broker: Mosquitto, authority: Authority
) -> None:
    daemon = first_start(tmp_path, broker, authority)
    (tmp_path / "state" / "own").mkdir(parents=True, mode=0o755)
    command = [sys.executable, "-m", "edge", "run", "--config", str(daemon.config)]
    ended = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False, timeout=30)
    assert (ended.returncode, "own: the directory must belong to the daemon's user" in ended.stderr) == (78, True)
    assert "Traceback" not in ended.stderr
