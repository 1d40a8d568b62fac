"""Talk to cameras over MQTT, as contract version 1 says.

async with CameraClient.connect(MqttSettings(host="broker"), "bff-7") as client:
    camera = client.camera("cam-1")
    answer = await camera.offer(sdp_of_the_browser, viewer="anna")
    async for message in camera.candidates(answer.session):
        ...  # a CandidateBody for the browser; at last the ClosedBody
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

from edge.client.inbox import EventFeed, Feeds, SessionMessage, Sessions
from edge.contract.codes import Code
from edge.contract.messages import (
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
    QualityBody,
    Reply,
    SessionInfo,
    SessionList,
    SnapshotBody,
    SnapshotReply,
    Status,
    StreamBody,
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
_AT_ONCE = 50


class CameraClient:
    """One link to the broker, for any number of cameras. An async context manager; event loop only.

    The link is made again by itself; entering the context does not wait for it. `client_id` has to be this
    client's alone: it names its reply topics. `counters` tell what was dropped, and why.
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
        self._cameras: dict[str, Camera] = {}
        self._group = asyncio.TaskGroup()
        self._link: asyncio.Task[None] | None = None
        broker.listen(self._on_message, self._on_link)

    @classmethod
    def connect(cls, settings: MqttSettings, client_id: str, *, timeout_s: float = _TIMEOUT_S) -> Self:
        """A client with a link of its own, by paho."""
        broker = PahoBroker(settings, client_id, cls.subscriptions(client_id, settings.prefix), None)
        return cls(broker, client_id, prefix=settings.prefix, timeout_s=timeout_s)

    @staticmethod
    def subscriptions(client_id: str, prefix: str = "edge/v1") -> tuple[str, ...]:
        """What the broker link has to be subscribed to."""
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
            # The caller's own error goes up as it is.
            if failed.exceptions != (exc,):
                raise

    def camera(self, device: str) -> Camera:
        """The camera with this device id; always the same object for the same id."""
        if device not in self._cameras:
            self._cameras[device] = Camera(self, Topics(device, self._prefix))
        return self._cameras[device]

    async def statuses(self, tokens: Mapping[str, str | None]) -> dict[str, Status | EdgeError]:
        """Ask devices, each with a token of its own, how they are: by device id, or why it did not say.

        For brokers that give wildcard subscriptions no retained messages (AWS IoT). From then on each camera's
        `last_status` follows by itself.
        """
        places = asyncio.Semaphore(_AT_ONCE)

        async def ask(device: str, token: str | None) -> Status | EdgeError:
            async with places:
                try:
                    return await self.camera(device).status(token=token)
                except EdgeError as exc:
                    return exc

        answers = await asyncio.gather(*(ask(device, token) for device, token in tokens.items()))
        return dict(zip(tokens, answers, strict=True))

    async def send(self, command: Command, topics: Topics) -> None:
        """Publish a command; waits for the link and for the broker's acknowledgement. For `Camera`."""
        await self._linked.wait()
        await self._broker.publish(
            Message(
                topic=topics.command,
                payload=json.dumps(command.model_dump(), default=_plain).encode(),
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
        """Why there is no link to the broker, in words; None while there is one."""
        return None if self._linked.is_set() else self._broker.error or "no link to the broker yet"

    def _on_link(self, up: bool) -> None:
        if up:
            self._linked.set()
        else:
            self._linked.clear()

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
            log.warning("%s: a message that the contract does not know: %s", message.topic, _fault(exc))


class Camera:
    """One camera, by its device id. Made by `CameraClient.camera`.

    Every command raises Rejected where the device refuses it or does not reply in time (`timeout`), and BrokerLost
    where there is no link to the broker. `token` is the JWT that the device asks for where authority is on (see
    `Signer`); what is about a session of this client's needs none.
    """

    def __init__(self, client: CameraClient, topics: Topics) -> None:
        self.last_status: Status | None = None
        """As the device, or its last will, last said, by itself or asked by `status`; None before it did."""
        self._online = asyncio.Event()
        self._client = client
        self._topics = topics
        self._reply_to = topics.reply(client.client_id)
        self._pending: dict[str, asyncio.Future[Reply]] = {}
        self._sessions = Sessions(client.counters)
        self._feeds = Feeds(client.counters)

    @property
    def device(self) -> str:
        return self._topics.device

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

        Without `session` an id is chosen here. `trickle=False`: the answer holds all of the device's candidates.
        """
        session = session or secrets.token_urlsafe(16)
        body = _checked(
            OfferBody,
            {
                "sdp": sdp,
                "session": session,
                "viewer": viewer,
                "trickle": trickle,
                "quality": quality,
                "ice_servers": list(ice_servers),
            },
        )
        self._sessions.expect(session)
        return await self._ask("session.offer", body, token, AnswerBody)

    async def candidate(
        self, session: str, candidate: str | None, sdp_mid: str | None = None, *, token: str | None = None
    ) -> None:
        """Hand a browser's candidate to the device; None is the end of candidates. May come before the offer."""
        fields = {"session": session, "candidate": candidate, "sdp_mid": sdp_mid}
        await self._request("session.candidate", _checked(CandidateBody, fields), token)

    def candidates(self, session: str) -> AsyncIterator[SessionMessage]:
        """What the device sends for a session, and at last `ClosedBody`; then it ends.

        That is its candidates, and whether its picture stands still (`CameraNoticeBody`).

        From the session's first message, however late it is called, and for any number of readers. May be called
        before `offer` for a session id that the caller chooses.
        """
        return self._sessions.read(session)

    async def quality(self, session: str, quality: Literal["auto", "hd", "sd"], *, token: str | None = None) -> None:
        """Give a session the other quality, on the connection that it has; returns when it is sent."""
        await self._request("session.quality", _checked(QualityBody, {"session": session, "quality": quality}), token)

    async def set_controls(self, controls: Mapping[str, Any], *, token: str | None = None) -> dict[str, Any]:
        """Set some of the camera's controls (see `ControlsBody`); all values in force afterwards."""
        body = _checked(ControlsBody, dict(controls))
        return (await self._ask("camera.set", body, token, ControlsReply)).controls

    async def snapshot(self, width: int | None = None, quality: int = 80, *, token: str | None = None) -> bytes:
        """One picture as a JPEG, at most 95 kB of it; Rejected as `too_large` where it is more."""
        body = _checked(SnapshotBody, {"width": width, "quality": quality})
        reply = await self._ask("camera.snapshot", body, token, SnapshotReply)
        return base64.b64decode(reply.jpeg_base64)

    async def close(self, session: str, *, token: str | None = None) -> None:
        """End a session."""
        await self._request("session.close", _checked(CloseBody, {"session": session}), token)

    async def sessions(self, *, token: str | None = None) -> list[SessionInfo]:
        """Who watches."""
        return (await self._ask("session.list", EmptyBody(), token, SessionList)).sessions

    async def start(self, reason: str | None = None, *, token: str | None = None) -> Status:
        """Let viewers in. Idempotent; the wish survives a restart of the device."""
        return await self._ask("stream.start", _checked(StreamBody, {"reason": reason}), token, Status)

    async def stop(self, reason: str | None = None, *, token: str | None = None) -> Status:
        """End all sessions and release the camera, until `start`."""
        return await self._ask("stream.stop", _checked(StreamBody, {"reason": reason}), token, Status)

    async def status(self, *, token: str | None = None) -> Status:
        """What is true now."""
        status = await self._ask("status.get", EmptyBody(), token, Status)
        # What the device said by itself since then counts more: it may be its last word.
        if self.last_status is None or status.at >= self.last_status.at:
            self._keep_status(status)
        return status

    async def online(self) -> None:
        """Wait until the device says that it listens; a command that is sent earlier may be lost."""
        await self._online.wait()

    def events(self) -> EventFeed:
        """What happens from now on, as an async iterator without end; bounded, the oldest goes where it is full."""
        return self._feeds.open()

    def receive(self, message: Message) -> None:
        """Take one message of this device's. For `CameraClient`. Raises: ValidationError: it is not the contract's."""
        if message.topic == self._reply_to:
            self._on_reply(Reply.model_validate_json(message.payload))
        elif message.topic == self._topics.event:
            self._feeds.put(Event.model_validate_json(message.payload))
        elif message.topic == self._topics.status:
            self._keep_status(Status.model_validate_json(message.payload))

    def _keep_status(self, status: Status) -> None:
        self.last_status = status
        if status.online:
            self._online.set()
        else:
            self._online.clear()

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
            raise Rejected(Code.INTERNAL, f"the device's reply to {kind} cannot be read: {_fault(exc)}") from None

    async def _request(self, kind: str, body: BaseModel, token: str | None) -> Reply:
        command = Command(
            v=1,
            id=secrets.token_urlsafe(16),
            type=kind,
            expires_at=datetime.now(UTC) + timedelta(seconds=_EXPIRY_S),
            reply_to=self._reply_to,
            token=None if token is None else SecretStr(token),
            # Null means something where it is said: in camera.set it is the default again.
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
        raise Rejected(Code.BAD_MESSAGE, _fault(exc)) from None


def _fault(exc: ValidationError) -> str:
    first = exc.errors(include_url=False, include_input=False, include_context=False)[0]
    return f"{'.'.join(map(str, first['loc']))}: {first['msg']}"


def _plain(value: object) -> str:
    """What JSON does not know: the command is the one place where a secret is written out."""
    if isinstance(value, SecretStr):
        return value.get_secret_value()
    if isinstance(value, datetime):
        return value.isoformat()
    raise TypeError(type(value).__name__)
