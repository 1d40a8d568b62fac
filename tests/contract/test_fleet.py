"""A fleet's status from a broker that, like AWS IoT, gives wildcard subscriptions no retained messages."""

from __future__ import annotations

import asyncio
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

import pytest
from paho.mqtt.subscribeoptions import SubscribeOptions

from edge.client import CameraClient
from edge.contract.codes import Code
from edge.contract.messages import Status
from edge.errors import Rejected
from edge.mqtt.paho_broker import PahoBroker
from edge.mqtt.paho_link import PahoLink
from edge.mqtt.settings import MqttSettings
from tests.rigs.fake_device import FakeDevice
from tests.rigs.mosquitto import Mosquitto

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Iterator
    from pathlib import Path

    from edge.client import Camera
    from edge.mqtt.broker import Message


class AwsLink(PahoLink):
    """Subscribes so that mosquitto does as AWS IoT would: by the option of MQTT 5 that says when to send them."""

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


def wanted(camera: Camera) -> str | None:
    status = camera.last_status
    return status.stream.wanted if status and status.stream else None


async def test_a_fleet_is_asked_and_then_followed(broker: Mosquitto, monkeypatch: pytest.MonkeyPatch) -> None:
    mqtt = MqttSettings(**broker.settings(tls=False))
    async with fleet(broker) as (first, _):
        async with CameraClient.connect(mqtt, "bff-6") as client:
            await asyncio.wait_for(client.camera("cam-1").online(), 10)  # any other broker gives it at once

        monkeypatch.setattr("edge.mqtt.paho_broker.PahoLink", AwsLink)
        async with CameraClient.connect(mqtt, "bff-7", timeout_s=2) as client:
            cameras = [client.camera(f"cam-{number}") for number in (1, 2, 3)]
            # Asked only when replies come, and so after all that the subscriptions bring.
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


async def test_by_its_name_a_retained_status_comes(broker: Mosquitto, monkeypatch: pytest.MonkeyPatch) -> None:
    came: list[Message] = []
    async with fleet(broker):
        monkeypatch.setattr("edge.mqtt.paho_broker.PahoLink", AwsLink)
        link = PahoBroker(MqttSettings(**broker.settings(tls=False)), "bff-7", ("edge/v1/cam-2/status",), None)
        link.listen(came.append, lambda _: None)
        running = asyncio.create_task(link.run(asyncio.Event()))
        await until(lambda: came)
        running.cancel()
        await asyncio.wait({running})
    assert Status.model_validate_json(came[0].payload).device == "cam-2"
