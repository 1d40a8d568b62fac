"""The MQTT door for fuzzers: real sessions behind it, small fakes behind those, and a clock that jumps."""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import re
import selectors
from collections import Counter
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from edge.contract.codes import Code
from edge.contract.events import EVENTS
from edge.contract.messages import PAYLOAD_LIMIT_BYTES, Reply, Status
from edge.contract.topics import Topics
from edge.core.budget import CommandRates
from edge.errors import CameraUnavailable, Rejected
from edge.mqtt.limits import oversize
from edge.sessions.camera_use import CameraUse
from edge.sessions.service import Sessions
from edge.sessions.settings import SessionSettings
from edge.sessions.wish import StreamWish
from edge.signalling.authority import Authority
from edge.signalling.commands import Commands
from edge.signalling.once import Once
from edge.signalling.outbox import Outbox
from edge.streaming.ice_servers import read_ice_servers
from tests.fuzz.sdp import check_engine_offer
from tests.service.fakes import FakeBroker, FakeCamera, FakeKept, FakeLedger, FakePeer, FakePeers

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from pydantic import BaseModel

    from edge.contract.messages import Command, IceServer
    from edge.core.access_unit import Quality, StreamFormat
    from edge.core.authority import Token
    from edge.core.offer import H264Choice, Offer
    from edge.core.once import Row
    from edge.core.principal import Principal
    from edge.mqtt.broker import Message
    from edge.sessions.ports import PeerEvents

NOW = datetime(2026, 11, 20, 12, 0, 0, tzinfo=UTC)
"""When every input comes, so that it means the same on any day."""
ALLOWED_HOSTS = ("turn.example",)
TOPICS = Topics("cam-1")
SETTLED_S = 60.0
OUTCOMES = ("effects", "commands_repeated", *(f"refused_{code}" for code in Code))
_REPLY_TOPIC = re.compile(r"edge/v1/cam-1/reply/[A-Za-z0-9_.:-]{1,64}")
_OF_SESSIONS = {"session.candidate", "session.closed", "session.camera"}
_REPLIES = {"ok", "status", "error", "session.answer", "session.list", "camera.controls", "camera.snapshot"}


class _Jumping(selectors.DefaultSelector):
    """Where nothing comes before the next timer, it is that timer's time at once; each look takes a microsecond."""

    now_s = 0.0

    def select(self, timeout: float | None = None) -> list[tuple[selectors.SelectorKey, int]]:
        found = super().select(0)
        if not found:
            assert timeout is not None, "something waits for ever"
            self.now_s += timeout
        self.now_s += 1e-6  # or else who looks again a little too early would do so for ever
        return found


class JumpingLoop(asyncio.SelectorEventLoop):
    """An event loop whose waits take no time."""

    def __init__(self) -> None:
        self._jumping = _Jumping()
        super().__init__(self._jumping)

    def time(self) -> float:
        return self._jumping.now_s


class Bugs(logging.Handler):
    """Reads each line of the log as the journal would, and keeps the errors."""

    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self.found: list[logging.LogRecord] = []

    def emit(self, record: logging.LogRecord) -> None:
        record.getMessage().encode()
        if record.levelno >= logging.ERROR:
            self.found.append(record)


class OpenClaims:
    """Tokens without a signature: no mutated one would ever pass."""

    def claims(self, token: str) -> dict[str, Any]:
        try:
            claims = json.loads(token)
        except (ValueError, RecursionError):
            claims = None
        if not isinstance(claims, dict):
            raise Rejected(Code.UNAUTHORIZED, "the token holds no claims")
        return claims


class _Commands(Commands):
    async def _effect_once(
        self, command: Command, body: BaseModel, caller: Principal, token: Token | None
    ) -> BaseModel | None:
        reply = await super()._effect_once(command, body, caller, token)
        self._counters["effects"] += 1
        return reply


class _Said(Outbox):
    """All that would be sent; each message is held against what the contract promises of it."""

    def __init__(self, *given: Any) -> None:
        super().__init__(*given)
        self.replies: list[tuple[str, Reply]] = []

    def put(self, message: Message) -> None:
        assert oversize(message.topic, message.payload) is None
        assert _REPLY_TOPIC.fullmatch(message.topic), "a reply to a topic that is none"
        reply = Reply.model_validate_json(message.payload)
        assert reply.ok == (reply.error is None)
        assert reply.error is None or len(reply.error.message) < 1000
        if reply.type not in _OF_SESSIONS:
            assert reply.type in _REPLIES
            self.replies.append((message.topic, reply))


def _notice(kind: str, session: str | None, body: dict[str, Any]) -> None:
    """An event that the contract knows."""
    assert (session is not None) == kind.startswith("session.")
    EVENTS[kind].model_validate(body)


class _Forgetful(FakeLedger):
    def put(self, row: Row) -> None: ...


class _Camera(FakeCamera):
    """That is slow to open, and may be stopped meanwhile."""

    def __init__(self) -> None:
        super().__init__()
        self.slow_s = 0.05

    def want(self, wanted: bool) -> None:
        self.wanted = wanted

    async def opened(self) -> StreamFormat:
        opened = await super().opened()
        if not self.wanted:
            raise CameraUnavailable("the camera is not wanted")
        return opened


class _Peer(FakePeer):
    async def answer(self, offer: Offer, choice: H264Choice, *, trickle: bool) -> str:
        await super().answer(offer, choice, trickle=trickle)
        if not trickle:
            asyncio.get_running_loop().call_later(0.1, self.events.connected)
        return check_engine_offer(offer, choice)


class _Peers(FakePeers):
    def __call__(self, events: PeerEvents, ice_servers: Sequence[IceServer], quality: Quality) -> FakePeer:
        read_ice_servers(ice_servers, ALLOWED_HOSTS)
        return _Peer(events, quality)


class Door:
    """One device's door, for as long as a context of `open` lasts."""

    def __init__(self, counters: Counter[str], bugs: Bugs, *, authority: bool) -> None:
        self.counters = counters
        self._bugs = bugs
        self._time = asyncio.get_running_loop().time
        self._begun_s = self._time()
        self.said = _Said(FakeBroker(), TOPICS, self._status, self.counters)
        camera, kept = _Camera(), FakeKept()
        self.sessions = Sessions(
            SessionSettings(),
            StreamWish(kept),
            camera,
            _Peers(),
            idle_stop_s=1,
            now_s=self._time,
            on_change=lambda: None,
            notice=_notice,
            counters=self.counters,
        )
        self.once = Once(_Forgetful(), self.wall_s())
        self.commands = _Commands(
            TOPICS,
            self.sessions,
            CameraUse(self.sessions, camera, kept, _notice),
            self.said,
            authority=Authority("cam-1", OpenClaims() if authority else None, lambda: True),
            once=self.once,
            rates=CommandRates(50, 100),
            status=self._status,
            now_s=self._time,
            wall_s=self.wall_s,
            refused=lambda _: None,
            counters=self.counters,
        )

    def wall_s(self) -> float:
        return NOW.timestamp() + self._time() - self._begun_s

    def _status(self) -> Status:
        return Status(device="cam-1", online=True, at=NOW)

    @contextlib.asynccontextmanager
    async def open(self) -> Any:
        """Its parts run; afterwards nothing of what came is left."""
        tasks = []
        for run in (self.sessions.run, self.commands.run):
            ready = asyncio.Event()
            tasks.append(asyncio.create_task(run(ready)))
            await ready.wait()
        try:
            yield self
        finally:
            for task in reversed(tasks):
                task.cancel()
                await asyncio.wait({task}, timeout=SETTLED_S)
        assert all(task.cancelled() for task in tasks), "a part did not stop"
        assert not self.sessions.count
        assert not self.sessions._early

    async def take(self, messages: Sequence[Message], gap_s: float) -> None:
        """Let messages come, and wait for what they do. Raises: AssertionError: one had not just one outcome."""
        before, sent = Counter(self.counters), len(self.said.replies)
        loop = asyncio.get_running_loop()
        for number, message in enumerate(messages):
            loop.call_later(number * gap_s, self.commands.receive, message)
        await asyncio.sleep(len(messages) * gap_s)
        if self.commands._under_way:
            await asyncio.wait(set(self.commands._under_way), timeout=SETTLED_S)
        assert not self.commands._under_way, "a command has no outcome"
        self.no_bugs()
        became = self.counters - before
        assert sum(became[name] for name in OUTCOMES) == len(messages), f"not one outcome for each message: {became}"
        answered = len(self.said.replies) - sent
        assert answered <= len(messages)
        # What is refused for another's token is told elsewhere, or nowhere.
        if not became["error_replies_withheld"] and not became["refused_forbidden"]:
            reachable = sum(map(_reachable, messages))
            assert answered == reachable, f"{answered} replies for {reachable} messages that name a topic: {became}"

    def no_bugs(self) -> None:
        for record in self._bugs.found:
            raise AssertionError(record.getMessage()) from (record.exc_info[1] if record.exc_info else None)
        assert not self.counters["command_bugs"]
        assert not self.counters["session_bugs"]


def _reachable(message: Message) -> bool:
    try:
        fields = json.loads(message.payload) if len(message.payload) <= PAYLOAD_LIMIT_BYTES else None
    except (ValueError, RecursionError):
        fields = None
    named = fields.get("reply_to") if isinstance(fields, dict) else None
    topic = message.response_topic or named
    return isinstance(topic, str) and _REPLY_TOPIC.fullmatch(topic) is not None


class Doors:
    """The loop that all doors are opened in, one after the other."""

    def __init__(self) -> None:
        self._bugs = Bugs()
        logging.getLogger().addHandler(self._bugs)
        self._loop = JumpingLoop()
        self._counters: Counter[str] = Counter()

    def close(self) -> None:
        logging.getLogger().removeHandler(self._bugs)
        self._loop.close()

    @property
    def outcomes(self) -> dict[str, int]:
        """What became of all messages so far."""
        return {name: self._counters[name] for name in OUTCOMES if self._counters[name]}

    def take(self, messages: Sequence[Message], *, authority: bool) -> None:
        """On a door of their own."""
        self._bugs.found.clear()
        self._loop.run_until_complete(self._take(messages, authority=authority))

    async def _take(self, messages: Sequence[Message], *, authority: bool) -> None:
        door = Door(self._counters, self._bugs, authority=authority)
        async with door.open():
            await door.take(messages, 0.01)
        door.no_bugs()

    def live(self, turns: Callable[[float], list[Message] | None], *, authority: bool) -> None:
        """One door for all of `turns`, which is told the time, until it gives None; later nothing is remembered."""
        self._bugs.found.clear()
        self._loop.run_until_complete(self._live(turns, authority=authority))

    async def _live(self, turns: Callable[[float], list[Message] | None], *, authority: bool) -> None:
        door = Door(self._counters, self._bugs, authority=authority)
        async with door.open():
            while (messages := turns(door.wall_s())) is not None:
                await door.take(messages, 0.05)
                door.said.replies.clear()
            await asyncio.sleep(900)
            # What was remembered is forgotten by the next look.
            for window in (door.once._commands, door.once._tokens):
                window.seen("nobody", "nothing", door.wall_s())
                assert not len(window), "something is remembered that cannot come again"
