"""The port of one connection to a broker, which both clients implement."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol, TypeVar

from edge.errors import BrokerLost

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from edge.mqtt.broker import Message
    from edge.mqtt.settings import MqttSettings

    OpenLink = Callable[[MqttSettings, str, Message | None, Callable[[Message], None]], Awaitable["Link"]]
    """Opens a link. Takes the settings, the client id, the last will, and the receiver of messages."""

UNACKNOWLEDGED = 20
"""Limit of unacknowledged publishes. AWS IoT allows a client 100, mosquitto 20."""

TAKEN_OVER = "another client connected with the same client id"


class NotGranted(BrokerLost):
    """The broker refused a subscription, or did not answer. The link stays open."""


class Link(Protocol):
    """One connection of one MQTT client. It is not opened again. Event loop only."""

    version: str

    async def open(self) -> None:
        """Connect. Raises: BrokerLost: its message explains the failure."""

    async def subscribe(self, topics: tuple[str, ...]) -> None:
        """Wait until all are granted. Raises: NotGranted: one is not. BrokerLost: the link broke."""

    async def serve(self) -> None:
        """Keep the link until it is lost; that takes at most 1.5 keep-alives to notice. Raises: BrokerLost."""

    async def publish(self, message: Message) -> None:
        """Publish and wait for the acknowledgement. Raises: BrokerLost."""

    def end(self, error: BrokerLost) -> None:
        """End the link with this error, without DISCONNECT: the broker then sends the last will."""

    async def close(self) -> None:
        """Send DISCONNECT if there is a link, so that the broker sends no last will. Free all resources."""


AnyLink = TypeVar("AnyLink", bound=Link)


async def opened(link: AnyLink) -> AnyLink:
    """Open a link, and close it if that fails."""
    try:
        await link.open()
    except BaseException:
        await link.close()
        raise
    return link
