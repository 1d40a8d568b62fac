"""Executes commands and sends replies. Each command takes effect once, or is refused with a code."""

from __future__ import annotations

import asyncio
import base64
import logging
import secrets
from collections import deque
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from edge.contract.codes import Code, EndReason
from edge.contract.messages import (
    COMMAND_LIMIT_BYTES,
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
from edge.core.authority import PERMISSIONS
from edge.core.budget import Budget, FairBudget
from edge.core.log_limit import LogLimit
from edge.core.principal import Scope
from edge.errors import EdgeError, Rejected
from edge.mqtt.broker import Message
from edge.signalling.intake import Intake, ReturnPath
from edge.signalling.once import BY_TOKEN

if TYPE_CHECKING:
    from collections import Counter
    from collections.abc import Callable, Iterable

    from pydantic import BaseModel

    from edge.contract.messages import Command
    from edge.contract.topics import Topics
    from edge.core.authority import Token
    from edge.core.budget import CommandRates
    from edge.core.principal import Principal
    from edge.errors import CameraUnavailable
    from edge.signalling.authority import Authority
    from edge.signalling.intake import Admitted, Incoming
    from edge.signalling.once import Once
    from edge.signalling.outbox import Outbox
    from edge.signalling.ports import CameraCommands, SessionCommands

log = logging.getLogger(__name__)

_CONCURRENT = {False: 64, True: 256}
"""Limit for offers and queries, and another one for messages about sessions: neither can block the other.

Candidates that are earlier than their offer wait for seconds, but cost little.
"""
_CONCURRENT_PER_SENDER = 48
"""Limit for one sender, which leaves the rest to the others."""
_EARLY_LIMIT = 256
"""As many messages as the link holds until its subscriptions are granted."""
_MESSAGE_LIMIT = 500
_ENVELOPE_BYTES = 1024
_SNAPSHOT_WIDTH = 640
"""The default. A detailed picture in HD size does not fit in a message."""
_JPEG_LIMIT_BYTES = (PAYLOAD_LIMIT_BYTES - _ENVELOPE_BYTES) // 4 * 3
_DEVICE_FAULTS = frozenset({Code.INTERNAL, Code.CLOCK_UNSET, Code.NOT_KEPT})
"""Refusals that somebody may have to act on at the device. A client sees the others in its reply."""
# Longer than every deadline that the settings allow.
_STUCK_S = 180.0


@dataclass(frozen=True, slots=True)
class _InProgress:
    """A command in progress."""

    since_s: float
    sender: str
    about_session: bool


class Commands:
    """The command interface over MQTT. Event loop only.

    `Intake` admits them. Beyond `_CONCURRENT` in progress they are refused as `rate_limited`. Error replies have a
    budget for each sender, and a small one for all that prove nothing; beyond it a refusal is only counted. `status`
    provides the reply to `status.get`, start and stop. `now_s` is monotonic, `wall_s` counts from 1970. `on_refusal`
    gets the type of each refused command as received, and the error.
    """

    def __init__(
        self,
        topics: Topics,
        sessions: SessionCommands,
        camera: CameraCommands,
        outbox: Outbox,
        *,
        authority: Authority,
        once: Once,
        rates: CommandRates,
        status: Callable[[], Status],
        now_s: Callable[[], float],
        wall_s: Callable[[], float],
        on_refusal: Callable[[str, EdgeError], None],
        counters: Counter[str],
    ) -> None:
        self._topics = topics
        self._sessions = sessions
        self._camera = camera
        self._outbox = outbox
        self._authority = authority
        self._once = once
        self._intake = Intake(topics, authority, rates, now_s=now_s, wall_s=wall_s)
        self._status = status
        self._now_s = now_s
        self._wall_s = wall_s
        self._on_refusal = on_refusal
        self._counters = counters
        self._errors = FairBudget(each_per_s=10, all_per_s=40)
        self._unproven_errors = Budget(per_s=10, burst=20)
        self._log_limit = LogLimit()
        self._log_lines = Budget(per_s=1, burst=60)
        """For all clients together: a sender can name ever new ones."""
        self._group: asyncio.TaskGroup | None = None
        # The broker delivers messages that it kept for an absent device while the daemon starts. None: it has started.
        self._early: deque[Message] | None = deque()
        self._in_progress: dict[asyncio.Task[None], _InProgress] = {}

    async def run(self, ready: asyncio.Event) -> None:
        """Execute commands until cancelled."""
        try:
            async with asyncio.TaskGroup() as group:
                self._group = group
                early, self._early = self._early or (), None
                group.create_task(self._catch_up(early), name="commands:early")
                ready.set()
                await asyncio.Event().wait()
        finally:
            self._group = None

    def on_time(self) -> bool:
        """Whether no command has been in progress for longer than any may take."""
        now_s = self._now_s()
        return all(now_s - one.since_s < _STUCK_S for one in self._in_progress.values())

    def receive(self, message: Message) -> None:
        """Receive a message on the command topic."""
        if self._group is None:
            too_large = len(message.payload) > COMMAND_LIMIT_BYTES
            if self._early is not None and len(self._early) < _EARLY_LIMIT and not too_large:
                self._early.append(message)
            else:
                self._counters["commands_dropped"] += 1
            return
        self._counters["commands"] += 1
        incoming = self._intake.receive(message)
        try:
            admitted = self._intake.admit(message, incoming)
            self._check_concurrency(admitted)
        except Rejected as exc:
            self._refuse(incoming, exc)
        except Exception:
            # A bug that one message triggers must not end the sessions of viewers. Health counts only `command_bugs`.
            log.exception("command failed because of a bug %s", incoming)
            self._counters["intake_bugs" if incoming.sender is None else "command_bugs"] += 1
        else:
            log.debug("command received %s", incoming)
            name = f"command:{admitted.command.id[:32]}"
            task = self._group.create_task(self._process(incoming, admitted), name=name)
            self._in_progress[task] = _InProgress(self._now_s(), admitted.sender, admitted.about_session)
            task.add_done_callback(lambda done: self._in_progress.pop(done, None))

    async def _catch_up(self, early: Iterable[Message]) -> None:
        for message in early:
            if len(self._in_progress) >= _CONCURRENT_PER_SENDER // 2:
                await asyncio.wait(self._in_progress, return_when=asyncio.FIRST_COMPLETED)
            self.receive(message)

    # `SessionListener`: notifies the client that opened a session.

    def candidate(self, session: str, owner: Principal, line: str | None, mid: str) -> None:
        body = CandidateBody(session=session, candidate=line, sdp_mid=mid)
        self._notify(owner, "session.candidate", body.model_dump(mode="json"))

    def closed(self, session: str, owner: Principal, reason: EndReason) -> None:
        body = ClosedBody(session=session, reason=reason, code=reason.code)
        self._notify(owner, "session.closed", body.model_dump(mode="json"))

    def camera(self, session: str, owner: Principal, error: CameraUnavailable | None) -> None:
        body = (
            CameraNoticeBody(session=session, state="live")
            if error is None
            else CameraNoticeBody(
                session=session, state="stalled", code=Code.CAMERA_STALLED, message=error.message[:_MESSAGE_LIMIT]
            )
        )
        self._notify(owner, "session.camera", body.model_dump(mode="json"))

    def _notify(self, owner: Principal, kind: str, body: dict[str, Any]) -> None:
        reply = Reply(id=f"d-{secrets.token_hex(8)}", type=kind, ok=True, body=body)
        sender = f"{BY_TOKEN}{owner.proven}" if owner.proven is not None else f"client:{owner.client}"
        self._send(ReturnPath(self._topics.reply(owner.client), owner.client, None), _payload(reply), sender)

    def _check_concurrency(self, admitted: Admitted) -> None:
        """Raises: Rejected: `rate_limited`."""
        alike = [one for one in self._in_progress.values() if one.about_session == admitted.about_session]
        own = sum(one.sender == admitted.sender for one in alike)
        if len(alike) >= _CONCURRENT[admitted.about_session] or own >= _CONCURRENT_PER_SENDER:
            raise Rejected(Code.RATE_LIMITED, "too many commands are in progress", retry_after_s=1)

    async def _process(self, incoming: Incoming, admitted: Admitted) -> None:
        try:
            await self._handle(incoming, admitted)
        except Exception:
            log.exception("command failed because of a bug %s", incoming)
            self._counters["command_bugs"] += 1

    async def _handle(self, incoming: Incoming, admitted: Admitted) -> None:
        command, body, token, path = admitted.command, admitted.body, admitted.token, admitted.path
        now_s = self._wall_s()
        try:
            caller = self._authority.caller(command, body, token, path.client)
            accepted = self._once.seen(admitted.sender, command, path.client, now_s)
            if accepted is not None:
                self._counters["commands_repeated"] += 1
                self._send(path, await accepted.reply(), admitted.sender)
                return
            if caller.expired and isinstance(body, CandidateBody | QualityBody | CloseBody):
                # An old token takes no place of its subject's among the commands, except for the session it opened.
                self._sessions.check_owner(body.session, caller)
            manages = PERMISSIONS[command.type].scope is Scope.MANAGE and (not token or Scope.MANAGE in token.scopes)
            accepted = self._once.accept(admitted.sender, command, path.client, now_s, manages=manages)
        except Rejected as exc:
            self._refuse(incoming, exc)
            return
        reply = _error(command.id, Rejected(Code.INTERNAL, "the device is shutting down"))
        try:
            reply = _ok(command, await self._effect_once(command, body, caller, token))
            self._counters["commands_executed"] += 1
        except EdgeError as exc:
            self._note_refusal(exc, incoming, logged=self._may_report(incoming))
            reply = _error(command.id, exc)
        except Exception:
            log.exception("command failed because of a bug %s", incoming)
            self._counters["command_bugs"] += 1
            reply = _error(command.id, Rejected(Code.INTERNAL, "the device has a fault; see its log"))
        finally:
            payload = _payload(reply)
            self._once.answer(admitted.sender, command, accepted, payload, ok=reply.ok)
            self._send(path, payload, admitted.sender)

    async def _effect_once(
        self, command: Command, body: BaseModel, caller: Principal, token: Token | None
    ) -> BaseModel | None:
        """Execute a command; one token opens one session. Counts a command that its handler refuses as executed."""
        opens = isinstance(body, OfferBody)
        if token is not None and not PERMISSIONS[command.type].owner:
            self._once.use(token, self._wall_s(), opens=opens)
        try:
            return await self._effect(command, body, caller)
        except EdgeError:
            # The handler ran to its end and refused on purpose: for `Health` it works. Refusals before it say nothing.
            self._counters["commands_executed"] += 1
            if token is not None and opens:
                self._once.release(token)
            raise

    async def _effect(self, command: Command, body: BaseModel, caller: Principal) -> BaseModel | None:
        """Execute a command; return the body of its reply, as in `REPLIES`."""
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

    def _note_refusal(self, error: EdgeError, incoming: Incoming, *, logged: bool) -> None:
        kind = incoming.received.kind
        self._counters[f"refused_{error.code}"] += 1
        self._on_refusal(kind, error)
        client = incoming.path.client if incoming.path else ""
        # The client chooses the type; unknown ones share a key.
        key = client, kind if kind in PERMISSIONS else "", error.code
        count = self._log_limit.due(self._now_s(), key) if logged else None
        if count and self._log_lines.take(self._now_s()):
            level = logging.WARNING if error.code in _DEVICE_FAULTS else logging.INFO
            log.log(level, "command refused %s code=%s count=%d error=%s", incoming, error.code, count, error.detail)

    def _may_report(self, incoming: Incoming) -> bool:
        """Take from the budget of error replies and their log lines: the sender's, or that of the unproven."""
        if incoming.sender is None:
            return self._unproven_errors.take(self._now_s())
        return self._errors.wait_s(incoming.sender, self._now_s()) is None

    def _refuse(self, incoming: Incoming, error: Rejected) -> None:
        within_budget = self._may_report(incoming)
        self._note_refusal(error, incoming, logged=within_budget)
        if not within_budget:
            self._counters["error_replies_withheld"] += 1
        elif incoming.path is not None:
            self._send(incoming.path, _payload(_error(incoming.received.id, error)), incoming.sender or "")

    def _send(self, path: ReturnPath, payload: bytes, sender: str) -> None:
        self._outbox.put(Message(path.topic, payload, correlation=path.correlation), sender)


def _fitting(jpeg: bytes) -> SnapshotReply:
    if len(jpeg) > _JPEG_LIMIT_BYTES:
        fault = f"the picture has {len(jpeg)} bytes, the limit is {_JPEG_LIMIT_BYTES}"
        raise Rejected(Code.TOO_LARGE, f"{fault}; request a smaller width or quality")
    return SnapshotReply(jpeg_base64=base64.b64encode(jpeg).decode())


def _payload(reply: Reply) -> bytes:
    return reply.model_dump_json(exclude_none=reply.body is None).encode()


def _ok(command: Command, body: BaseModel | None) -> Reply:
    fields = None if body is None else body.model_dump(mode="json")
    return Reply(id=command.id, type=REPLIES[command.type].kind, ok=True, body=fields)


def _error(command_id: str, error: EdgeError) -> Reply:
    info = ErrorInfo(code=error.code, message=error.message, retry_after_s=getattr(error, "retry_after_s", None))
    return Reply(id=command_id, type="error", ok=False, error=info)
