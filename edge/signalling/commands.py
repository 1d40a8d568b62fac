"""Commands in, replies out: each message to one effect or one code, once."""

from __future__ import annotations

import asyncio
import base64
import logging
import math
import secrets
from collections import deque
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from edge.contract.codes import Code, EndReason
from edge.contract.decode import Received, read
from edge.contract.messages import (
    PAYLOAD_LIMIT_BYTES,
    CameraNoticeBody,
    CandidateBody,
    CloseBody,
    ClosedBody,
    ControlsBody,
    ControlsReply,
    ErrorInfo,
    OfferBody,
    QualityBody,
    Reply,
    SessionList,
    SnapshotBody,
    SnapshotReply,
    Status,
    StreamBody,
)
from edge.contract.replies import REPLIES
from edge.core.authority import WHO_MAY
from edge.core.budget import Budget, CommandRates
from edge.errors import EdgeError, Rejected
from edge.mqtt.broker import Message

if TYPE_CHECKING:
    from collections import Counter
    from collections.abc import Callable, Iterable

    from pydantic import BaseModel

    from edge.contract.messages import Command
    from edge.contract.topics import Topics
    from edge.core.authority import Token
    from edge.core.principal import Principal
    from edge.errors import CameraUnavailable
    from edge.signalling.authority import Authority
    from edge.signalling.once import Once
    from edge.signalling.outbox import Outbox
    from edge.signalling.ports import CameraUse, Sessions

log = logging.getLogger(__name__)

_AT_ONCE = 64
"""Offers and questions; and again as many messages about sessions, so that neither waits for the other."""
_AT_ONCE_EACH = 48
"""Of one reply client: the rest is for the others."""
_EARLY = 256
"""As many as the link holds until its subscriptions are granted."""
_MESSAGE_LIMIT = 500
_NAME_LIMIT = 64
_ENVELOPE_BYTES = 1024
_SNAPSHOT_WIDTH = 640
"""Where none is asked for: a detailed picture of HD's size does not fit a message."""
_JPEG_LIMIT_BYTES = (PAYLOAD_LIMIT_BYTES - _ENVELOPE_BYTES) // 4 * 3
# Beyond every deadline that the settings allow.
_STUCK_S = 180.0


@dataclass(frozen=True, slots=True)
class _UnderWay:
    """A command that is being worked on."""

    since_s: float
    client: str
    about_session: bool


@dataclass(frozen=True, slots=True)
class _ReturnPath:
    """Where replies to one command go, checked."""

    topic: str
    client: str
    correlation: bytes | None


class Commands:
    """The MQTT door. Event loop only.

    Commands over `rates`, and further ones than `_AT_ONCE` under way at a time, are refused as `rate_limited` before
    anything else is looked at; error replies keep to a budget, beyond which a refusal is only counted. `status` gives
    the status for `status.get` and start and stop. `now_s` never goes back, `wall_s` is seconds since 1970.
    """

    def __init__(
        self,
        topics: Topics,
        sessions: Sessions,
        camera: CameraUse,
        outbox: Outbox,
        *,
        authority: Authority,
        once: Once,
        rates: CommandRates,
        status: Callable[[], Status],
        now_s: Callable[[], float],
        wall_s: Callable[[], float],
        refused: Callable[[EdgeError], None],
        counters: Counter[str],
    ) -> None:
        self._topics = topics
        self._sessions = sessions
        self._camera = camera
        self._outbox = outbox
        self._authority = authority
        self._once = once
        self._rates = rates
        self._status = status
        self._now_s = now_s
        self._wall_s = wall_s
        self._refused = refused
        self._counters = counters
        self._error_replies = Budget(per_s=20, burst=40)
        self._group: asyncio.TaskGroup | None = None
        # What the broker kept for a device that was away comes while the daemon still starts. None: that is over.
        self._early: deque[Message] | None = deque()
        self._under_way: dict[asyncio.Task[None], _UnderWay] = {}

    async def run(self, ready: asyncio.Event) -> None:
        """Take commands until cancelled."""
        try:
            async with asyncio.TaskGroup() as group:
                self._group = group
                early, self._early = self._early or (), None
                group.create_task(self._catch_up(early), name="commands:early")
                ready.set()
                await asyncio.Event().wait()
        finally:
            self._group = None

    def well(self, now_s: float) -> bool:
        """Whether no command has been under way for far longer than any may take."""
        return all(now_s - one.since_s < _STUCK_S for one in self._under_way.values())

    def receive(self, message: Message) -> None:
        """A message on the command topic."""
        if self._group is None:
            if self._early is not None and len(self._early) < _EARLY:
                self._early.append(message)
            else:
                self._counters["commands_dropped"] += 1
            return
        self._counters["commands"] += 1
        received = read(message.payload)
        path = self._return_path(message, received)
        log.debug("command: %s", _told(received, path))
        right = WHO_MAY.get(received.kind)
        coming = _UnderWay(self._now_s(), path.client if path else "", right is not None and right.owner)
        try:
            self._let_in(coming)
        except Rejected as exc:
            self._refuse(received, path, exc)
            return
        task = self._group.create_task(self._take(received, path), name=f"command:{received.id[:32]}")
        self._under_way[task] = coming
        task.add_done_callback(lambda done: self._under_way.pop(done, None))

    async def _catch_up(self, early: Iterable[Message]) -> None:
        for message in early:
            if len(self._under_way) >= _AT_ONCE_EACH // 2:
                await asyncio.wait(self._under_way, return_when=asyncio.FIRST_COMPLETED)
            self.receive(message)

    # The door back, for what a session tells by itself.

    def candidate(self, session: str, owner: Principal, line: str | None, mid: str) -> None:
        body = CandidateBody(session=session, candidate=line, sdp_mid=mid)
        self._tell(owner, "session.candidate", body.model_dump(mode="json"))

    def closed(self, session: str, owner: Principal, reason: EndReason) -> None:
        body = ClosedBody(session=session, reason=reason, code=reason.code)
        self._tell(owner, "session.closed", body.model_dump(mode="json"))

    def camera(self, session: str, owner: Principal, error: CameraUnavailable | None) -> None:
        body = (
            CameraNoticeBody(session=session, state="live")
            if error is None
            else CameraNoticeBody(
                session=session, state="stalled", code=Code.CAMERA_STALLED, message=error.message[:_MESSAGE_LIMIT]
            )
        )
        self._tell(owner, "session.camera", body.model_dump(mode="json"))

    def _tell(self, owner: Principal, kind: str, body: dict[str, Any]) -> None:
        reply = Reply(id=f"d-{secrets.token_hex(8)}", type=kind, ok=True, body=body)
        self._send(_ReturnPath(self._topics.reply(owner.client), owner.client, None), _payload(reply))

    async def _take(self, received: Received, path: _ReturnPath | None) -> None:
        try:
            await self._handle(received, path)
        except Exception:
            # A bug that one message can reach must not take the picture from those who watch.
            log.exception("a bug at the MQTT door")
            self._counters["command_bugs"] += 1

    def _let_in(self, coming: _UnderWay) -> None:
        """Raises: Rejected: `rate_limited`."""
        wait_s = self._rates.wait_s(coming.client, coming.since_s, about_session=coming.about_session)
        if wait_s is not None:
            raise Rejected(Code.RATE_LIMITED, "too many commands a second", retry_after_s=max(1, math.ceil(wait_s)))
        alike = [one for one in self._under_way.values() if one.about_session == coming.about_session]
        own = sum(one.client == coming.client for one in alike)
        if len(alike) >= _AT_ONCE or own >= _AT_ONCE_EACH:
            raise Rejected(Code.RATE_LIMITED, "too many commands are under way", retry_after_s=1)

    async def _handle(self, received: Received, path: _ReturnPath | None) -> None:
        now_s = self._wall_s()
        try:
            now = datetime.fromtimestamp(now_s, UTC) if self._authority.knows_time else None
            command, body = received.command(now)
            if path is None:
                raise Rejected(Code.BAD_MESSAGE, "reply_to: not a reply topic of this device")
            token = self._authority.token(command, now_s)
            if token is not None and token.client not in {None, path.client}:
                # Its error, too, goes to the one topic that the token allows.
                path = self._path_to(token.client)
                raise Rejected(Code.FORBIDDEN, "the token is for another reply client")
            caller = self._authority.caller(command, body, token, path.client)
            sender = f"token:{caller.subject}" if caller.by_token else f"client:{path.client}"
            taken = self._once.seen(sender, command, path.client, now_s)
            if taken is not None:
                self._counters["commands_repeated"] += 1
                self._send(path, await taken.reply())
                return
            taken = self._once.take(sender, command, path.client, now_s)
        except Rejected as exc:
            self._refuse(received, path, exc)
            return
        reply = _error(command.id, Rejected(Code.INTERNAL, "the device is shutting down"))
        try:
            reply = _ok(command, await self._effect_once(command, body, caller, token))
        except EdgeError as exc:
            self._count(exc, received, path, loud=self._error_replies.take(self._now_s()))
            reply = _error(command.id, exc)
        except Exception:
            log.exception("a bug in %s", command.type)
            self._counters["command_bugs"] += 1
            reply = _error(command.id, Rejected(Code.INTERNAL, "this command met a fault of the device"))
        finally:
            payload = _payload(reply)
            self._once.answer(sender, command, taken, payload, ok=reply.ok)
            self._send(path, payload)

    async def _effect_once(
        self, command: Command, body: BaseModel, caller: Principal, token: Token | None
    ) -> BaseModel | None:
        """The effect, and what it does to the token: one opens one session."""
        if token is None or WHO_MAY[command.type].owner:
            return await self._effect(command, body, caller)
        opens = isinstance(body, OfferBody)
        self._once.use(token, self._wall_s(), opens=opens)
        try:
            return await self._effect(command, body, caller)
        except EdgeError:
            if opens:
                self._once.give_back(token)
            raise

    async def _effect(self, command: Command, body: BaseModel, caller: Principal) -> BaseModel | None:
        """What the command does; the body of its reply, as `REPLIES` has it."""
        match body:
            case OfferBody():
                return await self._sessions.open(body, caller, self)
            case CandidateBody():
                await self._sessions.candidate(body, caller)
            case QualityBody():
                await self._sessions.quality(body, caller)
            case CloseBody():
                await self._sessions.close(body.session, caller)
            case ControlsBody():
                return ControlsReply(controls=await self._camera.set(body, caller))
            case SnapshotBody():
                if body.width is None:
                    body = body.model_copy(update={"width": _SNAPSHOT_WIDTH})
                return _fitting(await self._camera.snapshot(body, caller))
            case StreamBody() if command.type == "stream.start":
                await self._sessions.start(body, caller)
            case StreamBody():
                await self._sessions.stop(body.reason, caller)
        return self._plain_reply(command)

    def _plain_reply(self, command: Command) -> BaseModel | None:
        if command.type == "session.list":
            return SessionList(sessions=self._sessions.listing())
        return self._status() if REPLIES[command.type].body is Status else None

    def _return_path(self, message: Message, received: Received) -> _ReturnPath | None:
        topic = message.response_topic or received.reply_to
        client = self._topics.reply_client(topic) if topic else None
        return _ReturnPath(topic, client, message.correlation) if topic and client else None

    def _path_to(self, client: str | None) -> _ReturnPath | None:
        topic = self._topics.reply(client or "")
        return _ReturnPath(topic, client, None) if client and self._topics.reply_client(topic) else None

    def _count(self, error: EdgeError, received: Received, path: _ReturnPath | None, *, loud: bool) -> None:
        self._counters[f"refused_{error.code}"] += 1
        self._refused(error)
        if loud:
            log.warning("command refused: %s: %s: %s", _told(received, path), error.code, error.message)

    def _refuse(self, received: Received, path: _ReturnPath | None, error: Rejected) -> None:
        within_budget = self._error_replies.take(self._now_s())
        self._count(error, received, path, loud=within_budget)
        if not within_budget:
            self._counters["error_replies_withheld"] += 1
        elif path is not None:
            self._send(path, _payload(_error(received.id, error)))

    def _send(self, path: _ReturnPath, payload: bytes) -> None:
        self._outbox.put(Message(path.topic, payload, correlation=path.correlation))


def _told(received: Received, path: _ReturnPath | None) -> str:
    """Which command it is, as far as it says so: what it says may be anything."""
    return (
        f"{received.kind[:_NAME_LIMIT]!a} {received.id[:_NAME_LIMIT]!a} from {path.client if path else 'nobody known'}"
    )


def _fitting(jpeg: bytes) -> SnapshotReply:
    if len(jpeg) > _JPEG_LIMIT_BYTES:
        said = f"the picture has {len(jpeg)} bytes, {_JPEG_LIMIT_BYTES} fit: ask for a smaller width or quality"
        raise Rejected(Code.TOO_LARGE, said)
    return SnapshotReply(jpeg_base64=base64.b64encode(jpeg).decode())


def _payload(reply: Reply) -> bytes:
    return reply.model_dump_json(exclude_none=reply.body is None).encode()


def _ok(command: Command, body: BaseModel | None) -> Reply:
    told = None if body is None else body.model_dump(mode="json")
    return Reply(id=command.id, type=REPLIES[command.type].kind, ok=True, body=told)


def _error(command_id: str, error: EdgeError) -> Reply:
    info = ErrorInfo(code=error.code, message=error.message, retry_after_s=getattr(error, "retry_after_s", None))
    return Reply(id=command_id, type="error", ok=False, error=info)
