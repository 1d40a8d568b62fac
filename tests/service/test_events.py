"""Events: delivered at least once and in order, and not stored while the link works."""

from __future__ import annotations

import asyncio
import json
import time
from collections import Counter
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from typing import TYPE_CHECKING

import pytest

from edge.contract.codes import Code
from edge.core.backoff import Backoff
from edge.errors import Rejected
from edge.signalling import events
from edge.signalling.events import Events
from tests.service.fakes import FakeBroker, FakeEventStore

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable

    from edge.mqtt.broker import Message

TOPIC = "edge/v1/cam-1/event"
FAST = 1e6


class Device:
    """Events with a fake broker and a fake store."""

    def __init__(self, store: FakeEventStore | None = None, *, publishes_per_s: float = FAST) -> None:
        self.broker = FakeBroker()
        self.store = store or FakeEventStore()
        self.counters: Counter[str] = Counter()
        self.events = Events(self.broker, TOPIC, self.store, self.counters, publishes_per_s)

    def link(self, up: bool) -> None:
        self.broker.connected = up
        self.events.link(up)

    def happens(self, *kinds: str) -> None:
        for kind in kinds:
            self.events.publish_event(kind, None, {})

    def sent(self) -> list[str]:
        return [json.loads(message.payload)["type"] for message in self.broker.published]

    def kept(self) -> list[str]:
        return [json.loads(payload)["type"] for payload in self.store.payloads.values()]

    @asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        ready = asyncio.Event()
        task = asyncio.create_task(self.events.run(ready))
        await ready.wait()
        try:
            yield
        finally:
            task.cancel()
            await asyncio.wait({task})
            assert task.cancelled()


async def until(true: Callable[[], bool]) -> None:
    async with asyncio.timeout(10):
        while not true():
            await asyncio.sleep(0.005)


@pytest.fixture
def device() -> Device:
    return Device()


@pytest.fixture
def at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Wait for the next retry."""
    monkeypatch.setattr("random.random", lambda: 0.0)


async def test_with_a_link_events_arrive_in_order_and_nothing_is_stored(device: Device) -> None:
    async with device.running():
        device.happens(*"abc")
        await until(lambda: device.sent() == ["a", "b", "c"])
        device.happens("d")
        await until(lambda: device.sent() == ["a", "b", "c", "d"])
    assert device.store.puts == 0
    assert {message.topic for message in device.broker.published} == {TOPIC}


async def test_without_a_link_events_are_stored_at_once_and_sent_before_newer_ones_with_their_own_times(
    device: Device,
) -> None:
    async with device.running():
        device.link(False)
        begun = datetime.now(UTC)
        device.happens("a", "b")
        assert device.kept() == ["a", "b"]
        ended = datetime.now(UTC)
        device.link(True)
        device.happens("c")
        await until(lambda: device.sent() == ["a", "b", "c"])
        await until(lambda: device.kept() == [])
        puts = device.store.puts
        device.happens("d")
        await until(lambda: device.sent()[3:] == ["d"])
        assert device.store.puts == puts, "when all is acknowledged nothing is written again"
    published = [json.loads(message.payload) for message in device.broker.published]
    assert all(begun <= datetime.fromisoformat(event["at"]) <= ended for event in published[:2])
    assert len({event["id"] for event in published}) == 4


async def test_an_event_without_an_acknowledgement_is_stored_soon(
    device: Device, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(events, "_STORE_AFTER_S", 0.02)
    async with device.running():
        device.broker.gate.clear()
        device.happens("a", "b")
        await until(lambda: device.kept() == ["a", "b"])
        device.happens("c")
        assert device.kept() == ["a", "b", "c"]
        device.broker.gate.set()
        await until(lambda: device.sent() == ["a", "b", "c"])
        await until(lambda: device.kept() == [])


@pytest.mark.usefixtures("at_once")
async def test_an_unacknowledged_event_is_sent_again_before_newer_ones(device: Device) -> None:
    device.broker.failing = 3
    async with device.running():
        device.happens("a", "b")
        await until(lambda: device.sent() == ["a", "b"])
        assert device.store.puts == 2
        await until(lambda: device.kept() == [])


@pytest.mark.parametrize("hung_up", [False, True])
async def test_a_new_link_is_used_soon_unless_the_broker_closed_the_last_one_because_of_an_event(
    device: Device, monkeypatch: pytest.MonkeyPatch, hung_up: bool
) -> None:
    monkeypatch.setattr(events, "_RELINK_JITTER_S", 0.01)
    monkeypatch.setattr(events, "_HANG_UP_S", 60 if hung_up else 0)
    monkeypatch.setattr(device.events, "_backoff", Backoff(300, 300, 300))
    device.broker.failing = 1
    async with device.running():
        device.happens("a")
        await until(lambda: device.events._backoff.tries == 1)
        device.link(False)
        device.link(True)
        if hung_up:
            await asyncio.sleep(0.1)
            assert device.sent() == []
        else:
            await until(lambda: device.sent() == ["a"])
        monkeypatch.setattr(events, "_STOP_TIMEOUT_S", 0)


async def test_pending_events_are_stored_when_the_link_breaks(device: Device) -> None:
    async with device.running():
        device.broker.gate.clear()
        device.happens("a", "b")
        await asyncio.sleep(0)
        device.link(False)
        assert device.kept() == ["a", "b"]


async def test_events_survive_a_restart_and_are_sent_before_newer_ones(device: Device) -> None:
    device.link(False)
    async with device.running():
        device.happens("a", "b")
    again = Device(device.store)
    again.happens("started")
    async with again.running():
        await until(lambda: again.sent() == ["a", "b", "started"])
    assert again.kept() == []


async def test_a_clean_stop_sends_what_it_can_and_stores_the_rest(device: Device) -> None:
    async with device.running():
        device.happens("a", "b")
    assert device.sent() == ["a", "b"]
    assert device.store.puts == 0


async def test_a_stop_has_a_deadline_if_the_broker_is_silent(device: Device, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(events, "_STOP_TIMEOUT_S", 0.05)
    async with device.running():
        device.broker.gate.clear()
        device.happens("a", "b")
    assert device.kept() == ["a", "b"]


async def test_beyond_the_limit_the_oldest_events_are_dropped_and_counted(
    device: Device, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(events, "_LIMIT", 3)
    device.link(False)
    async with device.running():
        device.happens(*"abcde")
        assert device.kept() == ["c", "d", "e"]
        assert device.counters["events_dropped"] == 2
        device.link(True)
        await until(lambda: device.sent() == ["c", "d", "e"])
    again = Device(device.store)
    assert again.kept() == []


async def test_dropping_an_event_that_is_being_sent_drops_no_other(
    device: Device, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(events, "_LIMIT", 2)
    async with device.running():
        device.broker.gate.clear()
        device.happens("a")
        await asyncio.sleep(0)
        device.happens("b", "c")
        device.broker.gate.set()
        await until(lambda: device.sent() == ["a", "b", "c"])


async def test_an_event_that_is_too_large_is_counted_and_delays_no_other(
    device: Device, monkeypatch: pytest.MonkeyPatch
) -> None:
    publish = device.broker.publish

    async def refusing(message: Message) -> None:
        if b'"type":"huge"' in message.payload:
            raise Rejected(Code.TOO_LARGE, "too large")
        await publish(message)

    monkeypatch.setattr(device.broker, "publish", refusing)
    async with device.running():
        device.happens("huge", "small")
        await until(lambda: device.sent() == ["small"])
    assert device.counters["messages_refused"] == 1


async def test_a_backlog_uses_a_quarter_of_the_rate() -> None:
    device = Device(publishes_per_s=80)
    async with device.running():
        begun_s = time.monotonic()
        device.happens(*"abcdef")
        await until(lambda: device.sent() == [*"abcdef"])
        assert time.monotonic() - begun_s >= 5 / (80 / 4)
