"""What both adapters of the broker port share: a link made again by itself, limits, and messages that come early."""

from __future__ import annotations

import asyncio
import logging
import random
import time
from abc import ABC, abstractmethod
from collections import deque
from typing import TYPE_CHECKING, ClassVar

from edge.contract.codes import Code
from edge.core.backoff import Backoff
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
_CALLERS = 1000


class LinkedBroker(ABC):
    """A link to one broker, made again by itself.

    Each try has a client of its own, so nothing of a broken link lives on; commands that were published meanwhile come
    from the session that the broker keeps.

    The broker sends those before it grants the subscriptions: they are held (the `_HELD` newest; `dropped` counts the
    others) until the link is told, so that who takes one can answer it.

    `obtain_identity` is awaited before each try: a device that has no certificate gets one there.

    `optional`: subscriptions without which the link is worth having. Refused, they are told and left. A broker that
    hangs up instead, `_HANG_UPS` times in turn, is not asked for them again before `_LEFT_OUT_S`.

    Some brokers leave publishes unacknowledged (AWS IoT: over its rates). Each keeps one of the few places that a
    client has, so where `_OVERDUE` are gone, the link is made anew.
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
        # At most half of the deadline: the other half is the broker's.
        wait_s = self._rate.reserve(time.monotonic(), self._settings.publish_timeout_s / 2)
        if wait_s is None:
            said = f"more than {self._settings.publishes_per_s} messages a second for the broker"
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
        told = ""
        while True:
            least_s = 0.0
            try:
                await self._connect_and_serve()
            except BrokerLost as exc:
                self.error, least_s = exc.message, exc.retry_after_s
            # A link that held starts the waits anew; one that is lost at once, as by a clash of client ids, does not.
            if self._up_since_s is not None and time.monotonic() - self._up_since_s > _STEADY_S:
                backoff.reset()
            wait_s = max(least_s, backoff.next_s(random.random()))  # noqa: S311  jitter
            log.log(logging.WARNING if told != self.error else logging.DEBUG, "%s; again in %.1f s", self.error, wait_s)
            told = self.error or ""
            await asyncio.sleep(wait_s)

    @abstractmethod
    async def _open(
        self, settings: MqttSettings, client_id: str, will: Message | None, receive: Callable[[Message], None]
    ) -> Link:
        """A new open link, which gives what comes to `receive`. Raises: BrokerLost."""

    async def _connect_and_serve(self) -> None:
        """Make the link and keep it until it is lost (BrokerLost) or this is cancelled (clean disconnect)."""
        self._up_since_s = None
        if self._obtain_identity is not None:
            await self._obtain_identity(self._open)
        link = await self._open(self._settings, self._client_id, self._will, self._receive)
        try:
            await link.subscribe(self._subscriptions)
            await self._subscribe_optional(link)
            self._link = link
            self.connected, self.error = True, self._not_granted
            self._up_since_s = time.monotonic()
            log.info("connected to %s:%d, MQTT %s", self._settings.host, self._settings.effective_port, link.version)
            self._on_link(True)
            while self._held:
                self._hand_over(self._held.popleft())
            await link.serve()
        finally:
            self._link = None
            if self.connected:
                self.connected = False
                self.error = "disconnected"
                self._on_link(False)
            await link.close()

    async def _subscribe_optional(self, link: Link) -> None:
        """Raises: BrokerLost: the link broke."""
        self.optional_granted = False
        if not self._optional or time.monotonic() < self._left_out_until_s:
            return
        last = self._optional[-1]
        try:
            await link.subscribe(self._optional)
        except NotGranted as exc:
            said = f"nothing comes on {last}: {exc.message}"
            log.log(logging.WARNING if said != self._not_granted else logging.DEBUG, "%s", said)
            self._not_granted, self._hang_ups = said, 0
        except BrokerLost as exc:
            if exc.message == TAKEN_OVER:
                raise
            said = f"the link broke when {last} was asked for: {exc.message}"
            self._hang_ups += 1
            if self._hang_ups >= _HANG_UPS:
                said += "; left out"
                self._not_granted, self._left_out_until_s = said, time.monotonic() + _LEFT_OUT_S
            raise BrokerLost(said) from exc
        else:
            self._not_granted, self._hang_ups, self.optional_granted = None, 0, True

    async def _acknowledged(self, message: Message) -> None:
        """Give it to the client. Given up here, it has its place there until it is acknowledged or the link ends."""
        given = asyncio.create_task(self._give(message))
        given.add_done_callback(self._settled)
        late = asyncio.get_running_loop().call_later(self._settings.publish_timeout_s, self._miss, given)
        given.add_done_callback(lambda _: late.cancel())
        await asyncio.wait({given})
        await given

    async def _give(self, message: Message) -> None:
        if self._link is None or not self.connected:
            raise BrokerLost("no link to the broker")
        await self._link.publish(message)

    def _miss(self, given: asyncio.Task[None]) -> None:
        if not given.done():
            self._overdue.add(given)
            if len(self._overdue) >= _OVERDUE and self._link is not None:
                self._link.end(BrokerLost("the broker acknowledges too little"))

    def _settled(self, given: asyncio.Task[None]) -> None:
        self._overdue.discard(given)
        if not given.cancelled():
            given.exception()  # told, where anybody still waits

    def _receive(self, message: Message) -> None:
        if self.connected:
            self._hand_over(message)
            return
        if len(self._held) >= _HELD:
            self._held.popleft()
            self.dropped += 1
        self._held.append(message)

    def _hand_over(self, message: Message) -> None:
        try:
            self._on_message(message)
        except Exception:
            # In the client's reader it would leave a link that looks alive and reads the same packet for ever.
            log.exception("a bug in what takes messages")
