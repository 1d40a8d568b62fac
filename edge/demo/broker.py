"""The demo's broker: amqtt, inside the demo's process. It speaks MQTT 3.1.1 only."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Self

from amqtt.broker import Broker
from amqtt.contexts import BrokerConfig, ListenerConfig, ListenerType

if TYPE_CHECKING:
    from types import TracebackType


class EmbeddedBroker:
    """Takes any client on `host`:`port` while its context is open; keep the host a loopback address."""

    def __init__(self, host: str, port: int) -> None:
        # Its warnings are about its clients' manners; the demo's person cannot do anything about them.
        logging.getLogger("amqtt").setLevel(logging.CRITICAL)
        logging.getLogger("transitions").setLevel(logging.CRITICAL)
        listener = ListenerConfig(type=ListenerType.TCP, bind=f"{host}:{port}")
        plugins = {"amqtt.plugins.authentication.AnonymousAuthPlugin": {"allow_anonymous": True}}
        self._broker = Broker(BrokerConfig(listeners={"default": listener}, plugins=plugins))

    async def __aenter__(self) -> Self:
        await self._broker.start()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await self._broker.shutdown()
