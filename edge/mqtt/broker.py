"""The broker port: what signalling and the Python client need from an MQTT client."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    import asyncio
    from collections.abc import Callable


@dataclass(frozen=True, slots=True)
class Message:
    """One message at QoS 1, received or to be published. Response topic and correlation exist in MQTT 5 only."""

    topic: str
    payload: bytes
    retain: bool = False
    response_topic: str | None = None
    correlation: bytes | None = None
    expiry_s: int | None = None


class Broker(Protocol):
    """A link to one broker that reconnects automatically. Event loop only."""

    connected: bool
    error: str | None
    """Why there is no link, without secrets; while connected, the optional subscriptions that are not granted."""
    dropped: int
    """The number of received messages that were dropped because they were not handled in time."""
    optional_granted: bool
    """Whether the current link, or the last one, was granted the optional subscriptions."""

    def listen(self, on_message: Callable[[Message], None], on_link: Callable[[bool], None]) -> None:
        """Set the receivers, before `run`. Both are called in the event loop, and must not block or raise.

        `on_link(True)` is called after the broker granted all subscriptions, so no message is missed after it. The
        optional subscriptions are granted or refused by then.
        """

    async def publish(self, message: Message) -> None:
        """Publish a message and wait for the broker's acknowledgement, with a deadline.

        Raises: BrokerLost: there is no link, it broke, or there was no acknowledgement in time.
        Raises: Rejected: `too_large`: the payload or the topic exceeds its limit, and nothing was sent.
        """

    async def run(self, ready: asyncio.Event) -> None:
        """Keep the link until cancelled. `ready` is set at once, with or without a broker.

        Cancellation closes the link cleanly, so that the broker sends no last will.
        """
