"""One connection to a broker, as both clients provide it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol, TypeVar

from edge.errors import BrokerLost

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from edge.mqtt.broker import Message
    from edge.mqtt.settings import MqttSettings

    OpenLink = Callable[[MqttSettings, str, Message | None, Callable[[Message], None]], Awaitable["Link"]]
    """Settings, client id, last will, and what takes the messages that come: a new open link."""

UNACKNOWLEDGED = 20
"""Publishes under way at a time; AWS IoT takes 100 of a client, mosquitto 20."""

TAKEN_OVER = "another client connected with the same client id"


class NotGranted(BrokerLost):
    """The broker refused a subscription, or does not answer to it; the link lives."""


class Link(Protocol):
    """One connection, from its making to its end, by one MQTT client. Event loop only."""

    version: str

    async def open(self) -> None:
        """Raises: BrokerLost: in words for a person."""

    async def subscribe(self, topics: tuple[str, ...]) -> None:
        """Until all are granted. Raises: NotGranted: one is not. BrokerLost: the link broke before."""

    async def serve(self) -> None:
        """Until the link is lost, which is noticed within one and a half keep-alives. Raises: BrokerLost."""

    async def publish(self, message: Message) -> None:
        """Until acknowledged. Raises: BrokerLost."""

    def end(self, error: BrokerLost) -> None:
        """It is lost, and this is why. No goodbye is said then, so the last will tells it."""

    async def close(self) -> None:
        """Say goodbye where there is a link, so that no last will is sent; free everything."""


AnyLink = TypeVar("AnyLink", bound=Link)


async def opened(link: AnyLink) -> AnyLink:
    """Open a link; one that cannot be is closed."""
    try:
        await link.open()
    except BaseException:
        await link.close()
        raise
    return link
