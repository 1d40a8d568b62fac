"""Who may do what over MQTT: real keys and the real session use case, each line from the right and the wrong side."""

from __future__ import annotations

import asyncio
import itertools
import json
import secrets
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any

import jwt
import pytest

from edge.client import Signer
from edge.client.tokens import jwks
from edge.contract.messages import BODIES
from edge.core.authority import WHO_MAY
from edge.core.budget import CommandRates
from edge.core.principal import Scope
from edge.signalling.tokens import TokenKeys
from tests.service.fakes import FakeLedger
from tests.service.test_commands import REPLY_TO, TOPICS, MqttDoor, running
from tests.service.test_sessions import CANDIDATE, OFFER, House

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable
    from contextlib import AbstractAsyncContextManager
    from pathlib import Path

    Opens = Callable[..., AbstractAsyncContextManager["Door"]]

SIGNER = Signer.generate("one")
OTHER_REPLY_TO = TOPICS.reply("bff-2")
BODY: dict[str, dict[str, Any]] = {
    "session.offer": {"sdp": OFFER, "viewer": "whoever"},
    "session.candidate": {"session": "s1", "candidate": CANDIDATE},
    "session.quality": {"session": "s1", "quality": "sd"},
    "session.close": {"session": "s1"},
    "camera.set": {"gain": 2.0},
}
FOR_A_SCOPE = sorted(kind for kind in BODIES if WHO_MAY[kind].scope and not WHO_MAY[kind].owner)
FOR_THE_OWNER = sorted(kind for kind in BODIES if WHO_MAY[kind].owner)
numbers = itertools.count()


class Door(MqttDoor):
    """With authority. Every command gets an id of its own; a reply is told by its code, or None where it is well."""

    def token(self, *scopes: str, sub: str = "anna", **how: Any) -> str:
        return SIGNER.sign("cam-1", sub, scopes or ("view",), **{"now_s": self.wall_s, **how})

    def claims(self, **change: Any) -> str:
        claims = {"aud": "cam-1", "sub": "anna", "jti": secrets.token_hex(8), "scope": "view", "exp": self.wall_s + 60}
        claims = {name: value for name, value in {**claims, **change}.items() if value is not None}
        return jwt.encode(claims, SIGNER._key, "EdDSA", {"kid": "one"})

    async def code(self, kind: str, token: str | None = None, to: str = REPLY_TO, **fields: Any) -> str | None:
        expires_at = datetime.fromtimestamp(self.wall_s, UTC) + timedelta(seconds=30)
        made = {"id": f"n{next(numbers)}", "expires_at": expires_at.isoformat(), **fields}
        content = made.pop("body", BODY.get(kind))
        reply = await self.ask(kind, content, to, **({} if token is None else {"token": token}), **made)
        return None if reply["ok"] else str(reply["error"]["code"])

    async def open(self, session: str = "s1", sub: str = "anna", to: str = REPLY_TO) -> str:
        token = self.token(sub=sub)
        assert await self.code("session.offer", token, to, body={"sdp": OFFER, "session": session}) is None
        return token


@pytest.fixture
def opens(tmp_path: Path) -> Opens:
    (tmp_path / "jwks.json").write_text(jwks(SIGNER))

    @asynccontextmanager
    async def run(ledger: FakeLedger | None = None, rates: CommandRates | None = None) -> AsyncIterator[Door]:
        house = House(tmp_path)
        made = Door(TokenKeys(tmp_path / "jwks.json"), ledger, rates, house)
        async with running(house.sessions.run), running(made.outbox.run), running(made.commands.run):
            yield made
        assert not made.counters["command_bugs"]

    return run


@pytest.fixture
async def door(opens: Opens) -> AsyncIterator[Door]:
    async with opens() as made:
        yield made


@pytest.mark.parametrize("kind", FOR_A_SCOPE)
async def test_a_command_for_a_scope(door: Door, kind: str) -> None:
    scope = WHO_MAY[kind].scope
    assert scope
    assert await door.code(kind) == "unauthorized"
    assert await door.code(kind, door.token(*(set(Scope) - {scope}))) == "forbidden"
    assert await door.code(kind, door.token(scope)) is None


@pytest.mark.parametrize("kind", FOR_THE_OWNER)
async def test_a_command_for_the_owner(door: Door, kind: str) -> None:
    await door.open()
    scopes = set(Scope) - {Scope.MANAGE} if WHO_MAY[kind].scope else set(Scope)
    assert await door.code(kind, door.token(*scopes, sub="boris")) == "forbidden"
    assert await door.code(kind, door.token(*scopes, sub="anna"), OTHER_REPLY_TO) == "forbidden"
    assert await door.code(kind, None, OTHER_REPLY_TO) == "forbidden"
    assert await door.code(kind, door.token("view", sub="anna")) is None


@pytest.mark.parametrize("kind", FOR_THE_OWNER)
async def test_the_owner_goes_on_with_the_same_token_or_none(door: Door, kind: str) -> None:
    token = await door.open()
    if kind != "session.close":
        assert await door.code(kind, token) is None
    assert await door.code(kind) is None


async def test_who_may_manage_closes_anothers_session(door: Door) -> None:
    await door.open()
    assert await door.code("session.close", door.token("manage", sub="admin"), OTHER_REPLY_TO) is None
    closed = await door.broker.sent(lambda m: m.topic == REPLY_TO and b"session.closed" in m.payload)
    assert closed["body"]["reason"] == "closed_by_backend"


async def test_a_session_is_that_of_the_token_not_of_whom_the_body_names(door: Door) -> None:
    assert await door.code("session.offer", door.token(sub="anna"), body={"sdp": OFFER, "viewer": "boris"}) is None
    reply = await door.ask("session.list", {}, id="list", token=door.token("manage"))
    assert [session["viewer"] for session in reply["body"]["sessions"]] == ["anna"]


@pytest.mark.parametrize(
    ("audio", "scopes", "code"),
    [
        ("listen", ["view"], "forbidden"),
        ("talk", ["view", "listen"], "forbidden"),
        ("talk", ["view", "talk"], "forbidden"),
        ("listen", ["listen"], "forbidden"),
        ("listen", ["view", "listen"], "audio_unavailable"),
        ("talk", ["view", "listen", "talk"], "audio_unavailable"),
    ],
)
async def test_who_may_only_view_cannot_listen(door: Door, audio: str, scopes: list[str], code: str) -> None:
    body = {"sdp": OFFER, "audio": audio}
    assert await door.code("session.offer", door.token(*scopes), body=body) == code


async def test_a_token_of_another_reply_client_is_told_to_that_one_alone(door: Door) -> None:
    token = door.token("manage", client="bff-1")
    door.send(json.dumps({**_command(door, "stream.stop"), "reply_to": OTHER_REPLY_TO, "token": token}).encode())
    told = await door.broker.sent(lambda m: m.topic == REPLY_TO)
    assert told["error"]["code"] == "forbidden"
    assert not [m for m in door.broker.published if m.topic == OTHER_REPLY_TO]
    assert await door.code("stream.stop", token) is None
    # One that names no client that could be is told to nobody.
    token = door.claims(client="bff/#", scope="manage")
    door.send(json.dumps({**_command(door, "stream.start"), "token": token}).encode())
    assert await door.code("status.get", door.token()) is None
    assert door.counters["refused_forbidden"] == 2
    assert not [m for m in door.broker.published if "/reply/" in m.topic]


def _command(door: Door, kind: str) -> dict[str, Any]:
    expires_at = datetime.fromtimestamp(door.wall_s, UTC) + timedelta(seconds=30)
    made = {"v": 1, "id": f"n{next(numbers)}", "type": kind, "expires_at": expires_at.isoformat()}
    return {**made, "reply_to": REPLY_TO, "body": BODY.get(kind, {})}


@pytest.mark.parametrize(
    ("change", "code"),
    [
        ({"aud": "cam-2"}, "unauthorized"),
        ({"exp": -10}, "expired"),
        ({"exp": 700}, "unauthorized"),
        ({"exp": None}, "unauthorized"),
        ({"nbf": 30}, "unauthorized"),
        ({"jti": None}, "unauthorized"),
        ({"sub": None}, "unauthorized"),
        ({"scope": None}, "forbidden"),
    ],
)
async def test_a_token_that_does_not_count_changes_nothing(door: Door, change: dict[str, Any], code: str) -> None:
    (change,) = ({name: door.wall_s + value if isinstance(value, int) else value} for name, value in change.items())
    token = door.claims(**change)
    assert await door.code("session.offer", token) == code
    assert door.counters[f"refused_{code}"] == 1
    assert not (await door.ask("session.list", {}, id="list", token=door.token("manage")))["body"]["sessions"]


async def test_a_jti_opens_one_session_and_is_good_for_nothing_else(door: Door) -> None:
    token = door.token("view", "control")
    assert await door.code("camera.snapshot", token) is None
    assert await door.code("camera.set", token) is None
    assert await door.code("session.offer", token) is None
    for kind in ("session.offer", "camera.snapshot", "camera.set", "status.get"):
        assert await door.code(kind, token) == "replayed"
    # Another viewer's token may have the same id: each backend makes its own.
    claims = {"jti": jwt.decode(token, options={"verify_signature": False})["jti"]}
    assert await door.code("session.offer", door.claims(**claims, sub="boris")) is None


async def test_an_offer_that_was_refused_spends_nothing(door: Door) -> None:
    token = door.token()
    assert await door.code("session.offer", token, body={"sdp": "hello"}) == "bad_offer"
    assert not [key for key in door.ledger.rows if key[0] == "token"]
    assert await door.code("session.offer", token) is None
    assert await door.code("session.offer", token) == "replayed"


async def test_two_offers_at_once_with_one_token_are_one_session(door: Door) -> None:
    token = door.token()
    first, second = await asyncio.gather(door.code("session.offer", token), door.code("session.offer", token))
    assert {first, second} == {None, "replayed"}


async def test_a_duplicate_gets_the_same_reply_at_its_own_topic_alone(door: Door) -> None:
    command = {**_command(door, "session.offer"), "token": door.token()}
    door.send(json.dumps(command).encode())
    first = await door.reply(command["id"])
    # A token is renewed, a command is not.
    door.send(json.dumps({**command, "token": door.token()}).encode())
    assert await door.reply(command["id"]) == first
    door.send(json.dumps({**command, "reply_to": OTHER_REPLY_TO}).encode())
    assert (await door.reply(command["id"], OTHER_REPLY_TO))["error"]["code"] == "replayed"
    # The id is its sender's: another viewer's command of the same id is another.
    door.send(json.dumps({**command, "token": door.token(sub="boris")}).encode())
    assert (await door.reply(command["id"]))["body"]["session"] != first["body"]["session"]


async def test_what_took_effect_and_what_is_spent_hold_over_a_restart(opens: Opens) -> None:
    ledger = FakeLedger()
    async with opens(ledger) as door:
        token = door.token()
        offer = {**_command(door, "session.offer"), "token": token}
        refused = {**_command(door, "session.offer"), "token": door.token(), "body": {"sdp": "hello"}}
        stop = {**_command(door, "stream.stop"), "token": door.token("manage")}
        start = {**_command(door, "stream.start"), "token": door.token("manage")}
        replies = []
        for command in (offer, refused, stop, start):
            door.send(json.dumps(command).encode())
            replies.append(await door.reply(command["id"]))
    async with opens(ledger) as door:
        for command, reply in ((refused, replies[1]), (stop, replies[2]), (start, replies[3])):
            door.send(json.dumps(command).encode())
            assert await door.reply(command["id"]) == reply
        status = await door.ask("status.get", {}, id="asked", token=door.token())
        assert status["ok"]
        door.send(json.dumps(offer).encode())
        assert (await door.reply(offer["id"]))["error"]["code"] == "replayed"
        assert await door.code("session.offer", token) == "replayed"
        assert await door.code("session.offer", door.token()) is None
    async with opens(ledger) as door:
        door.wall_s += 1000
        assert await door.code("session.offer", token) == "expired"


async def test_a_command_that_was_under_way_when_the_device_died_is_not_done_twice(opens: Opens) -> None:
    ledger = FakeLedger()
    async with opens(ledger) as door:
        command = {**_command(door, "stream.stop"), "token": door.token("manage")}
        door.send(json.dumps(command).encode())
        await asyncio.sleep(0)
        ((key, row),) = ledger.rows.items()
        assert (key[0], row.reply) == ("command", None)
        dead = FakeLedger()
        dead.put(row)
    async with opens(dead) as door:
        door.send(json.dumps(command).encode())
        assert (await door.reply(command["id"]))["error"]["code"] == "replayed"


async def test_only_what_matters_after_a_restart_is_written_down(door: Door) -> None:
    await door.open()
    for kind in ("session.candidate", "session.quality"):
        assert await door.code(kind) is None
    assert await door.code("status.get", door.token()) is None
    assert sorted(kind for kind, _, _ in door.ledger.rows) == ["command", "token"]
    assert OFFER not in str(door.ledger.rows)


async def test_until_the_clock_is_known_every_command_that_needs_a_token_waits(door: Door) -> None:
    right_s = door.wall_s
    door.clock_known, door.wall_s = False, 1000.0
    ahead = datetime.fromtimestamp(right_s + 30, UTC).isoformat()
    for kind in FOR_A_SCOPE:
        token = door.token(*Scope, now_s=right_s)
        reply = await door.ask(kind, BODY.get(kind), id=f"a-{kind}", token=token, expires_at=ahead)
        assert reply["error"]["code"] == "clock_unset"
        assert reply["error"]["retry_after_s"]
        assert await door.code(kind, None, expires_at=ahead) == "clock_unset"
    assert await door.code("session.close", door.token("manage"), expires_at=ahead) == "clock_unset"
    assert await door.code("session.close", None, expires_at=ahead) == "unknown_session"
    # What was taken meanwhile is not remembered for longer than anything else.
    assert await door.code("session.quality", None, id="far", expires_at="9999-01-01T00:00:00Z") == "unknown_session"
    assert await door.code("session.quality", None, id="far", expires_at="9999-01-01T00:00:00Z") == "unknown_session"
    assert door.counters["commands_repeated"] == 1
    door.wall_s += 310
    assert await door.code("session.quality", None, id="far", expires_at="9999-01-01T00:00:00Z") == "unknown_session"
    assert door.counters["commands_repeated"] == 1
    door.clock_known, door.wall_s = True, right_s
    for kind in FOR_A_SCOPE:
        assert await door.code(kind, door.token(*Scope)) is None
    assert await door.code("session.offer", door.token(), expires_at="2020-01-01T00:00:00Z") == "expired"


async def test_a_flood_of_offers_keeps_nobody_from_ending_what_they_watch(opens: Opens) -> None:
    async with opens(rates=CommandRates(20, 40)) as door:
        await door.open("s1", "anna")
        for number in range(2000):
            reply_to = TOPICS.reply(f"made-up-{number}")
            door.send(json.dumps({**_command(door, "session.offer"), "reply_to": reply_to}).encode())
        assert door.counters["refused_rate_limited"] > 1500
        assert door.counters["error_replies_withheld"] > 1500
        assert len([m for m in door.broker.published if b"error" in m.payload]) < 100
        assert await door.code("session.quality") is None
        assert await door.code("session.close") is None
        door.now_s += 5
        assert await door.code("status.get", door.token(), OTHER_REPLY_TO) is None


async def test_a_client_over_its_rate_is_told_how_long_to_wait_and_others_are_not_touched(opens: Opens) -> None:
    async with opens(rates=CommandRates(2, 100)) as door:
        token = door.token()
        assert [await door.code("status.get", token) for _ in range(9)] == [None] * 8 + ["rate_limited"]
        assert await door.code("status.get", token, OTHER_REPLY_TO) is None
        reply = await door.ask("status.get", {}, id="again", token=token)
        assert reply["error"]["retry_after_s"] == 1


async def test_one_client_leaves_room_for_others_while_its_commands_are_under_way(opens: Opens) -> None:
    async with opens(rates=CommandRates(1000, 1000)) as door:
        for number in range(60):
            body = {"session": f"nowhere-{number}", "candidate": None}
            door.send(json.dumps({**_command(door, "session.candidate"), "body": body}).encode())
        assert door.counters["refused_rate_limited"] == 12
        assert await door.code("status.get", door.token(), OTHER_REPLY_TO) is None
