"""The Python client against a device on a real broker."""

from __future__ import annotations

import asyncio
import json
from collections import Counter
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING

import pytest
from pydantic import SecretStr

from edge.client import CameraClient, RemoteCamera
from edge.client.inbox import EventFeed, SessionInboxes
from edge.contract.codes import Code, EndReason
from edge.contract.messages import CameraNoticeBody, CandidateBody, ClosedBody, Event, IceServer, Offline
from edge.demo.broker import EmbeddedBroker
from edge.errors import BrokerLost, Rejected
from edge.mqtt.broker import Message
from tests.rigs.daemon import free_port
from tests.rigs.fake_device import ANSWER_SDP, FakeDevice, mqtt_settings
from tests.rigs.statuses import make_status

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from edge.contract.messages import Status

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
        await device.wait_for_client(client.camera("cam-1"))
        yield client


@pytest.fixture
def camera(client: CameraClient) -> RemoteCamera:
    return client.camera("cam-1")


async def test_an_offer_gets_its_answer(camera: RemoteCamera, device: FakeDevice) -> None:
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


async def test_the_token_of_an_offer_is_sent_with_the_commands_of_its_session(
    camera: RemoteCamera, device: FakeDevice
) -> None:
    await camera.offer("v=0", session="s1", token="a.b.c")
    await camera.offer("v=0", session="s2")
    for session in ("s1", "s2"):
        await camera.candidate(session, CANDIDATE)
        await camera.quality(session, "sd")
        await camera.close(session)
    await camera.quality("s1", "hd", token="x.y.z")
    sent = [command.token.get_secret_value() if command.token else None for command, _ in device.commands]
    assert sent == ["a.b.c", None, *["a.b.c"] * 3, *[None] * 3, "x.y.z"]


async def test_a_device_that_does_not_accept_the_kept_token_any_more_gets_the_command_without_it(
    camera: RemoteCamera, device: FakeDevice
) -> None:
    await camera.offer("v=0", session="s1", token="a.b.c")
    device.refusals["session.quality"] = Rejected(Code.EXPIRED, "the token has expired")
    with pytest.raises(Rejected):
        await camera.quality("s1", "sd", token="x.y.z")
    assert len(device.commands) == 2, "the caller's own token is not left out"
    device.expired.add("a.b.c")
    del device.refusals["session.quality"]
    await camera.quality("s1", "sd")
    sent = [command.token.get_secret_value() if command.token else None for command, _ in device.commands[2:]]
    assert sent == ["a.b.c", None]
    device.refusals["session.quality"] = Rejected(Code.EXPIRED, "expires_at has passed")
    with pytest.raises(Rejected, match="expires_at"):
        await camera.quality("s1", "hd")
    assert len(device.commands) == 6, "it is sent again once"


async def test_a_refusal_keeps_its_code_and_retry_after(camera: RemoteCamera, device: FakeDevice) -> None:
    device.refusals["session.offer"] = Rejected(Code.BUSY, "5 of 5 viewers are connected", retry_after_s=20)
    with pytest.raises(Rejected, match="5 of 5 viewers") as refused:
        await camera.offer("v=0")
    assert (refused.value.code, refused.value.retry_after_s) == (Code.BUSY, 20)


async def test_a_command_over_the_limit_is_not_sent(camera: RemoteCamera, device: FakeDevice) -> None:
    with pytest.raises(Rejected) as refused:
        await camera.offer("v" * 40_000)
    assert refused.value.code is Code.TOO_LARGE
    assert not device.commands


async def test_candidates_before_the_answer_are_kept(camera: RemoteCamera, device: FakeDevice) -> None:
    device.candidates = [CANDIDATE, None]
    answer = await camera.offer("v=0")
    await camera.close(answer.session)
    found = [message async for message in camera.candidates(answer.session)]
    assert found == [
        CandidateBody(session=answer.session, candidate=CANDIDATE, sdp_mid="0"),
        CandidateBody(session=answer.session, candidate=None, sdp_mid="0"),
        ClosedBody(session=answer.session, reason=EndReason.VIEWER_CLOSED),
    ]


async def test_several_readers_may_start_before_the_offer(camera: RemoteCamera, device: FakeDevice) -> None:
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


async def test_a_candidate_and_the_end_of_candidates_reach_the_device(camera: RemoteCamera, device: FakeDevice) -> None:
    await camera.candidate("s", CANDIDATE, "0")
    await camera.candidate("s", None)
    assert await device.wait_for_commands("session.candidate", 2) == [
        CandidateBody(session="s", candidate=CANDIDATE, sdp_mid="0"),
        CandidateBody(session="s", candidate=None),
    ]


async def test_stop_start_status_and_sessions(camera: RemoteCamera, device: FakeDevice) -> None:
    stopped = await camera.stop("night")
    assert stopped.stream.wanted == "stopped"
    assert (await device.wait_for_commands("stream.stop"))[0].reason == "night"
    started = await camera.start()
    assert started.stream.wanted == "running"
    assert (await camera.status()).online
    answer = await camera.offer("v=0")
    assert [info.session for info in await camera.sessions()] == [answer.session]


async def test_events_and_published_statuses_are_received(camera: RemoteCamera, device: FakeDevice) -> None:
    events = camera.events()
    await device.event("camera.lost")
    await device.event("camera.back")
    assert [(await anext(events)).type for _ in range(2)] == ["camera.lost", "camera.back"]
    await device.publish_status()
    async with asyncio.timeout(5):
        await camera.online()
    assert camera.last_status is not None
    assert camera.last_status.online


async def test_a_requested_status_does_not_replace_a_newer_published_one(camera: RemoteCamera) -> None:
    def said(online: bool, at: datetime) -> None:
        status = make_status(online=online, at=at)
        camera.receive(Message("edge/v1/cam-1/status", status.model_dump_json().encode()))

    later = datetime.now(UTC) + timedelta(hours=1)
    said(online=False, at=later)
    assert (await camera.status()).online
    assert camera.last_status is not None
    assert not camera.last_status.online
    # The time of a last will is that of the device's start.
    said(online=True, at=later)
    said(online=False, at=later - timedelta(hours=9))
    assert not camera.last_status.online
    assert (await camera.status()).online
    assert camera.last_status.online


async def test_an_expired_status_is_unknown(camera: RemoteCamera) -> None:
    def receive(status: Status | Offline) -> None:
        camera.receive(Message("edge/v1/cam-1/status", status.model_dump_json().encode()))

    now = datetime.now(UTC)
    receive(make_status(at=now - timedelta(minutes=16), valid_until=now - timedelta(minutes=1)))
    assert camera.last_status is None
    waiting = asyncio.create_task(camera.online())
    await asyncio.sleep(0.05)
    assert not waiting.done(), "a retained status that outlived the device is not taken for the device"
    receive(make_status(valid_until=now + timedelta(minutes=15)))
    await asyncio.wait_for(waiting, 5)
    # A device that does not know the time sets no limit.
    receive(make_status(at=now - timedelta(days=365)))
    assert camera.last_status is not None
    will = Offline(device="cam-1", at=now - timedelta(days=365), version="0.1.0")
    receive(will)
    assert camera.last_status == will


async def test_a_device_that_does_not_reply(camera: RemoteCamera, client: CameraClient, device: FakeDevice) -> None:
    device.silent.add("status.get")
    client._timeout_s = 0.2
    with pytest.raises(Rejected, match=r"cam-1 did not reply to status.get within 0.2 s") as refused:
        await camera.status()
    assert refused.value.code is Code.TIMEOUT


async def test_the_callers_own_error_is_raised_unchanged(device: FakeDevice) -> None:
    async def caller() -> None:
        async with CameraClient.connect(mqtt_settings(device.port), "bff-7") as client:
            await device.wait_for_client(client.camera("cam-1"))
            raise KeyError("the caller's")

    with pytest.raises(KeyError, match="the caller's"):
        await caller()


async def test_a_command_without_a_broker_fails() -> None:
    async with CameraClient.connect(mqtt_settings(free_port()), "bff-7", timeout_s=0.2) as client:
        with pytest.raises(BrokerLost):
            await client.camera("cam-1").status()


async def test_a_command_waits_for_the_link(device: FakeDevice) -> None:
    client = CameraClient.connect(mqtt_settings(device.port), "bff-8")
    asked = asyncio.create_task(client.camera("cam-1").status())
    await asyncio.sleep(0)
    async with client:
        assert (await asked).online


async def test_unusable_messages_are_counted(camera: RemoteCamera, client: CameraClient, device: FakeDevice) -> None:
    other = b'{"id": "x", "type": "session.closed", "ok": true, "body": {"session": "other", "reason": "stopped"}}'
    for payload in (b"no JSON", b'{"id": "gone", "type": "ok", "ok": true}', other):
        await device.publish_reply("bff-7", payload)
    await camera.status()
    assert dict(client.counters) == {"unreadable": 1, "late_replies": 1, "unclaimed": 1}


async def test_reasons_and_codes_of_a_newer_device_are_read_as_internal(
    camera: RemoteCamera, client: CameraClient, device: FakeDevice
) -> None:
    device.silent.add("stream.stop")
    stop = asyncio.create_task(camera.stop())
    await device.wait_for_commands("stream.stop")
    ((command, _),) = device.commands
    error = {"code": "newer", "message": "the disk is full"}
    refusal = {"v": 1, "id": command.id, "type": "error", "ok": False, "error": error}
    await device.publish_reply("bff-7", json.dumps(refusal).encode())
    with pytest.raises(Rejected, match="the disk is full") as refused:
        await stop
    assert refused.value.code is Code.INTERNAL
    messages = camera.candidates("s")
    reading = asyncio.ensure_future(anext(messages))
    await asyncio.sleep(0)
    closed = {"session": "s", "reason": "newer", "code": "newer"}
    body = {"v": 1, "id": "d", "type": "session.closed", "ok": True, "body": closed}
    await device.publish_reply("bff-7", json.dumps(body).encode())
    async with asyncio.timeout(5):
        assert await reading == ClosedBody(session="s", reason=EndReason.INTERNAL, code=Code.INTERNAL)
    assert not client.counters


async def test_a_bad_argument_is_not_sent(camera: RemoteCamera, device: FakeDevice) -> None:
    with pytest.raises(Rejected, match="session") as refused:
        await camera.offer("v=0", session="no id")
    assert refused.value.code is Code.BAD_MESSAGE
    assert not device.commands


async def test_session_messages_are_bounded(counters: Counter[str]) -> None:
    sessions = SessionInboxes(counters)
    sessions.expect("s")
    for _ in range(40):
        sessions.put(CandidateBody(session="s", candidate=CANDIDATE))
    sessions.put(ClosedBody(session="s", reason=EndReason.STOPPED))
    assert len([message async for message in sessions.read("s")]) == 34
    assert counters["session_messages_dropped"] == 7


async def test_beyond_the_limit_the_oldest_session_without_a_reader_is_dropped(counters: Counter[str]) -> None:
    sessions = SessionInboxes(counters)
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


async def test_beyond_the_limit_the_oldest_events_are_dropped_for_a_reader(counters: Counter[str]) -> None:
    feed = EventFeed(counters)
    for number in range(260):
        feed.put(Event(id=f"e-{number}", type="t", at=datetime.now(UTC)))
    assert (await anext(feed)).id == "e-4"
    assert counters == {"events_dropped": 4}
