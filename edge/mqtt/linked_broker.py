"""The part of the broker port that both clients share: reconnects, limits, and early messages."""

from __future__ import annotations

import asyncio
import logging
import random
from abc import ABC, abstractmethod
from collections import deque
from typing import TYPE_CHECKING, ClassVar

from edge.contract.codes import Code
from edge.core.backoff import Backoff
from edge.core.log_limit import LogLimit
from edge.errors import BrokerLost, Rejected
from edge.mqtt.limits import oversize, publish_budget
from edge.mqtt.link import TAKEN_OVER, UNACKNOWLEDGED, NotGranted

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from edge.mqtt.broker import Message
    from edge.mqtt.link import Link, OpenLink
    from edge.mqtt.settings import MqttSettings

log = logging.getLogger(__name__)

_STEADY_S = 10.0
_OVERDUE = UNACKNOWLEDGED // 2
_HANG_UPS = 2
_LEFT_OUT_S = 3600.0
_HELD = 256
_HELD_BYTES = 4 * 1024 * 1024
_CALLERS = 1000


class LinkedBroker(ABC):
    """A link to one broker that reconnects automatically.

    Each attempt uses a new client, so no state of a broken link remains. The broker keeps a session: commands that were
    published in the meantime arrive with the next link.

    The broker sends these before it grants the subscriptions. They wait until `on_link(True)` was called, so that their
    receiver can publish a reply. Only the `_HELD` newest wait, with `_HELD_BYTES`; `dropped` counts the others.

    `obtain_identity` is awaited before each attempt: a device without a certificate obtains one.

    `optional`: subscriptions that the link can do without. A refusal is logged, and the link stays. A broker that
    closes the connection instead, `_HANG_UPS` times in a row, does not get them again for `_LEFT_OUT_S`.

    Some brokers leave publishes unacknowledged (AWS IoT does above its rate limit). Each occupies one of the
    `UNACKNOWLEDGED` places of a link, so the link is opened again when `_OVERDUE` are missing.
    """

    _first_wait_s: ClassVar[float] = 0.5
    _least_wait_s: ClassVar[float] = 0.0

    def __init__(
        self,
        settings: MqttSettings,
        client_id: str,
        subscriptions: tuple[str, ...],
        will: Message | None,
        optional: tuple[str, ...] = (),
        *,
        obtain_identity: Callable[[OpenLink], Awaitable[None]] | None = None,
    ) -> None:
        self.connected = False
        self.error: str | None = "not connected yet"
        self.optional_granted = False
        self.dropped = 0
        self._settings = settings
        self._client_id = client_id
        self._subscriptions = subscriptions
        self._optional = optional
        self._hang_ups = 0
        self._left_out_until_s = 0.0
        self._not_granted: str | None = None
        self._will = will
        self._on_message: Callable[[Message], None] = lambda _: None
        self._on_link: Callable[[bool], None] = lambda _: None
        self._obtain_identity = obtain_identity
        self._link: Link | None = None
        self._up_since_s: float | None = None
        self._held: deque[Message] = deque()
        self._window = asyncio.Semaphore(UNACKNOWLEDGED)
        self._rate = publish_budget(settings.publishes_per_s)
        self._callers = 0
        self._log_limit = LogLimit()
        self._overdue: set[asyncio.Task[None]] = set()

    def listen(self, on_message: Callable[[Message], None], on_link: Callable[[bool], None]) -> None:
        self._on_message = on_message
        self._on_link = on_link

    async def publish(self, message: Message) -> None:
        if (fault := oversize(message.topic, message.payload)) is not None:
            raise Rejected(Code.TOO_LARGE, fault)
        if self._link is None or not self.connected:
            raise BrokerLost("no link to the broker")
        if self._callers >= _CALLERS:
            raise Rejected(Code.RATE_LIMITED, "too many messages wait for the broker", retry_after_s=1)
        # At most half of the deadline, so that the broker gets the other half.
        wait_s = self._rate.reserve(asyncio.get_running_loop().time(), self._settings.publish_timeout_s / 2)
        if wait_s is None:
            said = f"more than {self._settings.publishes_per_s} messages per second for the broker"
            raise Rejected(Code.RATE_LIMITED, said, retry_after_s=1)
        self._callers += 1
        try:
            async with asyncio.timeout(self._settings.publish_timeout_s):
                if wait_s > 0:
                    await asyncio.sleep(wait_s)
                async with self._window:
                    await self._acknowledged(message)
        except TimeoutError as exc:
            raise BrokerLost("the broker did not acknowledge in time") from exc
        finally:
            self._callers -= 1

    async def run(self, ready: asyncio.Event) -> None:
        ready.set()
        backoff = Backoff(self._first_wait_s, self._settings.reconnect_cap_s, self._least_wait_s)
        while True:
            least_s = 0.0
            try:
                await self._connect_and_serve()
            except BrokerLost as exc:
                self.error, least_s = exc.message, exc.retry_after_s
            # A stable link resets the back-off. A link that is lost at once, as with equal client ids, does not.
            if self._up_since_s is not None and asyncio.get_running_loop().time() - self._up_since_s > _STEADY_S:
                backoff.reset()
            wait_s = max(least_s, backoff.next_s(random.random()))  # noqa: S311  jitter
            count = self._log_limit.due(asyncio.get_running_loop().time(), self.error)
            level = logging.WARNING if count else logging.DEBUG
            log.log(level, "broker link failed failures=%d retry_s=%.1f error=%s", count or 1, wait_s, self.error)
            await asyncio.sleep(wait_s)

    @abstractmethod
    async def _open(
        self, settings: MqttSettings, client_id: str, will: Message | None, receive: Callable[[Message], None]
    ) -> Link:
        """Open a new link that passes messages to `receive`. Raises: BrokerLost."""

    async def _connect_and_serve(self) -> None:
        """Open the link and keep it until it is lost (BrokerLost) or cancelled (clean disconnect)."""
        self._up_since_s = None
        if self._obtain_identity is not None:
            await self._obtain_identity(self._open)
        link = await self._open(self._settings, self._client_id, self._will, self._receive)
        try:
            await link.subscribe(self._subscriptions)
            await self._subscribe_optional(link)
            self._link = link
            self.connected, self.error = True, self._not_granted
            self._up_since_s = asyncio.get_running_loop().time()
            facts = self._settings.host, self._settings.effective_port, link.version
            log.info("broker connected host=%s port=%d mqtt=%s", *facts)
            self._on_link(True)
            while self._held:
                self._deliver(self._held.popleft())
            await link.serve()
        finally:
            self._link = None
            if self.connected:
                self.connected = False
                self.error = "disconnected"
                self._on_link(False)
            await link.close()

    async def _subscribe_optional(self, link: Link) -> None:
        """Subscribe to the optional topics. Raises: BrokerLost: the link broke."""
        self.optional_granted = False
        if not self._optional or asyncio.get_running_loop().time() < self._left_out_until_s:
            return
        last = self._optional[-1]
        try:
            await link.subscribe(self._optional)
        except NotGranted as exc:
            said = f"no messages will arrive on {last}: {exc.message}"
            if (count := self._log_limit.due(asyncio.get_running_loop().time(), said)) is not None:
                log.warning("%s failures=%d", said, count)
            self._not_granted, self._hang_ups = said, 0
        except BrokerLost as exc:
            if exc.message == TAKEN_OVER:
                raise
            said = f"the link broke while subscribing to {last}: {exc.message}"
            self._hang_ups += 1
            if self._hang_ups >= _HANG_UPS:
                said += "; omitted for an hour"
                self._not_granted, self._left_out_until_s = said, asyncio.get_running_loop().time() + _LEFT_OUT_S
            raise BrokerLost(said) from exc
        else:
            self._not_granted, self._hang_ups, self.optional_granted = None, 0, True

    async def _acknowledged(self, message: Message) -> None:
        """Publish. After a cancellation the message keeps its place until it is acknowledged or the link ends."""
        publishing = asyncio.create_task(self._publish_now(message))
        publishing.add_done_callback(self._forget)
        late = asyncio.get_running_loop().call_later(self._settings.publish_timeout_s, self._mark_overdue, publishing)
        publishing.add_done_callback(lambda _: late.cancel())
        await asyncio.wait({publishing})
        await publishing

    async def _publish_now(self, message: Message) -> None:
        if self._link is None or not self.connected:
            raise BrokerLost("no link to the broker")
        await self._link.publish(message)

    def _mark_overdue(self, publishing: asyncio.Task[None]) -> None:
        if not publishing.done():
            self._overdue.add(publishing)
            if len(self._overdue) >= _OVERDUE and self._link is not None:
                self._link.end(BrokerLost("the broker leaves too many messages unacknowledged"))

    def _forget(self, publishing: asyncio.Task[None]) -> None:
        self._overdue.discard(publishing)
        if not publishing.cancelled():
            publishing.exception()  # retrieved, so that asyncio does not report it

    def _receive(self, message: Message) -> None:
        if self.connected:
            self._deliver(message)
            return
        self._held.append(message)
        while len(self._held) > _HELD or sum(len(held.payload) for held in self._held) > _HELD_BYTES:
            self._held.popleft()
            self.dropped += 1

    def _deliver(self, message: Message) -> None:
        try:
            self._on_message(message)
        except Exception:
            # In the client's reader it would leave a link that looks alive and reads the same packet forever.
            log.exception("message handler failed because of a bug")
