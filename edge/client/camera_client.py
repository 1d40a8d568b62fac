"""Controls cameras over MQTT with contract version 1.

async with CameraClient.connect(MqttSettings(host="broker"), "bff-7") as client:
    camera = client.camera("cam-1")
    answer = await camera.offer(sdp_of_the_browser, viewer="anna")
    async for message in camera.candidates(answer.session):
        ...  # a CandidateBody for the browser; the last message is the ClosedBody
"""

from __future__ import annotations

import asyncio
import base64
import json
import logging
import secrets
from collections import Counter
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any, Literal, Self, TypeVar

from pydantic import BaseModel, SecretStr, ValidationError

from edge.client.inbox import EventFeed, Feeds, SessionInboxes, SessionMessage
from edge.contract.codes import Code
from edge.contract.faults import plain_faults
from edge.contract.messages import (
    COMMAND_LIMIT_BYTES,
    AnswerBody,
    CandidateBody,
    CloseBody,
    Command,
    ControlsBody,
    ControlsReply,
    EmptyBody,
    Event,
    IceServer,
    OfferBody,
    Offline,
    QualityBody,
    Reply,
    SessionInfo,
    SessionList,
    SnapshotBody,
    SnapshotReply,
    Status,
    StreamBody,
    read_status,
)
from edge.contract.replies import SESSION_MESSAGES
from edge.contract.topics import Topics
from edge.errors import BrokerLost, EdgeError, Rejected
from edge.mqtt.broker import Broker, Message
from edge.mqtt.paho_broker import PahoBroker

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Mapping, Sequence
    from types import TracebackType

    from edge.mqtt.settings import MqttSettings

log = logging.getLogger(__name__)

_M = TypeVar("_M", bound=BaseModel)
_EXPIRY_S = 30
_TIMEOUT_S = 10.0
_CONCURRENT = 50


class CameraClient:
    """One link to the broker, for any number of cameras. An async context manager; event loop only.

    The link reconnects automatically; entering the context does not wait for it. `client_id` must be unique: it is part
    of the reply topics. `counters` count dropped messages by reason.
    """

    def __init__(
        self, broker: Broker, client_id: str, *, prefix: str = "edge/v1", timeout_s: float = _TIMEOUT_S
    ) -> None:
        """`broker` must subscribe to `subscriptions(client_id, prefix)`; `timeout_s` is the deadline of a reply."""
        self.counters: Counter[str] = Counter()
        self._broker = broker
        self._client_id = client_id
        self._prefix = prefix
        self._timeout_s = timeout_s
        self._linked = asyncio.Event()
        self._cameras: dict[str, RemoteCamera] = {}
        self._group = asyncio.TaskGroup()
        self._link: asyncio.Task[None] | None = None
        broker.listen(self._on_message, self._on_link)

    @classmethod
    def connect(cls, settings: MqttSettings, client_id: str, *, timeout_s: float = _TIMEOUT_S) -> Self:
        """Make a client that opens its own link with paho."""
        broker = PahoBroker(settings, client_id, cls.subscriptions(client_id, settings.prefix), None)
        return cls(broker, client_id, prefix=settings.prefix, timeout_s=timeout_s)

    @staticmethod
    def subscriptions(client_id: str, prefix: str = "edge/v1") -> tuple[str, ...]:
        """The topics to which the broker link must subscribe."""
        return (f"{prefix}/+/reply/{client_id}", f"{prefix}/+/event", f"{prefix}/+/status")

    async def __aenter__(self) -> Self:
        await self._group.__aenter__()
        self._link = self._group.create_task(self._broker.run(asyncio.Event()), name=f"camera-client:{self._client_id}")
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if self._link is not None:
            self._link.cancel()
        try:
            await self._group.__aexit__(kind, exc, traceback)
        except BaseExceptionGroup as failed:
            # Raise the caller's own error unchanged.
            if failed.exceptions != (exc,):
                raise

    def camera(self, device: str) -> RemoteCamera:
        """The camera with this device id. The same id returns the same object."""
        if device not in self._cameras:
            self._cameras[device] = RemoteCamera(self, Topics(device, self._prefix))
        return self._cameras[device]

    async def statuses(self, tokens: Mapping[str, str | None]) -> dict[str, Status | EdgeError]:
        """Request the status of many devices, each with its own token. An error means that the state is unknown.

        Returns a dict by device id. For brokers that send no retained messages to wildcard subscriptions (AWS IoT).
        Afterwards each camera's `last_status` follows the published statuses.
        """
        places = asyncio.Semaphore(_CONCURRENT)

        async def ask(device: str, token: str | None) -> Status | EdgeError:
            async with places:
                try:
                    return await self.camera(device).status(token=token)
                except EdgeError as exc:
                    return exc

        answers = await asyncio.gather(*(ask(device, token) for device, token in tokens.items()))
        return dict(zip(tokens, answers, strict=True))

    async def send(self, command: Command, topics: Topics) -> None:
        """Publish a command; waits for the link and for the broker's acknowledgement. For `RemoteCamera`.

        Raises: Rejected: `too_large`: the device would not read it.
        """
        payload = json.dumps(command.model_dump(), default=_json_value).encode()
        if len(payload) > COMMAND_LIMIT_BYTES:
            raise Rejected(Code.TOO_LARGE, f"the command is larger than {COMMAND_LIMIT_BYTES} bytes")
        await self._linked.wait()
        await self._broker.publish(
            Message(
                topic=topics.command,
                payload=payload,
                response_topic=command.reply_to,
                correlation=command.id.encode(),
                expiry_s=_EXPIRY_S,
            )
        )

    @property
    def client_id(self) -> str:
        return self._client_id

    @property
    def timeout_s(self) -> float:
        return self._timeout_s

    def link_fault(self) -> str | None:
        """Why there is no link to the broker; None while there is one."""
        return None if self._linked.is_set() else self._broker.error or "no link to the broker yet"

    def _on_link(self, up: bool) -> None:
        (self._linked.set if up else self._linked.clear)()

    def _on_message(self, message: Message) -> None:
        device = message.topic.removeprefix(f"{self._prefix}/").partition("/")[0]
        camera = self._cameras.get(device)
        if camera is None:
            self.counters["unclaimed"] += 1
            return
        try:
            camera.receive(message)
        except ValidationError as exc:
            self.counters["unreadable"] += 1
            log.warning("message not in the contract topic=%s error=%s", message.topic, _fault(exc, None))


class RemoteCamera:
    """One camera. Made by `CameraClient.camera`.

    Every command raises Rejected if the device refuses it or does not reply in time (`timeout`), and BrokerLost without
    a link to the broker. `token` is a JWT, which the device requires if authority is on (see `Signer`). A command about
    a session that this client opened has the token of its offer by default, which serves it also after its time.
    """

    def __init__(self, client: CameraClient, topics: Topics) -> None:
        self._last_status: Status | Offline | None = None
        self._status_changed = asyncio.Event()
        self._client = client
        self._topics = topics
        self._reply_to = topics.reply(client.client_id)
        self._pending: dict[str, asyncio.Future[Reply]] = {}
        self._sessions = SessionInboxes(client.counters)
        self._feeds = Feeds(client.counters)

    @property
    def device(self) -> str:
        return self._topics.device

    @property
    def last_status(self) -> Status | Offline | None:
        """The device's latest status, published or requested, or its last will.

        None, which is unknown: none has arrived, or the latest has expired (`valid_until`).
        """
        status = self._last_status
        return None if isinstance(status, Status) and status.expired(datetime.now(UTC)) else status

    @property
    def client_id(self) -> str:
        return self._client.client_id

    async def offer(
        self,
        sdp: str,
        *,
        session: str | None = None,
        viewer: str | None = None,
        trickle: bool = True,
        ice_servers: Sequence[IceServer] = (),
        quality: Literal["auto", "hd", "sd"] = "auto",
        token: str | None = None,
    ) -> AnswerBody:
        """Open a session with a browser's offer.

        Without `session` a random id is used. `trickle=False`: the answer contains all of the device's candidates.
        """
        session = session or secrets.token_urlsafe(16)
        fields = {"sdp": sdp, "session": session, "viewer": viewer, "trickle": trickle, "quality": quality}
        body = _checked(OfferBody, {**fields, "ice_servers": list(ice_servers)})
        self._sessions.expect(session, token)
        return await self._ask("session.offer", body, token, AnswerBody)

    async def candidate(
        self, session: str, candidate: str | None, sdp_mid: str | None = None, *, token: str | None = None
    ) -> None:
        """Send a browser's candidate to the device, even before the offer. None is the end of candidates."""
        fields = {"session": session, "candidate": candidate, "sdp_mid": sdp_mid}
        await self._request("session.candidate", _checked(CandidateBody, fields), token)

    def candidates(self, session: str) -> AsyncIterator[SessionMessage]:
        """Iterate over the messages of a session: candidates, `CameraNoticeBody` and, as the last one, `ClosedBody`.

        Every reader gets all messages from the first one. With a chosen session id, reading may start before `offer`.
        """
        return self._sessions.read(session)

    async def quality(self, session: str, quality: Literal["auto", "hd", "sd"], *, token: str | None = None) -> None:
        """Change the quality of a session on its connection. Returns when the viewer receives the new quality."""
        await self._request("session.quality", _checked(QualityBody, {"session": session, "quality": quality}), token)

    async def set_controls(self, controls: Mapping[str, Any], *, token: str | None = None) -> dict[str, Any]:
        """Set controls of the camera (see `ControlsBody`). Returns the new values of all controls."""
        body = _checked(ControlsBody, dict(controls))
        return (await self._ask("camera.set", body, token, ControlsReply)).controls

    async def snapshot(self, width: int | None = None, quality: int = 80, *, token: str | None = None) -> bytes:
        """Take a picture, a JPEG of at most 95 kB. A larger one is Rejected as `too_large`."""
        body = _checked(SnapshotBody, {"width": width, "quality": quality})
        reply = await self._ask("camera.snapshot", body, token, SnapshotReply)
        return base64.b64decode(reply.jpeg_base64)

    async def close(self, session: str, *, token: str | None = None) -> None:
        """End a session."""
        await self._request("session.close", _checked(CloseBody, {"session": session}), token)

    async def sessions(self, *, token: str | None = None) -> list[SessionInfo]:
        """List the open sessions."""
        return (await self._ask("session.list", EmptyBody(), token, SessionList)).sessions

    async def start(self, reason: str | None = None, *, token: str | None = None) -> Status:
        """Admit viewers. Idempotent; survives a restart of the device."""
        return await self._ask("stream.start", _checked(StreamBody, {"reason": reason}), token, Status)

    async def stop(self, reason: str | None = None, *, token: str | None = None) -> Status:
        """End all sessions and release the camera until `start`. Idempotent; survives a restart of the device."""
        return await self._ask("stream.stop", _checked(StreamBody, {"reason": reason}), token, Status)

    async def status(self, *, token: str | None = None) -> Status:
        """Request the present status."""
        status = await self._ask("status.get", EmptyBody(), token, Status)
        # A status that the device published after this reply is newer: it may be the last one.
        if self.last_status is None or status.at >= self.last_status.at:
            self._keep_status(status)
        return status

    async def online(self) -> None:
        """Wait until the device is online; a command that is sent earlier may be lost."""
        while (status := self.last_status) is None or not status.online:
            self._status_changed.clear()
            await self._status_changed.wait()

    def events(self) -> EventFeed:
        """Iterate over events from now on, without end. Bounded: when it is full, the oldest is dropped."""
        return self._feeds.open()

    def receive(self, message: Message) -> None:
        """Receive a message of this device. For `CameraClient`. Raises: ValidationError: it is not in the contract."""
        if message.topic == self._reply_to:
            self._on_reply(Reply.model_validate_json(message.payload))
        elif message.topic == self._topics.event:
            self._feeds.put(Event.model_validate_json(message.payload))
        elif message.topic == self._topics.status:
            self._keep_status(read_status(message.payload))

    def _keep_status(self, status: Status | Offline) -> None:
        self._last_status = status
        self._status_changed.set()

    def _on_reply(self, reply: Reply) -> None:
        pending = self._pending.pop(reply.id, None)
        if pending is not None:
            if not pending.done():
                pending.set_result(reply)
        elif reply.type in SESSION_MESSAGES:
            self._sessions.put(SESSION_MESSAGES[reply.type].model_validate(reply.body))
        else:
            self._client.counters["late_replies"] += 1

    async def _ask(self, kind: str, body: BaseModel, token: str | None, answer: type[_M]) -> _M:
        reply = await self._request(kind, body, token)
        try:
            return answer.model_validate(reply.body)
        except ValidationError as exc:
            message = f"the device's reply to {kind} is not valid: {_fault(exc, answer)}"
            raise Rejected(Code.INTERNAL, message) from None

    async def _request(self, kind: str, body: BaseModel, token: str | None) -> Reply:
        kept = self._sessions.token(body.session) if isinstance(body, CandidateBody | QualityBody | CloseBody) else None
        try:
            return await self._attempt(kind, body, kept if token is None else token)
        except Rejected as exc:
            # Earlier devices do not accept a token after its time; they need none here.
            if token is not None or kept is None or exc.code is not Code.EXPIRED:
                raise
        return await self._attempt(kind, body, None)

    async def _attempt(self, kind: str, body: BaseModel, token: str | None) -> Reply:
        command = Command(
            v=1,
            id=secrets.token_urlsafe(16),
            type=kind,
            expires_at=datetime.now(UTC) + timedelta(seconds=_EXPIRY_S),
            reply_to=self._reply_to,
            token=None if token is None else SecretStr(token),
            # In camera.set, null resets a control to its default.
            body=body.model_dump(exclude_unset=isinstance(body, ControlsBody)),
        )
        pending: asyncio.Future[Reply] = asyncio.get_running_loop().create_future()
        self._pending[command.id] = pending
        try:
            async with asyncio.timeout(self._client.timeout_s):
                await self._client.send(command, self._topics)
                reply = await pending
        except TimeoutError:
            fault = self._client.link_fault()
            if fault is not None:
                raise BrokerLost(fault) from None
            message = f"{self.device} did not reply to {kind} within {self._client.timeout_s:g} s"
            raise Rejected(Code.TIMEOUT, message) from None
        finally:
            self._pending.pop(command.id, None)
        if reply.ok:
            return reply
        if reply.error is None:
            raise Rejected(Code.INTERNAL, f"the device refused {kind} without an error")
        raise Rejected(reply.error.code, reply.error.message, retry_after_s=reply.error.retry_after_s)


def _checked(model: type[_M], fields: dict[str, Any]) -> _M:
    try:
        return model.model_validate(fields)
    except ValidationError as exc:
        raise Rejected(Code.BAD_MESSAGE, _fault(exc, model)) from None


def _fault(exc: ValidationError, model: type[BaseModel] | None) -> str:
    return plain_faults(exc.errors(), model)[0]


def _json_value(value: object) -> str:
    """Convert values that JSON does not support. Only a command contains secrets in plain text."""
    if isinstance(value, SecretStr):
        return value.get_secret_value()
    if isinstance(value, datetime):
        return value.isoformat()
    raise TypeError(type(value).__name__)
