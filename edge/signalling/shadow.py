"""Exchanges shadow documents: receives desired settings, reports the settings in force."""

from __future__ import annotations

import asyncio
import json
import logging
import random
import secrets
from typing import TYPE_CHECKING, Any

from pydantic import ValidationError

from edge.contract.codes import Code
from edge.contract.decode import read
from edge.contract.shadow import SHADOW_LIMIT_BYTES, ShadowDocument, ShadowError
from edge.core.backoff import Backoff
from edge.core.log_limit import LogLimit
from edge.core.tuning import without_nulls
from edge.errors import BrokerLost, EdgeError, Rejected
from edge.mqtt.broker import Message

if TYPE_CHECKING:
    from collections import Counter
    from collections.abc import Callable

    from edge.contract.topics import ShadowTopics
    from edge.core.tuning import SettingsValues
    from edge.mqtt.broker import Broker
    from edge.signalling.ports import Tuning

log = logging.getLogger(__name__)

_ANSWER_TIMEOUT_S = 10.0
_RETRY_CAP_S = 900.0
_HANG_UP_S = 2.0
"""A link that closes so soon after a request closes because of it: AWS IoT does so if the policy forbids it."""
_LEVELS = 6
"""AWS IoT's limit of nesting."""
_MESSAGE_LIMIT = 200
_NOT_FOUND = 404
_CODES = {401: Code.FORBIDDEN, 403: Code.FORBIDDEN, 413: Code.TOO_LARGE, 429: Code.RATE_LIMITED}


class Shadow:
    """The shadow of one device. Event loop only.

    AWS IoT stores the shadow. A delta contains only the differences, and nothing about removed settings; so the device
    requests the whole document after each notification. On other brokers no service answers: the retained delta of the
    backend is the whole document, and so is the retained report of the device.

    A failed request is retried while the link is up, after waits that grow up to 15 minutes. A change or a new link
    ends the wait. `on_refusal`: a document is at fault. `on_failure`: a request failed.
    """

    def __init__(
        self,
        topics: ShadowTopics,
        broker: Broker,
        tuning: Tuning,
        *,
        on_refusal: Callable[[Rejected], None],
        on_failure: Callable[[EdgeError], None],
        counters: Counter[str],
        answer_s: float = _ANSWER_TIMEOUT_S,
    ) -> None:
        self._topics = topics
        self._broker = broker
        self._tuning = tuning
        self._on_refusal = on_refusal
        self._on_failure = on_failure
        self._counters = counters
        self._answer_s = answer_s
        self._log_limit = LogLimit()
        self._backoff = Backoff(first_s=1.0, cap_s=_RETRY_CAP_S)
        self._due = asyncio.Event()
        self._stale = False
        """Whether the document must be requested."""
        self._newest = 0
        """The newest version of which the service notified the device."""
        self._seen = 0
        """The version that the device has read."""
        self._last = tuning.version
        """Without a service: the version of the last document, also from before a restart."""
        self._reported: SettingsValues | None = None
        self._open_request: tuple[str, asyncio.Future[ShadowDocument | ShadowError | None]] | None = None
        self._sent_s = float("-inf")
        self._link_closed_on_request = False

    def link(self, up: bool) -> None:
        """The link opened or closed: the device may have missed notifications."""
        self._stale, self._newest, self._seen, self._reported = self._topics.at_aws, 0, 0, None
        if self._open_request is not None and not self._open_request[1].done():
            self._open_request[1].set_result(None)
        loop = asyncio.get_running_loop()
        if not up:
            self._link_closed_on_request = loop.time() - self._sent_s < _HANG_UP_S
        elif self._link_closed_on_request:
            loop.call_later(self._backoff.next_s(random.random()), self._due.set)  # noqa: S311  jitter
        else:
            self._backoff.reset()
            self._due.set()

    def changed(self) -> None:
        """The report changed."""
        self._due.set()

    def receive(self, message: Message) -> None:
        """Receive a message on one of the shadow's topics."""
        try:
            self._handle(message)
        except Rejected as exc:
            self._refuse(exc)

    async def run(self, ready: asyncio.Event) -> None:
        """Request documents and send reports until cancelled."""
        ready.set()
        while True:
            await self._due.wait()
            self._due.clear()
            await self._settle()

    async def _settle(self) -> None:
        """Request and report until nothing is left to do, or the link is down."""
        while self._reachable and (self._behind or without_nulls(self._tuning.report()) != self._reported):
            try:
                await (self._get() if self._behind else self._update())
                self._backoff.reset()
            except EdgeError as exc:
                self._counters["shadow_requests_failed"] += 1
                if self._reachable:
                    self._on_failure(exc)
                    self._log(exc)
                await self._wait()

    async def _wait(self) -> None:
        try:
            async with asyncio.timeout(self._backoff.next_s(random.random())):  # noqa: S311  jitter
                await self._due.wait()
        except TimeoutError:
            pass
        self._due.clear()

    @property
    def _reachable(self) -> bool:
        # Without the subscriptions there are no answers. AWS IoT also closes a link that publishes without permission.
        return self._broker.connected and self._broker.optional_granted

    @property
    def _behind(self) -> bool:
        """Whether the service may have desired settings that the device has not read."""
        return self._stale or self._newest > self._seen

    async def _get(self) -> None:
        newest = self._newest
        self._stale = False  # a notification during the request may set it again
        try:
            answer = await self._request(self._topics.get, {})
            if isinstance(answer, ShadowError) and answer.code != _NOT_FOUND:
                raise _failure("get", answer)
        except EdgeError:
            self._stale = True
            raise
        if isinstance(answer, ShadowError):
            self._seen, self._reported = newest, None
            return
        if (answer.version or 0) < newest:
            # A late answer, or the shadow was deleted and its versions restarted: accept the next answer.
            self._newest, self._stale = answer.version or 0, True
            raise Rejected(Code.TIMEOUT, "shadow: the service returned an older document than it announced")
        self._seen = answer.version or 0
        self._reported = without_nulls(_section(answer, "reported"))
        try:
            self._desire(_section(answer, "desired"), answer.version, answer.metadata.get("desired"))
        except Rejected as exc:
            # A retry would return the same document.
            self._refuse(exc)

    async def _update(self) -> None:
        report = self._tuning.report()
        fields = {"state": {"reported": report}}
        if not self._topics.at_aws:
            await self._send(Message(self._topics.update, json.dumps(fields).encode(), retain=True))
        else:
            answer = await self._request(self._topics.update, fields)
            if isinstance(answer, ShadowError):
                raise _failure("update", answer)
            if answer.version == self._seen + 1:
                # No other client wrote in between, so the document is still known.
                self._seen = answer.version
        self._reported = without_nulls(report)

    async def _send(self, message: Message) -> None:
        """Raises: BrokerLost. Rejected."""
        self._sent_s = asyncio.get_running_loop().time()
        await self._broker.publish(message)
        self._sent_s = float("-inf")

    async def _request(self, topic: str, fields: dict[str, Any]) -> ShadowDocument | ShadowError:
        """Raises: BrokerLost. Rejected: the request could not be sent, or there was no answer in time."""
        # The answers to other clients' requests use the same topics.
        token = secrets.token_hex(8)
        future: asyncio.Future[ShadowDocument | ShadowError | None] = asyncio.get_running_loop().create_future()
        self._open_request = token, future
        try:
            async with asyncio.timeout(self._answer_s):
                await self._send(Message(topic, json.dumps({**fields, "clientToken": token}).encode()))
                answer = await future
        except TimeoutError:
            raise Rejected(Code.TIMEOUT, f"shadow: no answer within {self._answer_s:g} s") from None
        finally:
            self._open_request = None
        if answer is None:
            raise BrokerLost("the link closed before the shadow answered")
        return answer

    def _handle(self, message: Message) -> None:
        if not message.payload:
            return  # a client cleared the retained document
        topics, topic = self._topics, message.topic
        document = _parsed(message.payload, error=topic in {topics.get_rejected, topics.update_rejected})
        if self._open_request is not None and document.clientToken == self._open_request[0]:
            if not self._open_request[1].done():
                self._open_request[1].set_result(document)
        elif isinstance(document, ShadowDocument):
            if topic == topics.delta and not self._topics.at_aws:
                self._receive_whole(document)
            elif topic == topics.delta or (topic == topics.update_accepted and "desired" in document.state):
                self._note_version(document.version or 0)

    def _receive_whole(self, document: ShadowDocument) -> None:
        version = document.version
        if version is not None and self._last is not None and version < self._last:
            raise Rejected(Code.BAD_MESSAGE, f"shadow: version {version} is older than the last, {self._last}")
        self._desire(document.state, version, version)
        self._last = version

    def _note_version(self, version: int) -> None:
        """The service notified the device of this version."""
        if version < max(self._newest, self._seen):
            # A late notification, or the shadow was deleted and its versions restarted: the next answer decides.
            self._newest, self._seen, self._stale = version, 0, True
        self._newest = max(self._newest, version)
        self._due.set()

    def _desire(self, desired: SettingsValues, version: int | None, stamp: object) -> None:
        """Raises: Rejected: the document exceeds the limits of a shadow."""
        if not _shallow(desired, _LEVELS):
            raise Rejected(Code.BAD_MESSAGE, f"shadow: more than {_LEVELS} levels")
        try:
            size = len(json.dumps(desired, ensure_ascii=False).encode())
        except ValueError:
            raise Rejected(Code.BAD_MESSAGE, "shadow: a text is not valid Unicode") from None
        if size > SHADOW_LIMIT_BYTES:
            raise Rejected(Code.TOO_LARGE, f"shadow: {size} bytes are desired, the limit is {SHADOW_LIMIT_BYTES}")
        self._tuning.desire(desired, version, stamp)

    def _refuse(self, error: Rejected) -> None:
        """Refuse a document."""
        self._counters["shadow_documents_refused"] += 1
        self._on_refusal(error)
        self._log(error)

    def _log(self, error: EdgeError) -> None:
        now_s = asyncio.get_running_loop().time()
        if (count := self._log_limit.due(now_s, error.code)) is not None:
            log.warning("shadow failed code=%s failures=%d error=%s", error.code, count, error.message)


def _parsed(payload: bytes, *, error: bool) -> ShadowDocument | ShadowError:
    """Raises: Rejected: it is not a shadow document."""
    received = read(payload)
    if received.fault is not None:
        raise Rejected(Code.BAD_MESSAGE, f"shadow: {received.fault}")
    try:
        return (ShadowError if error else ShadowDocument).model_validate(received.fields)
    except ValidationError:
        raise Rejected(Code.BAD_MESSAGE, "shadow: the message is not a shadow document") from None


def _section(document: ShadowDocument, name: str) -> SettingsValues:
    section = document.state.get(name) or {}
    if not isinstance(section, dict):
        raise Rejected(Code.BAD_MESSAGE, f"shadow: {name} is not an object")
    return section


def _shallow(value: object, levels: int) -> bool:
    inner = value.values() if isinstance(value, dict) else value if isinstance(value, list) else None
    return inner is None or (levels > 0 and all(_shallow(each, levels - 1) for each in inner))


def _failure(verb: str, error: ShadowError) -> Rejected:
    code = _CODES.get(error.code, Code.INTERNAL)
    return Rejected(code, f"shadow: {verb} was refused: {error.code} {error.message[:_MESSAGE_LIMIT]!a}")
