"""The shadow's door: desired settings come as documents, what is in force is reported."""

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
from edge.core.tuning import without_nulls
from edge.errors import BrokerLost, EdgeError, Rejected
from edge.mqtt.broker import Message

if TYPE_CHECKING:
    from collections import Counter
    from collections.abc import Callable

    from edge.contract.topics import ShadowTopics
    from edge.core.tuning import Values
    from edge.mqtt.broker import Broker
    from edge.signalling.ports import Tuning

log = logging.getLogger(__name__)

_ANSWER_S = 10.0
_LONGEST_WAIT_S = 900.0
_HUNG_UP_S = 2.0
"""A link that goes so soon after a request goes because of it: AWS IoT hangs up on what its policy forbids."""
_LEVELS = 6
"""As AWS IoT takes them."""
_MESSAGE_LIMIT = 200
_NOT_FOUND = 404
_CODES = {401: Code.FORBIDDEN, 403: Code.FORBIDDEN, 413: Code.TOO_LARGE, 429: Code.RATE_LIMITED}


class Shadow:
    """The shadow of one device. Event loop only.

    At AWS the service holds the shadow: whatever says that something new is desired makes the device `get`
    the whole of it, since a delta has only what differs, and nothing of what was taken out. Elsewhere nobody answers:
    the delta that the backend leaves there, retained, is the whole, and so is the report.

    A request that fails is tried again for as long as the link lives, after waits that grow up to a quarter of an hour;
    the next change or link ends a wait.
    """

    def __init__(
        self,
        topics: ShadowTopics,
        broker: Broker,
        tuning: Tuning,
        *,
        refused: Callable[[EdgeError], None],
        counters: Counter[str],
        answer_s: float = _ANSWER_S,
    ) -> None:
        self._topics = topics
        self._broker = broker
        self._tuning = tuning
        self._refused = refused
        self._counters = counters
        self._answer_s = answer_s
        self._told: set[Code] = set()
        self._backoff = Backoff(first_s=1.0, cap_s=_LONGEST_WAIT_S)
        self._due = asyncio.Event()
        self._stale = False
        """Since the link came, the service was not asked."""
        self._newest = 0
        """The newest version that was heard of, of what is desired."""
        self._seen = 0
        """And of which the whole is known."""
        self._last = tuning.version
        """Where nobody answers: of the last document, over links and restarts."""
        self._reported: Values | None = None
        self._asked: tuple[str, asyncio.Future[ShadowDocument | ShadowError | None]] | None = None
        self._asked_s = float("-inf")
        self._hung_up = False

    def link(self, up: bool) -> None:
        """The link came or went: what happened meanwhile is not known."""
        self._stale, self._newest, self._seen, self._reported = self._topics.at_aws, 0, 0, None
        if self._asked is not None and not self._asked[1].done():
            self._asked[1].set_result(None)
        loop = asyncio.get_running_loop()
        if not up:
            self._hung_up = loop.time() - self._asked_s < _HUNG_UP_S
        elif self._hung_up:
            loop.call_later(self._backoff.next_s(random.random()), self._due.set)  # noqa: S311  jitter
        else:
            self._backoff.reset()
            self._due.set()

    def changed(self) -> None:
        """There is something new to report."""
        self._due.set()

    def receive(self, message: Message) -> None:
        """A message on one of the shadow's topics."""
        try:
            self._take(message)
        except Rejected as exc:
            self._refuse(exc)

    async def run(self, ready: asyncio.Event) -> None:
        """Ask and report until cancelled."""
        ready.set()
        while True:
            await self._due.wait()
            self._due.clear()
            await self._settle()

    async def _settle(self) -> None:
        """Ask and report until there is nothing to ask or to report, or the link is away."""
        while self._reachable and (self._behind or without_nulls(self._tuning.report()) != self._reported):
            try:
                await (self._get() if self._behind else self._update())
                self._backoff.reset()
                self._told.clear()
            except EdgeError as exc:
                self._counters["shadow_requests_failed"] += 1
                if self._reachable:
                    self._tell(exc)
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
        # Without its answers it would ask in vain, and AWS IoT hangs up on who publishes what its policy forbids.
        return self._broker.connected and self._broker.optional_granted

    @property
    def _behind(self) -> bool:
        """Whether the service may know of something desired that the device does not."""
        return self._stale or self._newest > self._seen

    async def _get(self) -> None:
        newest = self._newest
        self._stale = False  # what is heard while it is asked may make it so again
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
            # Late, or the shadow was deleted and counts anew: it is asked once more, and that is taken.
            self._newest, self._stale = answer.version or 0, True
            raise Rejected(Code.TIMEOUT, "shadow: the service gave an older document than it had told of")
        self._seen = answer.version or 0
        self._reported = without_nulls(_section(answer, "reported"))
        try:
            self._desire(_section(answer, "desired"), answer.version, answer.metadata.get("desired"))
        except Rejected as exc:
            # Asking again would bring the same.
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
                # Nobody else wrote in between: no need to ask for the whole.
                self._seen = answer.version
        self._reported = without_nulls(report)

    async def _send(self, message: Message) -> None:
        """Raises: BrokerLost. Rejected."""
        self._asked_s = asyncio.get_running_loop().time()
        await self._broker.publish(message)
        self._asked_s = float("-inf")

    async def _request(self, topic: str, fields: dict[str, Any]) -> ShadowDocument | ShadowError:
        """Raises: BrokerLost. Rejected: it could not be sent, or no answer came in time."""
        # The answers to other clients' requests come on the same topics.
        token = secrets.token_hex(8)
        coming: asyncio.Future[ShadowDocument | ShadowError | None] = asyncio.get_running_loop().create_future()
        self._asked = token, coming
        try:
            async with asyncio.timeout(self._answer_s):
                await self._send(Message(topic, json.dumps({**fields, "clientToken": token}).encode()))
                answer = await coming
        except TimeoutError:
            raise Rejected(Code.TIMEOUT, f"shadow: no answer within {self._answer_s:g} s") from None
        finally:
            self._asked = None
        if answer is None:
            raise BrokerLost("the link broke before the shadow answered")
        return answer

    def _take(self, message: Message) -> None:
        if not message.payload:
            return  # somebody cleared what was retained, which says nothing
        topics, topic = self._topics, message.topic
        document = _parsed(message.payload, error=topic in {topics.get_rejected, topics.update_rejected})
        if self._asked is not None and document.clientToken == self._asked[0]:
            if not self._asked[1].done():
                self._asked[1].set_result(document)
        elif isinstance(document, ShadowDocument):
            if topic == topics.delta and not self._topics.at_aws:
                self._take_whole(document)
            elif topic == topics.delta or (topic == topics.update_accepted and "desired" in document.state):
                self._hear_of(document.version or 0)

    def _take_whole(self, document: ShadowDocument) -> None:
        version = document.version
        if version is not None and self._last is not None and version < self._last:
            raise Rejected(Code.BAD_MESSAGE, f"shadow: version {version} is older than the last, {self._last}")
        self._desire(document.state, version, version)
        self._last = version

    def _hear_of(self, version: int) -> None:
        """Of a version of what is desired."""
        if version < max(self._newest, self._seen):
            # Late, or the shadow was deleted and counts anew: what the service gives then counts.
            self._newest, self._seen, self._stale = version, 0, True
        self._newest = max(self._newest, version)
        self._due.set()

    def _desire(self, desired: Values, version: int | None, stamp: object) -> None:
        """Raises: Rejected: it is more than a shadow may hold."""
        if not _shallow(desired, _LEVELS):
            raise Rejected(Code.BAD_MESSAGE, f"shadow: more than {_LEVELS} levels")
        try:
            size = len(json.dumps(desired, ensure_ascii=False).encode())
        except ValueError:
            raise Rejected(Code.BAD_MESSAGE, "shadow: there is text in it that is none") from None
        if size > SHADOW_LIMIT_BYTES:
            raise Rejected(Code.TOO_LARGE, f"shadow: {size} bytes are desired, the limit is {SHADOW_LIMIT_BYTES}")
        self._told.clear()
        self._tuning.desire(desired, version, stamp)

    def _refuse(self, error: Rejected) -> None:
        self._counters["shadow_documents_refused"] += 1
        self._tell(error)

    def _tell(self, error: EdgeError) -> None:
        """Once, until a document is good again."""
        if error.code not in self._told:
            self._told.add(error.code)
            log.warning("%s", error.message)
            self._refused(error)


def _parsed(payload: bytes, *, error: bool) -> ShadowDocument | ShadowError:
    """Raises: Rejected: it is no such document."""
    received = read(payload)
    if received.fault is not None:
        raise Rejected(Code.BAD_MESSAGE, f"shadow: {received.fault}")
    try:
        return (ShadowError if error else ShadowDocument).model_validate(received.fields)
    except ValidationError:
        raise Rejected(Code.BAD_MESSAGE, "shadow: the message is none of a shadow's") from None


def _section(document: ShadowDocument, name: str) -> Values:
    section = document.state.get(name) or {}
    if not isinstance(section, dict):
        raise Rejected(Code.BAD_MESSAGE, f"shadow: {name} is no object")
    return section


def _shallow(value: object, levels: int) -> bool:
    inner = value.values() if isinstance(value, dict) else value if isinstance(value, list) else None
    return inner is None or (levels > 0 and all(_shallow(each, levels - 1) for each in inner))


def _failure(verb: str, error: ShadowError) -> Rejected:
    code = _CODES.get(error.code, Code.INTERNAL)
    return Rejected(code, f"shadow: {verb} was refused: {error.code} {error.message[:_MESSAGE_LIMIT]!a}")
