"""The broker port with AWS's client, for AWS IoT Core or another MQTT 5 broker with client certificates."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, ClassVar

from awscrt import io

from edge.mqtt.aws_link import AwsLink
from edge.mqtt.link import Link, opened
from edge.mqtt.linked_broker import LinkedBroker
from edge.mqtt.tls import check_tls, explaining_failures, run_in_thread

if TYPE_CHECKING:
    from collections.abc import Callable

    from awscrt.io import ClientBootstrap

    from edge.mqtt.broker import Message
    from edge.mqtt.settings import MqttSettings


class AwsBroker(LinkedBroker):
    """The client has one thread, for as long as `run`.

    For most failures the client reports only that TLS failed, and for a bad certificate of the broker only after 30 s.
    So at the start and after a failed attempt, Python's TLS connects first and explains the failure.
    """

    # AWS IoT accepts one CONNECT per second from a client id.
    _first_wait_s: ClassVar[float] = 2.0
    _least_wait_s: ClassVar[float] = 1.0
    _bootstrap: ClientBootstrap = None
    _must_check_tls = True

    async def run(self, ready: asyncio.Event) -> None:
        threads = io.EventLoopGroup(1)
        self._bootstrap = io.ClientBootstrap(threads, io.DefaultHostResolver(threads))
        del threads  # the bootstrap keeps the threads alive
        try:
            await super().run(ready)
        finally:
            self._bootstrap = None

    async def _open(
        self, settings: MqttSettings, client_id: str, will: Message | None, receive: Callable[[Message], None]
    ) -> Link:
        if self._must_check_tls:
            with explaining_failures(settings):
                async with asyncio.timeout(2 * settings.connect_timeout_s + 1):
                    await run_in_thread(lambda: check_tls(settings), lambda: None)
        self._must_check_tls = True
        link = await opened(
            AwsLink(settings, client_id, will, receive, on_dropped=self._count_dropped, bootstrap=self._bootstrap)
        )
        self._must_check_tls = False
        return link

    def _count_dropped(self, messages: int) -> None:
        self.dropped += messages
