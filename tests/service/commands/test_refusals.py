"""A command that is not valid is refused with a code and has no effect."""

from __future__ import annotations

import json
from typing import Any

import pytest

from tests.service.commands.rig import REPLY_TO, TOPICS, CommandRig, message


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
    ],
)
async def test_an_invalid_message_is_refused_with_its_code_and_has_no_effect(
    rig: CommandRig, change: dict[str, Any], code: str
) -> None:
    reply = await rig.ask("session.offer", {"sdp": "v=0"}, **change)
    assert (reply["ok"], reply["type"], reply["error"]["code"]) == (False, "error", code)
    assert rig.sessions.calls == []
    assert rig.counters[f"refused_{code}"] == 1
    assert [(kind, error.code) for kind, error in rig.refused] == [(change.get("type", "session.offer") or "", code)]


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
async def test_a_command_without_a_valid_reply_topic_has_no_effect_and_no_reply(
    rig: CommandRig, reply_to: object
) -> None:
    rig.send(json.dumps(message("stream.stop", reply_to=reply_to)).encode())
    await rig.ask("status.get")
    assert rig.sessions.calls == []
    assert rig.counters["refused_bad_message"] == 1
    assert all(m.topic == TOPICS.status for m in rig.broker.published)


async def test_a_message_that_is_not_json_gets_an_error_on_its_response_topic(rig: CommandRig) -> None:
    rig.send(b"\xff{", response_topic=REPLY_TO, correlation=b"7")
    sent = await rig.broker.sent(lambda m: m.topic == REPLY_TO and m.correlation == b"7")
    assert sent["error"]["code"] == "bad_message"


async def test_a_message_over_the_limit_is_not_parsed(rig: CommandRig, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: Any, **__: Any) -> None:
        raise AssertionError("parsed")

    large = json.dumps(message("session.offer", {"sdp": "x" * 40_000})).encode()
    with monkeypatch.context() as patched:
        patched.setattr("edge.contract.decode.json.loads", fail)
        rig.send(large, response_topic=REPLY_TO, correlation=b"c-7")
        rig.send(large)
    sent = await rig.broker.sent(lambda m: m.topic == REPLY_TO and m.correlation == b"c-7")
    assert (sent["id"], sent["error"]["code"]) == ("", "too_large")
    assert (await rig.ask("status.get"))["ok"]
    assert rig.counters["refused_too_large"] == 2
    assert rig.counters["command_bugs"] == 0


async def test_a_bug_before_the_sender_is_known_does_not_count_as_a_failed_command(
    rig: CommandRig, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Anyone could send such messages, and many of them restart the daemon."""

    def fail(*_: Any, **__: Any) -> None:
        raise AssertionError("a bug")

    with monkeypatch.context() as patched:
        patched.setattr("edge.signalling.intake.read", fail)
        rig.send(b"{}")
    assert rig.counters.pop("intake_bugs", 0) == 1
    assert not rig.counters["command_bugs"]
    assert (await rig.ask("status.get"))["ok"]


@pytest.mark.parametrize("command_id", ["\ud800", "a\ud800", "a\nb", ""])
async def test_an_id_that_cannot_be_encoded_does_no_harm(rig: CommandRig, command_id: str) -> None:
    rig.send(json.dumps({"id": command_id, "reply_to": REPLY_TO}).encode())
    rig.send(json.dumps(message("session.offer", {"sdp": "v=0"}, id=command_id)).encode())
    assert (await rig.ask("status.get"))["ok"]
    assert rig.sessions.calls == []
    assert rig.counters["refused_bad_message"] == 2


async def test_a_reply_topic_with_a_line_break_is_not_valid(rig: CommandRig) -> None:
    rig.send(json.dumps(message("stream.stop", reply_to=REPLY_TO + "\n")).encode())
    await rig.ask("status.get")
    assert rig.sessions.calls == []
