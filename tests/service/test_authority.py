"""Permissions over MQTT with real keys and real sessions: each is granted and refused."""

from __future__ import annotations

import asyncio
import base64
import itertools
import json
import secrets
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta
from functools import partial
from typing import TYPE_CHECKING, Any

import jwt
import pytest

from edge.client import Signer
from edge.client.tokens import jwks
from edge.contract.decode import read
from edge.contract.messages import BODIES
from edge.core.authority import PERMISSIONS
from edge.core.budget import CommandRates
from edge.core.once import OnceWindow
from edge.core.principal import Scope
from edge.signalling import intake, once
from edge.signalling.tokens import TokenKeys
from tests.service.commands.rig import REPLY_TO, TOPICS, CommandRig, message, running
from tests.service.fakes import FakeLedger
from tests.service.sessions.rig import CANDIDATE, OFFER, Rig

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Iterable
    from contextlib import AbstractAsyncContextManager
    from pathlib import Path

    Opens = Callable[..., AbstractAsyncContextManager["AuthorityRig"]]

SIGNER = Signer.generate("one")
OTHER_REPLY_TO = TOPICS.reply("bff-2")
BODY: dict[str, dict[str, Any]] = {
    "session.offer": {"sdp": OFFER, "viewer": "ann"},
    "session.candidate": {"session": "s1", "candidate": CANDIDATE},
    "session.quality": {"session": "s1", "quality": "sd"},
    "session.close": {"session": "s1"},
    "camera.set": {"gain": 2.0},
}
FOR_A_SCOPE = sorted(kind for kind in BODIES if PERMISSIONS[kind].scope and not PERMISSIONS[kind].owner)
FOR_THE_OWNER = sorted(kind for kind in BODIES if PERMISSIONS[kind].owner)
numbers = itertools.count()


class AuthorityRig(CommandRig):
    """A rig with authority. Every command gets a new id. A reply is reduced to its code; None: it succeeded."""

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
    async def run(ledger: FakeLedger | None = None, rates: CommandRates | None = None) -> AsyncIterator[AuthorityRig]:
        session_rig = Rig(tmp_path)
        made = AuthorityRig(TokenKeys(tmp_path / "jwks.json"), ledger, rates, session_rig)
        async with running(session_rig.sessions.run), running(made.outbox.run), running(made.commands.run):
            yield made
        assert not made.counters["command_bugs"] + made.counters["intake_bugs"]

    return run


@pytest.fixture
async def rig(opens: Opens) -> AsyncIterator[AuthorityRig]:
    async with opens() as made:
        yield made


@pytest.mark.parametrize("kind", FOR_A_SCOPE)
async def test_a_command_that_needs_a_scope(rig: AuthorityRig, kind: str) -> None:
    scope = PERMISSIONS[kind].scope
    assert scope
    assert await rig.code(kind) == "unauthorized"
    assert await rig.code(kind, rig.token(*(set(Scope) - {scope}))) == "forbidden"
    assert await rig.code(kind, rig.token(scope)) is None


@pytest.mark.parametrize("kind", FOR_THE_OWNER)
async def test_a_command_that_needs_the_owner(rig: AuthorityRig, kind: str) -> None:
    await rig.open()
    scopes = set(Scope) - {Scope.MANAGE} if PERMISSIONS[kind].scope else set(Scope)
    for to in (REPLY_TO, OTHER_REPLY_TO):
        assert await rig.code(kind, None, to) == "unauthorized"
        assert await rig.code(kind, rig.token(*scopes, sub="boris"), to) == "forbidden"
        assert await rig.code(kind, "x.y.z", to) == "unauthorized"
    assert await rig.code(kind, rig.token("view", sub="anna"), OTHER_REPLY_TO) is None


async def test_an_expired_token_takes_no_place_that_a_new_one_needs(opens: Opens) -> None:
    async with opens(rates=CommandRates(1e6, 1e6)) as rig:
        old = rig.token(sub="anna")
        rig.wall_s += 3600
        for _ in range(1100):
            rig.now_s += 1  # a command in a second is within every rate
            assert await rig.code("session.close", old) == "unknown_session"
        assert await rig.code("session.offer", rig.token(sub="anna")) is None


@pytest.mark.parametrize("kind", FOR_THE_OWNER)
async def test_the_token_of_a_session_serves_it_beyond_its_time(rig: AuthorityRig, kind: str) -> None:
    token, unused = await rig.open(), rig.token("manage", sub="anna")
    await rig.open("s2", "boris")
    rig.wall_s += 3600
    other = {**BODY[kind], "session": "s2"}
    assert await rig.code(kind, token, body=other) == "expired", "another session"
    assert await rig.code(kind, unused) == "expired", "it did not open this session, and its scope has expired, too"
    assert await rig.code("status.get", token) == "expired"
    assert await rig.code(kind, token) is None


async def test_strangers_do_not_feed_or_close_a_session_that_events_name(rig: AuthorityRig) -> None:
    await rig.open()
    for kind in FOR_THE_OWNER:
        for to in (REPLY_TO, OTHER_REPLY_TO):
            assert await rig.code(kind, None, to) == "unauthorized"
    listed = await rig.ask("session.list", {}, id="list", token=rig.token("manage"))
    assert [session["session"] for session in listed["body"]["sessions"]] == ["s1"]


async def test_the_scope_manage_closes_another_clients_session(rig: AuthorityRig) -> None:
    await rig.open()
    assert await rig.code("session.close", rig.token("manage", sub="admin"), OTHER_REPLY_TO) is None
    closed = await rig.broker.sent(lambda m: m.topic == REPLY_TO and b"session.closed" in m.payload)
    assert closed["body"]["reason"] == "closed_by_backend"


async def test_the_viewer_is_that_of_the_token_not_of_the_body(rig: AuthorityRig) -> None:
    assert await rig.code("session.offer", rig.token(sub="anna"), body={"sdp": OFFER, "viewer": "boris"}) is None
    reply = await rig.ask("session.list", {}, id="list", token=rig.token("manage"))
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
async def test_the_scope_view_does_not_include_audio(
    rig: AuthorityRig, audio: str, scopes: list[str], code: str
) -> None:
    body = {"sdp": OFFER, "audio": audio}
    assert await rig.code("session.offer", rig.token(*scopes), body=body) == code


async def test_a_token_of_another_reply_client_is_refused_at_that_clients_topic_only(rig: AuthorityRig) -> None:
    token = rig.token("manage", client="bff-1")
    rig.send(json.dumps({**_command(rig, "stream.stop"), "reply_to": OTHER_REPLY_TO, "token": token}).encode())
    reply = await rig.broker.sent(lambda m: m.topic == REPLY_TO)
    assert reply["error"]["code"] == "forbidden"
    assert not [m for m in rig.broker.published if m.topic == OTHER_REPLY_TO]
    assert await rig.code("stream.stop", token) is None
    # The token names a client that cannot exist: there is no reply.
    token = rig.claims(client="bff/#", scope="manage")
    rig.send(json.dumps({**_command(rig, "stream.start"), "token": token}).encode())
    assert await rig.code("status.get", rig.token()) is None
    assert rig.counters["refused_forbidden"] == 2
    assert not [m for m in rig.broker.published if "/reply/" in m.topic]


def _command(rig: AuthorityRig, kind: str) -> dict[str, Any]:
    expires_at = datetime.fromtimestamp(rig.wall_s, UTC) + timedelta(seconds=30)
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
async def test_an_invalid_token_has_no_effect(rig: AuthorityRig, change: dict[str, Any], code: str) -> None:
    (change,) = ({name: rig.wall_s + value if isinstance(value, int) else value} for name, value in change.items())
    token = rig.claims(**change)
    assert await rig.code("session.offer", token) == code
    assert rig.counters[f"refused_{code}"] == 1
    assert not (await rig.ask("session.list", {}, id="list", token=rig.token("manage")))["body"]["sessions"]


async def test_a_jti_opens_one_session_and_is_used_up(rig: AuthorityRig) -> None:
    token = rig.token("view", "control")
    assert await rig.code("camera.snapshot", token) is None
    assert await rig.code("camera.set", token) is None
    assert await rig.code("session.offer", token) is None
    for kind in ("session.offer", "camera.snapshot", "camera.set", "status.get"):
        assert await rig.code(kind, token) == "replayed"
    jti = jwt.decode(token, options={"verify_signature": False})["jti"]
    assert await rig.code("session.offer", rig.claims(jti=jti, sub="boris")) == "replayed", "for all subjects"
    assert await rig.code("session.offer", rig.claims(sub="boris")) is None


async def test_a_refused_offer_does_not_use_the_token_up(rig: AuthorityRig) -> None:
    token = rig.token()
    assert await rig.code("session.offer", token, body={"sdp": "hello"}) == "bad_offer"
    assert not [key for key in rig.ledger.rows if key[0] == "token"]
    assert await rig.code("session.offer", token) is None
    executed = rig.counters["commands_executed"]
    assert await rig.code("session.offer", token) == "replayed"
    assert rig.counters["commands_executed"] == executed, "the refusal does not show that offers work"


async def test_two_simultaneous_offers_with_one_token_open_one_session(rig: AuthorityRig) -> None:
    token = rig.token()
    first, second = await asyncio.gather(rig.code("session.offer", token), rig.code("session.offer", token))
    assert {first, second} == {None, "replayed"}


async def test_a_duplicate_gets_the_same_reply_at_its_own_topic_only(rig: AuthorityRig) -> None:
    command = {**_command(rig, "session.offer"), "token": rig.token()}
    rig.send(json.dumps(command).encode())
    first = await rig.reply(command["id"])
    # The token was renewed; the command is the same.
    rig.send(json.dumps({**command, "token": rig.token()}).encode())
    assert await rig.reply(command["id"]) == first
    rig.send(json.dumps({**command, "reply_to": OTHER_REPLY_TO}).encode())
    assert (await rig.reply(command["id"], OTHER_REPLY_TO))["error"]["code"] == "replayed"
    # Ids are per sender: another viewer's command with the same id is a different one.
    rig.send(json.dumps({**command, "token": rig.token(sub="boris")}).encode())
    assert (await rig.reply(command["id"]))["body"]["session"] != first["body"]["session"]


async def test_effects_and_used_tokens_survive_a_restart(opens: Opens) -> None:
    ledger = FakeLedger()
    async with opens(ledger) as rig:
        token = rig.token()
        offer = {**_command(rig, "session.offer"), "token": token}
        refused = {**_command(rig, "session.offer"), "token": rig.token(), "body": {"sdp": "hello"}}
        stop = {**_command(rig, "stream.stop"), "token": rig.token("manage")}
        start = {**_command(rig, "stream.start"), "token": rig.token("manage")}
        replies = []
        for command in (offer, refused, stop, start):
            rig.send(json.dumps(command).encode())
            replies.append(await rig.reply(command["id"]))
    async with opens(ledger) as rig:
        for command, reply in ((refused, replies[1]), (stop, replies[2]), (start, replies[3])):
            rig.send(json.dumps(command).encode())
            assert await rig.reply(command["id"]) == reply
        status = await rig.ask("status.get", {}, id="asked", token=rig.token())
        assert status["ok"]
        rig.send(json.dumps(offer).encode())
        assert (await rig.reply(offer["id"]))["error"]["code"] == "replayed"
        assert await rig.code("session.offer", token) == "replayed"
        assert await rig.code("session.offer", rig.token()) is None
    async with opens(ledger) as rig:
        rig.wall_s += 1000
        assert await rig.code("session.offer", token) == "expired"


async def test_a_command_in_progress_at_a_power_cut_is_not_executed_again(opens: Opens) -> None:
    ledger = FakeLedger()
    async with opens(ledger) as rig:
        command = {**_command(rig, "stream.stop"), "token": rig.token("manage")}
        rig.send(json.dumps(command).encode())
        await asyncio.sleep(0)
        ((key, row),) = ledger.rows.items()
        assert (key[0], row.reply) == ("command", None)
        dead = FakeLedger()
        dead.put(row)
    async with opens(dead) as rig:
        rig.send(json.dumps(command).encode())
        assert (await rig.reply(command["id"]))["error"]["code"] == "replayed"


async def test_only_what_matters_after_a_restart_is_stored(rig: AuthorityRig) -> None:
    await rig.open()
    for kind in ("session.candidate", "session.quality"):
        assert await rig.code(kind, rig.token()) is None
    assert await rig.code("status.get", rig.token()) is None
    assert sorted(kind for kind, _, _ in rig.ledger.rows) == ["command", "token"]
    assert OFFER not in str(rig.ledger.rows)


async def test_commands_that_need_a_token_are_refused_until_the_clock_is_set(rig: AuthorityRig) -> None:
    right_s = rig.wall_s
    rig.clock_known, rig.wall_s = False, 1000.0
    ahead = datetime.fromtimestamp(right_s + 30, UTC).isoformat()
    for kind in sorted(BODIES):
        rig.now_s += 10
        token = rig.token(*Scope, now_s=right_s)
        reply = await rig.ask(kind, BODY.get(kind), id=f"a-{kind}", token=token, expires_at=ahead)
        assert reply["error"]["code"] == "clock_unset"
        assert reply["error"]["retry_after_s"]
        assert await rig.code(kind, None, expires_at=ahead) == "clock_unset"
    rig.clock_known, rig.wall_s = True, right_s
    for kind in FOR_A_SCOPE:
        assert await rig.code(kind, rig.token(*Scope)) is None
    assert await rig.code("session.offer", rig.token(), expires_at="2020-01-01T00:00:00Z") == "expired"


async def test_a_flood_of_offers_does_not_keep_viewers_from_closing_their_sessions(opens: Opens) -> None:
    async with opens(rates=CommandRates(20, 40)) as rig:
        token = await rig.open("s1", "anna")
        for number in range(2000):
            reply_to = TOPICS.reply(f"made-up-{number}")
            rig.send(json.dumps({**_command(rig, "session.offer"), "reply_to": reply_to}).encode())
        assert rig.counters["refused_unauthorized"] == 2000
        assert rig.counters["error_replies_withheld"] > 1900
        assert len([m for m in rig.broker.published if b"error" in m.payload]) < 100
        assert await rig.code("session.quality", token) is None
        assert await rig.code("session.close", token) is None
        rig.now_s += 5
        assert await rig.code("status.get", rig.token(), OTHER_REPLY_TO) is None


async def test_a_client_over_its_rate_gets_retry_after_and_others_are_not_affected(opens: Opens) -> None:
    async with opens(rates=CommandRates(2, 100)) as rig:
        token = rig.token()
        assert [await rig.code("status.get", token) for _ in range(9)] == [None] * 8 + ["rate_limited"]
        assert await rig.code("status.get", rig.token(), OTHER_REPLY_TO) == "rate_limited", "the same viewer"
        assert await rig.code("status.get", rig.token(sub="boris")) is None
        reply = await rig.ask("status.get", {}, id="again", token=token)
        assert reply["error"]["retry_after_s"] == 1


async def flood(rig: AuthorityRig, count: int, **fields: Any) -> None:
    """Send queries under made-up names, each taking 0.8 ms to read."""
    rig.tick_s = 0.0008
    for number in range(count):
        command = {**_command(rig, "status.get"), "reply_to": TOPICS.reply(f"made-up-{number}")}
        rig.send(json.dumps({**command, **fields}).encode())
        if number % 100 == 0:
            await asyncio.sleep(0)
    rig.tick_s = 0.0


@pytest.mark.parametrize("token", [None, "x.y.z", "foreign", "expired", "others"])
async def test_a_flood_that_proves_nothing_does_not_keep_a_known_client_waiting(
    opens: Opens, token: str | None
) -> None:
    async with opens(rates=CommandRates(50, 100)) as rig:
        forged = {
            "foreign": Signer.generate("one").sign("cam-1", "anna", now_s=rig.wall_s),
            "expired": rig.token("view", ttl_s=-60),
            "others": rig.token("view", client="bff-1"),
        }.get(token or "", token)
        assert await rig.code("status.get", rig.token()) is None
        await flood(rig, 2000, **({} if forged is None else {"token": forged}))
        assert rig.now_s < 0.8, "the flood takes a bounded share of the time"
        assert rig.counters["refused_rate_limited"] > 1000
        assert await rig.code("status.get", rig.token()) is None
        assert await rig.code("stream.stop", rig.token("manage", sub="admin")) is None
        assert rig.counters["error_replies_withheld"] > 1900
        rig.now_s += 1
        assert await rig.code("status.get", rig.token(sub="boris"), OTHER_REPLY_TO) is None, "a new client"


@pytest.mark.parametrize("token", [None, "x.y.z", "foreign"])
async def test_a_flood_in_the_name_of_an_honest_client_does_not_silence_it(
    opens: Opens, monkeypatch: pytest.MonkeyPatch, token: str | None
) -> None:
    """The client uses a new token for each command. Reading a message takes 5 ms, checking a signature 0.1 ms."""
    async with opens(rates=CommandRates(50, 100)) as rig:
        forged = Signer.generate("one").sign("cam-1", "anna", now_s=rig.wall_s) if token == "foreign" else token
        assert await rig.code("status.get", rig.token()) is None
        monkeypatch.setattr(intake, "read", partial(after, rig, 0.005, read))
        claims = TokenKeys.claims
        monkeypatch.setattr(TokenKeys, "claims", lambda *given: after(rig, 0.0001, claims, *given))
        command = json.dumps({**_command(rig, "status.get"), **({} if forged is None else {"token": forged})})
        answered = 0
        for _ in range(20):
            for _ in range(100):
                rig.now_s += 0.0005
                rig.send(command.encode())
            answered += await rig.code("status.get", rig.token()) is None
        assert answered == 20


@pytest.mark.parametrize("way", ["the token of the offer", "new tokens of a viewer seen before"])
async def test_a_flood_of_forged_tokens_does_not_silence_a_viewer_on_a_slow_processor(
    opens: Opens, monkeypatch: pytest.MonkeyPatch, way: str
) -> None:
    """The flood names the honest reply client and, in the first case, its viewer. Checking a signature takes 2 ms."""
    repeated = way == "the token of the offer"
    async with opens(rates=CommandRates(50, 100)) as rig:
        token = await rig.open()
        decode = jwt.PyJWS.decode
        monkeypatch.setattr(
            jwt.PyJWS, "decode", lambda *given, **how: after(rig, 0.002, partial(decode, **how), *given)
        )
        forged = Signer.generate("one").sign("cam-1", "anna" if repeated else "mallory", now_s=rig.wall_s)
        head, payload, _ = forged.split(".")
        answered = 0
        for _ in range(40):
            for _ in range(100):
                rig.now_s += 0.0005
                signature = base64.urlsafe_b64encode(secrets.token_bytes(64)).decode().rstrip("=")
                command = {**_command(rig, "status.get"), "token": f"{head}.{payload}.{signature}"}
                rig.send(json.dumps(command).encode())
            if repeated:
                answered += await rig.code("session.quality", token) is None
            else:
                answered += await rig.code("status.get", rig.token()) is None
        assert answered == 40
        assert rig.now_s < 4, "the flood takes a bounded share of the time"


def after(rig: AuthorityRig, took_s: float, work: Callable[..., Any], *given: Any) -> Any:
    rig.now_s += took_s
    return work(*given)


async def test_no_signature_is_checked_for_a_viewer_over_its_rate(
    opens: Opens, monkeypatch: pytest.MonkeyPatch
) -> None:
    checked = 0
    claims = TokenKeys.claims

    def counted(keys: TokenKeys, token: str) -> dict[str, Any]:
        nonlocal checked
        checked += 1
        return claims(keys, token)

    monkeypatch.setattr(TokenKeys, "claims", counted)
    async with opens(rates=CommandRates(2, 100)) as rig:
        for _ in range(30):
            rig.send(json.dumps({**_command(rig, "status.get"), "token": rig.token()}).encode())
        assert checked == 8
        assert rig.counters["refused_rate_limited"] == 22
        assert await rig.code("status.get", rig.token(sub="boris")) is None
        assert await rig.code("session.quality", rig.token()) == "unknown_session", "another budget"
        rig.now_s += 1
        assert await rig.code("status.get", rig.token()) is None


async def test_a_viewer_over_its_rate_does_not_keep_the_others_waiting(opens: Opens) -> None:
    async with opens(rates=CommandRates(50, 100)) as rig:
        assert await rig.code("status.get", rig.token(sub="boris"), OTHER_REPLY_TO) is None
        for _ in range(5):
            await flood(rig, 300, token=rig.token("view", sub="hostile"))
            assert await rig.code("status.get", rig.token(sub="boris"), OTHER_REPLY_TO) is None
        assert rig.counters["refused_rate_limited"] > 1200


async def fill_the_window(rig: CommandRig, commands: Iterable[dict[str, Any]]) -> None:
    for command in commands:
        rig.send(json.dumps(command).encode())
        while rig.commands._in_progress:
            await asyncio.sleep(0)


@pytest.fixture
def small_windows(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(once, "OnceWindow", partial(OnceWindow, 64, 16))


@pytest.mark.usefixtures("small_windows")
async def test_commands_without_a_token_take_no_place_from_others(opens: Opens) -> None:
    async with opens(rates=CommandRates(1000, 1000)) as rig:
        body = {"session": "s1", "quality": "hd"}
        topics = [TOPICS.reply(f"made-up-{number}") for number in range(100)]
        await fill_the_window(
            rig, ({**_command(rig, "session.quality"), "reply_to": topic, "body": body} for topic in topics)
        )
        assert await rig.code("status.get", rig.token()) is None
        assert await rig.code("stream.stop", rig.token("manage")) is None


@pytest.mark.usefixtures("small_windows")
async def test_viewers_that_fill_the_window_leave_places_for_manage(opens: Opens) -> None:
    async with opens(rates=CommandRates(1000, 1000)) as rig:
        tokens = [rig.token(sub=f"viewer-{number // 16}") for number in range(64)]
        await fill_the_window(rig, ({**_command(rig, "status.get"), "token": token} for token in tokens))
        assert await rig.code("status.get", rig.token(sub="boris")) == "rate_limited"
        assert await rig.code("stream.stop", rig.token("manage")) is None
        assert await rig.code("stream.start", rig.token("manage", sub="viewer-0")) is None


@pytest.mark.usefixtures("small_windows")
async def test_without_authority_a_full_window_gives_way_after_half_a_minute() -> None:
    rig = CommandRig(rates=CommandRates(1000, 1000))
    async with running(rig.outbox.run), running(rig.commands.run):
        late = (datetime.fromtimestamp(rig.wall_s, UTC) + timedelta(seconds=290)).isoformat()
        first = message("camera.set", {"gain": 2.0}, id="first", expires_at=late)
        topics = [TOPICS.reply(f"made-up-{number}") for number in range(63)]
        await fill_the_window(rig, [first])
        await fill_the_window(rig, (message("status.get", reply_to=topic, expires_at=late) for topic in topics))
        assert (await rig.ask("status.get", id="a"))["error"]["code"] == "rate_limited"
        assert (await rig.ask("stream.stop", id="b"))["ok"], "places are reserved"
        await fill_the_window(rig, [first])
        assert rig.counters["commands_repeated"] == 1
        rig.wall_s += 31
        assert (await rig.ask("status.get", id="c", expires_at=late))["ok"]


async def test_one_client_cannot_use_all_concurrent_commands(opens: Opens) -> None:
    async with opens(rates=CommandRates(1000, 1000)) as rig:
        token = rig.token()
        for number in range(60):
            body = {"session": f"nowhere-{number}", "candidate": None}
            rig.send(json.dumps({**_command(rig, "session.candidate"), "body": body, "token": token}).encode())
        assert rig.counters["refused_rate_limited"] == 12
        assert await rig.code("session.close", rig.token(sub="boris")) == "unknown_session"
