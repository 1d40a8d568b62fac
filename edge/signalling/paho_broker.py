"""The broker port by paho-mqtt: a link that is made again by itself."""

from __future__ import annotations

import asyncio
import logging
import random
import time
from collections import deque
from typing import TYPE_CHECKING

from paho.mqtt.enums import MQTTProtocolVersion

from edge.contract.codes import Code
from edge.contract.messages import PAYLOAD_LIMIT_BYTES
from edge.core.backoff import Backoff
from edge.errors import BrokerLost, Rejected
from edge.signalling.paho_link import UNACKNOWLEDGED, PahoLink, VersionRefused

if TYPE_CHECKING:
    from collections.abc import Callable

    from edge.signalling.broker import Message
    from edge.signalling.settings import MqttSettings

log = logging.getLogger(__name__)

_TOPIC_LIMIT_BYTES, _TOPIC_LIMIT_SLASHES = 256, 7
_STEADY_S = 10.0
_HELD = 256
_CALLERS = 1000


class PahoBroker:
    """A link to one broker, made again by itself.

    Only the connecting (name look-up, TCP, TLS) runs in a thread of its own; all else, and every callback, runs in the
    event loop. Each try has a paho client of its own, so nothing of a broken link lives on; commands that were
    published meanwhile come from the session that the broker keeps.

    The broker sends those before it grants the subscriptions: they are held (the `_HELD` newest; `dropped` counts the
    others) until the link is told, so that who takes one can answer it.
    """

    def __init__(
        self, settings: MqttSettings, client_id: str, subscriptions: tuple[str, ...], will: Message | None
    ) -> None:
        self.connected = False
        self.error: str | None = "not connected yet"
        self.dropped = 0
        self._settings = settings
        self._client_id = client_id
        self._subscriptions = subscriptions
        self._will = will
        self._on_message: Callable[[Message], None] = lambda _: None
        self._on_link: Callable[[bool], None] = lambda _: None
        self._version = MQTTProtocolVersion.MQTTv311 if settings.version == "3.1.1" else MQTTProtocolVersion.MQTTv5
        self._link: PahoLink | None = None
        self._up_since_s: float | None = None
        self._held: deque[Message] = deque()
        self._window = asyncio.Semaphore(UNACKNOWLEDGED)
        self._callers = 0

    def listen(self, on_message: Callable[[Message], None], on_link: Callable[[bool], None]) -> None:
        self._on_message = on_message
        self._on_link = on_link

    async def publish(self, message: Message) -> None:
        topic_bytes = len(message.topic.encode())
        if topic_bytes > _TOPIC_LIMIT_BYTES or message.topic.count("/") > _TOPIC_LIMIT_SLASHES:
            raise Rejected(Code.TOO_LARGE, "the topic is longer or deeper than brokers take")
        if len(message.payload) > PAYLOAD_LIMIT_BYTES:
            raise Rejected(Code.TOO_LARGE, f"{len(message.payload)} bytes, the limit is {PAYLOAD_LIMIT_BYTES}")
        if self._callers >= _CALLERS:
            raise Rejected(Code.RATE_LIMITED, "too many messages wait for the broker", retry_after_s=1)
        self._callers += 1
        try:
            async with asyncio.timeout(self._settings.publish_timeout_s), self._window:
                if self._link is None or not self.connected:
                    raise BrokerLost("no link to the broker")
                await self._link.publish(message)
        except TimeoutError as exc:
            raise BrokerLost("the broker did not acknowledge in time") from exc
        finally:
            self._callers -= 1

    async def run(self, ready: asyncio.Event) -> None:
        ready.set()
        backoff = Backoff(cap_s=self._settings.reconnect_cap_s)
        told = ""
        while True:
            try:
                await self._connect_and_serve()
            except VersionRefused as exc:
                log.info("MQTT 5: %s; trying 3.1.1", exc.message)
                self._version = MQTTProtocolVersion.MQTTv311
                continue
            except BrokerLost as exc:
                self.error = exc.message
                if self._settings.version == "auto":
                    # What looked like a broker without MQTT 5 may have been one in trouble.
                    self._version = MQTTProtocolVersion.MQTTv5
            # A link that held starts the waits anew; one that is lost at once, as by a clash of client ids, does not.
            if self._up_since_s is not None and time.monotonic() - self._up_since_s > _STEADY_S:
                backoff.reset()
            wait_s = backoff.next_s(random.random())  # noqa: S311  jitter
            log.log(logging.WARNING if told != self.error else logging.DEBUG, "%s; again in %.1f s", self.error, wait_s)
            told = self.error or ""
            await asyncio.sleep(wait_s)

    async def _connect_and_serve(self) -> None:
        """Make the link and keep it until it is lost (BrokerLost) or this is cancelled (clean disconnect)."""
        link = PahoLink(self._settings, self._client_id, self._version, self._will, self._receive)
        self._link = link
        self._up_since_s = None
        try:
            await link.open()
            await link.subscribe(self._subscriptions)
            self.connected, self.error = True, None
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
            # In paho's reader it would leave a link that looks alive and reads the same packet for ever.
            log.exception("a bug in what takes messages")
