"""A fake device that implements contract version 1. Tests script its replies."""

from __future__ import annotations

import asyncio
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from edge.contract.codes import Code, EndReason
from edge.contract.decode import read
from edge.contract.messages import (
    AnswerBody,
    CandidateBody,
    CloseBody,
    ClosedBody,
    Command,
    ErrorInfo,
    Event,
    Limits,
    OfferBody,
    Reply,
    SessionInfo,
    StreamBody,
    StreamStatus,
)
from edge.contract.topics import Topics
from edge.errors import Rejected
from edge.mqtt.broker import Message
from edge.mqtt.paho_broker import PahoBroker
from edge.mqtt.settings import MqttSettings
from tests.rigs.statuses import make_status

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from pydantic import BaseModel

    from edge.client import RemoteCamera
    from edge.contract.messages import Status

ANSWER_SDP = "v=0\r\na=the device's answer\r\n"


def mqtt_settings(port: int) -> MqttSettings:
    return MqttSettings(host="127.0.0.1", port=port, tls=False, version="3.1.1", reconnect_cap_s=0.5)


class FakeDevice:
    """Answers every command. `refusals`: errors by command type. `silent`: command types without a reply."""

    def __init__(self, port: int, device: str = "cam-1") -> None:
        self.refusals: dict[str, Rejected] = {}
        self.silent: set[str] = set()
        self.expired: set[str] = set()
        """Tokens that are refused as expired, as devices before session ownership did."""
        self.candidates: list[str | None] = []
        """Candidates to send for every session, before its answer."""
        self.commands: list[tuple[Command, BaseModel]] = []
        self.sessions: dict[str, str] = {}
        """Reply topics of the open sessions."""
        self.running = True
        self.port = port
        self._topics = Topics(device)
        self._changed = asyncio.Event()
        self._inbox: asyncio.Queue[Message] = asyncio.Queue()
        self._linked = asyncio.Event()
        self._broker = PahoBroker(mqtt_settings(port), device, (self._topics.command,), None)
        self._broker.listen(self._inbox.put_nowait, lambda up: self._linked.set() if up else None)

    @asynccontextmanager
    async def running_device(self) -> AsyncIterator[FakeDevice]:
        async with asyncio.TaskGroup() as group:
            link = group.create_task(self._broker.run(asyncio.Event()), name="fake-device:link")
            work = group.create_task(self._work(), name="fake-device")
            await self._linked.wait()
            yield self
            work.cancel()
            link.cancel()

    async def wait_for_client(self, camera: RemoteCamera) -> None:
        """Wait until a client is connected. amqtt does not close a connection that opens while it stops."""
        await camera.status()
        self.commands.clear()

    async def wait_for_commands(self, kind: str, count: int = 1) -> list[Any]:
        """Wait for `count` commands of a type. Returns: the bodies of all commands of this type."""
        async with asyncio.timeout(10):
            while True:
                bodies = [body for command, body in self.commands if command.type == kind]
                if len(bodies) >= count:
                    return bodies
                self._changed.clear()
                await self._changed.wait()

    async def send_candidate(self, session: str, line: str | None) -> None:
        await self._notify(session, "session.candidate", CandidateBody(session=session, candidate=line, sdp_mid="0"))

    async def end(self, session: str, reason: EndReason) -> None:
        await self._notify(session, "session.closed", ClosedBody(session=session, reason=reason, code=reason.code))
        self.sessions.pop(session)

    async def event(self, kind: str) -> None:
        event = Event(id=f"e-{kind}", type=kind, at=datetime.now(UTC))
        await self._broker.publish(Message(self._topics.event, event.model_dump_json().encode()))

    async def publish_status(self, **changes: Any) -> None:
        payload = self._status(**changes).model_dump_json().encode()
        await self._broker.publish(Message(self._topics.status, payload, retain=True))

    async def publish_reply(self, client: str, payload: bytes) -> None:
        await self._broker.publish(Message(self._topics.reply(client), payload))

    async def _work(self) -> None:
        while True:
            message = await self._inbox.get()
            command, body = read(message.payload).command(datetime.now(UTC))
            assert command.reply_to is not None
            self.commands.append((command, body))
            if command.type not in self.silent:
                reply = await self._reply(command, body)
                await self._broker.publish(Message(command.reply_to, reply.model_dump_json().encode()))
            self._changed.set()

    async def _reply(self, command: Command, body: BaseModel) -> Reply:
        refusal = self.refusals.get(command.type)
        try:
            if refusal is not None:
                raise refusal
            if command.token is not None and command.token.get_secret_value() in self.expired:
                raise Rejected(Code.EXPIRED, "the token has expired")
            kind, answer = await self._effect(command, body)
        except Rejected as exc:
            error = ErrorInfo(code=exc.code, message=exc.message, retry_after_s=exc.retry_after_s)
            return Reply(id=command.id, type="error", ok=False, error=error)
        return Reply(id=command.id, type=kind, ok=True, body=answer)

    async def _effect(self, command: Command, body: BaseModel) -> tuple[str, dict[str, Any] | None]:
        match body:
            case OfferBody(session=str() as session):
                assert command.reply_to is not None
                self.sessions[session] = command.reply_to
                for line in self.candidates:
                    await self.send_candidate(session, line)
                answer = AnswerBody(session=session, sdp=ANSWER_SDP, limits=Limits(viewers=5))
                return "session.answer", answer.model_dump(mode="json")
            case CloseBody(session=session):
                if session not in self.sessions:
                    raise Rejected(Code.UNKNOWN_SESSION, "the session does not exist")
                await self.end(session, EndReason.VIEWER_CLOSED)
            case StreamBody():
                self.running = command.type == "stream.start"
                return "status", self._status().model_dump(mode="json")
        if command.type == "status.get":
            return "status", self._status().model_dump(mode="json")
        if command.type == "session.list":
            return "session.list", {"sessions": [self._listed(session) for session in self.sessions]}
        return "ok", None

    def _status(self, **changes: Any) -> Status:
        stream = StreamStatus(wanted="running" if self.running else "stopped")
        return make_status(self._topics.device, stream=stream, **changes)

    def _listed(self, session: str) -> dict[str, Any]:
        info = SessionInfo(session=session, viewer="anna", state="live", quality="hd", since=datetime.now(UTC))
        return info.model_dump(mode="json")

    async def _notify(self, session: str, kind: str, body: BaseModel) -> None:
        reply = Reply(id=f"d-{session}-{kind}", type=kind, ok=True, body=body.model_dump(mode="json"))
        await self._broker.publish(Message(self.sessions[session], reply.model_dump_json().encode()))
