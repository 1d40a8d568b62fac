"""What the device sends: replies and events in order, the status as it is now."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import secrets
from collections import deque
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from edge.contract.messages import Event, Status
from edge.errors import BrokerLost, Rejected
from edge.signalling.broker import Message

if TYPE_CHECKING:
    from collections import Counter
    from collections.abc import Callable

    from edge.contract.topics import Topics
    from edge.signalling.broker import Broker

log = logging.getLogger(__name__)

_LIMIT = 256
_STATUS_EVERY_S = 0.25
_AT_ONCE = 8
_GOODBYE_S = 3.0


class Outbox:
    """Sends for everybody, so that nobody waits for the broker. Event loop only.

    Replies and events: a queue of `_LIMIT`, the oldest dropped and counted when it is full; while there is no
    broker nothing is kept, since a reply's asker has given up by then. Status: latest wins, at most four a second.
    """

    def __init__(self, broker: Broker, topics: Topics, status: Callable[[], Status], counters: Counter[str]) -> None:
        self._broker = broker
        self._topics = topics
        self._status = status
        self._counters = counters
        self._queue: deque[Message] = deque()
        self._filled = asyncio.Event()
        self._stale = asyncio.Event()

    def put(self, message: Message) -> None:
        """Queue a reply or an event."""
        if not self._broker.connected:
            self._counters["messages_dropped_offline"] += 1
            return
        if len(self._queue) >= _LIMIT:
            self._queue.popleft()
            self._counters["messages_dropped_full"] += 1
        self._queue.append(message)
        self._filled.set()

    def notice(self, kind: str, session: str | None, body: dict[str, Any]) -> None:
        """Send an event."""
        event = Event(id=f"e-{secrets.token_hex(8)}", type=kind, at=datetime.now(UTC), session=session, body=body)
        self.put(Message(self._topics.event, event.model_dump_json().encode()))

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
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(_GOODBYE_S):
                    await self._send_rest()

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
            if self._broker.connected:
                await self._send(Message(self._topics.status, self._status().model_dump_json().encode(), retain=True))
            await asyncio.sleep(_STATUS_EVERY_S)

    async def _send_rest(self) -> None:
        while self._queue:
            await self._send(self._queue.popleft())
        status = self._status().model_copy(update={"online": False})
        await self._send(Message(self._topics.status, status.model_dump_json().encode(), retain=True))

    async def _send(self, message: Message) -> None:
        try:
            await self._broker.publish(message)
        except BrokerLost:
            self._counters["messages_lost"] += 1
        except Rejected as exc:
            self._counters["messages_refused"] += 1
            log.error("a message could not be sent: %s", exc.message)  # noqa: TRY400
