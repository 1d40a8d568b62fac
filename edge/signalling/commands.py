"""Commands in, replies out: each message to one effect or one code, once."""

from __future__ import annotations

import asyncio
import logging
import secrets
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from edge.contract.codes import Code, EndReason
from edge.contract.decode import Received, read
from edge.contract.messages import (
    LIFETIME_LIMIT_S,
    CandidateBody,
    CloseBody,
    ClosedBody,
    ErrorInfo,
    OfferBody,
    Reply,
    Status,
    StreamBody,
)
from edge.core.budget import Budget
from edge.core.once import OnceWindow
from edge.core.principal import EVERY_SCOPE, Door, Principal, Scope
from edge.errors import EdgeError, Rejected
from edge.signalling.broker import Message

if TYPE_CHECKING:
    from collections import Counter
    from collections.abc import Callable

    from pydantic import BaseModel

    from edge.contract.messages import Command
    from edge.contract.topics import Topics
    from edge.signalling.outbox import Outbox
    from edge.signalling.ports import Sessions

log = logging.getLogger(__name__)

_AT_ONCE = 64
# Beyond every deadline that the settings allow.
_STUCK_S = 180.0
# Without authority nobody can prove that they may manage somebody else's session; the broker's own rules say who
# may publish commands at all.
_WITHOUT_AUTHORITY = EVERY_SCOPE - {Scope.MANAGE}


@dataclass(frozen=True, slots=True)
class _ReturnPath:
    """Where replies to one command go, checked."""

    topic: str
    client: str
    correlation: bytes | None


class Commands:
    """The MQTT door. Event loop only.

    At most `_AT_ONCE` commands are under way at a time, further ones are refused as `rate_limited`; error replies keep
    to a budget, beyond which a refusal is only counted. `status` gives the status for `status.get` and start and stop.
    """

    def __init__(
        self,
        topics: Topics,
        sessions: Sessions,
        outbox: Outbox,
        *,
        status: Callable[[], Status],
        now_s: Callable[[], float],
        refused: Callable[[EdgeError], None],
        counters: Counter[str],
    ) -> None:
        self._topics = topics
        self._sessions = sessions
        self._outbox = outbox
        self._status = status
        self._now_s = now_s
        self._refused = refused
        self._counters = counters
        self._window: OnceWindow[asyncio.Future[bytes]] = OnceWindow(LIFETIME_LIMIT_S)
        self._error_replies = Budget(per_s=20, burst=40)
        self._group: asyncio.TaskGroup | None = None
        self._under_way: dict[asyncio.Task[None], float] = {}

    async def run(self, ready: asyncio.Event) -> None:
        """Take commands until cancelled."""
        try:
            async with asyncio.TaskGroup() as group:
                self._group = group
                ready.set()
                await asyncio.Event().wait()
        finally:
            self._group = None

    def well(self, now_s: float) -> bool:
        """Whether no command has been under way for far longer than any may take."""
        return all(now_s - since_s < _STUCK_S for since_s in self._under_way.values())

    def receive(self, message: Message) -> None:
        """A message on the command topic."""
        if self._group is None:
            self._counters["commands_dropped"] += 1
            return
        self._counters["commands"] += 1
        received = read(message.payload)
        path = self._return_path(message, received)
        if len(self._under_way) >= _AT_ONCE:
            busy = Rejected(Code.RATE_LIMITED, "too many commands are under way", retry_after_s=1)
            self._refuse(received, path, busy)
            return
        task = self._group.create_task(self._take(received, path), name=f"command:{received.id[:32]}")
        self._under_way[task] = self._now_s()
        task.add_done_callback(lambda done: self._under_way.pop(done, None))

    # The door back, for what a session tells by itself.

    def candidate(self, session: str, owner: Principal, line: str | None, mid: str) -> None:
        body = CandidateBody(session=session, candidate=line, sdp_mid=mid)
        self._tell(owner, "session.candidate", body.model_dump(mode="json"))

    def closed(self, session: str, owner: Principal, reason: EndReason) -> None:
        body = ClosedBody(session=session, reason=reason, code=reason.code)
        self._tell(owner, "session.closed", body.model_dump(mode="json"))

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

    async def _handle(self, received: Received, path: _ReturnPath | None) -> None:
        try:
            command, body = received.command(datetime.now(UTC))
            if path is None:
                raise Rejected(Code.BAD_MESSAGE, "reply_to: not a reply topic of this device")
        except Rejected as exc:
            self._refuse(received, path, exc)
            return
        viewer = getattr(body, "viewer", None) or path.client
        caller = Principal(viewer, path.client, Door.MQTT, _WITHOUT_AUTHORITY)
        earlier = self._window.seen(path.client, command.id, self._now_s())
        if earlier is not None:
            self._counters["commands_repeated"] += 1
            self._send(path, await asyncio.shield(earlier))
            return
        outcome: asyncio.Future[bytes] = asyncio.get_running_loop().create_future()
        try:
            self._window.put(path.client, command.id, outcome, self._now_s())
        except Rejected as exc:
            self._refuse(received, path, exc)
            return
        reply = _error(command.id, Rejected(Code.INTERNAL, "the device is shutting down"))
        try:
            reply = await self._effect(command, body, caller)
        except EdgeError as exc:
            self._count(exc, loud=self._error_replies.take(self._now_s()))
            reply = _error(command.id, exc)
        except Exception:
            log.exception("a bug in %s", command.type)
            self._counters["command_bugs"] += 1
            reply = _error(command.id, Rejected(Code.INTERNAL, "this command met a fault of the device"))
        finally:
            payload = _payload(reply)
            outcome.set_result(payload)
            self._send(path, payload)

    async def _effect(self, command: Command, body: BaseModel, caller: Principal) -> Reply:
        match command.type, body:
            case "session.offer", OfferBody():
                answer = await self._sessions.open(body, caller, self)
                return _ok(command.id, "session.answer", answer.model_dump(mode="json"))
            case "session.candidate", CandidateBody():
                await self._sessions.candidate(body, caller)
            case "session.close", CloseBody():
                await self._sessions.close(body.session, caller)
            case "session.list", _:
                listing = [info.model_dump(mode="json") for info in self._sessions.listing(caller)]
                return _ok(command.id, "session.list", {"sessions": listing})
            case "stream.start" | "stream.stop", StreamBody():
                act = self._sessions.start if command.type == "stream.start" else self._sessions.stop
                await act(body.reason, caller)
                return self._status_reply(command.id)
            case "status.get", _:
                return self._status_reply(command.id)
        return _ok(command.id, "ok", None)

    def _status_reply(self, command_id: str) -> Reply:
        return _ok(command_id, "status", self._status().model_dump(mode="json"))

    def _return_path(self, message: Message, received: Received) -> _ReturnPath | None:
        topic = message.response_topic or received.reply_to
        client = self._topics.reply_client(topic) if topic else None
        return _ReturnPath(topic, client, message.correlation) if topic and client else None

    def _count(self, error: EdgeError, *, loud: bool) -> None:
        self._counters[f"refused_{error.code}"] += 1
        self._refused(error)
        if loud:
            log.warning("command refused: %s: %s", error.code, error.message)

    def _refuse(self, received: Received, path: _ReturnPath | None, error: Rejected) -> None:
        within_budget = self._error_replies.take(self._now_s())
        self._count(error, loud=within_budget)
        if not within_budget:
            self._counters["error_replies_withheld"] += 1
        elif path is not None:
            self._send(path, _payload(_error(received.id, error)))

    def _send(self, path: _ReturnPath, payload: bytes) -> None:
        self._outbox.put(Message(path.topic, payload, correlation=path.correlation))


def _payload(reply: Reply) -> bytes:
    return reply.model_dump_json(exclude_none=reply.body is None).encode()


def _ok(command_id: str, kind: str, body: dict[str, Any] | None) -> Reply:
    return Reply(id=command_id, type=kind, ok=True, body=body)


def _error(command_id: str, error: EdgeError) -> Reply:
    info = ErrorInfo(code=error.code, message=error.message, retry_after_s=getattr(error, "retry_after_s", None))
    return Reply(id=command_id, type="error", ok=False, error=info)
