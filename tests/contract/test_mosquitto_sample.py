"""docs/mosquitto/: a real mosquitto with these files serves devices and a backend, and keeps them apart."""

from __future__ import annotations

import asyncio
import json
import socket
import ssl
import subprocess
from pathlib import Path
from typing import TYPE_CHECKING, Any

import paho.mqtt.client as mqtt
import pytest
from paho.mqtt.enums import CallbackAPIVersion

from edge.client import CameraClient
from edge.mqtt.settings import MqttSettings
from tests.rigs.certificates import Authority
from tests.rigs.daemon import Daemon
from tests.rigs.mosquitto import Mosquitto, free_port

if TYPE_CHECKING:
    from collections.abc import Iterator

SAMPLE = Path(__file__).parents[2] / "docs/mosquitto"


class SampleBroker(Mosquitto):
    """The sample's files, with this test's paths and port in place of a server's."""

    def __init__(self, directory: Path, authority: Authority) -> None:
        super().__init__(directory)
        self.port = free_port()
        authority.issue("broker")
        text = (
            (SAMPLE / "mosquitto.conf")
            .read_text()
            .replace("listener 8883", f"listener {self.port} 127.0.0.1\nuser root")
        )
        text = text.replace("/etc/mosquitto/certs/ca.pem", str(authority.ca_file))
        text = text.replace("/etc/mosquitto/certs", str(directory)).replace("/var/lib/mosquitto", str(directory))
        self._config.write_text(text.replace("/etc/mosquitto/acl", str(SAMPLE / "acl")))


@pytest.fixture
def authority(tmp_path: Path) -> Authority:
    return Authority(tmp_path)


@pytest.fixture
def broker(tmp_path: Path, authority: Authority) -> Iterator[SampleBroker]:
    broker = SampleBroker(tmp_path, authority)
    broker.start()
    yield broker
    broker.stop()


def identity(broker: SampleBroker, authority: Authority, name: str) -> dict[str, Any]:
    certificate, key = authority.issue(name)
    files = {"ca_file": authority.ca_file, "cert_file": certificate, "key_file": key}
    return broker.settings(**{name: str(path) for name, path in files.items()})


@pytest.mark.slow
async def test_a_device_and_a_backend_can_do_all_that_they_need(
    tmp_path: Path, broker: SampleBroker, authority: Authority
) -> None:
    daemon = Daemon(tmp_path, identity(broker, authority, "cam-1") | {"telemetry_s": 1})
    await asyncio.to_thread(daemon.start)
    try:
        mine = MqttSettings(**identity(broker, authority, "my-backend"))
        async with CameraClient.connect(mine, "my-backend") as client, asyncio.timeout(20):
            camera = client.camera("cam-1")
            events = camera.events()
            await camera.online()  # a retained status
            assert (await camera.status()).broker.connected
            await camera.stop()
            assert (await anext(events)).type == "stream.stopped"
            # A refused subscription, to the shadow say, would be an error of the broker.
            assert (await camera.status()).broker.error is None
            assert daemon.process is not None
            daemon.process.kill()  # the last will follows
            while camera.last_status is None or camera.last_status.online:
                await asyncio.sleep(0.05)
    finally:
        if daemon.process is not None:
            daemon.process.kill()
            daemon.process.wait()


class Raw:
    """A client that publishes and subscribes as it likes, and what the broker said."""

    def __init__(self, broker: SampleBroker, settings: dict[str, Any], name: str) -> None:
        self.client = mqtt.Client(CallbackAPIVersion.VERSION2, name, protocol=mqtt.MQTTv5)
        self.client.tls_set(settings["ca_file"], settings.get("cert_file"), settings.get("key_file"))
        self.got: list[str] = []
        self.granted: list[int] = []
        self.acknowledged: list[int] = []
        self.client.on_message = lambda _client, _data, message: self.got.append(message.topic)
        self.client.on_subscribe = lambda _c, _d, _m, reasons, _p: self.granted.extend(r.value for r in reasons)
        self.client.on_publish = lambda _c, _d, _m, reason, _p: self.acknowledged.append(reason.value)
        self.client.connect("127.0.0.1", broker.port)

    def until(self, count: int, what: list[int]) -> list[int]:
        for _ in range(200):
            if len(what) >= count:
                break
            self.client.loop(0.05)
        return what


@pytest.mark.slow
def test_a_device_cannot_touch_another_ones_topics(broker: SampleBroker, authority: Authority) -> None:
    one = Raw(broker, identity(broker, authority, "cam-1"), "cam-1")
    other = Raw(broker, identity(broker, authority, "cam-2"), "cam-2")
    topics = ["command", "status", "event", "telemetry", "reply/my-backend", "shadow/update"]
    for topic in topics:
        one.client.publish(f"edge/v1/cam-2/{topic}", json.dumps({}), qos=1)
    not_authorized = 0x87  # MQTT 5, 3.4.2.1
    assert one.until(len(topics), one.acknowledged) == [not_authorized] * len(topics)
    for topic in topics:
        other.client.subscribe(f"edge/v1/cam-1/{topic}", qos=1)
    other.until(len(topics), other.granted)
    one.client.publish("edge/v1/cam-1/status", "mine", qos=1)
    assert one.until(len(topics) + 1, one.acknowledged)[-1] in (0, 0x10)  # taken, read by nobody
    other.until(1000, other.got)  # type: ignore[arg-type]
    assert other.got == []


def test_without_a_certificate_nobody_gets_in(tmp_path: Path, broker: SampleBroker, authority: Authority) -> None:
    context = ssl.create_default_context(cafile=str(authority.ca_file))
    context.verify_flags &= ~ssl.VERIFY_X509_STRICT  # for extensions that these certificates leave out
    with (
        socket.create_connection(("127.0.0.1", broker.port), timeout=10) as plain,
        context.wrap_socket(plain, server_hostname="localhost") as stranger,
        pytest.raises(ssl.SSLError, match="certificate required"),
    ):
        stranger.recv(1)
    assert b"peer did not return a certificate" in (tmp_path / "mosquitto.log").read_bytes()


def test_the_pages_commands_make_certificates_that_serve(tmp_path: Path) -> None:
    page = (SAMPLE.parent / "mosquitto.md").read_text()
    block = page.split("## Certificates")[1].split("## ")[0]
    lines = "\n".join(line.strip() for line in block.splitlines() if line.startswith("    "))
    subprocess.run(["bash", "-euc", lines.replace("NAME", "cam-1")], cwd=tmp_path, check=True, capture_output=True)
    subprocess.run(
        ["openssl", "verify", "-CAfile", "ca.pem", "cam-1.pem"], cwd=tmp_path, check=True, capture_output=True
    )
