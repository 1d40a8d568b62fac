"""The messages that the daemon publishes: the status, its order and retries, and a broker that fails."""

from __future__ import annotations

import asyncio
import json
import time
from itertools import pairwise
from typing import TYPE_CHECKING

import pytest

from edge.contract.codes import Code
from edge.errors import BrokerLost, Rejected
from edge.mqtt.broker import Message
from edge.signalling import outbox
from tests.service.commands.rig import REPLY_TO, TOPICS, CommandRig, running

if TYPE_CHECKING:
    from edge.contract.messages import Status


async def test_a_publish_failure_that_repeats_is_logged_once_and_counted(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    rig = CommandRig()
    attempts = 0

    async def refuse(_: Message) -> None:
        nonlocal attempts
        attempts += 1
        raise Rejected(Code.RATE_LIMITED, "more than 100 messages per second for the broker")

    monkeypatch.setattr(rig.broker, "publish", refuse)
    async with running(rig.outbox.run):
        for _ in range(50):
            rig.outbox.put(Message(REPLY_TO, b"{}"))
        async with asyncio.timeout(5):
            while attempts < 50:
                await asyncio.sleep(0.001)
        assert rig.counters["messages_refused"] == 50
        assert caplog.text.count("publish failed") == 1
        rig.broker.connected = False


async def test_the_status_is_retained_and_the_last_one_is_offline() -> None:
    made = CommandRig()
    async with running(made.outbox.run):
        made.outbox.status_changed()
        assert (await made.broker.sent(lambda m: m.retain and m.topic == TOPICS.status))["online"] is True
    last = made.broker.published[-1]
    assert last.retain
    assert json.loads(last.payload)["online"] is False


async def test_a_status_that_cannot_be_composed_costs_neither_the_daemon_nor_the_next_status(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(outbox, "_STATUS_INTERVAL_S", 0.01)
    monkeypatch.setattr(outbox, "_STATUS_RETRY_S", 0.01)
    made = CommandRig()
    compose = made.outbox._status

    def fail() -> Status:
        raise ZeroDivisionError

    made.outbox._status = fail
    async with running(made.outbox.run):
        made.outbox.status_changed()
        async with asyncio.timeout(5):
            while made.counters["status_bugs"] < 5:
                await asyncio.sleep(0.001)
        made.outbox._status = compose
        assert (await made.broker.sent(lambda m: m.topic == TOPICS.status))["online"] is True
    assert caplog.text.count("status not composed because of a bug") == 1


async def test_statuses_keep_their_distance_including_the_last_one(monkeypatch: pytest.MonkeyPatch) -> None:
    assert outbox._STATUS_INTERVAL_S >= 1
    monkeypatch.setattr(outbox, "_STATUS_INTERVAL_S", 0.2)
    made = CommandRig()
    begun_s = time.monotonic()
    times: list[float] = []
    publish = made.broker.publish

    async def noted(sent: Message) -> None:
        times.append(time.monotonic())
        await publish(sent)

    monkeypatch.setattr(made.broker, "publish", noted)
    async with running(made.outbox.run):
        while len(times) < 3:
            made.outbox.status_changed()
            await asyncio.sleep(0.01)
    assert json.loads(made.broker.published[-1].payload)["online"] is False
    assert times[0] - begun_s < 0.2
    assert len(times) == 4
    assert all(later - earlier >= 0.19 for earlier, later in pairwise(times))


@pytest.mark.parametrize("silent", [False, True])
async def test_offline_is_published_again_without_an_acknowledgement(
    monkeypatch: pytest.MonkeyPatch, silent: bool
) -> None:
    monkeypatch.setattr(outbox, "_STATUS_INTERVAL_S", 0.05)
    made = CommandRig()
    tries = 0
    publish = made.broker.publish

    async def deaf(sent: Message) -> None:
        nonlocal tries
        tries += 1
        if tries == 1 and silent:
            await asyncio.Event().wait()
        if tries == 1:
            raise BrokerLost("the broker did not acknowledge in time")
        await publish(sent)

    monkeypatch.setattr(made.broker, "publish", deaf)
    async with running(made.outbox.run):
        pass
    assert tries == 2
    assert [json.loads(sent.payload)["online"] for sent in made.broker.published] == [False]


async def test_a_stop_has_a_deadline_if_the_broker_acknowledges_nothing(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    assert outbox._REST_S + outbox._OFFLINE_S <= 4
    monkeypatch.setattr(outbox, "_REST_S", 0.05)
    monkeypatch.setattr(outbox, "_OFFLINE_S", 0.05)
    made = CommandRig()
    made.broker.gate.clear()
    async with asyncio.timeout(5), running(made.outbox.run):
        made.outbox.put(Message(REPLY_TO, b"{}"))


async def test_a_viewer_with_many_replies_does_not_delay_those_of_others() -> None:
    made = CommandRig()
    for number in range(200):
        made.outbox.put(Message(REPLY_TO, json.dumps({"id": number}).encode()), "token:hostile")
    made.outbox.put(Message(REPLY_TO, b'{"id": "honest"}'), "token:anna")
    async with running(made.outbox.run):
        async with asyncio.timeout(5):
            while len(made.broker.published) < 201:
                await asyncio.sleep(0.005)
        assert [json.loads(sent.payload)["id"] for sent in made.broker.published].index("honest") < 20


async def test_messages_without_a_link_are_counted() -> None:
    made = CommandRig()
    async with running(made.outbox.run):
        made.broker.connected = False
        made.outbox.put(Message(REPLY_TO, b"{}"))
        assert made.counters["messages_dropped_offline"] == 1


async def test_an_unacknowledged_status_is_published_again(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(outbox, "_STATUS_RETRY_S", 0.01)
    monkeypatch.setattr(outbox, "_STATUS_INTERVAL_S", 0.01)
    made = CommandRig()
    made.broker.failing = 2
    async with running(made.outbox.run):
        made.outbox.link(True)
        assert (await made.broker.sent(lambda m: m.topic == TOPICS.status))["online"] is True
    assert made.counters["messages_lost"] == 2
