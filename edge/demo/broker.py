"""The demo's broker: amqtt in the demo's process. It supports MQTT 3.1.1 only."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Self

from amqtt.broker import Broker
from amqtt.contexts import BrokerConfig, ListenerConfig, ListenerType

if TYPE_CHECKING:
    from types import TracebackType


class EmbeddedBroker:
    """Accepts every client on `host`:`port` while its context is open. The host should be a loopback address."""

    def __init__(self, host: str, port: int) -> None:
        # Its warnings are about clients, and the user of the demo cannot act on them.
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
