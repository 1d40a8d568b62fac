"""The Python client against a device on a real broker."""

from __future__ import annotations

import asyncio
from collections import Counter
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING

import pytest
from pydantic import SecretStr

from edge.client import Camera, CameraClient
from edge.client.inbox import EventFeed, Sessions
from edge.contract.codes import Code, EndReason
from edge.contract.messages import CameraNoticeBody, CandidateBody, ClosedBody, Event, IceServer, Status
from edge.demo.broker import EmbeddedBroker
from edge.errors import BrokerLost, Rejected
from edge.mqtt.broker import Message
from tests.rigs.daemon import free_port
from tests.rigs.fake_device import ANSWER_SDP, FakeDevice, mqtt_settings

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

CANDIDATE = "candidate:1 1 udp 2130706431 192.0.2.1 50000 typ host"


@pytest.fixture
def counters() -> Counter[str]:
    return Counter()


@pytest.fixture
async def device() -> AsyncIterator[FakeDevice]:
    device = FakeDevice(free_port())
    async with EmbeddedBroker("127.0.0.1", device.port), device.running_device():
        yield device


@pytest.fixture
async def client(device: FakeDevice) -> AsyncIterator[CameraClient]:
    async with CameraClient.connect(mqtt_settings(device.port), "bff-7", timeout_s=2) as client:
        await device.meet(client.camera("cam-1"))
        yield client


@pytest.fixture
def camera(client: CameraClient) -> Camera:
    return client.camera("cam-1")


async def test_an_offer_gets_its_answer(camera: Camera, device: FakeDevice) -> None:
    turn = IceServer(urls="turn:turn.example.org", username="u", credential=SecretStr("p"))
    answer = await camera.offer("v=0", viewer="anna", trickle=False, ice_servers=[turn], token="a.b.c")
    assert answer.sdp == ANSWER_SDP
    assert answer.session
    ((command, body),) = device.commands
    assert command.reply_to == "edge/v1/cam-1/reply/bff-7"
    assert 25 < (command.expires_at - datetime.now(UTC)).total_seconds() <= 30
    assert command.token is not None
    assert command.token.get_secret_value() == "a.b.c"
    assert body.model_dump() == {
        "sdp": "v=0",
        "session": answer.session,
        "viewer": "anna",
        "trickle": False,
        "quality": "auto",
        "ice_servers": [turn.model_dump()],
        "audio": "off",
    }


async def test_a_refusal_keeps_its_code_and_its_wait(camera: Camera, device: FakeDevice) -> None:
    device.refusals["session.offer"] = Rejected(Code.BUSY, "5 of 5 viewers are connected", retry_after_s=20)
    with pytest.raises(Rejected, match="5 of 5 viewers") as refused:
        await camera.offer("v=0")
    assert (refused.value.code, refused.value.retry_after_s) == (Code.BUSY, 20)


async def test_candidates_that_come_before_the_answer_are_kept(camera: Camera, device: FakeDevice) -> None:
    device.candidates = [CANDIDATE, None]
    answer = await camera.offer("v=0")
    await camera.close(answer.session)
    found = [message async for message in camera.candidates(answer.session)]
    assert found == [
        CandidateBody(session=answer.session, candidate=CANDIDATE, sdp_mid="0"),
        CandidateBody(session=answer.session, candidate=None, sdp_mid="0"),
        ClosedBody(session=answer.session, reason=EndReason.VIEWER_CLOSED),
    ]


async def test_reading_may_begin_before_the_offer_and_twice(camera: Camera, device: FakeDevice) -> None:
    async def read() -> list[CandidateBody | CameraNoticeBody | ClosedBody]:
        return [message async for message in camera.candidates("chosen")]

    async with asyncio.TaskGroup() as group:
        readers = [group.create_task(read()) for _ in range(2)]
        await asyncio.sleep(0)
        await camera.offer("v=0", session="chosen")
        await device.send_candidate("chosen", CANDIDATE)
        await device.end("chosen", EndReason.STOPPED)
    for reader in readers:
        candidate, closed = reader.result()
        assert isinstance(candidate, CandidateBody)
        assert closed == ClosedBody(session="chosen", reason=EndReason.STOPPED, code=Code.STOPPED)


async def test_a_candidate_and_the_end_of_candidates_reach_the_device(camera: Camera, device: FakeDevice) -> None:
    await camera.candidate("s", CANDIDATE, "0")
    await camera.candidate("s", None)
    assert await device.got("session.candidate", 2) == [
        CandidateBody(session="s", candidate=CANDIDATE, sdp_mid="0"),
        CandidateBody(session="s", candidate=None),
    ]


async def test_stop_start_status_and_sessions(camera: Camera, device: FakeDevice) -> None:
    stopped = await camera.stop("night")
    assert stopped.stream is not None
    assert stopped.stream.wanted == "stopped"
    assert (await device.got("stream.stop"))[0].reason == "night"
    started = await camera.start()
    assert started.stream is not None
    assert started.stream.wanted == "running"
    assert (await camera.status()).online
    answer = await camera.offer("v=0")
    assert [info.session for info in await camera.sessions()] == [answer.session]


async def test_events_and_the_status_that_the_device_sends_by_itself(camera: Camera, device: FakeDevice) -> None:
    events = camera.events()
    await device.event("camera.lost")
    await device.event("camera.back")
    assert [(await anext(events)).type for _ in range(2)] == ["camera.lost", "camera.back"]
    await device.publish_status()
    async with asyncio.timeout(5):
        await camera.online()
    assert camera.last_status is not None
    assert camera.last_status.online


async def test_a_status_that_was_asked_for_does_not_hide_what_the_device_said_after_it(camera: Camera) -> None:
    def said(online: bool, at: datetime) -> None:
        status = Status(device="cam-1", online=online, at=at, version="0.1.0")
        camera.receive(Message("edge/v1/cam-1/status", status.model_dump_json().encode()))

    later = datetime.now(UTC) + timedelta(hours=1)
    said(online=False, at=later)
    assert (await camera.status()).online
    assert camera.last_status is not None
    assert not camera.last_status.online
    # The last will's time is that of the device's start.
    said(online=True, at=later)
    said(online=False, at=later - timedelta(hours=9))
    assert not camera.last_status.online
    assert (await camera.status()).online
    assert camera.last_status.online


async def test_a_device_that_does_not_reply(camera: Camera, client: CameraClient, device: FakeDevice) -> None:
    device.silent.add("status.get")
    client._timeout_s = 0.2
    with pytest.raises(Rejected, match=r"cam-1 did not reply to status.get within 0.2 s") as refused:
        await camera.status()
    assert refused.value.code is Code.TIMEOUT


async def test_an_error_of_the_caller_goes_up_as_it_is(device: FakeDevice) -> None:
    async def caller() -> None:
        async with CameraClient.connect(mqtt_settings(device.port), "bff-7") as client:
            await device.meet(client.camera("cam-1"))
            raise KeyError("the caller's")

    with pytest.raises(KeyError, match="the caller's"):
        await caller()


async def test_no_broker() -> None:
    async with CameraClient.connect(mqtt_settings(free_port()), "bff-7", timeout_s=0.2) as client:
        with pytest.raises(BrokerLost):
            await client.camera("cam-1").status()


async def test_a_command_waits_for_the_link(device: FakeDevice) -> None:
    client = CameraClient.connect(mqtt_settings(device.port), "bff-8")
    asked = asyncio.create_task(client.camera("cam-1").status())
    await asyncio.sleep(0)
    async with client:
        assert (await asked).online


async def test_what_cannot_be_used_is_counted(camera: Camera, client: CameraClient, device: FakeDevice) -> None:
    other = b'{"id": "x", "type": "session.closed", "ok": true, "body": {"session": "other", "reason": "stopped"}}'
    for payload in (b"no JSON", b'{"id": "gone", "type": "ok", "ok": true}', other):
        await device.publish_reply("bff-7", payload)
    await camera.status()
    assert dict(client.counters) == {"unreadable": 1, "late_replies": 1, "unclaimed": 1}


async def test_a_bad_argument_is_not_sent(camera: Camera, device: FakeDevice) -> None:
    with pytest.raises(Rejected, match="session") as refused:
        await camera.offer("v=0", session="no id")
    assert refused.value.code is Code.BAD_MESSAGE
    assert not device.commands


async def test_session_messages_are_bounded(counters: Counter[str]) -> None:
    sessions = Sessions(counters)
    sessions.expect("s")
    for _ in range(40):
        sessions.put(CandidateBody(session="s", candidate=CANDIDATE))
    sessions.put(ClosedBody(session="s", reason=EndReason.STOPPED))
    assert len([message async for message in sessions.read("s")]) == 34
    assert counters["session_messages_dropped"] == 7


async def test_of_too_many_sessions_the_oldest_unread_goes(counters: Counter[str]) -> None:
    sessions = Sessions(counters)
    sessions.expect("read")
    sessions.put(CandidateBody(session="read", candidate=None))
    reader = sessions.read("read")
    await anext(reader)
    for number in range(300):
        sessions.expect(f"s-{number}")
    sessions.put(ClosedBody(session="read", reason=EndReason.STOPPED))
    assert isinstance(await anext(reader), ClosedBody)
    sessions.put(ClosedBody(session="s-0", reason=EndReason.STOPPED))
    assert counters == {"sessions_forgotten": 45, "unclaimed": 1}


async def test_of_too_many_events_the_oldest_go(counters: Counter[str]) -> None:
    feed = EventFeed(counters)
    for number in range(260):
        feed.put(Event(id=f"e-{number}", type="t", at=datetime.now(UTC)))
    assert (await anext(feed)).id == "e-4"
    assert counters == {"events_dropped": 4}
