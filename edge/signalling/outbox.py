"""What the device sends: replies and telemetry in order, the status as it is now."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections import deque
from typing import TYPE_CHECKING

from edge.errors import BrokerLost, Rejected
from edge.mqtt.broker import Message

if TYPE_CHECKING:
    from collections import Counter
    from collections.abc import Callable

    from edge.contract.messages import Status
    from edge.contract.topics import Topics
    from edge.mqtt.broker import Broker

log = logging.getLogger(__name__)

_LIMIT = 256
_STATUS_EVERY_S = 1.0
"""AWS IoT has a quota for the retained messages of a topic."""
_STATUS_AGAIN_S = 2.0
_AT_ONCE = 8
_REST_S = 1.0
_OFFLINE_S = 3.0


class Outbox:
    """Sends for everybody, so that nobody waits for the broker. Event loop only.

    Replies and telemetry: a queue of `_LIMIT`, the oldest dropped and counted when it is full; while there is no
    broker nothing is kept, since a reply's asker has given up by then. Status: latest wins, at most one a second, and
    again where it was not acknowledged.
    """

    def __init__(self, broker: Broker, topics: Topics, status: Callable[[], Status], counters: Counter[str]) -> None:
        self._broker = broker
        self._topics = topics
        self._status = status
        self._counters = counters
        self._queue: deque[Message] = deque()
        self._filled = asyncio.Event()
        self._stale = asyncio.Event()
        self._told_s = float("-inf")

    def put(self, message: Message) -> None:
        """Queue a message."""
        if not self._broker.connected:
            self._counters["messages_dropped_offline"] += 1
            return
        if len(self._queue) >= _LIMIT:
            self._queue.popleft()
            self._counters["messages_dropped_full"] += 1
        self._queue.append(message)
        self._filled.set()

    def status_changed(self) -> None:
        """Publish the status soon."""
        self._stale.set()

    def link(self, connected: bool) -> None:
        """The link came or went."""
        if connected:
            self.status_changed()
        else:
            self._counters["messages_dropped_offline"] += len(self._queue)
            self._queue.clear()

    async def run(self, ready: asyncio.Event) -> None:
        """Send until cancelled; then say `offline` in the status, where there is a broker to hear it."""
        try:
            async with asyncio.TaskGroup() as group:
                for number in range(_AT_ONCE):
                    group.create_task(self._send_queue(), name=f"outbox:{number}")
                group.create_task(self._send_status(), name="outbox:status")
                ready.set()
        finally:
            # Each has its time: a queue that does not move must not leave the device online for ever.
            for rest, most_s in ((self._send_rest, _REST_S), (self._send_offline, _OFFLINE_S)):
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(most_s):
                        await rest()

    async def _send_queue(self) -> None:
        while True:
            while self._queue:
                await self._send(self._queue.popleft())
            self._filled.clear()
            await self._filled.wait()

    async def _send_status(self) -> None:
        while True:
            await self._stale.wait()
            self._stale.clear()
            if self._broker.connected and not await self._tell(self._status()):
                self._stale.set()
                await asyncio.sleep(_STATUS_AGAIN_S)
            await asyncio.sleep(_STATUS_EVERY_S)

    async def _send_rest(self) -> None:
        while self._queue:
            await self._send(self._queue.popleft())

    async def _send_offline(self) -> None:
        """Until it is acknowledged."""
        while self._broker.connected:
            await asyncio.sleep(self._told_s + _STATUS_EVERY_S - time.monotonic())
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(_STATUS_EVERY_S):
                    if await self._tell(self._status().model_copy(update={"online": False})):
                        return

    async def _tell(self, status: Status) -> bool:
        self._told_s = time.monotonic()
        return await self._send(Message(self._topics.status, status.model_dump_json().encode(), retain=True))

    async def _send(self, message: Message) -> bool:
        try:
            await self._broker.publish(message)
        except BrokerLost:
            self._counters["messages_lost"] += 1
        except Rejected as exc:
            self._counters["messages_refused"] += 1
            log.error("a message could not be sent: %s", exc.message)  # noqa: TRY400
        else:
            return True
        return False
