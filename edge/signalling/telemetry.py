"""Publishes telemetry at regular intervals."""

from __future__ import annotations

import asyncio
import logging
import random
from typing import TYPE_CHECKING

from edge.mqtt.broker import Message

if TYPE_CHECKING:
    from collections.abc import Callable

    from edge.contract.messages import Telemetry
    from edge.contract.topics import Topics
    from edge.signalling.outbox import Outbox

log = logging.getLogger(__name__)


class TelemetryBeat:
    """Publishes telemetry every `every_s`. Without a link it is lost: it is not sent later.

    The first wait is random, so that devices that start at the same time do not send at the same time.
    """

    def __init__(self, outbox: Outbox, topics: Topics, telemetry: Callable[[], Telemetry], every_s: float) -> None:
        self._outbox = outbox
        self._topic = topics.telemetry
        self._telemetry = telemetry
        self._every_s = every_s

    async def run(self, ready: asyncio.Event) -> None:
        ready.set()
        await asyncio.sleep(random.random() * self._every_s)  # noqa: S311  jitter
        while True:
            try:
                payload = self._telemetry().model_dump_json().encode()
            except Exception:
                log.exception("telemetry left out because of a bug")
            else:
                self._outbox.put(Message(self._topic, payload), "telemetry")
            await asyncio.sleep(self._every_s)
