"""The broker port by AWS's own client: AWS IoT Core, or another broker of MQTT 5 with client certificates."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, ClassVar

from awscrt import io

from edge.mqtt.aws_link import AwsLink
from edge.mqtt.link import Link, opened
from edge.mqtt.linked_broker import LinkedBroker
from edge.mqtt.tls import in_thread, knock, telling

if TYPE_CHECKING:
    from collections.abc import Callable

    from awscrt.io import ClientBootstrap

    from edge.mqtt.broker import Message
    from edge.mqtt.settings import MqttSettings


class AwsBroker(LinkedBroker):
    """The client's one thread lives as long as `run`.

    It says of most things just that TLS failed, and of a broker's bad certificate so only half a minute later. So at
    the start and after a try that failed, Python's TLS goes first, and says what is wrong.
    """

    # AWS IoT takes one CONNECT a second of a client id.
    _first_wait_s: ClassVar[float] = 2.0
    _least_wait_s: ClassVar[float] = 1.0
    _bootstrap: ClientBootstrap = None
    _in_doubt = True

    async def run(self, ready: asyncio.Event) -> None:
        threads = io.EventLoopGroup(1)
        self._bootstrap = io.ClientBootstrap(threads, io.DefaultHostResolver(threads))
        del threads  # ends with what uses it
        try:
            await super().run(ready)
        finally:
            self._bootstrap = None

    async def _open(
        self, settings: MqttSettings, client_id: str, will: Message | None, receive: Callable[[Message], None]
    ) -> Link:
        if self._in_doubt:
            with telling(settings):
                async with asyncio.timeout(2 * settings.connect_timeout_s + 1):
                    await in_thread(lambda: knock(settings), lambda: None)
        self._in_doubt = True
        link = await opened(AwsLink(settings, client_id, will, receive, on_lost=self._lose, bootstrap=self._bootstrap))
        self._in_doubt = False
        return link

    def _lose(self, messages: int) -> None:
        self.dropped += messages
