"""What happened, told at least once and in order, however long the link is away."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import random
import secrets
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from edge.contract.codes import Code
from edge.contract.messages import Event
from edge.core.backoff import Backoff
from edge.errors import BrokerLost, Rejected
from edge.mqtt.broker import Message

if TYPE_CHECKING:
    from collections import Counter

    from edge.mqtt.broker import Broker
    from edge.signalling.ports import EventStore

log = logging.getLogger(__name__)

_LIMIT = 1000
_PATIENCE_S = 2.0
_SHARE = 4
_AGAIN_CAP_S = 300.0
_LINKED_AGAIN_S = 10.0
_HUNG_UP_S = 2.0
_GOODBYE_S = 2.0


@dataclass(slots=True)
class _Waiting:
    """An event that the broker does not have yet."""

    id: str
    payload: bytes
    kept: bool


class Events:
    """Sends events to `topic`, each once the one before it is acknowledged. Event loop only.

    At most `_LIMIT` wait, the oldest are dropped and counted (`events_dropped`). With a link that is well they wait in
    memory alone. Where there is none, or an acknowledgement does not come, those that wait are written down in
    `store`, and further ones until none waits any more: so they come after a restart, too.

    At most a `_SHARE`th of `publishes_per_s` is taken: what gathered does not crowd out replies. A broker that refuses
    an event, or hangs up on it (AWS IoT, where the policy does not allow it), is tried ever more rarely; one that comes
    back from anything else, within `_LINKED_AGAIN_S`.
    """

    def __init__(
        self, broker: Broker, topic: str, store: EventStore, counters: Counter[str], publishes_per_s: float
    ) -> None:
        self._broker = broker
        self._topic = topic
        self._store = store
        self._counters = counters
        self._pause_s = _SHARE / publishes_per_s
        self._backoff = Backoff(first_s=1.0, cap_s=_AGAIN_CAP_S)
        self._waiting: dict[str, _Waiting] = {}
        self._keeping = False
        self._ending = False
        self._changed = asyncio.Event()
        self._linked_again = asyncio.Event()
        self._tried_s = float("-inf")
        self._hung_up = False
        for event_id, payload in store.open():
            self._add(_Waiting(event_id, payload, kept=True))
            self._keeping = True

    def notice(self, kind: str, session: str | None, body: dict[str, Any]) -> None:
        """Send an event."""
        event = Event(id=f"e-{secrets.token_hex(8)}", type=kind, at=datetime.now(UTC), session=session, body=body)
        self._add(_Waiting(event.id, event.model_dump_json().encode(), kept=False))
        if self._keeping or not self._broker.connected:
            self._keep()

    def link(self, up: bool) -> None:
        """The link came or went."""
        if up:
            self._changed.set()
            if not self._hung_up:
                self._linked_again.set()
        else:
            self._hung_up = asyncio.get_running_loop().time() - self._tried_s < _HUNG_UP_S
            self._keep()

    async def run(self, ready: asyncio.Event) -> None:
        """Send until cancelled; then, for a moment, what waits still, and the rest is the next run's.

        The store has to run longer.
        """
        ready.set()
        sending = asyncio.create_task(self._send_all(), name="events:send")
        try:
            await asyncio.wait({sending})
            await sending
        finally:
            self._ending = True
            self._changed.set()
            self._linked_again.set()
            await asyncio.wait({sending}, timeout=_GOODBYE_S)
            sending.cancel()
            await asyncio.wait({sending})
            self._keep()

    async def _send_all(self) -> None:
        while True:
            while self._waiting and self._broker.connected:
                if await self._send(next(iter(self._waiting.values()))):
                    self._backoff.reset()
                    await asyncio.sleep(self._pause_s)
                else:
                    self._keep()
                    await self._sleep(self._backoff.next_s(random.random()))  # noqa: S311  jitter
            if self._ending:
                return
            self._changed.clear()
            await self._changed.wait()

    async def _sleep(self, wait_s: float) -> None:
        """At most so long."""
        self._linked_again.clear()
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(wait_s):
                await self._linked_again.wait()
                if not self._ending:
                    await asyncio.sleep(random.random() * _LINKED_AGAIN_S)  # noqa: S311  jitter

    async def _send(self, event: _Waiting) -> bool:
        """Whether it is done with: it is acknowledged, or will never fit."""
        loop = asyncio.get_running_loop()
        self._tried_s = loop.time()
        late = loop.call_later(_PATIENCE_S, self._keep)
        try:
            await self._broker.publish(Message(self._topic, event.payload))
        except BrokerLost:
            return False
        except Rejected as exc:
            if exc.code is not Code.TOO_LARGE:
                return False
            self._counters["messages_refused"] += 1
            log.error("an event could not be sent: %s", exc.message)  # noqa: TRY400
        finally:
            late.cancel()
        self._forget(event)
        return True

    def _add(self, event: _Waiting) -> None:
        if len(self._waiting) >= _LIMIT:
            self._forget(next(iter(self._waiting.values())))
            self._counters["events_dropped"] += 1
        self._waiting[event.id] = event
        self._changed.set()

    def _keep(self) -> None:
        """Write down what waits, and what comes until nothing waits any more."""
        for event in self._waiting.values():
            self._keeping = True
            if not event.kept:
                event.kept = True
                self._store.put(event.id, event.payload)

    def _forget(self, event: _Waiting) -> None:
        self._waiting.pop(event.id, None)
        if event.kept:
            event.kept = False
            self._store.drop(event.id)
        self._keeping = self._keeping and bool(self._waiting)
