"""Figures, now and then."""

from __future__ import annotations

import asyncio
import random
from typing import TYPE_CHECKING

from edge.mqtt.broker import Message

if TYPE_CHECKING:
    from collections.abc import Callable

    from edge.contract.messages import Telemetry
    from edge.contract.topics import Topics
    from edge.signalling.outbox import Outbox


class TelemetryBeat:
    """Sends telemetry every `every_s`, link or no link: what cannot be sent is not sent later.

    Each device has moments of its own, drawn at its start: many that start together, or whose broker does, do not
    send together.
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
            self._outbox.put(Message(self._topic, self._telemetry().model_dump_json().encode()))
            await asyncio.sleep(self._every_s)
