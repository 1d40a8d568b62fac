"""Each command reaches its use case and is answered."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import pytest

from edge.contract.codes import EndReason
from edge.contract.messages import BODIES, PAYLOAD_LIMIT_BYTES
from edge.contract.replies import REPLIES
from edge.errors import CameraUnavailable
from tests.service.commands.rig import REPLY_TO, CommandRig, message


async def test_an_offer_is_answered_to_its_reply_topic(rig: CommandRig) -> None:
    reply = await rig.ask("session.offer", {"sdp": "v=0", "session": "s1", "viewer": "anna"})
    assert reply["type"] == "session.answer"
    assert reply["ok"] is True
    assert reply["body"]["session"] == "s1"
    assert rig.sessions.calls == ["open anna"]


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
    rig: CommandRig, kind: str, body: dict[str, Any], call: str, type_: str
) -> None:
    reply = await rig.ask(kind, body)
    assert (reply["ok"], reply["type"]) == (True, type_)
    assert rig.sessions.calls == [call]


BODY: dict[str, dict[str, Any]] = {
    "session.offer": {"sdp": "v=0"},
    "session.candidate": {"session": "s1", "candidate": None},
    "session.quality": {"session": "s1", "quality": "sd"},
    "session.close": {"session": "s1"},
}


@pytest.mark.parametrize("kind", sorted(BODIES))
async def test_every_command_is_answered_as_the_contract_says(rig: CommandRig, kind: str) -> None:
    reply = await rig.ask(kind, BODY.get(kind))
    said = REPLIES[kind]
    assert (reply["ok"], reply["type"]) == (True, said.kind)
    body = said.body.model_validate(reply["body"]).model_dump(mode="json") if said.body else None
    assert reply.get("body") == body


async def test_queries_are_answered(rig: CommandRig) -> None:
    assert (await rig.ask("status.get"))["body"]["device"] == "cam-1"
    assert (await rig.ask("session.list"))["body"] == {"sessions": []}


@pytest.mark.parametrize(
    "kind",
    ["session.request_offer", "session.answer", "publish.start", "publish.stop"],
)
async def test_commands_of_later_versions_are_unsupported(rig: CommandRig, kind: str) -> None:
    assert (await rig.ask(kind))["error"]["code"] == "unsupported"


async def test_a_bug_is_reported_as_internal_and_later_commands_work(rig: CommandRig) -> None:
    rig.sessions.bug = ZeroDivisionError("secret detail")
    reply = await rig.ask("session.offer", {"sdp": "v=0"})
    assert reply["error"]["code"] == "internal"
    assert "secret" not in json.dumps(reply)
    assert rig.counters["commands_executed"] == 0
    assert (await rig.ask("status.get"))["ok"]
    assert rig.counters["commands_executed"] == 1


async def test_session_messages_go_to_the_owners_reply_topic(rig: CommandRig) -> None:
    await rig.ask("session.offer", {"sdp": "v=0", "session": "s1"})
    listener, owner = rig.sessions.listener, rig.sessions.owner
    assert listener is not None
    assert owner is not None
    listener.candidate("s1", owner, None, "0")
    listener.closed("s1", owner, EndReason.STOPPED)
    candidate = await rig.broker.sent(lambda m: m.topic == REPLY_TO and b"session.candidate" in m.payload)
    assert candidate["body"] == {"session": "s1", "candidate": None, "sdp_mid": "0"}
    closed = await rig.broker.sent(lambda m: m.topic == REPLY_TO and b"session.closed" in m.payload)
    assert closed["body"] == {"session": "s1", "reason": "stopped", "code": "stopped"}


async def test_a_change_of_quality_reaches_the_session(rig: CommandRig) -> None:
    assert (await rig.ask("session.quality", {"session": "s1", "quality": "sd"}))["type"] == "ok"
    assert rig.sessions.calls == ["quality s1 sd"]
    refused = await rig.ask("session.quality", {"session": "s1", "quality": "best"}, id="c-2")
    assert refused["error"]["code"] == "bad_message"


async def test_controls_are_set_and_all_values_are_returned(rig: CommandRig) -> None:
    reply = await rig.ask("camera.set", {"gain": None, "zoom": {"x": 0.25, "y": 0.25, "width": 0.5, "height": 0.5}})
    assert (reply["type"], reply["body"]) == ("camera.controls", {"controls": {"gain": 2.0, "flip_vertical": False}})
    # Null is passed on; a control that is left out is not.
    assert rig.camera.given == {"gain": None, "zoom": {"x": 0.25, "y": 0.25, "width": 0.5, "height": 0.5}}
    refused = await rig.ask("camera.set", {"gain": 99}, id="c-2")
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
async def test_invalid_controls_are_refused(rig: CommandRig, body: dict[str, Any]) -> None:
    assert (await rig.ask("camera.set", body))["error"]["code"] == "bad_message"
    assert not rig.camera.given


async def test_a_snapshot_that_is_too_large_is_refused_with_the_limit(rig: CommandRig) -> None:
    assert (await rig.ask("camera.snapshot", {"width": 640}))["body"] == {"jpeg_base64": "SlBFRw=="}
    rig.camera.jpeg = bytes(97_000)
    rig.send(json.dumps(message("camera.snapshot", id="c-2")).encode())
    async with asyncio.timeout(5):
        while not rig.broker.published:
            await asyncio.sleep(0.005)
    (sent,) = rig.broker.published
    assert json.loads(sent.payload)["ok"]
    assert len(sent.payload) <= PAYLOAD_LIMIT_BYTES
    rig.camera.jpeg = bytes(98_000)
    error = (await rig.ask("camera.snapshot", id="c-3"))["error"]
    assert (error["code"], "98000 bytes" in error["message"]) == ("too_large", True)


async def test_a_frozen_picture_and_its_return_are_reported_to_the_session(rig: CommandRig) -> None:
    await rig.ask("session.offer", {"sdp": "v=0", "session": "s1"})
    assert rig.sessions.listener is not None
    assert rig.sessions.owner is not None
    rig.sessions.listener.camera("s1", rig.sessions.owner, CameraUnavailable("no picture for 2 s"))
    reply = await rig.broker.sent(lambda m: m.topic == REPLY_TO)
    assert reply["type"] == "session.camera"
    assert reply["body"] == {
        "session": "s1",
        "state": "stalled",
        "code": "camera_stalled",
        "message": "no picture for 2 s",
    }
    rig.sessions.listener.camera("s1", rig.sessions.owner, None)
    reply = await rig.broker.sent(lambda m: m.topic == REPLY_TO)
    assert reply["body"]["state"] == "live"
