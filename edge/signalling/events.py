"""Publishes events at least once and in order, also after a long time without a link."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import random
import secrets
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from pydantic import ValidationError

from edge.contract.codes import Code
from edge.contract.messages import Event
from edge.core.backoff import Backoff
from edge.core.log_limit import LogLimit
from edge.errors import BrokerLost, Rejected
from edge.mqtt.broker import Message

if TYPE_CHECKING:
    from collections import Counter

    from edge.mqtt.broker import Broker
    from edge.signalling.ports import EventStore

log = logging.getLogger(__name__)

_LIMIT = 1000
_STORE_AFTER_S = 2.0
_SHARE = 4
_RETRY_CAP_S = 300.0
_RELINK_JITTER_S = 10.0
_HANG_UP_S = 2.0
_STOP_TIMEOUT_S = 2.0


@dataclass(slots=True)
class _Pending:
    """An event that the broker has not acknowledged yet."""

    id: str
    payload: bytes
    stored: bool


class Events:
    """Publishes events to `topic`, each after the previous one is acknowledged. Event loop only.

    At most `_LIMIT` are pending; beyond that the oldest is dropped and counted (`events_dropped`). With a link they are
    in memory only. Without a link, or without an acknowledgement in time, pending events are written to
    `store`, and new ones too until none is pending: they survive a restart.

    Events use at most a `_SHARE`th of `publishes_per_s`, so that a backlog does not delay replies. If the broker
    refuses an event or closes the link because of it (AWS IoT does so if the policy forbids it), retries back off.
    After any other loss of the link they resume within `_RELINK_JITTER_S`.
    """

    def __init__(
        self, broker: Broker, topic: str, store: EventStore, counters: Counter[str], publishes_per_s: float
    ) -> None:
        self._broker = broker
        self._topic = topic
        self._store = store
        self._counters = counters
        self._pause_s = _SHARE / publishes_per_s
        self._backoff = Backoff(first_s=1.0, cap_s=_RETRY_CAP_S)
        self._log_limit = LogLimit()
        self._pending: dict[str, _Pending] = {}
        self._storing = False
        self._ending = False
        self._changed = asyncio.Event()
        self._relinked = asyncio.Event()
        self._tried_s = float("-inf")
        self._link_closed_on_event = False
        for event_id, payload in store.open():
            try:
                Event.model_validate_json(payload)
            except ValidationError:
                log.warning("stored event damaged, dropped event=%r", event_id)
                store.drop(event_id)
                continue
            self._append(_Pending(event_id, payload, stored=True))
            self._storing = True

    def publish_event(self, kind: str, session: str | None, body: dict[str, Any]) -> None:
        """Publish an event."""
        event = Event(id=f"e-{secrets.token_hex(8)}", type=kind, at=datetime.now(UTC), session=session, body=body)
        self._append(_Pending(event.id, event.model_dump_json().encode(), stored=False))
        if self._storing or not self._broker.connected:
            self._store_pending()

    def link(self, up: bool) -> None:
        """The link opened or closed."""
        if up:
            self._changed.set()
            if not self._link_closed_on_event:
                self._relinked.set()
        else:
            self._link_closed_on_event = asyncio.get_running_loop().time() - self._tried_s < _HANG_UP_S
            self._store_pending()

    async def run(self, ready: asyncio.Event) -> None:
        """Publish until cancelled, then for `_STOP_TIMEOUT_S` more. What is still pending then goes to the store.

        Stop the store after this part.
        """
        ready.set()
        sending = asyncio.create_task(self._send_all(), name="events:send")
        try:
            await asyncio.wait({sending})
            await sending
        finally:
            self._ending = True
            self._changed.set()
            self._relinked.set()
            await asyncio.wait({sending}, timeout=_STOP_TIMEOUT_S)
            sending.cancel()
            await asyncio.wait({sending})
            self._store_pending()

    async def _send_all(self) -> None:
        while True:
            while self._pending and self._broker.connected:
                if await self._send(next(iter(self._pending.values()))):
                    self._backoff.reset()
                    await asyncio.sleep(self._pause_s)
                else:
                    self._store_pending()
                    await self._sleep(self._backoff.next_s(random.random()))  # noqa: S311  jitter
            if self._ending:
                return
            self._changed.clear()
            await self._changed.wait()

    async def _sleep(self, wait_s: float) -> None:
        """Wait for at most `wait_s`; a new link ends the wait."""
        self._relinked.clear()
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(wait_s):
                await self._relinked.wait()
                if not self._ending:
                    await asyncio.sleep(random.random() * _RELINK_JITTER_S)  # noqa: S311  jitter

    async def _send(self, event: _Pending) -> bool:
        """Publish one event. True: the broker acknowledged it, or it is too large to be sent. False: retry later."""
        loop = asyncio.get_running_loop()
        self._tried_s = loop.time()
        late = loop.call_later(_STORE_AFTER_S, self._store_pending)
        try:
            await self._broker.publish(Message(self._topic, event.payload))
        except BrokerLost:
            return False
        except Rejected as exc:
            if exc.code is not Code.TOO_LARGE:
                return False
            self._counters["messages_refused"] += 1
            if (count := self._log_limit.due(loop.time(), exc.code)) is not None:
                log.error("event dropped: too large failures=%d error=%s", count, exc.message)
        finally:
            late.cancel()
        self._drop(event)
        return True

    def _append(self, event: _Pending) -> None:
        if len(self._pending) >= _LIMIT:
            self._drop(next(iter(self._pending.values())))
            self._counters["events_dropped"] += 1
        self._pending[event.id] = event
        self._changed.set()

    def _store_pending(self) -> None:
        """Store all pending events, and new ones until none is pending."""
        for event in self._pending.values():
            self._storing = True
            if not event.stored:
                event.stored = True
                self._store.put(event.id, event.payload)

    def _drop(self, event: _Pending) -> None:
        self._pending.pop(event.id, None)
        if event.stored:
            event.stored = False
            self._store.drop(event.id)
        self._storing = self._storing and bool(self._pending)
