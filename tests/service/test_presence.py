"""Status, events and telemetry of a real device with both MQTT clients on a real broker, whatever fails."""

from __future__ import annotations

import asyncio
import json
import signal
import sqlite3
from contextlib import asynccontextmanager
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any

import pytest

from edge.contract.messages import Event, Offline, Status, Telemetry, read_status
from edge.contract.topics import Topics
from edge.mqtt.paho_broker import PahoBroker
from edge.mqtt.settings import MqttSettings
from tests.rigs.certificates import Authority
from tests.rigs.daemon import Daemon
from tests.rigs.mosquitto import Mosquitto
from tests.rigs.tcp_proxy import TcpProxy

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Iterator
    from pathlib import Path

    from edge.mqtt.broker import Message

TOPICS = Topics("cam-1")


class Watcher:
    """All messages of the device, in the order of arrival."""

    def __init__(self, mqtt: MqttSettings) -> None:
        self.statuses: list[Status | Offline] = []
        self.events: list[Event] = []
        self.telemetry: list[Telemetry] = []
        self.retained = 0
        self._broker = PahoBroker(mqtt, "watcher", (TOPICS.status, TOPICS.event, TOPICS.telemetry), None)
        self._broker.listen(self._hear, lambda _: None)

    def _hear(self, message: Message) -> None:
        if message.topic == TOPICS.status:
            self.statuses.append(read_status(message.payload))
            self.retained += message.retain
        elif message.topic == TOPICS.event:
            self.events.append(Event.model_validate_json(message.payload))
        else:
            self.telemetry.append(Telemetry.model_validate_json(message.payload))

    @asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        task = asyncio.create_task(self._broker.run(asyncio.Event()))
        try:
            yield
        finally:
            task.cancel()
            await asyncio.wait({task})

    async def until(self, true: Callable[[], object]) -> None:
        async with asyncio.timeout(20):
            while not true():
                await asyncio.sleep(0.02)

    async def until_online_is(self, wanted: bool) -> None:
        await self.until(lambda: self.statuses and self.statuses[-1].online is wanted)


@dataclass
class Site:
    """A broker and a device."""

    directory: Path
    broker: Mosquitto
    mqtt: dict[str, Any]
    daemon: Daemon | None = None

    def device(self, **more: Any) -> Daemon:
        self.daemon = Daemon(self.directory, {**self.mqtt, "reconnect_cap_s": 1, **more})
        return self.daemon

    def settings(self) -> MqttSettings:
        return MqttSettings(**{**self.mqtt, "client": "paho"})


@pytest.fixture(params=["aws", pytest.param("paho", marks=pytest.mark.slow)])
def site(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Site]:
    authority = Authority(tmp_path)
    broker = Mosquitto(tmp_path, authority=authority)
    cert_file, key_file = map(str, authority.issue("cam-1"))
    mqtt = broker.settings(client=request.param, ca_file=str(authority.ca_file), cert_file=cert_file, key_file=key_file)
    made = Site(tmp_path, broker, mqtt)
    broker.start()
    yield made
    if made.daemon is not None:
        made.daemon.end()
    broker.stop()


def kill(daemon: Daemon) -> None:
    assert daemon.process is not None
    daemon.process.send_signal(signal.SIGKILL)
    daemon.process.wait(10)


@pytest.mark.slow
async def test_the_retained_status_shows_every_kind_of_end(site: Site) -> None:
    daemon = site.device()
    watcher = Watcher(site.settings())
    async with watcher.running():
        await asyncio.to_thread(daemon.start)
        await watcher.until_online_is(True)
        assert await asyncio.to_thread(daemon.stop) == 0
        await watcher.until_online_is(False)
        # The device's own last status, and not the last will.
        assert isinstance(watcher.statuses[-1], Status)
        await asyncio.to_thread(daemon.start)
        await watcher.until_online_is(True)
        await watcher.until(lambda: len(watcher.events) == 2)
        await asyncio.to_thread(daemon.wait, lambda: kept(site.directory) == [])
        await asyncio.to_thread(kill, daemon)
        await watcher.until_online_is(False)
        assert isinstance(watcher.statuses[-1], Offline)
        late = Watcher(site.settings())
    async with late.running():
        await late.until_online_is(False)
        assert late.retained == 1
        await asyncio.to_thread(daemon.start)
        await late.until_online_is(True)
        await late.until(lambda: late.events)
    assert [event.body["last_end"] for event in watcher.events + late.events] == [None, "clean", "unclean"]


@pytest.mark.slow
async def test_a_device_whose_link_broke_replaces_its_last_will(site: Site) -> None:
    watcher = Watcher(site.settings())
    async with TcpProxy(site.broker.port) as proxy, watcher.running():
        daemon = site.device(port=proxy.port)
        await asyncio.to_thread(daemon.start)
        await watcher.until_online_is(True)
        proxy.refusing = True
        await proxy.cut()
        await watcher.until_online_is(False)
        proxy.refusing = False
        await watcher.until_online_is(True)
        # The broker considers the old link alive until the device reconnects.
        seen = len(watcher.statuses)
        await proxy.cut(near_only=True)
        await watcher.until(lambda: len(watcher.statuses) > seen)
        await watcher.until_online_is(True)
        await asyncio.to_thread(daemon.end)
        await watcher.until_online_is(False)
        assert watcher.statuses[-2].online, "the old link's will did not come behind it"


@pytest.mark.slow
async def test_a_broker_that_lost_its_data_gets_the_status_again(site: Site) -> None:
    daemon = site.device()
    await asyncio.to_thread(daemon.start)
    await asyncio.to_thread(daemon.wait_for_status, lambda s: s["broker"]["connected"])
    site.broker.kill()
    await asyncio.to_thread(daemon.wait_for_status, lambda s: not s["broker"]["connected"])
    site.broker.start()
    await asyncio.to_thread(daemon.wait_for_status, lambda s: s["broker"]["connected"])
    watcher = Watcher(site.settings())
    async with watcher.running():
        await watcher.until_online_is(True)
        assert daemon.process is not None
        status = watcher.statuses[-1]
        assert isinstance(status, Status)
        assert status.valid_until == status.at + timedelta(minutes=15)
        vitals = status.vitals
        assert (status.version, status.viewers.connected, status.camera.state) == ("0.1.0", 0, "closed")
        assert vitals.daemon_memory_bytes is not None
        assert vitals.camera_memory_bytes is not None
        assert 0 < vitals.camera_memory_bytes < 1_000_000_000
        assert vitals.disk_free_bytes is not None


@pytest.mark.slow
async def test_telemetry_is_published_repeatedly_and_not_retained(site: Site) -> None:
    daemon = site.device(telemetry_s=0.2)
    watcher = Watcher(site.settings())
    async with watcher.running():
        await asyncio.to_thread(daemon.start)
        await watcher.until(lambda: len(watcher.telemetry) >= 3)
        first, second, third = watcher.telemetry[:3]
        assert first.uptime_s + 0.2 <= second.uptime_s <= third.uptime_s - 0.2
        assert (first.device, first.camera, first.fps, first.viewers, first.sessions) == ("cam-1", "closed", 0, 0, [])
        assert first.vitals.uptime_s is not None
        assert "edge_vitals_uptime_s" in await asyncio.to_thread(daemon.metrics)
        await asyncio.to_thread(daemon.end)


@pytest.mark.slow
async def test_events_during_a_lost_link_and_a_kill_arrive_complete_and_in_order(site: Site) -> None:
    watcher = Watcher(site.settings())
    async with TcpProxy(site.broker.port) as proxy, watcher.running():
        daemon = site.device(port=proxy.port)
        await asyncio.to_thread(daemon.start)
        await watcher.until(lambda: watcher.events)
        await asyncio.to_thread(daemon.wait, lambda: kept(site.directory) == [])
        proxy.refusing = True
        await proxy.cut()
        await asyncio.to_thread(daemon.wait_for_status, lambda s: not s["broker"]["connected"])
        times = [datetime.now(UTC)]
        for act in ("stop", "start", "stop"):
            await asyncio.to_thread(daemon.post, f"/api/v1/stream/{act}")
            times.append(datetime.now(UTC))
        await asyncio.to_thread(daemon.wait, lambda: len(kept(site.directory)) == 3)
        await asyncio.to_thread(kill, daemon)
        await asyncio.to_thread(daemon.start)
        await asyncio.to_thread(daemon.post, "/api/v1/stream/start")
        proxy.refusing = False
        await asyncio.to_thread(daemon.wait_for_status, lambda s: s["broker"]["connected"])
        await asyncio.to_thread(daemon.post, "/api/v1/stream/stop")
        await watcher.until(lambda: len(watcher.events) >= 7)
        assert [event.type for event in watcher.events] == [
            "daemon.started",
            *("stream.stopped", "stream.started", "stream.stopped"),
            *("daemon.started", "stream.started", "stream.stopped"),
        ]
        assert len({event.id for event in watcher.events}) == 7
        for event, after, before in zip(watcher.events[1:4], times, times[1:], strict=False):
            assert after <= event.at <= before
        await asyncio.to_thread(daemon.wait, lambda: kept(site.directory) == [])
        status = daemon.status()
        assert status is not None
        assert (status["counters"].get("events_dropped"), status["counters"]["events_unwritten"]) == (None, 0)
        await asyncio.to_thread(daemon.end)


def kept(directory: Path) -> list[str]:
    """The types of the stored events."""
    database = sqlite3.connect(directory / "state" / "events.sqlite")
    rows = database.execute("SELECT payload FROM events ORDER BY number").fetchall()
    database.close()
    return [json.loads(payload)["type"] for (payload,) in rows]
