"""What the device sends: replies and telemetry in order, and the latest status."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import random
from typing import TYPE_CHECKING

from edge.core.fair_queue import FairQueue
from edge.core.log_limit import LogLimit
from edge.errors import BrokerLost, Rejected
from edge.mqtt.broker import Message

if TYPE_CHECKING:
    from collections import Counter
    from collections.abc import Callable

    from edge.contract.messages import Status
    from edge.contract.topics import Topics
    from edge.mqtt.broker import Broker

log = logging.getLogger(__name__)

_QUEUE_LIMIT = 256
_STATUS_INTERVAL_S = 1.0
"""AWS IoT has a quota for the retained messages of a topic."""
_STATUS_REFRESH_S = (240.0, 300.0)
"""An unchanged status is published again after a wait drawn from this range: it expires (`STATUS_VALID_S`)."""
_STATUS_RETRY_S = 2.0
_CLOCK_CHECK_S = 10.0
_SENDERS = 8
_REST_S = 1.0
_OFFLINE_S = 3.0


class Outbox:
    """Sends for all parts, so that none of them waits for the broker. Event loop only.

    Replies and telemetry: a queue of `_QUEUE_LIMIT`, in which the senders take turns. When it is full, the oldest of
    the sender with the most is dropped and counted. Without a broker nothing is queued: the client gives up before the
    link is back. Status: only the latest is sent, at most once a second, again until it is acknowledged, and again
    every few minutes.
    """

    def __init__(self, broker: Broker, topics: Topics, status: Callable[[], Status], counters: Counter[str]) -> None:
        self._broker = broker
        self._topics = topics
        self._status = status
        self._counters = counters
        self._queue: FairQueue[Message] = FairQueue(_QUEUE_LIMIT)
        self._filled = asyncio.Event()
        self._status_due = asyncio.Event()
        self._status_sent_s = float("-inf")
        self._clock_was_unset = False
        self._log_limit = LogLimit()

    def put(self, message: Message, sender: str = "") -> None:
        """Queue a message for a sender of commands; the senders take turns."""
        if not self._broker.connected:
            self._counters["messages_dropped_offline"] += 1
            return
        if self._queue.put(sender, message):
            self._counters["messages_dropped_full"] += 1
        self._filled.set()

    def status_changed(self) -> None:
        """Publish the status soon."""
        self._status_due.set()

    def link(self, connected: bool) -> None:
        """The link opened or closed."""
        if connected:
            self.status_changed()
        else:
            self._counters["messages_dropped_offline"] += len(self._queue)
            self._queue.clear()

    async def run(self, ready: asyncio.Event) -> None:
        """Send until cancelled; then publish that the device is offline, if there is a link."""
        try:
            async with asyncio.TaskGroup() as group:
                for number in range(_SENDERS):
                    group.create_task(self._send_queue(), name=f"outbox:{number}")
                group.create_task(self._send_status(), name="outbox:status")
                ready.set()
        finally:
            # A deadline for each: a queue that does not move must not leave the device online for ever.
            for rest, timeout_s in ((self._send_rest, _REST_S), (self._send_offline, _OFFLINE_S)):
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(timeout_s):
                        await rest()

    async def _send_queue(self) -> None:
        while True:
            while (message := self._queue.take()) is not None:
                await self._send(message)
            self._filled.clear()
            await self._filled.wait()

    async def _send_status(self) -> None:
        while True:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(random.uniform(*_STATUS_REFRESH_S)):  # noqa: S311  jitter
                    await self._wait_for_status()
            self._status_due.clear()
            if self._broker.connected and not await self._publish_status(self._compose()):
                self._status_due.set()
                await asyncio.sleep(_STATUS_RETRY_S)
            await asyncio.sleep(_STATUS_INTERVAL_S)

    async def _wait_for_status(self) -> None:
        """Wait until a status is due. One without `valid_until` is replaced as soon as the clock is set."""
        while not self._status_due.is_set() and not (self._clock_was_unset and self._clock_is_set()):
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(_CLOCK_CHECK_S if self._clock_was_unset else None):
                    await self._status_due.wait()

    def _clock_is_set(self) -> bool:
        status = self._compose()
        return status is not None and status.valid_until is not None

    async def _send_rest(self) -> None:
        while (message := self._queue.take()) is not None:
            await self._send(message)

    async def _send_offline(self) -> None:
        """Publish the last status until it is acknowledged. It does not expire."""
        while self._broker.connected:
            await asyncio.sleep(self._status_sent_s + _STATUS_INTERVAL_S - asyncio.get_running_loop().time())
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(_STATUS_INTERVAL_S):
                    last = self._compose()
                    if last is not None:
                        last = last.model_copy(update={"online": False, "valid_until": None})
                    if await self._publish_status(last):
                        return

    def _compose(self) -> Status | None:
        """Return the status, or None if a bug prevents that: it costs a report, not the daemon."""
        try:
            return self._status()
        except Exception:
            self._counters["status_bugs"] += 1
            if count := self._log_limit.due(asyncio.get_running_loop().time(), "status"):
                log.exception("status not composed because of a bug count=%d", count)
            return None

    async def _publish_status(self, status: Status | None) -> bool:
        self._status_sent_s = asyncio.get_running_loop().time()
        if status is None:
            return False
        self._clock_was_unset = status.online and status.valid_until is None
        return await self._send(Message(self._topics.status, status.model_dump_json().encode(), retain=True))

    async def _send(self, message: Message) -> bool:
        """Whether the broker acknowledged it."""
        try:
            await self._broker.publish(message)
        except BrokerLost:
            self._counters["messages_lost"] += 1
        except Rejected as exc:
            self._counters["messages_refused"] += 1
            if (count := self._log_limit.due(asyncio.get_running_loop().time(), (message.topic, exc.code))) is not None:
                log.error("publish failed topic=%s failures=%d error=%s", message.topic, count, exc.message)
        else:
            return True
        return False
