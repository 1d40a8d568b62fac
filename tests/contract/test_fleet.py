"""The statuses of a fleet, also from a broker that, like AWS IoT, sends no retained messages to wildcards."""

from __future__ import annotations

import asyncio
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING

import pytest
from paho.mqtt.subscribeoptions import SubscribeOptions

from edge.client import CameraClient
from edge.contract.codes import Code
from edge.contract.messages import Status, read_status
from edge.errors import Rejected
from edge.mqtt.paho_broker import PahoBroker
from edge.mqtt.paho_link import PahoLink
from edge.mqtt.settings import MqttSettings
from tests.rigs.fake_device import FakeDevice
from tests.rigs.mosquitto import Mosquitto

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Iterator
    from pathlib import Path

    from edge.client import RemoteCamera
    from edge.mqtt.broker import Message


class AwsLink(PahoLink):
    """Makes mosquitto behave like AWS IoT, with MQTT 5's subscription option for retained messages."""

    async def subscribe(self, topics: tuple[str, ...]) -> None:
        asked = [(topic, SubscribeOptions(1, retainHandling=2 if "+" in topic else 0)) for topic in topics]
        self._client.subscribe(asked)
        await self._granted


@pytest.fixture
def broker(tmp_path: Path) -> Iterator[Mosquitto]:
    made = Mosquitto(tmp_path)
    made.start()
    yield made
    made.stop()


async def until(condition: Callable[[], object]) -> None:
    async with asyncio.timeout(10):
        while not condition():
            await asyncio.sleep(0.01)


@asynccontextmanager
async def fleet(broker: Mosquitto) -> AsyncIterator[tuple[FakeDevice, FakeDevice]]:
    first, second = FakeDevice(broker.port, "cam-1"), FakeDevice(broker.port, "cam-2")
    async with first.running_device(), second.running_device():
        for device in (first, second):
            await device.publish_status()
        yield first, second


def wanted(camera: RemoteCamera) -> str | None:
    status = camera.last_status
    return status.stream.wanted if isinstance(status, Status) else None


async def test_statuses_of_a_fleet_are_requested_and_then_followed(
    broker: Mosquitto, monkeypatch: pytest.MonkeyPatch
) -> None:
    mqtt = MqttSettings(**broker.settings(tls=False))
    async with fleet(broker) as (first, _):
        async with CameraClient.connect(mqtt, "bff-6") as client:
            await asyncio.wait_for(client.camera("cam-1").online(), 10)  # other brokers send it at once

        monkeypatch.setattr("edge.mqtt.paho_broker.PahoLink", AwsLink)
        async with CameraClient.connect(mqtt, "bff-7", timeout_s=2) as client:
            cameras = [client.camera(f"cam-{number}") for number in (1, 2, 3)]
            # A reply arrives after everything that the subscriptions deliver.
            assert (await cameras[0].start()).online
            assert [camera.last_status for camera in cameras] == [None, None, None]
            one, two, none = (await client.statuses({camera.device: None for camera in cameras})).values()
            assert isinstance(one, Status)
            assert isinstance(two, Status)
            assert (one.device, two.device) == ("cam-1", "cam-2")
            assert isinstance(none, Rejected)
            assert none.code is Code.TIMEOUT
            await asyncio.wait_for(cameras[1].online(), 10)
            assert [wanted(camera) for camera in cameras] == ["running", "running", None]
            first.running = False
            await first.publish_status()
            await until(lambda: wanted(cameras[0]) == "stopped")


async def test_a_subscription_by_name_gets_the_retained_status(
    broker: Mosquitto, monkeypatch: pytest.MonkeyPatch
) -> None:
    received: list[Message] = []
    async with fleet(broker):
        monkeypatch.setattr("edge.mqtt.paho_broker.PahoLink", AwsLink)
        link = PahoBroker(MqttSettings(**broker.settings(tls=False)), "bff-7", ("edge/v1/cam-2/status",), None)
        link.listen(received.append, lambda _: None)
        running = asyncio.create_task(link.run(asyncio.Event()))
        await until(lambda: received)
        running.cancel()
        await asyncio.wait({running})
    assert read_status(received[0].payload).device == "cam-2"


async def test_a_retained_status_of_a_dead_device_is_unknown(broker: Mosquitto) -> None:
    """Device and broker lost power together: no last will was sent, and the broker kept the last `online`."""
    mqtt = MqttSettings(**broker.settings(tls=False))
    device = FakeDevice(broker.port, "cam-1")
    async with device.running_device():
        await device.publish_status(valid_until=datetime.now(UTC) - timedelta(minutes=1))
    async with FakeDevice(broker.port, "cam-2").running_device() as other:
        await other.publish_status()
        async with CameraClient.connect(mqtt, "bff-7", timeout_s=1) as client:
            dead, alive = client.camera("cam-1"), client.camera("cam-2")
            answers = await client.statuses({"cam-1": None, "cam-2": None})
            await asyncio.wait_for(alive.online(), 10)
            # The broker sent both retained statuses before the second device's reply.
            assert dead.last_status is None
            assert isinstance(answers["cam-1"], Rejected)
            assert isinstance(answers["cam-2"], Status)
