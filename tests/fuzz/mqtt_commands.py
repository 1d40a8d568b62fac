"""The daemon's MQTT commands under fuzzing: real commands and sessions, small fakes, and a clock that jumps."""

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
from edge.contract.decode import read
from edge.contract.events import EVENTS
from edge.contract.messages import Reply
from edge.contract.topics import Topics
from edge.core.budget import CommandRates
from edge.errors import CameraUnavailable, Rejected
from edge.mqtt.limits import oversize
from edge.sessions.camera_requests import CameraRequests
from edge.sessions.desired_stream import DesiredStream
from edge.sessions.service import SessionService
from edge.sessions.settings import SessionSettings
from edge.signalling.authority import Authority
from edge.signalling.commands import Commands
from edge.signalling.once import Once
from edge.signalling.outbox import Outbox
from edge.streaming.ice_servers import read_ice_servers
from tests.fuzz.sdp import check_engine_offer
from tests.rigs.statuses import make_status
from tests.service.fakes import FakeBroker, FakeCamera, FakeLedger, FakePeer, FakePeers, FakeStateStore

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from pydantic import BaseModel

    from edge.contract.messages import Command, IceServer, Status
    from edge.core.access_unit import Quality, StreamFormat
    from edge.core.authority import Token
    from edge.core.offer import H264Choice, Offer
    from edge.core.once import Row
    from edge.core.ports import PeerEvents
    from edge.core.principal import Principal
    from edge.mqtt.broker import Message

NOW = datetime(2026, 11, 20, 12, 0, 0, tzinfo=UTC)
"""The time at which every input arrives, so that an input has the same meaning on any day."""
ALLOWED_HOSTS = ("turn.example",)
TOPICS = Topics("cam-1")
SETTLED_S = 60.0
OUTCOMES = ("effects", "commands_repeated", *(f"refused_{code}" for code in Code))
_REPLY_TOPIC = re.compile(r"edge/v1/cam-1/reply/[A-Za-z0-9_.:-]{1,64}")
_OF_SESSIONS = {"session.candidate", "session.closed", "session.camera"}
_REPLIES = {"ok", "status", "error", "session.answer", "session.list", "camera.controls", "camera.snapshot"}


class _Jumping(selectors.DefaultSelector):
    """If no event is ready, advance the clock to the next timer at once. Each poll takes a microsecond."""

    now_s = 0.0

    def select(self, timeout: float | None = None) -> list[tuple[selectors.SelectorKey, int]]:
        found = super().select(0)
        if not found:
            assert timeout is not None, "the loop has no timer and would wait forever"
            self.now_s += timeout
        self.now_s += 1e-6  # without this, code that polls slightly before its deadline would loop forever
        return found


class JumpingLoop(asyncio.SelectorEventLoop):
    """An event loop whose waits take no time."""

    def __init__(self) -> None:
        self._jumping = _Jumping()
        super().__init__(self._jumping)

    def time(self) -> float:
        return self._jumping.now_s


class Bugs(logging.Handler):
    """Format each log record as the journal would, and collect the errors."""

    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self.found: list[logging.LogRecord] = []

    def emit(self, record: logging.LogRecord) -> None:
        record.getMessage().encode()
        if record.levelno >= logging.ERROR:
            self.found.append(record)


class OpenClaims:
    """Read tokens without a signature: no mutated token would have a valid one."""

    def claims(self, token: str) -> dict[str, Any]:
        try:
            claims = json.loads(token)
        except (ValueError, RecursionError):
            claims = None
        if not isinstance(claims, dict):
            raise Rejected(Code.UNAUTHORIZED, "the token has no claims")
        return claims

    def verified(self, token: str) -> bool:
        return False


class _Commands(Commands):
    async def _effect_once(
        self, command: Command, body: BaseModel, caller: Principal, token: Token | None
    ) -> BaseModel | None:
        reply = await super()._effect_once(command, body, caller, token)
        self._counters["effects"] += 1
        return reply


class _CheckedOutbox(Outbox):
    """Check each reply against the contract instead of sending it."""

    def __init__(self, *arguments: Any) -> None:
        super().__init__(*arguments)
        self.replies: list[tuple[str, Reply]] = []

    def put(self, message: Message, sender: str = "") -> None:
        assert oversize(message.topic, message.payload) is None
        assert _REPLY_TOPIC.fullmatch(message.topic), "the topic of a reply is not a reply topic"
        reply = Reply.model_validate_json(message.payload)
        assert reply.ok == (reply.error is None)
        assert reply.error is None or len(reply.error.message) < 1000
        if reply.type not in _OF_SESSIONS:
            assert reply.type in _REPLIES
            self.replies.append((message.topic, reply))


def _check_event(kind: str, session: str | None, body: dict[str, Any]) -> None:
    """Check an event against the contract."""
    assert (session is not None) == kind.startswith("session.")
    EVENTS[kind].model_validate(body)


class _NullLedger(FakeLedger):
    def put(self, row: Row) -> None: ...


class _Camera(FakeCamera):
    """A camera that opens slowly and can be stopped meanwhile."""

    def __init__(self) -> None:
        super().__init__()
        self.slow_s = 0.05

    def want(self, wanted: bool) -> None:
        self.wanted = wanted

    async def opened(self) -> StreamFormat:
        opened = await super().opened()
        if not self.wanted:
            raise CameraUnavailable("the camera is closing")
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


class _Device:
    """The commands and sessions of one device. They run during the context of `open`."""

    def __init__(self, counters: Counter[str], bugs: Bugs, *, authority: bool) -> None:
        self.counters = counters
        self._bugs = bugs
        self._time = asyncio.get_running_loop().time
        self._started_s = self._time()
        self.outbox = _CheckedOutbox(FakeBroker(), TOPICS, self._status, self.counters)
        camera, kept = _Camera(), FakeStateStore()
        self.sessions = SessionService(
            SessionSettings(),
            DesiredStream(kept),
            camera,
            _Peers(),
            idle_stop_s=1,
            now_s=self._time,
            on_change=lambda: None,
            publish_event=_check_event,
            counters=self.counters,
        )
        self.once = Once(_NullLedger())
        self.commands = _Commands(
            TOPICS,
            self.sessions,
            CameraRequests(self.sessions, camera, kept, _check_event),
            self.outbox,
            authority=Authority("cam-1", OpenClaims() if authority else None, lambda: True),
            once=self.once,
            rates=CommandRates(50, 100),
            status=self._status,
            now_s=self._time,
            wall_s=self.wall_s,
            on_refusal=lambda _, __: None,
            counters=self.counters,
        )

    def wall_s(self) -> float:
        return NOW.timestamp() + self._time() - self._started_s

    def _status(self) -> Status:
        return make_status(at=NOW)

    @contextlib.asynccontextmanager
    async def open(self) -> Any:
        """Run the parts. Raises: AssertionError: a part did not stop, or a session is left."""
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

    async def deliver(self, messages: Sequence[Message], gap_s: float) -> None:
        """Deliver messages and wait for their effects. Raises: AssertionError: one did not have exactly one outcome."""
        before, sent = Counter(self.counters), len(self.outbox.replies)
        loop = asyncio.get_running_loop()
        for number, message in enumerate(messages):
            loop.call_later(number * gap_s, self.commands.receive, message)
        await asyncio.sleep(len(messages) * gap_s)
        if self.commands._in_progress:
            await asyncio.wait(set(self.commands._in_progress), timeout=SETTLED_S)
        assert not self.commands._in_progress, "a command has no outcome"
        self.check_no_bugs()
        outcomes = self.counters - before
        count = sum(outcomes[name] for name in OUTCOMES)
        assert count == len(messages), f"{count} outcomes for {len(messages)} messages: {outcomes}"
        answered = len(self.outbox.replies) - sent
        assert answered <= len(messages)
        # If a token belongs to another client, the error goes to that client's topic or nowhere.
        if not outcomes["error_replies_withheld"] and not outcomes["refused_forbidden"]:
            reachable = sum(map(_reachable, messages))
            assert answered == reachable, f"{answered} replies for {reachable} messages that name a topic: {outcomes}"

    def check_no_bugs(self) -> None:
        for record in self._bugs.found:
            raise AssertionError(record.getMessage()) from (record.exc_info[1] if record.exc_info else None)
        assert not self.counters["command_bugs"]
        assert not self.counters["intake_bugs"]
        assert not self.counters["session_bugs"]


def _reachable(message: Message) -> bool:
    topic = message.response_topic or read(message.payload).reply_to
    return topic is not None and _REPLY_TOPIC.fullmatch(topic) is not None


class CommandHarness:
    """Run devices in one event loop, one after the other, and count the outcomes of their messages."""

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
        """The number of messages so far by outcome."""
        return {name: self._counters[name] for name in OUTCOMES if self._counters[name]}

    def deliver(self, messages: Sequence[Message], *, authority: bool) -> None:
        """Deliver messages to a new device."""
        self._bugs.found.clear()
        self._loop.run_until_complete(self._deliver(messages, authority=authority))

    async def _deliver(self, messages: Sequence[Message], *, authority: bool) -> None:
        device = _Device(self._counters, self._bugs, authority=authority)
        async with device.open():
            await device.deliver(messages, 0.01)
        device.check_no_bugs()

    def run_long(self, next_messages: Callable[[float], list[Message] | None], *, authority: bool) -> None:
        """Deliver to one device what `next_messages(wall_s)` returns, until it returns None.

        Raises: AssertionError: a command or a token is still remembered after it expired.
        """
        self._bugs.found.clear()
        self._loop.run_until_complete(self._run_long(next_messages, authority=authority))

    async def _run_long(self, next_messages: Callable[[float], list[Message] | None], *, authority: bool) -> None:
        device = _Device(self._counters, self._bugs, authority=authority)
        async with device.open():
            while (messages := next_messages(device.wall_s())) is not None:
                await device.deliver(messages, 0.05)
                device.outbox.replies.clear()
            await asyncio.sleep(900)
            # Expired entries are removed by the next lookup.
            for window in (device.once._proven, device.once._unproven, device.once._tokens):
                window.seen(("nothing",), device.wall_s())
                assert not len(window), "an expired entry is still remembered"
