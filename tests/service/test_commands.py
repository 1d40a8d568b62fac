"""The MQTT door: each message to one effect or one code, once."""

from __future__ import annotations

import asyncio
import json
import time
from collections import Counter
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import pytest

from edge.contract.codes import Code, EndReason
from edge.contract.messages import (
    BODIES,
    PAYLOAD_LIMIT_BYTES,
    AnswerBody,
    CandidateBody,
    ControlsBody,
    Limits,
    OfferBody,
    QualityBody,
    SessionInfo,
    SnapshotBody,
    Status,
    StreamBody,
)
from edge.contract.replies import REPLIES
from edge.contract.topics import Topics
from edge.core.budget import CommandRates
from edge.errors import BrokerLost, CameraUnavailable, Rejected
from edge.mqtt.broker import Message
from edge.signalling import outbox
from edge.signalling.authority import Authority
from edge.signalling.commands import Commands
from edge.signalling.once import Once
from edge.signalling.outbox import Outbox
from tests.service.fakes import FakeBroker, FakeLedger

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable

    from edge.core.camera_controls import Values
    from edge.core.principal import Principal
    from edge.errors import EdgeError
    from edge.signalling.authority import Keys
    from edge.signalling.ports import ReplyDoor
    from tests.service.test_sessions import House

TOPICS = Topics("cam-1")
REPLY_TO = TOPICS.reply("bff-1")


class FakeSessions:
    def __init__(self) -> None:
        self.calls: list[str] = []
        self.bug: Exception | None = None
        self.gate = asyncio.Event()
        self.gate.set()
        self.door: ReplyDoor | None = None
        self.owner: Principal | None = None

    async def open(self, body: OfferBody, owner: Principal, door: ReplyDoor) -> AnswerBody:
        self.calls.append(f"open {owner.subject}")
        await self.gate.wait()
        if self.bug:
            raise self.bug
        self.door, self.owner = door, owner
        return AnswerBody(session=body.session or "s", sdp="v=0", limits=Limits(viewers=5))

    async def candidate(self, body: CandidateBody, caller: Principal) -> None:
        self.calls.append(f"candidate {body.session}")

    async def close(self, session_id: str, caller: Principal) -> None:
        self.calls.append(f"close {session_id}")

    def listing(self) -> list[SessionInfo]:
        return []

    async def quality(self, body: QualityBody, caller: Principal) -> None:
        self.calls.append(f"quality {body.session} {body.quality}")

    async def start(self, body: StreamBody, caller: Principal) -> None:
        self.calls.append(f"start {body.reason}")

    async def stop(self, reason: str | None, caller: Principal) -> None:
        self.calls.append(f"stop {reason}")


class FakeCamera:
    def __init__(self) -> None:
        self.given: dict[str, Any] = {}
        self.jpeg = b"JPEG"

    async def set(self, body: ControlsBody, caller: Principal) -> Values:
        self.given = body.given()
        if self.given.get("gain") == 99:
            raise Rejected(Code.BAD_MESSAGE, "gain: 1 to 16")
        return {"gain": 2.0, "flip_vertical": False}

    async def snapshot(self, body: SnapshotBody, caller: Principal) -> bytes:
        return self.jpeg


class MqttDoor:
    """The door with its surroundings; authority is off where no keys are given. `house`: real ones behind it."""

    def __init__(
        self,
        keys: Keys | None = None,
        ledger: FakeLedger | None = None,
        rates: CommandRates | None = None,
        house: House | None = None,
    ) -> None:
        self.broker = FakeBroker()
        self.sessions = FakeSessions()
        self.camera = FakeCamera()
        self.counters: Counter[str] = Counter()
        self.refused: list[EdgeError] = []
        self.now_s = 0.0
        self.wall_s = time.time()
        self.clock_known = True
        self.ledger = ledger or FakeLedger()
        self.outbox = Outbox(self.broker, TOPICS, self.status, self.counters)
        self.commands = Commands(
            TOPICS,
            house.sessions if house else self.sessions,
            house.use if house else self.camera,
            self.outbox,
            authority=Authority("cam-1", keys, lambda: self.clock_known),
            once=Once(self.ledger, self.wall_s),
            rates=rates or CommandRates(1000, 1000),
            status=self.status,
            now_s=lambda: self.now_s,
            wall_s=lambda: self.wall_s,
            refused=self.refused.append,
            counters=self.counters,
        )

    def status(self) -> Status:
        return Status(device="cam-1", online=True, at=datetime.now(UTC))

    def send(self, payload: bytes, **properties: Any) -> None:
        self.commands.receive(Message(TOPICS.command, payload, **properties))

    async def reply(self, command_id: str, topic: str = REPLY_TO) -> dict[str, Any]:
        return await self.broker.sent(lambda m: m.topic == topic and json.loads(m.payload)["id"] == command_id)

    async def ask(
        self, kind: str, content: dict[str, Any] | None = None, to: str = REPLY_TO, **fields: Any
    ) -> dict[str, Any]:
        command = message(kind, content, **{"reply_to": to, **fields})
        self.send(json.dumps(command).encode())
        return await self.reply(command["id"], to)


def message(kind: str, content: dict[str, Any] | None = None, **fields: Any) -> dict[str, Any]:
    expires_at = datetime.now(UTC) + timedelta(seconds=30)
    made = {"v": 1, "id": f"c-{kind}", "type": kind, "expires_at": expires_at.isoformat(), "reply_to": REPLY_TO}
    return {**made, "body": content or {}, **fields}


@pytest.fixture
async def door() -> AsyncIterator[MqttDoor]:
    made = MqttDoor()
    async with running(made.outbox.run), running(made.commands.run):
        yield made
    assert not made.counters["command_bugs"] or made.sessions.bug


@asynccontextmanager
async def running(run: Callable[[asyncio.Event], Any]) -> AsyncIterator[None]:
    ready = asyncio.Event()
    task = asyncio.create_task(run(ready))
    await ready.wait()
    yield
    task.cancel()
    await asyncio.wait({task})


async def test_an_offer_is_answered_to_its_reply_topic(door: MqttDoor) -> None:
    reply = await door.ask("session.offer", {"sdp": "v=0", "session": "s1", "viewer": "anna"})
    assert reply["type"] == "session.answer"
    assert reply["ok"] is True
    assert reply["body"]["session"] == "s1"
    assert door.sessions.calls == ["open anna"]


@pytest.mark.parametrize(
    ("kind", "body", "call", "type_"),
    [
        ("session.candidate", {"session": "s1", "candidate": None}, "candidate s1", "ok"),
        ("session.close", {"session": "s1"}, "close s1", "ok"),
        ("stream.start", {"reason": "day"}, "start day", "status"),
        ("stream.stop", {}, "stop None", "status"),
    ],
)
async def test_commands_reach_the_use_case(
    door: MqttDoor, kind: str, body: dict[str, Any], call: str, type_: str
) -> None:
    reply = await door.ask(kind, body)
    assert (reply["ok"], reply["type"]) == (True, type_)
    assert door.sessions.calls == [call]


BODY: dict[str, dict[str, Any]] = {
    "session.offer": {"sdp": "v=0"},
    "session.candidate": {"session": "s1", "candidate": None},
    "session.quality": {"session": "s1", "quality": "sd"},
    "session.close": {"session": "s1"},
}


@pytest.mark.parametrize("kind", sorted(BODIES))
async def test_every_command_is_answered_as_the_contract_says(door: MqttDoor, kind: str) -> None:
    reply = await door.ask(kind, BODY.get(kind))
    said = REPLIES[kind]
    assert (reply["ok"], reply["type"]) == (True, said.kind)
    body = said.body.model_validate(reply["body"]).model_dump(mode="json") if said.body else None
    assert reply.get("body") == body


async def test_questions_are_answered(door: MqttDoor) -> None:
    assert (await door.ask("status.get"))["body"]["device"] == "cam-1"
    assert (await door.ask("session.list"))["body"] == {"sessions": []}


@pytest.mark.parametrize(
    "kind",
    ["session.request_offer", "session.answer", "publish.start", "publish.stop"],
)
async def test_commands_of_later_versions_are_unsupported(door: MqttDoor, kind: str) -> None:
    assert (await door.ask(kind))["error"]["code"] == "unsupported"


@pytest.mark.parametrize(
    ("change", "code"),
    [
        ({"v": 2}, "unsupported_version"),
        ({"v": None}, "bad_message"),
        ({"type": "session.dance"}, "bad_message"),
        ({"type": None}, "bad_message"),
        ({"expires_at": None}, "bad_message"),
        ({"expires_at": "2020-01-01T00:00:00Z"}, "expired"),
        ({"expires_at": "2099-01-01T00:00:00Z"}, "bad_message"),
        ({"body": {}}, "bad_message"),
        ({"body": {"sdp": "x" * 40_000}}, "too_large"),
    ],
)
async def test_a_bad_message_gets_its_code_and_nothing_happens(
    door: MqttDoor, change: dict[str, Any], code: str
) -> None:
    reply = await door.ask("session.offer", {"sdp": "v=0"}, **change)
    assert (reply["ok"], reply["type"], reply["error"]["code"]) == (False, "error", code)
    assert door.sessions.calls == []
    assert door.counters[f"refused_{code}"] == 1
    assert [error.code for error in door.refused] == [code]


@pytest.mark.parametrize(
    "reply_to",
    [
        None,
        7,
        "edge/v1/cam-2/reply/bff-1",
        "edge/v1/cam-1/reply/",
        "edge/v1/cam-1/reply/a/b",
        "edge/v1/cam-1/reply/+",
        "x",
    ],
)
async def test_without_an_allowed_reply_topic_nothing_is_sent_and_nothing_happens(
    door: MqttDoor, reply_to: object
) -> None:
    door.send(json.dumps(message("stream.stop", reply_to=reply_to)).encode())
    await door.ask("status.get")
    assert door.sessions.calls == []
    assert door.counters["refused_bad_message"] == 1
    assert all(m.topic == TOPICS.status for m in door.broker.published)


async def test_no_json_is_answered_where_the_response_topic_is_known(door: MqttDoor) -> None:
    door.send(b"\xff{", response_topic=REPLY_TO, correlation=b"7")
    sent = await door.broker.sent(lambda m: m.topic == REPLY_TO and m.correlation == b"7")
    assert sent["error"]["code"] == "bad_message"


async def test_a_command_delivered_twice_takes_effect_once_and_is_answered_twice(door: MqttDoor) -> None:
    door.sessions.gate.clear()
    command = json.dumps(message("session.offer", {"sdp": "v=0"})).encode()
    door.send(command)
    door.send(command)
    await asyncio.sleep(0.01)
    door.sessions.gate.set()
    first, second = await door.reply("c-session.offer"), await door.reply("c-session.offer")
    door.send(command)
    third = await door.reply("c-session.offer")
    assert first == second == third
    assert door.sessions.calls == ["open bff-1"]
    assert door.counters["commands_repeated"] == 2


async def test_an_id_that_comes_again_with_another_type_is_replayed(door: MqttDoor) -> None:
    await door.ask("stream.start", id="c-1")
    reply = await door.ask("status.get", id="c-1")
    assert reply["error"]["code"] == "replayed"


async def test_what_comes_while_the_daemon_still_starts_is_answered_once_it_has() -> None:
    door = MqttDoor()
    command = json.dumps(message("status.get")).encode()
    for _ in range(300):
        door.send(command)
    assert door.counters["commands_dropped"] == 300 - 256
    async with running(door.outbox.run), running(door.commands.run):
        await door.reply("c-status.get")
    door.send(command)
    assert door.counters["commands_dropped"] == 300 - 255


async def test_the_same_id_of_another_client_is_another_command(door: MqttDoor) -> None:
    await door.ask("stream.start")
    other = TOPICS.reply("bff-2")
    door.send(json.dumps(message("stream.start", reply_to=other)).encode())
    await door.reply("c-stream.start", other)
    assert len(door.sessions.calls) == 2


async def test_more_commands_at_once_than_fit_are_refused_and_the_others_go_on(door: MqttDoor) -> None:
    door.sessions.gate.clear()
    for number in range(70):
        door.send(json.dumps(message("session.offer", {"sdp": "v=0"}, id=f"n{number}")).encode())
    assert (await door.reply("n69"))["error"]["code"] == "rate_limited"
    door.sessions.gate.set()
    assert (await door.reply("n0"))["ok"]


async def test_error_replies_keep_to_a_budget(door: MqttDoor) -> None:
    for _ in range(200):
        door.send(json.dumps(message("session.dance")).encode())
        await asyncio.sleep(0)
    await door.ask("status.get")
    assert door.counters["refused_bad_message"] == 200
    assert door.counters["error_replies_withheld"] == 160


async def test_a_bug_is_told_as_internal_and_the_door_stays_open(door: MqttDoor) -> None:
    door.sessions.bug = ZeroDivisionError("secret detail")
    reply = await door.ask("session.offer", {"sdp": "v=0"})
    assert reply["error"]["code"] == "internal"
    assert "secret" not in json.dumps(reply)
    assert (await door.ask("status.get"))["ok"]


async def test_what_a_session_tells_goes_to_its_owners_reply_topic(door: MqttDoor) -> None:
    await door.ask("session.offer", {"sdp": "v=0", "session": "s1"})
    way_back, owner = door.sessions.door, door.sessions.owner
    assert way_back is not None
    assert owner is not None
    way_back.candidate("s1", owner, None, "0")
    way_back.closed("s1", owner, EndReason.STOPPED)
    candidate = await door.broker.sent(lambda m: m.topic == REPLY_TO and b"session.candidate" in m.payload)
    assert candidate["body"] == {"session": "s1", "candidate": None, "sdp_mid": "0"}
    closed = await door.broker.sent(lambda m: m.topic == REPLY_TO and b"session.closed" in m.payload)
    assert closed["body"] == {"session": "s1", "reason": "stopped", "code": "stopped"}


async def test_the_status_is_retained_and_says_offline_at_the_end() -> None:
    made = MqttDoor()
    async with running(made.outbox.run):
        made.outbox.status_changed()
        assert (await made.broker.sent(lambda m: m.retain and m.topic == TOPICS.status))["online"] is True
    last = made.broker.published[-1]
    assert last.retain
    assert json.loads(last.payload)["online"] is False


async def test_between_two_statuses_is_a_while_before_the_last_one_too(monkeypatch: pytest.MonkeyPatch) -> None:
    assert outbox._STATUS_EVERY_S >= 1
    monkeypatch.setattr(outbox, "_STATUS_EVERY_S", 0.2)
    made = MqttDoor()
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
async def test_offline_is_said_twice_where_it_is_not_acknowledged(
    monkeypatch: pytest.MonkeyPatch, silent: bool
) -> None:
    monkeypatch.setattr(outbox, "_STATUS_EVERY_S", 0.05)
    made = MqttDoor()
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


async def test_a_stop_does_not_wait_long_for_a_broker_that_acknowledges_nothing(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    assert outbox._REST_S + outbox._OFFLINE_S <= 4
    monkeypatch.setattr(outbox, "_REST_S", 0.05)
    monkeypatch.setattr(outbox, "_OFFLINE_S", 0.05)
    made = MqttDoor()
    made.broker.gate.clear()
    async with asyncio.timeout(5), running(made.outbox.run):
        made.outbox.put(Message(REPLY_TO, b"{}"))


async def test_what_cannot_be_sent_without_a_broker_is_counted() -> None:
    made = MqttDoor()
    async with running(made.outbox.run):
        made.broker.connected = False
        made.outbox.put(Message(REPLY_TO, b"{}"))
        assert made.counters["messages_dropped_offline"] == 1


async def test_a_status_that_was_not_acknowledged_is_sent_again(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(outbox, "_STATUS_AGAIN_S", 0.01)
    monkeypatch.setattr(outbox, "_STATUS_EVERY_S", 0.01)
    made = MqttDoor()
    made.broker.failing = 2
    async with running(made.outbox.run):
        made.outbox.link(True)
        assert (await made.broker.sent(lambda m: m.topic == TOPICS.status))["online"] is True
    assert made.counters["messages_lost"] == 2


@pytest.mark.parametrize("command_id", ["\ud800", "a\ud800", "a\nb", ""])
async def test_an_id_that_cannot_be_sent_back_ends_nothing(door: MqttDoor, command_id: str) -> None:
    door.send(json.dumps({"id": command_id, "reply_to": REPLY_TO}).encode())
    door.send(json.dumps(message("session.offer", {"sdp": "v=0"}, id=command_id)).encode())
    assert (await door.ask("status.get"))["ok"]
    assert door.sessions.calls == []
    assert door.counters["refused_bad_message"] == 2


async def test_a_reply_topic_with_a_line_break_is_none(door: MqttDoor) -> None:
    door.send(json.dumps(message("stream.stop", reply_to=REPLY_TO + "\n")).encode())
    await door.ask("status.get")
    assert door.sessions.calls == []


async def test_a_change_of_quality_reaches_the_session(door: MqttDoor) -> None:
    assert (await door.ask("session.quality", {"session": "s1", "quality": "sd"}))["type"] == "ok"
    assert door.sessions.calls == ["quality s1 sd"]
    refused = await door.ask("session.quality", {"session": "s1", "quality": "best"}, id="c-2")
    assert refused["error"]["code"] == "bad_message"


async def test_controls_are_set_and_the_values_in_force_come_back(door: MqttDoor) -> None:
    reply = await door.ask("camera.set", {"gain": None, "zoom": {"x": 0.25, "y": 0.25, "width": 0.5, "height": 0.5}})
    assert (reply["type"], reply["body"]) == ("camera.controls", {"controls": {"gain": 2.0, "flip_vertical": False}})
    # Null is said, what is left out is not.
    assert door.camera.given == {"gain": None, "zoom": {"x": 0.25, "y": 0.25, "width": 0.5, "height": 0.5}}
    refused = await door.ask("camera.set", {"gain": 99}, id="c-2")
    assert refused["error"] == {"code": "bad_message", "message": "gain: 1 to 16"}


@pytest.mark.parametrize(
    "body",
    [
        {"exposure_mode": "custom"},
        {"fps": 0.5},
        {"brightness": "much"},
        {"zoom": {"x": 0.6, "y": 0, "width": 0.5, "height": 0.5}},
        {"zoom": {"x": 0, "y": 0, "width": 0, "height": 1}},
        {"flip_vertical": "perhaps"},
    ],
)
async def test_controls_of_no_sense_are_refused(door: MqttDoor, body: dict[str, Any]) -> None:
    assert (await door.ask("camera.set", body))["error"]["code"] == "bad_message"
    assert not door.camera.given


async def test_a_snapshot_fits_a_message_or_says_what_does(door: MqttDoor) -> None:
    assert (await door.ask("camera.snapshot", {"width": 640}))["body"] == {"jpeg_base64": "SlBFRw=="}
    door.camera.jpeg = bytes(97_000)
    door.send(json.dumps(message("camera.snapshot", id="c-2")).encode())
    async with asyncio.timeout(5):
        while not door.broker.published:
            await asyncio.sleep(0.005)
    (sent,) = door.broker.published
    assert json.loads(sent.payload)["ok"]
    assert len(sent.payload) <= PAYLOAD_LIMIT_BYTES
    door.camera.jpeg = bytes(98_000)
    error = (await door.ask("camera.snapshot", id="c-3"))["error"]
    assert (error["code"], "98000 bytes" in error["message"]) == ("too_large", True)


async def test_a_session_is_told_that_its_picture_stands_still_and_that_it_moves(door: MqttDoor) -> None:
    await door.ask("session.offer", {"sdp": "v=0", "session": "s1"})
    assert door.sessions.door is not None
    assert door.sessions.owner is not None
    door.sessions.door.camera("s1", door.sessions.owner, CameraUnavailable("no picture for 2 s"))
    told = await door.broker.sent(lambda m: m.topic == REPLY_TO)
    assert told["type"] == "session.camera"
    assert told["body"] == {
        "session": "s1",
        "state": "stalled",
        "code": "camera_stalled",
        "message": "no picture for 2 s",
    }
    door.sessions.door.camera("s1", door.sessions.owner, None)
    told = await door.broker.sent(lambda m: m.topic == REPLY_TO)
    assert told["body"]["state"] == "live"
